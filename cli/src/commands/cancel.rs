//! `ckrv cancel`

use clap::Args;

use crate::App;
use crate::args::JobArg;
use crate::client::Client;
use crate::error::{Exit, Outcome};
use crate::job_ref;

/// Cancel a job; one that has ended already stays as it is
#[derive(Debug, Args)]
pub struct CancelArgs {
    #[command(flatten)]
    pub job: JobArg,
}

/// # Errors
/// "Job not found"; the service can't be reached.
pub async fn run(args: CancelArgs, app: &App) -> Outcome {
    let client = Client::new(&app.settings)?;
    let id = job_ref::resolve(&args.job.job, &client, &app.settings).await?;
    let job = match client.cancel(id).await {
        Ok(job) => job,
        Err(error) => return Err(job_ref::explain(error, &args.job.job, &client).await),
    };
    if app.ui.is_json() {
        app.ui.value(&job)?;
    } else {
        app.ui.line(&job.id.to_string())?;
        let what = if job.state.is_final() {
            format!("job {} is {}", job.id, job.state)
        } else {
            format!("job {} is being cancelled", job.id)
        };
        app.ui.note(&what);
    }
    Ok(Exit::OK)
}
