//! `ckrv wait`

use std::time::Duration;

use ckrv_core::id::JobId;
use ckrv_core::job::State;
use ckrv_core::wire::Job;
use clap::Args;
use tokio::time::{Instant, sleep};

use crate::App;
use crate::args::JobArg;
use crate::client::Client;
use crate::error::{CliError, Exit, Kind, Outcome};
use crate::text::clean_lines;
use crate::{config, job_ref};

/// Longest pause between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// Wait until a job has ended; exit 0 if it succeeded, 5 if not, 6 if --timeout came first
#[derive(Debug, Args)]
pub struct WaitArgs {
    #[command(flatten)]
    pub job: JobArg,
    /// Wait no longer than this, for example 90s or 10m; the job goes on
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<String>,
}

/// # Errors
/// "Job not found"; not finished in time; the service stays away.
pub async fn run(args: WaitArgs, app: &App) -> Outcome {
    let limit = args.timeout.as_deref().map(config::duration).transpose()?;
    let client = Client::new(&app.settings)?;
    let job = job_ref::fetch(&args.job.job, &client, &app.settings).await?;
    let id = job.id;
    let job = tokio::select! {
        job = until_ended(&client, job, app, limit) => job?,
        _ = tokio::signal::ctrl_c() => return Err(interrupted(id)),
    };
    if app.ui.is_json() {
        app.ui.value(&job)?;
    } else {
        app.ui.line(job.state.as_str())?;
    }
    ended(&job, app)
}

async fn until_ended(client: &Client, mut job: Job, app: &App, limit: Option<Duration>) -> Result<Job, CliError> {
    let deadline = limit.map(|limit| Instant::now() + limit);
    let spinner = app.ui.spinner(job.state.as_str());
    let mut pause = Duration::from_millis(100);
    while !job.state.is_final() {
        if deadline.is_some_and(|deadline| Instant::now() + pause > deadline) {
            return Err(not_finished(&job));
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE);
        job = client.job(job.id).await?;
        spinner.say(job.state.as_str());
    }
    Ok(job)
}

/// Exit 6.
#[must_use]
pub fn not_finished(job: &Job) -> CliError {
    CliError::new(Kind::NotFinished, "not_finished", format!("job {} has not finished: it is {}", job.id, job.state))
        .hint(format!("wait for it with `ckrv wait {0}`, or follow it with `ckrv logs -f {0}`", job.id))
        .retryable()
}

/// Exit 130: we leave, the job doesn't.
#[must_use]
pub fn interrupted(id: JobId) -> CliError {
    CliError::new(Kind::Interrupted, "interrupted", format!("interrupted; job {id} goes on"))
        .hint(format!("look again with `ckrv logs -f {id}`, or end it with `ckrv cancel {id}`"))
}

/// The exit code of a job that has ended, with its reason for people.
///
/// # Errors
/// None of its own.
pub fn ended(job: &Job, app: &App) -> Outcome {
    if job.state == State::Succeeded {
        return Ok(Exit::OK);
    }
    if !app.ui.is_json() {
        app.ui.error(&failure(job));
    }
    Ok(Kind::JobFailed.into())
}

/// Why a job has no success to show.
#[must_use]
pub fn failure(job: &Job) -> CliError {
    let what = match job.state {
        State::Timeout => "timed out",
        State::Cancelled => "was cancelled",
        _ => "failed",
    };
    let reason = job.error_message.as_deref().map(|reason| format!(": {}", clean_lines(reason))).unwrap_or_default();
    let error = CliError::new(Kind::JobFailed, format!("job_{}", job.state), format!("job {} {what}{reason}", job.id));
    match &job.hint {
        Some(hint) => error.hint(hint),
        None => error.hint(format!("see `ckrv logs {0}`; try again with `ckrv retry {0}`", job.id)),
    }
}
