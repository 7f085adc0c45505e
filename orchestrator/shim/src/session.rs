//! A session from greeting to goodbye.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use crate::checkout::Snapshot;
use crate::command::{self, Wish};
use crate::error::ShimError;
use crate::mux::{self, Incoming, MuxStream, Opener, Side};
use crate::processes::Processes;
use crate::protocol::{FromShim, MAX_FRAME, PROTOCOL, Run, ShimPaths, Step, StreamHeader, ToShim, read_frame, write_frame};
use crate::steps::{Done, StepResult, do_checkpoint, do_collect, do_prepare};

/// However long a runner wishes to be allowed to be silent.
const MAX_SILENCE_SECONDS: u64 = 60;
/// For the greeting: a runner that has launched a container is there already.
const GREETING_WITHIN: Duration = Duration::from_secs(60);
/// After an end that the platform asked for: for a runner that wants the changes.
const LEAVE_AFTER: Duration = Duration::from_secs(5);
/// For the last frames to leave.
const GOODBYE_WITHIN: Duration = Duration::from_secs(10);

/// What ends a session besides its runner.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ends {
    /// A first SIGTERM lets a command end as a stop by the runner would, and the runner hear of it. Otherwise it kills at once, as a
    /// second one and SIGINT always do.
    pub graceful: bool,
    /// Whatever is going on then.
    pub deadline: Option<Instant>,
}

/// Serves one job runner until it says goodbye, falls silent or is gone. Kills everything that runs beneath this process before it
/// returns: call it in a process made for it, on a runtime with I/O and time.
///
/// # Errors
/// For every end but a goodbye.
pub async fn run<R, W>(read: R, write: W, ends: Ends) -> Result<(), ShimError>
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let processes = Arc::new(Processes::take_over().map_err(ShimError::Setup)?);
    let (opener, incoming, mut driver) = mux::start(read, write, Side::Shim);
    let (ask, asked) = watch::channel(false);
    let end = tokio::select! {
        end = serve(&opener, incoming, &processes, asked) => end,
        name = ended_by_signal(ends.graceful.then_some(ask)) => Err(ShimError::Signalled(name)),
        () = passed(ends.deadline) => Err(ShimError::Deadline),
    };
    processes.kill_everything().await;
    if matches!(end, Ok(()) | Err(ShimError::Asked)) {
        opener.close().await;
        // The runner may be gone already; there is nothing left to say.
        let _ = tokio::time::timeout(GOODBYE_WITHIN, &mut driver).await;
    }
    driver.abort();
    end
}

async fn passed(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// As process 1 a signal without a handler is ignored. With `ask` a first SIGTERM is passed on there.
async fn ended_by_signal(ask: Option<watch::Sender<bool>>) -> &'static str {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return std::future::pending().await;
    };
    loop {
        tokio::select! {
            _ = term.recv() => match &ask {
                Some(ask) if !ask.send_replace(true) => {}
                _ => return "TERM",
            },
            _ = int.recv() => return "INT",
        }
    }
}

async fn serve(
    opener: &Opener,
    mut incoming: Incoming,
    processes: &Arc<Processes>,
    mut asked: watch::Receiver<bool>,
) -> Result<(), ShimError> {
    let greeting = tokio::time::timeout(GREETING_WITHIN, greet(&mut incoming));
    let (control, silence) = tokio::select! {
        greeted = greeting => greeted.map_err(|_elapsed| ShimError::Silent(GREETING_WITHIN.as_secs()))??,
        Ok(_) = asked.wait_for(|asked| *asked) => return Err(ShimError::Asked),
    };
    let (read, write) = tokio::io::split(control);
    let mut frames = read_frames(read);
    let (answers, writer) = write_frames(write);
    let (checkouts, checkout) = mpsc::channel(1);
    let mut session = Session::new(opener.clone(), Arc::clone(processes), answers, checkout);
    let mut heard = Instant::now();
    let end = loop {
        tokio::select! {
            frame = frames.recv() => match frame {
                Some(Ok(ToShim::Bye)) => break Ok(()),
                Some(Ok(frame)) => {
                    heard = Instant::now();
                    session.take(frame).await;
                }
                Some(Err(error)) if error.kind() == io::ErrorKind::InvalidData => return Err(ShimError::Stream(error)),
                Some(Err(_)) | None => return Err(ShimError::Closed),
            },
            stream = incoming.recv() => match stream {
                Some(mut stream) => {
                    // A stream's header comes with its first bytes; only the checkout is expected from there.
                    if let Ok(StreamHeader::Checkout) = read_frame(&mut stream, 1024).await {
                        let _ = checkouts.try_send(stream);
                    }
                }
                None => return Err(ShimError::Closed),
            },
            Some(done) = session.step.join_next() => session.finish(done).await,
            Some(Ok(answer)) = session.checkpoint.join_next() => session.answer(answer).await,
            Ok(()) = asked.changed() => session.wind_down(),
            () = passed(session.leave_at) => break Err(ShimError::Asked),
            () = sleep_until(heard + silence) => return Err(ShimError::Silent(silence.as_secs())),
        }
    };
    session.step.shutdown().await;
    drop(session);
    let _ = tokio::time::timeout(GOODBYE_WITHIN, writer).await;
    end
}

async fn greet(incoming: &mut Incoming) -> Result<(MuxStream, Duration), ShimError> {
    let mut control = incoming.recv().await.ok_or(ShimError::Closed)?;
    if read_frame::<_, StreamHeader>(&mut control, 1024).await.map_err(ShimError::Stream)? != StreamHeader::Control {
        return Err(ShimError::NoGreeting);
    }
    let ToShim::Hello { protocol, silence_seconds } = read_frame(&mut control, 4096).await.map_err(ShimError::Stream)? else {
        return Err(ShimError::NoGreeting);
    };
    let hello = FromShim::Hello { protocol: PROTOCOL, version: env!("CARGO_PKG_VERSION").to_owned() };
    write_frame(&mut control, &hello).await.map_err(ShimError::Stream)?;
    if protocol != PROTOCOL {
        return Err(ShimError::Protocol { ours: PROTOCOL, theirs: protocol });
    }
    Ok((control, Duration::from_secs(silence_seconds.clamp(1, MAX_SILENCE_SECONDS))))
}

/// A task of its own, since a frame half read can't be given up and taken up again.
fn read_frames(mut read: tokio::io::ReadHalf<MuxStream>) -> mpsc::Receiver<io::Result<ToShim>> {
    let (sender, frames) = mpsc::channel(4);
    tokio::spawn(async move {
        loop {
            let frame = read_frame(&mut read, MAX_FRAME).await;
            let last = frame.is_err();
            if sender.send(frame).await.is_err() || last {
                return;
            }
        }
    });
    frames
}

fn write_frames(mut write: tokio::io::WriteHalf<MuxStream>) -> (mpsc::Sender<FromShim>, JoinHandle<()>) {
    let (sender, mut frames) = mpsc::channel(16);
    let writer = tokio::spawn(async move {
        while let Some(frame) = frames.recv().await {
            if write_frame(&mut write, &frame).await.is_err() {
                return;
            }
        }
    });
    (sender, writer)
}

/// Where the session stands between steps.
struct Prepared {
    paths: ShimPaths,
    snapshot: Arc<Snapshot>,
}

struct Session {
    opener: Opener,
    processes: Arc<Processes>,
    answers: mpsc::Sender<FromShim>,
    checkout: Option<mpsc::Receiver<MuxStream>>,
    prepared: Option<Prepared>,
    /// One step at a time.
    step: JoinSet<StepResult>,
    /// Beside any step, and one at a time too.
    checkpoint: JoinSet<FromShim>,
    running: Option<(u32, watch::Sender<Wish>)>,
    /// Set once the platform wants this place back.
    winding_down: bool,
    /// With nothing going on, the session ends then.
    leave_at: Option<Instant>,
}

impl Session {
    fn new(
        opener: Opener,
        processes: Arc<Processes>,
        answers: mpsc::Sender<FromShim>,
        checkout: mpsc::Receiver<MuxStream>,
    ) -> Self {
        Self {
            opener,
            processes,
            answers,
            checkout: Some(checkout),
            prepared: None,
            step: JoinSet::new(),
            checkpoint: JoinSet::new(),
            running: None,
            winding_down: false,
            leave_at: None,
        }
    }

    /// Lets what is going on come to its end. A runner that then wants the changes has a moment to ask for them; a checkout that is
    /// under way is of no use to anybody.
    fn wind_down(&mut self) {
        self.winding_down = true;
        match &self.running {
            Some((_, wish)) => drop(wish.send_if_modified(|wish| {
                let first = *wish == Wish::GoOn;
                *wish = (*wish).max(Wish::Evict);
                first
            })),
            None if self.step.is_empty() || self.prepared.is_none() => self.leave_at = Some(Instant::now()),
            None => {}
        }
    }

    async fn take(&mut self, frame: ToShim) {
        if self.winding_down && matches!(frame, ToShim::Prepare(_) | ToShim::Run(_)) {
            // Nothing is begun any more. An answer would read as the job's failure; an end without one is what this is.
            self.leave_at = Some(Instant::now());
            return;
        }
        match frame {
            ToShim::Ping => self.answer(FromShim::Pong).await,
            ToShim::Stop { run, now } => {
                if let Some((_, wish)) = self.running.as_ref().filter(|(id, _)| *id == run) {
                    wish.send_replace(if now { Wish::StopNow } else { Wish::Stop });
                }
            }
            ToShim::Prepare(prepare) => match self.checkout.take() {
                Some(checkout) if self.step.is_empty() => {
                    self.step.spawn(do_prepare(prepare, checkout));
                }
                _ => self.refuse(Step::Prepare, "the session is prepared already").await,
            },
            ToShim::Run(run) => self.begin_run(*run).await,
            ToShim::Collect(limits) => match &self.prepared {
                Some(prepared) if self.step.is_empty() => {
                    self.leave_at = None;
                    let (paths, snapshot) = (prepared.paths.clone(), Arc::clone(&prepared.snapshot));
                    self.step.spawn(do_collect(limits, paths, snapshot, self.opener.clone()));
                }
                _ => self.refuse(Step::Collect, "another step is going on, or nothing was prepared").await,
            },
            ToShim::Checkpoint { id, limits } => match &self.prepared {
                Some(prepared) if self.checkpoint.is_empty() => {
                    let (paths, snapshot) = (prepared.paths.clone(), Arc::clone(&prepared.snapshot));
                    self.checkpoint.spawn(do_checkpoint(id, limits, paths, snapshot, self.opener.clone()));
                }
                _ => {
                    let message = "another checkpoint is being taken, or nothing was prepared".to_owned();
                    self.answer(FromShim::NoCheckpoint { id, message }).await;
                }
            },
            ToShim::Hello { .. } | ToShim::Bye => {}
        }
    }

    async fn begin_run(&mut self, run: Run) {
        let Some(paths) = self.prepared.as_ref().filter(|_| self.step.is_empty()).map(|prepared| prepared.paths.clone()) else {
            return self.refuse(Step::Run, "another step is going on, or nothing was prepared").await;
        };
        let (wish, wished) = watch::channel(Wish::GoOn);
        let id = run.id;
        self.running = Some((id, wish));
        let (processes, opener, answers) = (Arc::clone(&self.processes), self.opener.clone(), self.answers.clone());
        self.step.spawn(async move {
            // Should the queue be full, the exit record says as much.
            let started = || drop(answers.try_send(FromShim::Started { run: id }));
            match command::run(run, &paths, &processes, &opener, wished, started).await {
                Ok(record) => Ok(Done::Answer(FromShim::Exited { run: id, record })),
                Err(error) => Err((Step::Run, error)),
            }
        });
    }

    async fn finish(&mut self, done: Result<StepResult, tokio::task::JoinError>) {
        self.running = None;
        self.leave_at = self.winding_down.then(|| Instant::now() + LEAVE_AFTER);
        let answer = match done {
            Ok(Ok(Done::Answer(answer))) => answer,
            Ok(Ok(Done::Prepared(paths, unpacked))) => {
                let (entries, bytes) = (unpacked.entries, unpacked.bytes);
                self.prepared = Some(Prepared { paths, snapshot: Arc::new(unpacked.snapshot) });
                FromShim::Prepared { entries, bytes }
            }
            Ok(Err((step, error))) => FromShim::Failed { step, message: error.to_string() },
            Err(error) => FromShim::Failed { step: Step::Run, message: format!("the shim's own step broke off: {error}") },
        };
        self.answer(answer).await;
    }

    async fn refuse(&self, step: Step, message: &str) {
        self.answer(FromShim::Failed { step, message: message.to_owned() }).await;
    }

    /// The writer is gone only when the stream is, which ends the session anyway.
    async fn answer(&self, frame: FromShim) {
        let _ = self.answers.send(frame).await;
    }
}
