//! The job runner's end of the stream to a shim: one step after another, and the proxies that the agent's connections end in.
//!
//! Everything a shim says is a claim of the place where the agent ran: lengths are bounded, order and hashes are checked here, and
//! paths must be checked again by whoever writes them down.

mod changes;
mod checkpoint;
mod spec;
mod streams;

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ckrv_shim::mux::{self, MuxStream, Opener, Side};
use ckrv_shim::protocol::{
    Changed, CollectLimits, FromShim, OutputFrame, PROTOCOL, Prepare, Run, ShimPaths, Step, StreamHeader, ToShim, read_frame,
    write_frame,
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, WriteHalf};
use tokio::sync::{Mutex, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use self::changes::take_changes;
pub use self::checkpoint::Checkpointer;
use self::checkpoint::Inbox;
pub use self::spec::{Collection, Hung, RunEnd, RunSpec, SessionConfig, SessionError, Watchdog};
use self::streams::{Desk, accept, frames_of, ping, read_answers};
pub use super::proxy::{Egress, Route};
use super::proxy::{ProxyClient, Rules, RulesSlot};

type Control = Arc<Mutex<WriteHalf<MuxStream>>>;

/// A session with one shim.
#[derive(Debug)]
pub struct ShimSession {
    opener: Opener,
    control: Control,
    answers: mpsc::Receiver<FromShim>,
    outputs: mpsc::Receiver<(u32, MuxStream)>,
    changes: mpsc::Receiver<MuxStream>,
    checkpointer: Checkpointer,
    rules: RulesSlot,
    lost: Arc<OnceLock<String>>,
    current_run: Arc<AtomicU32>,
    last_run: u32,
    driver: JoinHandle<io::Result<()>>,
    _tasks: JoinSet<()>,
}

/// Stops what is running, from anywhere.
#[derive(Clone, Debug)]
pub struct Stopper {
    control: Control,
    current_run: Arc<AtomicU32>,
}

impl Stopper {
    /// Sends the run's stop signal and kills after its grace, or at once with `now`. Nothing running is no error.
    pub async fn stop(&self, now: bool) {
        let run = self.current_run.load(Ordering::Acquire);
        if run > 0 {
            // A broken stream is seen by the run itself.
            let _ = write_frame(&mut *self.control.lock().await, &ToShim::Stop { run, now }).await;
        }
    }
}

impl ShimSession {
    /// Greets the shim at the other end of a launched stream.
    ///
    /// # Errors
    /// [`SessionError::Lost`] when it doesn't answer, [`SessionError::Protocol`] when it speaks another version.
    pub async fn connect<R, W>(read: R, write: W, config: SessionConfig, proxy: ProxyClient) -> Result<Self, SessionError>
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let (opener, incoming, driver) = mux::start(read, write, Side::Runner);
        let greeting = async {
            let mut control = opener.open().await?;
            write_frame(&mut control, &StreamHeader::Control).await?;
            write_frame(&mut control, &ToShim::Hello { protocol: PROTOCOL, silence_seconds: config.silence.as_secs() }).await?;
            let answer: FromShim = read_frame(&mut control, 4096).await?;
            Ok::<_, io::Error>((control, answer))
        };
        let greeted = timeout(config.silence, greeting).await;
        let greeted = greeted.map_err(|_elapsed| SessionError::Lost("it didn't answer the greeting".to_owned()))?;
        let (control, answer) = greeted.map_err(|error| SessionError::Lost(error.to_string()))?;
        let FromShim::Hello { protocol: PROTOCOL, .. } = answer else {
            return Err(SessionError::Protocol(format!("it greets with {answer:?}, not with protocol {PROTOCOL}")));
        };
        let (read, write) = tokio::io::split(control);
        let control = Arc::new(Mutex::new(write));
        let lost = Arc::new(OnceLock::new());
        let rules = RulesSlot::default();
        let mut tasks = JoinSet::new();
        let (to_answers, answers) = mpsc::channel(16);
        let (to_checkpoints, checkpoint_answers) = mpsc::channel(4);
        tasks.spawn(read_answers(read, to_answers, to_checkpoints, config.silence, Arc::clone(&lost)));
        tasks.spawn(ping(Arc::clone(&control), config.ping_every));
        let (to_outputs, outputs) = mpsc::channel(1);
        let (to_changes, changes) = mpsc::channel(1);
        let (checkpoints, streams) = mpsc::channel(4);
        let inbox = Arc::new(Mutex::new(Inbox { last: 0, streams, answers: checkpoint_answers }));
        let checkpointer = Checkpointer { control: Arc::clone(&control), inbox, lost: Arc::clone(&lost) };
        let desk = Desk { outputs: to_outputs, changes: to_changes, checkpoints, rules: rules.clone(), proxy };
        tasks.spawn(accept(incoming, desk));
        let current_run = Arc::default();
        Ok(Self {
            opener,
            control,
            answers,
            outputs,
            changes,
            checkpointer,
            rules,
            lost,
            current_run,
            last_run: 0,
            driver,
            _tasks: tasks,
        })
    }

    /// Sends the checkout. Once, before anything else. Gives the number of entries and bytes unpacked.
    pub async fn prepare(
        &mut self,
        paths: ShimPaths,
        mut tar: impl AsyncRead + Unpin,
        limits: CollectLimits,
    ) -> Result<(u64, u64), SessionError> {
        let prepare = Prepare { paths, max_entries: limits.max_entries, max_bytes: limits.max_bytes };
        self.say(&ToShim::Prepare(prepare)).await?;
        let mut stream = self.opener.open().await.map_err(|error| self.lost(&error))?;
        write_frame(&mut stream, &StreamHeader::Checkout).await.map_err(|error| self.lost(&error))?;
        let mut chunk = vec![0; 64 * 1024];
        loop {
            let n = tar.read(&mut chunk).await.map_err(SessionError::Local)?;
            // A shim that refuses what it reads resets the stream; its answer says why.
            if n == 0 || stream.write_all(&chunk[..n]).await.is_err() {
                break;
            }
        }
        let _ = stream.shutdown().await;
        match self.answer(Step::Prepare).await? {
            FromShim::Prepared { entries, bytes } => Ok((entries, bytes)),
            other => Err(unexpected(&other)),
        }
    }

    /// Runs one command to its end. Frames go to `output` in order and without gaps; a slow receiver slows the command down, a closed
    /// one has the rest of the output dropped.
    pub async fn run(&mut self, spec: RunSpec, output: &mpsc::Sender<OutputFrame>) -> Result<RunEnd, SessionError> {
        self.last_run += 1;
        let id = self.last_run;
        let watchdog = spec.watchdog;
        let (run, rules) = rules_of(id, spec);
        self.rules.set(rules);
        self.current_run.store(id, Ordering::Release);
        let end = self.attend(id, run, watchdog, output).await;
        self.current_run.store(0, Ordering::Release);
        self.rules.clear();
        end
    }

    async fn attend(
        &mut self,
        id: u32,
        run: Run,
        watchdog: Option<Watchdog>,
        output: &mpsc::Sender<OutputFrame>,
    ) -> Result<RunEnd, SessionError> {
        self.say(&ToShim::Run(Box::new(run))).await?;
        let mut early = None;
        let stream = loop {
            tokio::select! {
                Some((run, stream)) = self.outputs.recv() => if run == id { break stream },
                answer = self.answers.recv() => match answer {
                    Some(FromShim::Failed { message, .. }) => return Err(SessionError::Failed(message)),
                    Some(FromShim::Started { .. }) => {}
                    // Output has a stream of its own, which the end of a short command can overtake.
                    Some(exited @ FromShim::Exited { .. }) if early.is_none() => early = Some(exited),
                    Some(other) => return Err(unexpected(&other)),
                    None => return Err(self.lost(&"the stream ended")),
                },
            }
        };
        let (frames, hung) = self.carry(id, stream, watchdog, output).await?;
        loop {
            let answer = match early.take() {
                Some(answer) => answer,
                None => self.answer(Step::Run).await?,
            };
            match answer {
                FromShim::Started { .. } => {}
                FromShim::Exited { run, record } if run == id && record.output_frames == frames => {
                    return Ok(RunEnd { record, hung });
                }
                FromShim::Exited { record, .. } => {
                    let counts = format!("{} output frames announced, {frames} arrived", record.output_frames);
                    return Err(SessionError::Protocol(counts));
                }
                other => return Err(unexpected(&other)),
            }
        }
    }

    /// Carries output until its stream ends, watching for silence. Gives the number of frames.
    async fn carry(
        &self,
        id: u32,
        stream: MuxStream,
        watchdog: Option<Watchdog>,
        output: &mpsc::Sender<OutputFrame>,
    ) -> Result<(u64, Option<Hung>), SessionError> {
        let mut frames = frames_of(stream);
        let (mut count, mut hung) = (0, None);
        loop {
            let patience = watchdog.map(|dog| if count == 0 { dog.first_output } else { dog.idle });
            let due = Instant::now() + patience.unwrap_or_default();
            let frame = tokio::select! {
                frame = frames.recv() => frame,
                () = sleep_until(due), if patience.is_some() && hung.is_none() => {
                    hung = Some(if count == 0 { Hung::FirstOutput } else { Hung::Idle });
                    self.say(&ToShim::Stop { run: id, now: false }).await?;
                    continue;
                }
            };
            match frame {
                None => return Ok((count, hung)),
                Some(Ok(frame)) if frame.seq == count + 1 => {
                    count += 1;
                    let _ = output.send(frame).await;
                }
                Some(Ok(frame)) => return Err(SessionError::Protocol(format!("output frame {} after {count}", frame.seq))),
                Some(Err(error)) => return Err(self.lost(&error)),
            }
        }
    }

    /// Has the changes since `prepare` sent, without those that `keep` refuses, and writes the tar to `writer` as it comes: trust
    /// nothing in it before this has returned `Ok`.
    pub async fn collect(
        &mut self,
        limits: CollectLimits,
        keep: impl FnMut(&Changed) -> bool,
        writer: &mut (impl AsyncWrite + Unpin),
    ) -> Result<Collection, SessionError> {
        self.say(&ToShim::Collect(limits)).await?;
        let stream = tokio::select! {
            Some(stream) = self.changes.recv() => stream,
            answer = self.answers.recv() => return Err(match answer {
                Some(FromShim::Failed { message, .. }) => SessionError::Failed(message),
                Some(other) => unexpected(&other),
                None => self.lost(&"the stream ended"),
            }),
        };
        let arrived = take_changes(stream, limits, keep, writer).await?;
        let FromShim::Collected(collected) = self.answer(Step::Collect).await? else {
            return Err(SessionError::Protocol("no summary of the changes".to_owned()));
        };
        arrived.check(&collected)
    }

    /// For what has to survive the loss of this shim: takes the changes so far, also while `run` is in progress.
    pub fn checkpointer(&self) -> Checkpointer {
        self.checkpointer.clone()
    }

    /// For a canceller, a deadline, a user's interrupt.
    pub fn stopper(&self) -> Stopper {
        Stopper { control: Arc::clone(&self.control), current_run: Arc::clone(&self.current_run) }
    }

    /// Tells the shim to end and waits for its last byte, at most 10 s.
    pub async fn bye(mut self) {
        if self.say(&ToShim::Bye).await.is_ok() {
            let _ = timeout(Duration::from_secs(10), &mut self.driver).await;
        }
    }

    async fn say(&self, frame: &ToShim) -> Result<(), SessionError> {
        write_frame(&mut *self.control.lock().await, frame).await.map_err(|error| self.lost(&error))
    }

    async fn answer(&mut self, step: Step) -> Result<FromShim, SessionError> {
        match self.answers.recv().await {
            Some(FromShim::Failed { step: failed, message }) if failed == step => Err(SessionError::Failed(message)),
            Some(answer) => Ok(answer),
            None => Err(self.lost(&"the stream ended")),
        }
    }

    fn lost(&self, fallback: &dyn std::fmt::Display) -> SessionError {
        SessionError::Lost(self.lost.get().cloned().unwrap_or_else(|| fallback.to_string()))
    }
}

impl Drop for ShimSession {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

fn unexpected(answer: &FromShim) -> SessionError {
    SessionError::Protocol(format!("unexpected answer {answer:?}"))
}

/// Splits a spec in what the shim is told and what only the proxies know.
fn rules_of(id: u32, spec: RunSpec) -> (Run, Rules) {
    let rules = Rules::new(id, spec.routes, spec.egress);
    let run = Run {
        id,
        argv: spec.argv,
        env: spec.env,
        cwd: spec.cwd,
        files: spec.files,
        stdin: spec.stdin,
        stop_signal: spec.stop_signal,
        grace_seconds: spec.grace_seconds,
        deadline_seconds: spec.deadline_seconds,
        routes: rules.shim_routes(),
        proxy: rules.has_egress(),
    };
    (run, rules)
}
