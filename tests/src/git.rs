//! Real git in a clean environment, for fixtures and for what a test looks at afterwards.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};

/// git that sees no configuration but the repository's, and asks nobody anything.
pub fn command(folder: &Path) -> Command {
    let mut command = Command::new("git");
    command.current_dir(folder).env_clear();
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null").env("HOME", folder);
    command.env("GIT_TERMINAL_PROMPT", "0").env("GIT_ASKPASS", "true").stdin(Stdio::null());
    for who in ["AUTHOR", "COMMITTER"] {
        command.env(format!("GIT_{who}_NAME"), "Test").env(format!("GIT_{who}_EMAIL"), "test@example.com");
    }
    command
}

/// Runs git, and returns its trimmed stdout; stderr is part of the error.
pub fn git<S: AsRef<OsStr>>(folder: &Path, args: &[S]) -> Result<String> {
    let output = output(folder, args)?;
    if !output.status.success() {
        let args = args.iter().map(|arg| arg.as_ref().to_string_lossy()).collect::<Vec<_>>().join(" ");
        bail!("git {args}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

/// Runs git, whatever comes of it.
pub fn output<S: AsRef<OsStr>>(folder: &Path, args: &[S]) -> Result<Output> {
    command(folder).args(args).output().context("can't start git")
}
