//! `ckrv list`

use clap::{Args, ValueEnum};
use jiff::Timestamp;

use crate::App;
use crate::client::Client;
use crate::error::{Exit, Outcome};
use crate::render;

/// List your jobs, the newest first
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only jobs of this status
    #[arg(long)]
    pub status: Option<StatusFilter>,
    /// At most so many jobs, 1 to 100
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub limit: u32,
    /// Go on where the list before ended
    #[arg(long)]
    pub cursor: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum StatusFilter {
    Pending,
    Running,
    Succeeded,
    Failed,
    Timeout,
}

/// # Errors
/// The service can't be reached or refuses.
pub async fn run(args: ListArgs, app: &App) -> Outcome {
    let client = Client::new(&app.settings)?;
    let status = args.status.and_then(|status| status.to_possible_value());
    let page = client.jobs(status.as_ref().map(|status| status.get_name()), args.limit, args.cursor.as_deref()).await?;
    if app.ui.is_json() {
        app.ui.value(&page)?;
        return Ok(Exit::OK);
    }
    if page.jobs.is_empty() {
        app.ui.note("no jobs; start one with `ckrv run --cloud`");
        return Ok(Exit::OK);
    }
    for line in render::jobs(&page.jobs, Timestamp::now()) {
        app.ui.line(&line)?;
    }
    if let Some(cursor) = &page.next_cursor {
        app.ui.note(&format!("there are more: `ckrv list --cursor {}`", crate::text::clean(cursor)));
    }
    Ok(Exit::OK)
}
