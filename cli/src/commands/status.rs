//! `ckrv status`

use clap::Args;
use jiff::Timestamp;

use crate::App;
use crate::args::JobArg;
use crate::client::Client;
use crate::error::{Exit, Outcome};
use crate::{job_ref, render};

/// Show where a job is: phase, elapsed time, estimate; at its end what came of it
#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    pub job: JobArg,
}

/// # Errors
/// "Job not found", with suggestions; the service can't be reached.
pub async fn run(args: StatusArgs, app: &App) -> Outcome {
    let client = Client::new(&app.settings)?;
    let job = job_ref::fetch(&args.job.job, &client, &app.settings).await?;
    if app.ui.is_json() {
        app.ui.value(&job)?;
        return Ok(Exit::OK);
    }
    for line in render::status(&job, Timestamp::now()) {
        app.ui.line(&line)?;
    }
    if job.state == ckrv_core::job::State::Succeeded {
        app.ui.note(&format!("get its changes with `ckrv pull {}`", job.id));
    }
    Ok(Exit::OK)
}
