//! `ckrv completions`

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::App;
use crate::error::{Exit, Outcome};

/// Print a completion script for a shell, for example: ckrv completions bash > ~/.local/share/bash-completion/completions/ckrv
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    pub shell: Shell,
}

/// # Errors
/// Stdout can't be written.
pub fn run(args: &CompletionsArgs, app: &App) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::args::Cli::command(), "ckrv", &mut script);
    app.ui.bytes(&script)?;
    Ok(Exit::OK)
}
