//! What a person sees of xtask: numbered steps with elapsed times. And how it runs other programs.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// A line for the person at the terminal. Nothing parses what xtask says, so all of it goes to stderr.
pub fn say(line: &str) {
    // A closed terminal is no reason to stop a test run.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A run in steps: each has a header with the time since the start, and its own duration at the end.
pub struct Steps {
    started: Instant,
    count: u32,
}

impl Steps {
    pub fn new() -> Self {
        Self { started: Instant::now(), count: 0 }
    }

    pub fn run<T>(&mut self, title: &str, step: impl FnOnce() -> Result<T>) -> Result<T> {
        self.count += 1;
        say(&format!("\n==> [{} at {}] {title}", self.count, clock(self.started.elapsed())));
        let began = Instant::now();
        let result = step().with_context(|| format!("step {} failed: {title}", self.count))?;
        say(&format!("    ok, {:.1} s", began.elapsed().as_secs_f64()));
        Ok(result)
    }

    pub fn finish(&self, what: &str) {
        say(&format!("\n==> {what} in {}", clock(self.started.elapsed())));
    }
}

fn clock(elapsed: Duration) -> String {
    format!("{}:{:02}", elapsed.as_secs() / 60, elapsed.as_secs() % 60)
}

/// What a thread came to; its panic is ours.
pub fn joined<T>(thread: std::thread::Result<T>) -> T {
    thread.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Runs a program with our terminal; an exit code other than 0 is an error that names the command.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = shown(command);
    let status = command.status().with_context(|| format!("can't start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` ended with {status}");
    }
    Ok(())
}

/// Runs a program and returns its stdout; what it said on stderr is part of the error when it fails.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    let shown = shown(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("can't start `{shown}`"))?;
    if !output.status.success() {
        bail!("`{shown}` ended with {}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(output.stdout)
}

/// Like [`output`], as trimmed text.
pub fn text(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8(output(command)?).context("the answer is not UTF-8")?.trim().to_owned())
}

/// The command as somebody would type it.
pub fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| quoted(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+./:,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_it_would_be_typed() {
        let mut command = Command::new("git");
        command.args(["commit", "-m", "it's done"]);
        assert_eq!(shown(&command), r"git commit -m 'it'\''s done'");
    }

    #[test]
    fn a_failing_program_is_an_error_that_names_it() {
        let error = output(Command::new("sh").args(["-c", "echo why >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("why"), "{error}");
    }
}
