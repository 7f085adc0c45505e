//! The commands, one file each; a command's doc comment is its help.

pub mod cancel;
pub mod cloud;
pub mod completions;
pub mod diff;
pub mod doctor;
pub mod internal;
pub mod list;
pub mod logs;
pub mod pull;
pub mod retry;
pub mod run;
pub mod serve;
pub mod status;
pub mod wait;

use clap::Subcommand;

use crate::App;
use crate::error::Outcome;

#[derive(Debug, Subcommand)]
pub enum Command {
    Run(run::RunArgs),
    List(list::ListArgs),
    Status(status::StatusArgs),
    Wait(wait::WaitArgs),
    Logs(logs::LogsArgs),
    Pull(pull::PullArgs),
    Diff(diff::DiffArgs),
    Cancel(cancel::CancelArgs),
    Retry(retry::RetryArgs),
    Cloud(cloud::CloudArgs),
    Serve(serve::ServeArgs),
    Doctor(doctor::DoctorArgs),
    Completions(completions::CompletionsArgs),
    #[command(hide = true)]
    Internal(internal::InternalArgs),
}

impl Command {
    /// A client of the service needs one thread; a service, its workers and a local job need more.
    #[must_use]
    pub fn needs_threads(&self) -> bool {
        match self {
            Self::Serve(_) | Self::Internal(_) => true,
            Self::Run(args) => !args.cloud,
            _ => false,
        }
    }

    /// Services set up a log of their own.
    #[must_use]
    pub fn logs_itself(&self) -> bool {
        matches!(self, Self::Serve(_) | Self::Internal(_))
    }

    /// # Errors
    /// Whatever goes wrong, in the user's words; printed by the caller.
    pub async fn run(self, app: &App) -> Outcome {
        match self {
            Self::Run(args) => run::run(args, app).await,
            Self::List(args) => list::run(args, app).await,
            Self::Status(args) => status::run(args, app).await,
            Self::Wait(args) => wait::run(args, app).await,
            Self::Logs(args) => logs::run(args, app).await,
            Self::Pull(args) => pull::run(args, app).await,
            Self::Diff(args) => diff::run(args, app).await,
            Self::Cancel(args) => cancel::run(args, app).await,
            Self::Retry(args) => retry::run(args, app).await,
            Self::Cloud(args) => cloud::run(args, app).await,
            // A server's future is large; boxed, it doesn't weigh on every other command.
            Self::Serve(args) => Box::pin(serve::run(args, app)).await,
            Self::Doctor(args) => doctor::run(args, app).await,
            Self::Completions(args) => completions::run(&args, app),
            Self::Internal(args) => Box::pin(internal::run(args, app)).await,
        }
    }
}
