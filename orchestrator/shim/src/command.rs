//! One run: start a command, carry its output, end it in time, and leave no process behind.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe::Sender;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use crate::mux::Opener;
use crate::output::OutputSink;
use crate::placing;
use crate::processes::{self, Ended, Processes, pid_of, signal_group};
use crate::protocol::{ExitRecord, ExitStatus, Run, ShimPaths, Source, StopSignal, StreamHeader, write_frame};
use crate::routes;

/// What the runner asked of a run that is going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wish {
    GoOn,
    /// As `Stop`, but by the platform: not the runner's wish.
    Evict,
    Stop,
    StopNow,
}

/// Runs one command from start to end. `started` is told once it runs.
///
/// # Errors
/// Only when the stream to the runner is broken; what happens to the command is in the record.
pub async fn run(
    run: Run,
    paths: &ShimPaths,
    processes: &Processes,
    opener: &Opener,
    wish: watch::Receiver<Wish>,
    started: impl FnOnce(),
) -> io::Result<ExitRecord> {
    let begin = Instant::now();
    let mut stream = opener.open().await?;
    write_frame(&mut stream, &StreamHeader::Output { run: run.id }).await?;
    let sink = OutputSink::new(stream, Path::new(&paths.tmp));
    let oom_before = processes::oom_kills();

    let (status, stopped, leftovers) = match start(&run, paths, processes, opener).await {
        Ok((child, listeners, ended)) => {
            started();
            let end = attend(child, ended, &run, processes, &sink, wish).await?;
            drop(listeners);
            end
        }
        Err(error) => (ExitStatus::NotStarted(error.to_string()), false, 0),
    };
    let by_oom =
        matches!(status, ExitStatus::Signal(9) | ExitStatus::Code(137)) && !stopped && processes::oom_kills() > oom_before;
    let (output_frames, output_bytes) = sink.finish().await?;
    Ok(ExitRecord {
        status: if by_oom { ExitStatus::OomKilled } else { status },
        stopped,
        duration_ms: u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX),
        max_rss_kib: processes::max_rss_kib(),
        output_frames,
        output_bytes,
        leftovers,
    })
}

async fn start(
    run: &Run,
    paths: &ShimPaths,
    processes: &Processes,
    opener: &Opener,
) -> io::Result<(Child, routes::Listeners, oneshot::Receiver<Ended>)> {
    let files = run.files.clone();
    let places = paths.clone();
    tokio::task::spawn_blocking(move || placing::place(&files, &places)).await.map_err(io::Error::other)??;
    let listeners = routes::open(run, opener).await?;
    let (program, args) = run.argv.split_first().ok_or_else(|| io::Error::other("the command is empty"))?;
    let folder = working_folder(run, paths)?;
    let environment = environment(run, paths, &listeners.env);
    let mut command = Command::new(program);
    command.args(args).env_clear().envs(&environment).current_dir(folder);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let (child, ended) = processes.spawn(&mut command).map_err(|error| {
        let found =
            if error.kind() == io::ErrorKind::NotFound { " (no such program, or its interpreter is missing)" } else { "" };
        io::Error::other(format!("\"{}\" could not be started: {error}{found}", program.escape_debug()))
    })?;
    Ok((child, listeners, ended))
}

/// Resolved, so that a symlink can't lead a command out of the workspace.
fn working_folder(run: &Run, paths: &ShimPaths) -> io::Result<PathBuf> {
    let named = |error: io::Error| io::Error::other(format!("the working folder \"{}\": {error}", run.cwd));
    let root = Path::new(&paths.workspace).canonicalize().map_err(named)?;
    let folder = root.join(run.cwd.as_path()).canonicalize().map_err(named)?;
    if folder.starts_with(&root) && folder.is_dir() {
        return Ok(folder);
    }
    Err(named(io::Error::other("is no folder of the workspace")))
}

/// The shim's own variables are those of the image, or the `PATH` that the launcher gave.
fn environment(
    run: &Run,
    paths: &ShimPaths,
    listeners: &BTreeMap<String, String>,
) -> BTreeMap<std::ffi::OsString, std::ffi::OsString> {
    let mut environment: BTreeMap<_, _> =
        std::env::vars_os().filter(|(name, _)| !name.as_encoded_bytes().starts_with(b"CKRV_")).collect();
    environment.insert("HOME".into(), (&paths.home).into());
    environment.insert("TMPDIR".into(), (&paths.tmp).into());
    environment.extend(run.env.iter().chain(listeners).map(|(name, value)| (name.into(), value.into())));
    environment
}

/// From the command's start until nothing of it is left.
async fn attend(
    mut child: Child,
    ended: oneshot::Receiver<Ended>,
    run: &Run,
    processes: &Processes,
    sink: &OutputSink,
    wish: watch::Receiver<Wish>,
) -> io::Result<(ExitStatus, bool, u32)> {
    let group = pid_of(&child);
    let mut pumps = JoinSet::new();
    if let Some(pipe) = child.stdout.take() {
        pumps.spawn(sink.clone().pump(OwnedFd::from(pipe), Source::Stdout));
    }
    if let Some(pipe) = child.stderr.take() {
        pumps.spawn(sink.clone().pump(OwnedFd::from(pipe), Source::Stderr));
    }
    let mut feeder = JoinSet::new();
    if let Some(pipe) = child.stdin.take() {
        feeder.spawn(feed(OwnedFd::from(pipe), run.stdin.clone()));
    }
    let (status, stopped) = await_end(group, ended, run, wish).await;
    signal_group(group, Signal::SIGKILL);
    let leftovers = processes.kill_everything().await;
    sink.no_process_left();
    feeder.abort_all();
    while let Some(pump) = pumps.join_next().await {
        pump.map_err(io::Error::other)??;
    }
    Ok((status, stopped, leftovers))
}

/// A command that doesn't read its stdin is no failure.
async fn feed(pipe: OwnedFd, text: Option<String>) {
    if let (Some(text), Ok(mut pipe)) = (text, Sender::from_owned_fd(pipe)) {
        let _ = pipe.write_all(text.as_bytes()).await;
    }
}

async fn await_end(
    group: Pid,
    mut ended: oneshot::Receiver<Ended>,
    run: &Run,
    mut wish: watch::Receiver<Wish>,
) -> (ExitStatus, bool) {
    let mut kill_at = tokio::time::Instant::now() + Duration::from_secs(run.deadline_seconds.into());
    let grace = Duration::from_secs(run.grace_seconds.into());
    // `kill_at` is the deadline first, and the end of the grace once the stop signal was sent.
    let (mut signalled, mut killed, mut late, mut evicted, mut granted) = (false, false, false, false, Wish::GoOn);
    loop {
        tokio::select! {
            end = &mut ended => {
                let status = match end {
                    _ if late => ExitStatus::Deadline,
                    _ if evicted => ExitStatus::Evicted,
                    Ok(Ended::Code(code)) => ExitStatus::Code(code),
                    Ok(Ended::Signal(signal)) => ExitStatus::Signal(signal),
                    // The reaper is gone: nobody can say any more.
                    Err(_) => ExitStatus::NotStarted("the end of the process was not seen".to_owned()),
                };
                return (status, granted >= Wish::Stop);
            }
            () = sleep_until(kill_at), if !killed => {
                if signalled || grace.is_zero() {
                    late |= granted == Wish::GoOn;
                    signal_group(group, Signal::SIGKILL);
                    killed = true;
                } else {
                    late = true;
                    signal_group(group, signal_of(run.stop_signal));
                    signalled = true;
                    kill_at = tokio::time::Instant::now() + grace;
                }
            }
            Ok(()) = wish.changed() => {
                let wished = *wish.borrow_and_update();
                evicted |= granted == Wish::GoOn && wished == Wish::Evict;
                granted = granted.max(wished);
                if granted == Wish::StopNow {
                    signal_group(group, Signal::SIGKILL);
                    killed = true;
                } else if granted > Wish::GoOn && !signalled {
                    signal_group(group, signal_of(run.stop_signal));
                    signalled = true;
                    kill_at = tokio::time::Instant::now() + grace;
                }
            }
        }
    }
}

fn signal_of(signal: StopSignal) -> Signal {
    match signal {
        StopSignal::Term => Signal::SIGTERM,
        StopSignal::Int => Signal::SIGINT,
        StopSignal::Hup => Signal::SIGHUP,
    }
}
