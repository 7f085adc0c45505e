//! The real shim in connect mode, the door, and between them a wire that is cut, forged and left hanging.

mod launch_support;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ckrv_orchestrator::launch::proxy::ProxyClient;
use ckrv_orchestrator::launch::*;
use ckrv_shim::protocol::ShimPaths;
use ckrv_shim::resume::Timing;
use launch_support::{LIMITS, PATIENCE, run, sh, shim, small_tar};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use secrecy::ExposeSecret as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

fn paths(folder: &Path) -> ShimPaths {
    let at = |name: &str| folder.join(name).to_str().expect("utf-8").to_owned();
    ShimPaths { workspace: at("workspace"), home: at("home"), context: at("context"), tmp: at("tmp") }
}

/// A shim that dials `port`; more variables may be given.
fn dial(door: &Door, guest: &Guest, port: u16, more: &[(&str, &str)]) -> Child {
    Command::new(shim())
        .arg("connect")
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("CKRV_SHIM_RUNNER", format!("127.0.0.1:{port}"))
        .env("CKRV_SHIM_CERT", door.fingerprint())
        .env("CKRV_SHIM_TICKET", guest.ticket().expose_secret())
        .envs(more.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the shim starts")
}

/// Its exit code and what it said.
async fn end_of(mut shim: Child) -> (Option<i32>, String) {
    let mut said = String::new();
    let mut stderr = shim.stderr.take().expect("stderr");
    timeout(PATIENCE, stderr.read_to_string(&mut said)).await.expect("in time").expect("text");
    (timeout(PATIENCE, shim.wait()).await.expect("in time").expect("its status").code(), said)
}

async fn session(guest: &mut Guest, silence: Duration) -> ShimSession {
    let (read, write) = timeout(PATIENCE, guest.arrived()).await.expect("in time").expect("it arrives");
    let config = SessionConfig { silence, ping_every: silence / 4 };
    ShimSession::connect(read, write, config, ProxyClient::new().expect("a client")).await.expect("a session")
}

async fn prepared(guest: &mut Guest, folder: &Path) -> ShimSession {
    let mut session = session(guest, Duration::from_secs(60)).await;
    session.prepare(paths(folder), &small_tar()[..], LIMITS).await.expect("it's prepared");
    session
}

async fn open_door() -> (Door, Guest) {
    let door = Door::open(LOCAL).await.expect("a door");
    let guest = door.expect();
    guest.from(Ipv4Addr::LOCALHOST.into());
    (door, guest)
}

/// Passes connections on and cuts each after a number of bytes that `limit` gives, while it gives one.
async fn cutting_wire(to: u16, limit: impl Fn() -> Option<usize> + Send + Sync + 'static) -> (u16, JoinSet<()>) {
    let listener = TcpListener::bind(LOCAL).await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let mut wire = JoinSet::new();
    wire.spawn(async move {
        let mut carried = JoinSet::new();
        loop {
            let Ok((near, _)) = listener.accept().await else { continue };
            let limit = limit();
            carried.spawn(async move {
                let Ok(far) = TcpStream::connect(("127.0.0.1", to)).await else { return };
                let _ = carry(near, far, limit).await;
            });
        }
    });
    (port, wire)
}

async fn carry(mut near: TcpStream, mut far: TcpStream, mut left: Option<usize>) -> io::Result<()> {
    let (mut up, mut down) = (vec![0; 16 * 1024], vec![0; 16 * 1024]);
    loop {
        let (n, bytes, to) = tokio::select! {
            n = near.read(&mut up) => (n?, &up, &mut far),
            n = far.read(&mut down) => (n?, &down, &mut near),
        };
        let passed = left.map_or(n, |left| left.min(n));
        to.write_all(&bytes[..passed]).await?;
        left = left.map(|left| left - passed);
        if n == 0 || left == Some(0) {
            return Ok(());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_prints_a_lot_over_two_hundred_cuts_loses_and_repeats_nothing() {
    let (door, mut guest) = open_door().await;
    let cuts = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&cuts);
    // From the first byte of a handshake to some frames of output.
    let (port, _wire) = cutting_wire(door.port(), move || {
        let cut = counted.fetch_add(1, Ordering::Relaxed);
        (cut < 200).then(|| 1 + (cut * 7919) % [150, 2_500, 60_000, 120_000][cut % 4])
    })
    .await;
    let folder = tempfile::tempdir().expect("a folder");
    let shim = dial(&door, &guest, port, &[]);
    let mut session = prepared(&mut guest, folder.path()).await;
    // Until the wire has been cut often enough, and a line for each number.
    let script = "i=0; while [ $i -lt 40 ]; do seq $((i*50000+1)) $((i*50000+50000)); i=$((i+1)); done; echo end >&2; exit 3";
    let (end, stdout, stderr) = run(&mut session, sh(script)).await;
    let expected: String = (1..=2_000_000).map(|n| format!("{n}\n")).collect();
    assert_eq!((end.record.status, end.hung, &stderr[..]), (ExitStatus::Code(3), None, &b"end\n"[..]));
    assert!(stdout == expected.as_bytes(), "{} bytes of {}, or others", stdout.len(), expected.len());
    assert!(cuts.load(Ordering::Relaxed) > 200, "only {} cuts", cuts.load(Ordering::Relaxed));
    // No second exit record is under way: it would be the answer to this.
    let (again, stdout, _) = run(&mut session, sh("echo again > new; echo again")).await;
    assert_eq!((again.record.status, &stdout[..]), (ExitStatus::Code(0), &b"again\n"[..]));
    let mut tar = Vec::new();
    let collection = session.collect(LIMITS, |_| true, &mut tar).await.expect("changes");
    assert_eq!(collection.changed.iter().map(|changed| changed.path.to_string()).collect::<Vec<_>>(), ["new"]);
    session.bye().await;
    assert_eq!(end_of(shim).await, (Some(0), String::new()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_goes_on_while_the_wire_is_down_and_its_output_comes_later() {
    let (door, mut guest) = open_door().await;
    let folder = tempfile::tempdir().expect("a folder");
    let done = folder.path().join("workspace/done");
    let first = AtomicUsize::new(400_000);
    // Down from early on until the command has ended.
    let (port, _wire) = cutting_wire(door.port(), move || match first.swap(0, Ordering::Relaxed) {
        0 if done.exists() => None,
        0 => Some(1),
        limit => Some(limit),
    })
    .await;
    let shim = dial(&door, &guest, port, &[]);
    let mut session = prepared(&mut guest, folder.path()).await;
    // Far more than pipes, windows and memory hold.
    let (end, stdout, _) = run(&mut session, sh("seq 1 2000000; echo > done")).await;
    let expected: String = (1..=2_000_000).map(|n| format!("{n}\n")).collect();
    assert_eq!(end.record.status, ExitStatus::Code(0));
    assert!(stdout == expected.as_bytes(), "{} bytes of {}, or others", stdout.len(), expected.len());
    session.bye().await;
    assert_eq!(end_of(shim).await, (Some(0), String::new()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shim_whose_runner_vanishes_kills_its_command_and_ends_and_so_does_the_runners_run() {
    let silence = Duration::from_secs(3);
    let door = Door::open_with(LOCAL, Timing::with_silence(silence)).await.expect("a door");
    let mut guest = door.expect();
    guest.from(Ipv4Addr::LOCALHOST.into());
    let (port, wire) = cutting_wire(door.port(), || None).await;
    let folder = tempfile::tempdir().expect("a folder");
    let shim = dial(&door, &guest, port, &[("CKRV_SHIM_SILENCE", "3")]);
    let mut session = session(&mut guest, silence).await;
    session.prepare(paths(folder.path()), &small_tar()[..], LIMITS).await.expect("it's prepared");
    let (output, mut frames) = mpsc::channel(4);
    let running = tokio::spawn(async move {
        let spec = sh("trap '' TERM; setsid sh -c 'trap \"\" TERM; echo $$; exec sleep 1000' & wait");
        (session.run(spec, &output).await, session)
    });
    let frame = timeout(PATIENCE, frames.recv()).await.expect("in time").expect("output");
    let pid: i32 = String::from_utf8(frame.bytes).expect("text").trim().parse().expect("a number");
    drop(wire);
    let (code, said) = end_of(shim).await;
    assert_eq!(code, Some(74), "{said}");
    assert!(kill(Pid::from_raw(pid), None).is_err(), "its command lives");
    let (end, _session) = timeout(PATIENCE, running).await.expect("in time").expect("no panic");
    assert!(matches!(end, Err(SessionError::Lost(_))), "{end:?}");
}

#[tokio::test]
async fn a_ticket_is_worth_nothing_to_a_second_shim_and_the_first_one_goes_on() {
    let (door, mut guest) = open_door().await;
    let folder = tempfile::tempdir().expect("a folder");
    let first = dial(&door, &guest, door.port(), &[]);
    let mut session = prepared(&mut guest, folder.path()).await;
    let (code, said) = end_of(dial(&door, &guest, door.port(), &[])).await;
    assert_eq!(code, Some(77), "{said}");
    assert!(!said.contains(guest.ticket().expose_secret()), "the ticket is shown");
    let (_, stdout, _) = run(&mut session, sh("env")).await;
    let stdout = String::from_utf8(stdout).expect("text");
    assert!(stdout.contains("PATH=") && !stdout.contains("CKRV"), "{stdout}");
    session.bye().await;
    assert_eq!(end_of(first).await.0, Some(0));
    // Nor is it once its stream is over.
    assert_eq!(end_of(dial(&door, &guest, door.port(), &[])).await.0, Some(77));
}

#[tokio::test]
async fn a_shim_of_another_address_is_refused_and_one_is_held_until_its_address_is_known() {
    let door = Door::open(LOCAL).await.expect("a door");
    let guest = door.expect();
    guest.from(Ipv4Addr::new(127, 0, 0, 9).into());
    assert_eq!(end_of(dial(&door, &guest, door.port(), &[])).await.0, Some(77));
    let mut guest = door.expect();
    let (port, _wire) = cutting_wire(door.port(), || None).await;
    let shim = dial(&door, &guest, port, &[]);
    assert!(timeout(Duration::from_millis(500), guest.arrived()).await.is_err(), "it was let in");
    guest.from(Ipv4Addr::LOCALHOST.into());
    session(&mut guest, Duration::from_secs(60)).await.bye().await;
    assert_eq!(end_of(shim).await.0, Some(0));
    assert!(guest.arrived().await.is_err(), "it arrived twice");
}

#[tokio::test]
async fn a_runner_with_another_certificate_gets_no_ticket_and_one_that_is_not_there_is_named() {
    let (door, guest) = open_door().await;
    let (other, mut robbed) = open_door().await;
    let shim = dial(&door, &guest, other.port(), &[("CKRV_SHIM_SILENCE", "2")]);
    let (code, said) = end_of(shim).await;
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains(&format!("127.0.0.1:{}", other.port())), "{said}");
    assert!(timeout(Duration::from_millis(1), robbed.arrived()).await.is_err());
    let free = TcpListener::bind(LOCAL).await.expect("a port").local_addr().expect("an address").port();
    assert_eq!(end_of(dial(&door, &guest, free, &[("CKRV_SHIM_SILENCE", "1")])).await.0, Some(69));
    assert_eq!(end_of(dial(&door, &guest, free, &[("CKRV_SHIM_CERT", "")])).await.0, Some(78));
}

#[tokio::test]
async fn garbage_and_connections_left_hanging_do_not_keep_a_shim_out() {
    let (door, mut guest) = open_door().await;
    let mut hanging = Vec::new();
    for n in 0..100 {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind((Ipv4Addr::new(127, 0, 0, 2), 0).into()).expect("an address of its own");
        let mut connection = socket.connect(([127, 0, 0, 1], door.port()).into()).await.expect("the port is open");
        // A TLS record's head and no more, garbage, nothing.
        let _ = connection.write_all([&b"\x16\x03\x01\x02\x00\x01"[..], b"GET / HTTP/1.1\r\n\r\n", b""][n % 3]).await;
        hanging.push(connection);
    }
    let folder = tempfile::tempdir().expect("a folder");
    let shim = dial(&door, &guest, door.port(), &[]);
    let mut session = prepared(&mut guest, folder.path()).await;
    assert_eq!(run(&mut session, sh("echo in")).await.1, b"in\n");
    session.bye().await;
    assert_eq!(end_of(shim).await.0, Some(0));
}

/// Agents of other jobs reach this port too, each from its own pod.
#[tokio::test]
async fn connections_left_hanging_from_many_addresses_do_not_keep_a_shim_out() {
    // It is built first: the door's patience with what hangs is short.
    shim();
    let (door, mut guest) = open_door().await;
    let mut hanging = Vec::new();
    for n in 0..20 * 8 {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind((Ipv4Addr::new(127, 0, 1, n / 8), 0).into()).expect("an address of its own");
        hanging.push(socket.connect(([127, 0, 0, 1], door.port()).into()).await.expect("the port is open"));
    }
    // Far less patience than the door has with those.
    let shim = dial(&door, &guest, door.port(), &[("CKRV_SHIM_SILENCE", "3")]);
    session(&mut guest, Duration::from_secs(3)).await.bye().await;
    assert_eq!(end_of(shim).await.0, Some(0));
    drop(hanging);
}

#[tokio::test]
async fn a_guest_that_is_dropped_turns_its_shim_away_and_a_dropped_session_ends_it() {
    let (door, guest) = open_door().await;
    let (port, _wire) = cutting_wire(door.port(), || None).await;
    let late = dial(&door, &guest, port, &[]);
    drop(guest);
    assert_eq!(end_of(late).await.0, Some(77));
    let mut guest = door.expect();
    guest.from(Ipv4Addr::LOCALHOST.into());
    let shim = dial(&door, &guest, port, &[]);
    drop(session(&mut guest, Duration::from_secs(60)).await);
    let (code, said) = end_of(shim).await;
    assert!(matches!(code, Some(74 | 77)), "{code:?} {said}");
}

#[tokio::test]
async fn a_shim_that_is_asked_to_end_lets_its_command_end_reports_it_and_still_gives_the_changes() {
    let (door, mut guest) = open_door().await;
    let folder = tempfile::tempdir().expect("a folder");
    let shim = dial(&door, &guest, door.port(), &[]);
    let mut session = prepared(&mut guest, folder.path()).await;
    let pid = Pid::from_raw(shim.id().expect("it runs").cast_signed());
    let (output, mut frames) = mpsc::channel::<OutputFrame>(4);
    let ending = async {
        let first = frames.recv().await.expect("output");
        assert_eq!(first.bytes, b"on\n");
        kill(pid, Signal::SIGTERM).expect("a signal");
        let mut rest = Vec::new();
        // A shell says on stderr what became of its own children.
        while let Some(frame) = frames.recv().await {
            rest.extend(if frame.source == Source::Stdout { frame.bytes } else { Vec::new() });
        }
        rest
    };
    let running = async {
        let end = session
            .run(sh("trap 'echo saved > kept; echo off; exit 0' TERM; echo on; while :; do sleep 0.05; done"), &output)
            .await;
        drop(output);
        end
    };
    let (end, rest) = timeout(PATIENCE, async { tokio::join!(running, ending) }).await.expect("in time");
    let record = end.expect("an end").record;
    assert_eq!((record.status, record.stopped, &rest[..]), (ExitStatus::Evicted, false, &b"off\n"[..]));
    let collection = session.collect(LIMITS, |_| true, &mut Vec::new()).await.expect("changes");
    assert_eq!(collection.changed.iter().map(|changed| changed.path.to_string()).collect::<Vec<_>>(), ["kept"]);
    // Nothing is begun any more, and that is not the job's fault.
    let (output, _frames) = mpsc::channel(1);
    assert!(matches!(session.run(sh("true"), &output).await, Err(SessionError::Lost(_))));
    assert_eq!(end_of(shim).await.0, Some(70));
}

#[tokio::test]
async fn a_shim_that_is_asked_to_end_while_it_unpacks_is_lost_and_has_not_failed() {
    let (door, mut guest) = open_door().await;
    let folder = tempfile::tempdir().expect("a folder");
    let shim = dial(&door, &guest, door.port(), &[]);
    let mut session = session(&mut guest, Duration::from_secs(60)).await;
    let pid = Pid::from_raw(shim.id().expect("it runs").cast_signed());
    // A checkout that never comes to its end: it is under way when the signal comes.
    let (mut checkout, tar) = tokio::io::duplex(1024);
    let unpacked = folder.path().join("workspace/a.txt");
    let asking = async {
        let small = small_tar();
        // Without the two empty blocks that end it.
        checkout.write_all(&small[..small.len() - 1024]).await.expect("it is read");
        while !unpacked.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        kill(pid, Signal::SIGTERM).expect("a signal");
        let end = end_of(shim).await;
        drop(checkout);
        end
    };
    let preparing = session.prepare(paths(folder.path()), tar, LIMITS);
    let (end, (code, said)) = timeout(PATIENCE, async { tokio::join!(preparing, asking) }).await.expect("in time");
    assert!(matches!(end, Err(SessionError::Lost(_))), "{end:?}");
    assert_eq!(code, Some(70), "{said}");
}

#[tokio::test]
async fn the_deadline_ends_everything_whatever_is_going_on() {
    let (door, mut guest) = open_door().await;
    let folder = tempfile::tempdir().expect("a folder");
    let deadline = (jiff::Timestamp::now().as_second() + 10).to_string();
    let shim = dial(&door, &guest, door.port(), &[("CKRV_SHIM_DEADLINE", &deadline)]);
    let mut session = prepared(&mut guest, folder.path()).await;
    let (output, mut frames) = mpsc::channel(4);
    let running = tokio::spawn(async move { (session.run(sh("echo $$; sleep 1000 & wait"), &output).await, session) });
    let frame = timeout(PATIENCE, frames.recv()).await.expect("in time").expect("output");
    let pid: i32 = String::from_utf8(frame.bytes).expect("text").trim().parse().expect("a number");
    assert_eq!(end_of(shim).await.0, Some(124));
    assert!(kill(Pid::from_raw(pid), None).is_err(), "its command lives");
    // Told, not waited for until the silence is over.
    let (end, _session) = timeout(Duration::from_secs(30), running).await.expect("in time").expect("no panic");
    assert!(matches!(end, Err(SessionError::Lost(_))), "{end:?}");
}
