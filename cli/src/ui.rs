//! The one way out: stdout carries data, stderr speaks to people. Nothing else in this crate prints.

use std::io::{ErrorKind, IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use owo_colors::OwoColorize as _;
use serde::Serialize;

use crate::error::{CliError, Kind};
use crate::text;

/// Where a command's words go. Styles are dropped by `anstream` wherever they don't belong: no terminal, or `NO_COLOR`.
#[derive(Clone, Copy, Debug)]
pub struct Ui {
    json: bool,
    quiet: bool,
}

impl Ui {
    #[must_use]
    pub fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet }
    }

    #[must_use]
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Whether a person sits there to be asked and shown things.
    #[must_use]
    pub fn is_interactive(&self) -> bool {
        !self.json && std::io::stderr().is_terminal() && std::io::stdin().is_terminal()
    }

    #[must_use]
    pub fn stdout_is_terminal(&self) -> bool {
        std::io::stdout().is_terminal()
    }

    /// A line of data. The caller has cleaned what came from elsewhere.
    ///
    /// # Errors
    /// When stdout is closed or full.
    pub fn line(&self, line: &str) -> Result<(), CliError> {
        let mut out = anstream::stdout().lock();
        writeln!(out, "{line}").and_then(|()| out.flush()).map_err(closed)
    }

    /// Data as it is, for a file or another program.
    ///
    /// # Errors
    /// When stdout is closed or full.
    pub fn bytes(&self, bytes: &[u8]) -> Result<(), CliError> {
        let mut out = std::io::stdout().lock();
        out.write_all(bytes).and_then(|()| out.flush()).map_err(closed)
    }

    /// A value as one line of JSON.
    ///
    /// # Errors
    /// When stdout is closed or full.
    pub fn value(&self, value: &impl Serialize) -> Result<(), CliError> {
        let json = serde_json::to_string(value).map_err(|error| CliError::io("can't write JSON", error))?;
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", text::clean_json(&json)).and_then(|()| out.flush()).map_err(closed)
    }

    /// Something that people like to know; not for `--quiet` and not for programs.
    pub fn note(&self, note: &str) {
        if !self.json && !self.quiet {
            let _ = writeln!(anstream::stderr().lock(), "{note}");
        }
    }

    /// A link or code without which the user can't go on: shown also when quiet.
    pub fn prompt(&self, prompt: &str) {
        if !self.json {
            let _ = writeln!(anstream::stderr().lock(), "{prompt}");
        }
    }

    pub fn warn(&self, warning: &str) {
        let _ = writeln!(anstream::stderr().lock(), "{} {}", "warning:".yellow().bold(), text::clean_lines(warning));
    }

    /// The printer of every error.
    pub fn error(&self, error: &CliError) {
        if error.kind == Kind::ClosedPipe {
            return;
        }
        if self.json {
            let _ = self.value(&error.to_json());
            return;
        }
        let mut out = anstream::stderr().lock();
        let _ = writeln!(out, "{} {}", "error:".red().bold(), text::clean_lines(&error.message));
        for cause in error.causes() {
            let _ = writeln!(out, "  {} {}", "because:".dimmed(), text::clean_lines(&cause));
        }
        if let Some(hint) = &error.hint {
            let _ = writeln!(out, "{} {}", "hint:".cyan().bold(), text::clean_lines(hint));
        }
        // Of use to the service's operator only, and so where something is wrong there.
        if let Some(id) = error.request_id.as_deref().filter(|_| matches!(error.kind, Kind::Unreachable | Kind::Other)) {
            let _ = writeln!(out, "{} {id}", "request:".dimmed());
        }
    }

    /// Shows that something is going on, on a terminal only.
    #[must_use]
    pub fn spinner(&self, message: impl Into<String>) -> Spinner {
        if self.json || self.quiet || !std::io::stderr().is_terminal() {
            return Spinner(ProgressBar::hidden());
        }
        let style = ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
        let bar = ProgressBar::new_spinner().with_style(style).with_message(message.into());
        bar.enable_steady_tick(Duration::from_millis(100));
        Spinner(bar)
    }
}

/// Gone from the terminal as soon as it is dropped.
#[derive(Debug)]
pub struct Spinner(ProgressBar);

impl Spinner {
    pub fn say(&self, message: impl Into<String>) {
        self.0.set_message(message.into());
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn closed(error: std::io::Error) -> CliError {
    if error.kind() == ErrorKind::BrokenPipe {
        return CliError::new(Kind::ClosedPipe, "closed_pipe", "stdout was closed");
    }
    CliError::io("can't write to stdout", error)
}
