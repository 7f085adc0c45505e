//! `ckrv logs`

use std::cell::RefCell;

use ckrv_core::event::AgentEvent;
use ckrv_core::id::JobId;
use ckrv_core::log::{Cursor, LogEntry};
use ckrv_core::wire::Job;
use clap::Args;
use jiff::tz::TimeZone;

use super::wait;
use crate::App;
use crate::args::JobArg;
use crate::client::{Client, Follow};
use crate::error::{CliError, Exit, Outcome};
use crate::{job_ref, render};

/// Show a job's log; with --follow as it grows, until the job ends
///
/// With --follow the exit code is the job's: 0 if it succeeded, 5 if not. Ctrl-C ends only the following; the job goes on.
#[derive(Debug, Args)]
pub struct LogsArgs {
    #[command(flatten)]
    pub job: JobArg,
    /// Go on until the job ends
    #[arg(short, long)]
    pub follow: bool,
    /// Begin after this entry, FENCE.SEQ as in --json
    #[arg(long, value_name = "CURSOR")]
    pub after: Option<Cursor>,
}

/// # Errors
/// "Job not found"; the service can't be reached.
pub async fn run(args: LogsArgs, app: &App) -> Outcome {
    let client = Client::new(&app.settings)?;
    let id = job_ref::resolve(&args.job.job, &client, &app.settings).await?;
    let result = if args.follow { follow(&client, id, args.after, app).await } else { all(&client, id, args.after, app).await };
    match result {
        Ok(exit) => Ok(exit),
        Err(error) => Err(job_ref::explain(error, &args.job.job, &client).await),
    }
}

async fn all(client: &Client, id: JobId, mut after: Option<Cursor>, app: &App) -> Outcome {
    let printer = Printer::new(app);
    loop {
        let page = client.log_page(id, after).await?;
        for entry in &page.logs {
            printer.print(entry)?;
        }
        let next = page.next_cursor.and_then(|cursor| cursor.parse::<Cursor>().ok());
        // A cursor that doesn't move would have us go round for ever.
        if page.logs.is_empty() || next.is_none() || next <= after {
            return Ok(Exit::OK);
        }
        after = next;
    }
}

/// Follows a job to its end and gives its exit code.
///
/// # Errors
/// As [`run`]; interrupted.
pub async fn follow(client: &Client, id: JobId, after: Option<Cursor>, app: &App) -> Outcome {
    wait::ended(&follow_to_end(client, id, after, app).await?, app)
}

/// Follows a job to its end.
///
/// # Errors
/// As [`run`]; interrupted.
pub async fn follow_to_end(client: &Client, id: JobId, after: Option<Cursor>, app: &App) -> Result<Job, CliError> {
    let printer = Printer::new(app);
    let mut follow = Follow::new(client, id, after);
    let job = async {
        follow.run(|entry| printer.print(&entry)).await?;
        client.job(id).await
    };
    tokio::select! {
        job = job => job,
        _ = tokio::signal::ctrl_c() => Err(wait::interrupted(id)),
    }
}

struct Printer<'a> {
    app: &'a App,
    zone: TimeZone,
    /// The agent's last message.
    said: RefCell<String>,
}

impl<'a> Printer<'a> {
    fn new(app: &'a App) -> Self {
        let zone = if app.ui.is_json() { TimeZone::UTC } else { TimeZone::system() };
        Self { app, zone, said: RefCell::default() }
    }

    fn print(&self, entry: &LogEntry) -> Result<(), CliError> {
        if self.app.ui.is_json() {
            return self.app.ui.value(entry);
        }
        match &entry.event {
            Some(AgentEvent::Message { role, text }) if role != "stderr" => self.said.borrow_mut().clone_from(text),
            // Most agents end with what they said last; people need not read it twice.
            Some(AgentEvent::RunResult { text, is_error: false, .. }) if text.is_empty() || *text == *self.said.borrow() => {
                return Ok(());
            }
            _ => {}
        }
        self.app.ui.line(&render::entry(entry, &self.zone))
    }
}
