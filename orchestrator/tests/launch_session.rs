//! The runner's end of a session, with a shim that we play: for orders of events that a real one seldom comes to.

use std::time::Duration;

use ckrv_orchestrator::launch::proxy::ProxyClient;
use ckrv_orchestrator::launch::*;
use ckrv_shim::mux::{self, MuxStream, Side};
use ckrv_shim::protocol::{FromShim, PROTOCOL, StreamHeader, ToShim, read_frame, write_frame};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;

async fn hear(control: &mut MuxStream) -> ToShim {
    read_frame(control, 1 << 20).await.expect("a frame of the runner")
}

#[tokio::test]
async fn the_end_of_a_command_may_overtake_the_stream_of_its_output() {
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let shim = tokio::spawn(async move {
        let (read, write) = tokio::io::split(theirs);
        let (opener, mut incoming, driver) = mux::start(read, write, Side::Shim);
        let mut control = incoming.recv().await.expect("the control stream");
        let _: StreamHeader = read_frame(&mut control, 1024).await.expect("its header");
        hear(&mut control).await;
        let hello = FromShim::Hello { protocol: PROTOCOL, version: "0".to_owned() };
        write_frame(&mut control, &hello).await.expect("a greeting");
        let run = loop {
            if let ToShim::Run(run) = hear(&mut control).await {
                break run.id;
            }
        };
        let record = ExitRecord {
            status: ExitStatus::Code(0),
            stopped: false,
            duration_ms: 0,
            max_rss_kib: 0,
            output_frames: 0,
            output_bytes: 0,
            leftovers: 0,
        };
        write_frame(&mut control, &FromShim::Exited { run, record }).await.expect("an end");
        // By the second ping the runner has read what came before it.
        hear(&mut control).await;
        hear(&mut control).await;
        let mut output = opener.open().await.expect("a stream");
        write_frame(&mut output, &StreamHeader::Output { run }).await.expect("its header");
        output.shutdown().await.expect("its end");
        driver.await
    });
    let (read, write) = tokio::io::split(ours);
    let config = SessionConfig { silence: Duration::from_secs(60), ping_every: Duration::from_millis(20) };
    let mut session = ShimSession::connect(read, write, config, ProxyClient::new().expect("a client")).await.expect("a session");
    let (output, _frames) = mpsc::channel(1);
    let end = session.run(RunSpec::plain(vec!["true".to_owned()], 60), &output).await.expect("an end");
    assert_eq!(end.record.status, ExitStatus::Code(0));
    shim.abort();
}
