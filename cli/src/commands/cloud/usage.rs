//! `ckrv cloud usage`

use clap::{Args, ValueEnum};

use crate::App;
use crate::client::Client;
use crate::error::{Exit, Outcome};
use crate::text::{clean, number, table};

/// Show a month's jobs, overage and cost; with --all, for the service's admins, what to bill to everybody
#[derive(Debug, Args)]
pub struct UsageArgs {
    /// Another month than the running one (UTC)
    #[arg(long, value_name = "YYYY-MM")]
    pub month: Option<String>,
    /// Every job of every user beyond the included ones; voided ones are marked, and not to be billed
    #[arg(long)]
    pub all: bool,
    /// How --all is written
    #[arg(long, value_name = "FORMAT", default_value = "csv", requires = "all")]
    pub format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Csv,
    Json,
}

/// # Errors
/// What is no month; --all of who is no admin; the service can't be reached.
pub async fn run(args: UsageArgs, app: &App) -> Outcome {
    let client = Client::new(&app.settings)?;
    let month = args.month.as_deref();
    if args.all {
        return match args.format {
            Format::Csv if !app.ui.is_json() => {
                app.ui.bytes(&client.ledger_csv(month).await?)?;
                Ok(Exit::OK)
            }
            _ => {
                app.ui.value(&client.ledger(month).await?)?;
                Ok(Exit::OK)
            }
        };
    }
    let usage = client.usage(month).await?;
    if app.ui.is_json() {
        app.ui.value(&usage)?;
        return Ok(Exit::OK);
    }
    let row = vec![
        clean(&usage.month).into_owned(),
        number(usage.jobs_used.into()),
        number(usage.jobs_included.into()),
        number(usage.overage_jobs.into()),
        format!("${:.2}", usage.overage_cost_usd),
        format!("${:.2}", usage.agent_cost_usd),
    ];
    for line in table(&["MONTH", "JOBS", "INCLUDED", "OVERAGE", "OVERAGE COST", "AGENTS' COST"], &[row]) {
        app.ui.line(&line)?;
    }
    app.ui.note(&format!("the month ends at {}; the agents' cost is what they told of their model's API", usage.quota_resets_at));
    Ok(Exit::OK)
}
