//! The container launcher on a real engine.
//!
//! Needs `CKRV_TEST_ENGINE` (a Docker-compatible socket) and `CKRV_TEST_IMAGE` (an image there with a busybox): `cargo xtask test`
//! gives both. Not tested: pulling an image, which needs a registry.

mod launch_support;

use std::sync::Arc;
use std::time::Duration;

use ckrv_orchestrator::launch::*;
use launch_support::{LIMITS, PATIENCE, connect, run, sh, small_tar, spec, static_shim};
use tokio::sync::mpsc;

#[expect(clippy::disallowed_methods, reason = "the bench is named by environment variables")]
fn given(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run this by `cargo xtask test`, which starts an engine"))
}

async fn engine() -> Engine {
    Engine::connect(&given("CKRV_TEST_ENGINE")).await.expect("the engine answers")
}

async fn launcher() -> ContainerLauncher {
    let shim = std::fs::read(static_shim()).expect("the shim");
    ContainerLauncher::new(engine().await, ContainerConfig { pull: PullPolicy::Never, ..ContainerConfig::new(shim) })
}

/// Unique on this machine, also against an earlier run of the tests that was cut off.
fn name(test: &str) -> String {
    format!("ckrv-test-{test}-{}", std::process::id())
}

async fn prepared(test: &str, memory_mib: u32) -> (ShimSession, Arc<dyn Instance>) {
    let mut spec = spec(&name(test), &given("CKRV_TEST_IMAGE"), std::path::Path::new("/"));
    spec.resources.memory_mib = memory_mib;
    spec.resources.cpu_millis = 1000;
    let launched = launcher().await.launch(&spec).await.expect("it launches");
    let (mut session, paths, instance) = connect(launched).await;
    session.prepare(paths, &small_tar()[..], LIMITS).await.expect("it's prepared");
    (session, instance)
}

#[tokio::test]
async fn a_container_runs_commands_and_returns_changes() {
    let (mut session, instance) = prepared("changes", 256).await;
    let (end, stdout, stderr) = run(&mut session, sh("cat a.txt; echo B > b.txt; echo h > ~/h; echo t > /tmp/t")).await;
    assert_eq!((end.record.status, &stdout[..]), (ExitStatus::Code(0), &b"A\n"[..]), "{}", stderr.escape_ascii());
    let mut tar = Vec::new();
    let collection = session.collect(LIMITS, |_| true, &mut tar).await.expect("changes");
    assert_eq!(collection.changed.iter().map(|c| c.path.to_string()).collect::<Vec<_>>(), ["b.txt"]);
    session.bye().await;
    assert_eq!(instance.watch().await.code, Some(0));
    instance.stop().await;
    assert_eq!(launcher().await.sweep("dev.ckrv.test", &name("changes")).await.expect("a sweep"), 0);
}

#[tokio::test]
async fn the_agent_has_no_network_no_rights_and_a_root_that_it_cannot_write() {
    let (mut session, instance) = prepared("rights", 256).await;
    let script = "id -u; cat /proc/1/comm; ls /sys/class/net; grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status
        echo x 2>&- > /etc/x || echo read-only; echo x 2>&- > /ckrv/shim || echo shim-safe; ls /proc/1/fd 2>&- || echo fds-safe";
    let (_, stdout, stderr) = run(&mut session, sh(script)).await;
    let text = String::from_utf8(stdout).expect("text");
    let expected =
        "1000\nshim\nlo\nCapBnd:\t0000000000000000\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\nread-only\nshim-safe\nfds-safe\n";
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    let mut wanted: Vec<_> = expected.lines().collect();
    wanted.sort_unstable();
    assert_eq!(lines, wanted, "{}", stderr.escape_ascii());
    instance.stop().await;
}

#[tokio::test]
async fn a_hundred_megabytes_arrive_whole_at_a_slow_reader() {
    let (mut session, instance) = prepared("flood", 256).await;
    let (output, mut frames) = mpsc::channel::<OutputFrame>(1);
    let reading = async {
        let (mut total, mut sum) = (0_u64, 0_u64);
        while let Some(frame) = frames.recv().await {
            if total < 20_000_000 {
                // Slower than the container writes, so that every buffer on the way fills up.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            total += frame.bytes.len() as u64;
            sum += frame.bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>();
        }
        (total, sum)
    };
    let running = async {
        let end = session.run(sh("yes 0123456789abcde | head -c 100000000"), &output).await;
        drop(output);
        end
    };
    let (end, (total, sum)) = tokio::time::timeout(PATIENCE, async { tokio::join!(running, reading) }).await.expect("in time");
    let line: u64 = b"0123456789abcde\n".iter().map(|byte| u64::from(*byte)).sum();
    assert_eq!((total, sum), (100_000_000, line * (100_000_000 / 16)));
    assert_eq!(end.expect("it ends").record.output_bytes, 100_000_000);
    instance.stop().await;
}

#[tokio::test]
async fn an_agent_that_eats_its_memory_is_told_from_one_that_is_killed() {
    let (mut session, instance) = prepared("oom", 64).await;
    let (end, ..) = run(&mut session, sh("kill -9 $$")).await;
    assert_eq!(end.record.status, ExitStatus::Signal(9));
    let (output, _frames) = mpsc::channel::<OutputFrame>(64);
    let end = session.run(sh("x=0123456789abcdef; while :; do x=$x$x; done"), &output).await;
    match end {
        Ok(end) => assert_eq!(end.record.status, ExitStatus::OomKilled, "{end:?}"),
        // The engine killed the container as a whole.
        Err(SessionError::Lost(_)) => assert_eq!(instance.watch().await.fault, Some(Fault::OutOfMemory)),
        Err(error) => panic!("{error}"),
    }
    instance.stop().await;
}

#[tokio::test]
async fn what_a_dead_runner_leaves_ends_and_is_swept() {
    let (session, instance) = prepared("sweep", 256).await;
    // Neither goodbye nor removal: the session's end alone.
    drop(session);
    let ended = tokio::time::timeout(PATIENCE, instance.watch()).await.expect("the shim ends");
    assert_eq!(ended.code, Some(74), "{ended:?}");
    let swept = launcher().await.sweep("dev.ckrv.test", &name("sweep")).await;
    assert_eq!(swept.expect("a sweep"), 1);
}

#[tokio::test]
async fn a_missing_image_and_a_missing_engine_are_told_apart() {
    let spec = spec(&name("missing"), "localhost/no-such-image:1", std::path::Path::new("/"));
    let error = launcher().await.launch(&spec).await.expect_err("no image");
    assert!(matches!(error, LaunchError::ImageNotFound { .. }), "{error:?}");
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("none.sock");
    let error = Engine::connect(socket.to_str().expect("utf-8")).await.expect_err("no engine");
    assert!(matches!(error, LaunchError::EngineUnreachable { .. }), "{error:?}");
    assert!(Engine::detect(Some(socket.to_str().expect("utf-8")), None).await.is_none());
}
