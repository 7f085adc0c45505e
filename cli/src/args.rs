//! The command line's outermost shape.

use clap::{Args, Parser};

use crate::commands::Command;

/// Run coding-agent jobs somewhere else, and pull what they made.
///
/// Standard output carries data, standard error speaks to people.
///
/// Exit codes: 0 ok, 1 other errors, 2 usage, 3 not logged in, 4 not found or expired, 5 the job failed, timed out or was cancelled,
/// 6 not finished yet, 7 conflicts, 8 quota or limit, 9 service unreachable, 130 interrupted.
///
/// Configuration: flags, then CKRV_* variables, then the repository's .ckrv/config.toml (agent, model, base, credential, timeout and
/// labels only), then your own config.toml.
#[derive(Debug, Parser)]
#[command(name = "ckrv", version, max_term_width = 100, disable_help_subcommand = false)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Print JSON, errors too: {"error": {code, message, hint, retryable}}
    #[arg(long, global = true, help_heading = "Global options")]
    pub json: bool,
    /// Say nothing that isn't data, a question or an error
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub quiet: bool,
    /// The service: https, or http to this machine [env: CKRV_URL]
    #[arg(long, global = true, value_name = "URL", help_heading = "Global options")]
    pub url: Option<String>,
}

/// A job.
#[derive(Clone, Debug, Args)]
pub struct JobArg {
    /// Id, unique beginning of an id (4 characters or more), URL that ends in an id, or @last
    #[arg(value_name = "JOB")]
    pub job: String,
}
