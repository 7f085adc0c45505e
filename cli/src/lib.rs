//! The command line of `ckrv`. `main` parses, chooses a runtime, and prints at most one error; each command is one file in `commands`.

pub mod args;
pub mod client;
pub mod commands;
pub mod config;
pub mod engine;
pub mod error;
pub mod git;
pub mod job_ref;
pub mod local;
pub mod logging;
pub mod origin;
pub mod pull;
pub mod render;
pub mod spec_file;
pub mod text;
pub mod tokens;
pub mod ui;

use std::process::ExitCode;

use clap::Parser as _;
use clap::error::ErrorKind;

use args::Cli;
use config::Settings;
use error::{CliError, Exit};
use ui::Ui;

/// What every command gets.
#[derive(Debug)]
pub struct App {
    pub ui: Ui,
    pub settings: Settings,
}

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    if let commands::Command::Internal(commands::internal::InternalArgs { command: commands::internal::Internal::Shim }) =
        &cli.command
    {
        // Stdin and stdout are its own, and so is its runtime.
        return ckrv_shim::run_on_stdio();
    }
    let ui = Ui::new(cli.global.json, cli.global.quiet);
    let outcome = Settings::load(cli.global.url.clone()).and_then(|settings| run(cli, App { ui, settings }));
    match outcome {
        Ok(Exit(code)) => ExitCode::from(code),
        Err(error) => {
            ui.error(&error);
            ExitCode::from(error.kind.exit_code())
        }
    }
}

fn run(cli: Cli, app: App) -> error::Outcome {
    if !cli.command.logs_itself() {
        logging::start_for_command(&app.settings.env);
    }
    let mut builder = if cli.command.needs_threads() {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    let runtime = builder.enable_all().build().map_err(|error| CliError::io("can't start", error))?;
    let outcome = runtime.block_on(cli.command.run(&app));
    // A thread may still wait for a keyring or for stdin: not ours to wait for.
    runtime.shutdown_background();
    outcome
}

/// What clap says: help and version are no errors, and an error is JSON where JSON was asked for.
fn refuse(error: &clap::Error) -> ExitCode {
    let is_error = !matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    if is_error && std::env::args_os().any(|arg| arg == "--json") {
        let text = error.render().to_string();
        let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        Ui::new(true, false).error(&CliError::usage(message).hint("see `ckrv help`"));
    } else {
        let _ = error.print();
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}
