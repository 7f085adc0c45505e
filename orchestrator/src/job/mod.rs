//! The job runner: one process for one attempt of one job. Prepare, plan, execute, verify, publish; whatever happens, it ends with one
//! report to the gateway, or with none if somebody else took over.

mod checkpoint;
mod collect;
mod egress;
mod execute;
mod failure;
mod leaving;
mod local_command;
mod log;
mod output;
mod plan;
mod prepare;
mod publish;
mod run_spec;
mod sandbox;
mod stop;
mod verify;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ckrv_core::job::{Artifact, Facts, JobRecord, Outcome, OutcomeClass, State};
use ckrv_core::machine::{self, Finish};
use ckrv_core::spec::Spec;
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

use crate::gateway::{ClientError, Gateway, JobView, Task};
use crate::launch::kubernetes::{KubernetesLauncher, PodIdentity};
use crate::trace::{self, LinkSpan};
use failure::Failure;
use leaving::Leaving;
use log::JobLog;
pub use sandbox::JOB_LABEL;
use sandbox::Sandboxes;
use stop::{StopReason, Stopper};
use tracing::Instrument as _;

/// For what runs to be ended before the report. Who is asked to leave has half a minute for all.
const STOP_PATIENCE: Duration = Duration::from_secs(8);
/// And after it, where that was not enough.
const LATE_STOP: Duration = Duration::from_secs(60);
/// How long the report of an attempt may take once its work is done, with a gateway that is there.
const REPORT_PATIENCE: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    #[error("{context}")]
    Io {
        context: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the task can't be read")]
    Task(#[source] serde_json::Error),
    #[error("the gateway can't be called")]
    Client(#[from] ClientError),
}

/// What every phase works with.
struct Context {
    gateway: Gateway,
    log: JobLog,
    view: JobView,
    spec: Spec,
    /// The attempt's own folder.
    dir: PathBuf,
    /// Private, with a short path: for sockets.
    sockets: tempfile::TempDir,
    sandboxes: Sandboxes,
    /// The program that git calls for a password: `ckrv` itself.
    program: PathBuf,
    /// The static shim that goes into containers.
    shim: &'static [u8],
    leaving: Leaving,
    pod: Option<PodIdentity>,
    /// Made with the first agent pod: one door for shims, one watch on pods.
    pods: tokio::sync::OnceCell<KubernetesLauncher>,
    /// What the gateway gave out already: it does so once.
    secrets: tokio::sync::Mutex<BTreeMap<String, Option<SecretString>>>,
}

impl Context {
    /// The secret of a slot, if there is one.
    async fn secret(&self, slot: &str) -> Result<Option<SecretString>, Failure> {
        let mut secrets = self.secrets.lock().await;
        if let Some(known) = secrets.get(slot) {
            return Ok(known.clone());
        }
        let secret = self.gateway.secret(slot).await?;
        secrets.insert(slot.to_owned(), secret.clone());
        Ok(secret)
    }
}

/// Runs the attempt whose folder this is. Returns when it has reported, or when there is nothing to report.
///
/// # Errors
/// When not even the gateway could be told.
pub async fn run(dir: &Path, shim: &'static [u8], link: LinkSpan) -> Result<(), RunnerError> {
    let io = |context: String| move |source| RunnerError::Io { context, source };
    // Of its own session: a terminal's ctrl-C or hang-up is meant for the server, not for the jobs.
    let _ = nix::unistd::setsid();
    let path = dir.join(crate::dispatch::TASK);
    let text = zeroize::Zeroizing::new(std::fs::read(&path).map_err(io(format!("can't read {}", path.display())))?);
    let task: Task = serde_json::from_slice(&text).map_err(RunnerError::Task)?;
    // The token is not needed there any more.
    std::fs::remove_file(&path).map_err(io(format!("can't remove {}", path.display())))?;
    run_task(task, dir, shim, link, Surroundings::default()).await
}

/// What a job runner knows of the place where it runs.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Once it is cancelled, the agent is stopped and the job given back for the next attempt.
    pub leave: CancellationToken,
    /// The job runner's own pod, where it has one: agent pods belong to it.
    pub pod: Option<PodIdentity>,
}

/// Runs one attempt in this folder.
///
/// # Errors
/// When not even the gateway could be told.
pub async fn run_task(
    task: Task,
    dir: &Path,
    shim: &'static [u8],
    link: LinkSpan,
    surroundings: Surroundings,
) -> Result<(), RunnerError> {
    let (span, trace) = trace::span(link, "run", task.job, task.fence, task.trace.as_deref());
    run_traced(Task { trace, ..task }, dir, shim, surroundings).instrument(span).await
}

async fn run_traced(task: Task, dir: &Path, shim: &'static [u8], surroundings: Surroundings) -> Result<(), RunnerError> {
    let io = |context: String| move |source| RunnerError::Io { context, source };
    let log = JobLog::new(task.fence, &dir.join("log.ndjson")).map_err(io("can't make the log".to_owned()))?;
    let hiding = log.clone();
    let gateway = Gateway::new(&task, Arc::new(move |token| hiding.hide(token)))?;
    let view = match gateway.job().await {
        Ok(view) => view,
        Err(error) => {
            tracing::info!(%error, "the attempt is over before it began");
            return Ok(());
        }
    };
    let view = view.unpacked(dir).map_err(io("can't write what the operator gives each job".to_owned()))?;
    trace::note_attempt(view.job.attempt);
    tracing::info!(agent = view.job.request.agent, launcher = view.launcher.name(), "runs an attempt");
    let sockets = tempfile::Builder::new().prefix("ckrv-").tempdir().map_err(io("can't make a temporary folder".to_owned()))?;
    let shipping = tokio::spawn(log.clone().ship(gateway.clone(), view.log_pace));
    let leaving = Leaving::new(surroundings.leave);
    let stopper = Stopper::start(&gateway, &log, view.job.deadline, leaving.clone().ready());
    let program = std::env::current_exe().map_err(io("can't find this program".to_owned()))?;
    let pod = surroundings.pod;
    attempt(Parts { gateway, log, view, dir: dir.to_owned(), sockets, program, shim, leaving, pod }, &stopper).await;
    shipping.abort();
    Ok(())
}

struct Parts {
    gateway: Gateway,
    log: JobLog,
    view: JobView,
    dir: PathBuf,
    sockets: tempfile::TempDir,
    program: PathBuf,
    shim: &'static [u8],
    leaving: Leaving,
    pod: Option<PodIdentity>,
}

/// What an attempt came to.
struct Ended {
    outcome: Outcome,
    facts: Facts,
    artifacts: Vec<Artifact>,
}

async fn attempt(parts: Parts, stopper: &Stopper) {
    let Parts { gateway, log, view, dir, sockets, program, shim, leaving, pod } = parts;
    announce(&log, &view);
    let sandboxes = Sandboxes::default();
    let mut facts = Facts::default();
    let spec = match Spec::parse(&view.spec, view.job.request.spec_name.as_deref()) {
        Ok(spec) => spec,
        Err(error) => {
            let outcome = Outcome::new(OutcomeClass::Policy, format!("the spec can't be used: {error}"));
            return report(&gateway, &log, Ended { outcome, facts, artifacts: Vec::new() }, &view.job).await;
        }
    };
    let context = Context {
        gateway,
        log,
        view,
        spec,
        dir,
        sockets,
        sandboxes: sandboxes.clone(),
        program,
        shim,
        leaving,
        pod,
        pods: tokio::sync::OnceCell::new(),
        secrets: tokio::sync::Mutex::default(),
    };
    let ended = tokio::select! {
        biased;
        reason = stopper.stopped() => Err(reason),
        ended = phases(&context, &mut facts) => Ok(ended),
    };
    // Nothing of an agent outlives this line, whatever the reason, but for what a launcher that hangs still holds: its shim, whose stream is
    // closed.
    let late = sandboxes.stop_all(STOP_PATIENCE).await;
    conclude(&context, ended, facts).await;
    if let Some(late) = late {
        tracing::warn!("the launcher was slow to end what ran; the attempt was reported before");
        let _ = tokio::time::timeout(LATE_STOP, late).await;
    }
}

/// Says what the attempt came to.
async fn conclude(context: &Context, ended: Result<Result<Vec<Artifact>, Failure>, StopReason>, facts: Facts) {
    let Context { gateway, log, view: JobView { job, .. }, .. } = context;
    let outcome = match ended {
        Ok(Ok(artifacts)) => {
            let verified = facts.verification;
            let stat = facts.diff_stat.unwrap_or_default();
            let ended = Ended { outcome: publish::summary(&stat, verified), facts, artifacts };
            return report(gateway, log, ended, job).await;
        }
        Ok(Err(Failure::Lost)) | Err(StopReason::Lost) => {
            tracing::info!("somebody else took over");
            return;
        }
        Ok(Err(Failure::Infrastructure(note))) => {
            log.error("ckrv", format!("this attempt failed for a reason that is not yours: {note}"));
            log.flush().await;
            match gateway.release(1, &note).await {
                Ok(()) => return,
                Err(error) if error.is_lost() => return,
                Err(error) => failure::not_again(&error, note, job),
            }
        }
        Err(StopReason::Leaving) => {
            log.warn("ckrv", "this attempt was asked to leave its machine; the next one starts elsewhere");
            log.flush().await;
            if let Err(error) = gateway.release(0, "its machine was taken away, or is being emptied").await {
                tracing::warn!(%error, "the job could not be given back");
            }
            return;
        }
        Ok(Err(Failure::Ends(outcome))) => outcome,
        Err(StopReason::Cancelled) => machine::cancelled(),
        Err(StopReason::Deadline) => machine::timed_out(job),
    };
    let artifacts = publish::story(context, &facts).await;
    report(gateway, log, Ended { outcome, facts, artifacts }, job).await;
}

fn announce(log: &JobLog, view: &JobView) {
    let job = &view.job;
    match &job.last_fault {
        Some(fault) if job.attempt > 1 => log.warn("ckrv", format!("attempt {}: the one before it ended, {fault}", job.attempt)),
        Some(fault) => log.warn("ckrv", format!("the job had to wait: {fault}")),
        None => {}
    }
    log.info("ckrv", format!("job {} runs `{}` by the {} launcher", job.id, job.request.agent, view.launcher.name()));
}

/// The way of a job, in its order.
async fn phases(context: &Context, facts: &mut Facts) -> Result<Vec<Artifact>, Failure> {
    let loading = plan::load(context).instrument(tracing::info_span!("load"));
    let preparing = prepare::prepare(context, facts).instrument(tracing::info_span!("prepare"));
    let (prepared, loaded) = tokio::join!(preparing, loading);
    let prepared = prepared?;
    context.gateway.advance(State::Planning, facts).await?;
    let mut agent = plan::begin(context, &prepared, loaded?).await?;
    let mut repairs = 0;
    let mut feedback = checkpoint::hint(context, &prepared);
    loop {
        let planned = plan::plan(context, &mut agent, feedback.take()).instrument(tracing::info_span!("plan")).await?;
        context.gateway.advance(State::Executing, facts).await?;
        let head =
            execute::execute(context, &prepared, &mut agent, &planned, facts).instrument(tracing::info_span!("execute")).await?;
        facts.head_sha = Some(head.clone());
        context.gateway.advance(State::Verifying, facts).await?;
        let verified = verify::verify(context, &prepared, &mut agent, &head, repairs, facts);
        match verified.instrument(tracing::info_span!("verify")).await? {
            verify::Verified::Done => break,
            verify::Verified::Repair(output) => {
                repairs += 1;
                feedback = Some(output);
                context.gateway.advance(State::Planning, facts).await?;
            }
        }
    }
    context.gateway.advance(State::Publishing, facts).await?;
    publish::publish(context, &prepared, facts).instrument(tracing::info_span!("publish")).await
}

async fn report(gateway: &Gateway, log: &JobLog, ended: Ended, job: &JobRecord) {
    let succeeded = ended.outcome.class == OutcomeClass::Success;
    let line = format!("{}: {}", ended.outcome.class.state(), ended.outcome.message);
    if succeeded {
        log.info("ckrv", &line)
    } else {
        log.error("ckrv", &line)
    }
    let log_end = log.flush().await;
    tracing::info!(class = ?ended.outcome.class, "reports the end of an attempt");
    let mut finish = Finish { outcome: ended.outcome, facts: ended.facts, artifacts: ended.artifacts, log_end };
    let told = tokio::time::timeout(REPORT_PATIENCE, gateway.finish(&finish)).await;
    let Ok(Err(error)) = told else { return };
    if error.is_lost() || !succeeded {
        tracing::warn!(%error, "the end was refused");
        return;
    }
    // A cancel or the deadline came between the last phase and this report.
    finish.outcome = failure::not_again(&error, format!("the end was refused: {error}"), job);
    if let Err(error) = gateway.finish(&finish).await {
        tracing::warn!(%error, "the end was refused");
    }
}
