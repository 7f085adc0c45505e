//! `ckrv retry`

use clap::Args;

use super::run::announce;
use crate::App;
use crate::args::JobArg;
use crate::client::Client;
use crate::error::Outcome;
use crate::job_ref;

/// Start a new job with the same request as one that has ended; it counts against your quota
#[derive(Debug, Args)]
pub struct RetryArgs {
    #[command(flatten)]
    pub job: JobArg,
    /// Makes the same call twice start one job only
    #[arg(long, value_name = "KEY")]
    pub idempotency_key: Option<String>,
}

/// # Errors
/// "Job not found"; a job that has not ended; quota; the service can't be reached.
pub async fn run(args: RetryArgs, app: &App) -> Outcome {
    let client = Client::new(&app.settings)?;
    let id = job_ref::resolve(&args.job.job, &client, &app.settings).await?;
    let key = args.idempotency_key.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    match client.retry(id, &key).await {
        Ok(job) => announce(&job, &client, app),
        Err(error) => Err(job_ref::explain(error, &args.job.job, &client).await),
    }
}
