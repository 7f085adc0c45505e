//! `ckrv diff`

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::Args;
use owo_colors::OwoColorize as _;
use serde_json::json;

use super::pull::finished_diff;
use crate::App;
use crate::args::JobArg;
use crate::client::Client;
use crate::error::{Exit, Outcome};
use crate::job_ref;
use crate::text::clean;

/// Print the diff that a job made
///
/// Exactly as the job published it, unless it goes to a terminal: there it is coloured, and what could drive the terminal is escaped.
#[derive(Debug, Args)]
pub struct DiffArgs {
    #[command(flatten)]
    pub job: JobArg,
}

/// # Errors
/// "Job not found"; a job that failed (exit 5) or still runs (exit 6).
pub async fn run(args: DiffArgs, app: &App) -> Outcome {
    let client = Client::new(&app.settings)?;
    let job = job_ref::fetch(&args.job.job, &client, &app.settings).await?;
    let diff = finished_diff(&job, &client).await?;
    if app.ui.is_json() {
        let mut value = json!({ "job": job.id, "sha256": diff.sha256, "bytes": diff.bytes.len() });
        match std::str::from_utf8(&diff.bytes) {
            Ok(text) => value["diff"] = json!(text),
            Err(_) => value["diff_base64"] = json!(BASE64.encode(&diff.bytes)),
        }
        app.ui.value(&value)?;
    } else if app.ui.stdout_is_terminal() {
        for line in String::from_utf8_lossy(&diff.bytes).lines() {
            app.ui.line(&coloured(line))?;
        }
    } else {
        app.ui.bytes(&diff.bytes)?;
    }
    Ok(Exit::OK)
}

fn coloured(line: &str) -> String {
    let text = clean(line);
    match line.as_bytes().first() {
        _ if line.starts_with("+++") || line.starts_with("---") || line.starts_with("diff ") => text.bold().to_string(),
        Some(b'+') => text.green().to_string(),
        Some(b'-') => text.red().to_string(),
        Some(b'@') => text.cyan().to_string(),
        _ => text.into_owned(),
    }
}
