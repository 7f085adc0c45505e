//! Git on hostile ground. Every call goes through [`Git`]: a cleared environment, no configuration but ours, no hooks, no filters, only the
//! transports that a job may use. It runs in the job runner's own bare repository, never in a folder where an agent can write.

mod access;
mod changes;
mod checkout;
mod clone;
mod ignored;
mod known_hosts;
mod result;

pub use access::{Access, AccessError, GitCredential, askpass};
pub use changes::{Changes, write_changes};
pub use checkout::{CheckoutOptions, Repository, write_checkout};
pub use clone::{Base, CloneError, CloneRequest, clone_base, fetch_commit, host_of};
pub use ignored::Ignored;
pub use result::{CommitInfo, Committed, Diff, ResultError, ResultLimits, commit_result, diff};

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::process::Command;

/// The longest that one git command may take; the job's deadline comes on top.
const COMMAND_LIMIT: Duration = Duration::from_secs(30 * 60);

#[derive(Debug, thiserror::Error)]
pub enum GitError {
    #[error("git could not be started; is it installed and on the server's PATH?")]
    Start(#[source] std::io::Error),
    #[error("git {command} failed: {stderr}")]
    Failed { command: String, code: Option<i32>, stderr: String },
    #[error("git {command} did not end within {} minutes", COMMAND_LIMIT.as_secs() / 60)]
    TimedOut { command: String },
    #[error("git {command}: {reason}")]
    Unexpected { command: String, reason: String },
    #[error("{context}")]
    Io {
        context: String,
        #[source]
        source: std::io::Error,
    },
}

impl GitError {
    pub(crate) fn io(context: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let context = context.into();
        move |source| Self::Io { context, source }
    }
}

/// One bare repository of ours, and the rules under which git runs in it.
#[derive(Clone, Debug)]
pub struct Git {
    dir: PathBuf,
    /// Only the embedded default may clone by path.
    allow_file: bool,
    /// Certificates to trust beside the system's, for a forge of one's own.
    ca_file: Option<PathBuf>,
}

impl Git {
    #[must_use]
    pub fn new(dir: PathBuf, allow_file: bool, ca_file: Option<PathBuf>) -> Self {
        Self { dir, allow_file, ca_file }
    }

    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A git command with our rules. Standard input is empty, output is captured.
    #[must_use]
    pub fn command<I, S>(&self, args: I) -> Command
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut command = Command::new("git");
        command.env_clear();
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        command
            .env("HOME", "/nonexistent")
            .env("LC_ALL", "C")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_LFS_SKIP_SMUDGE", "1")
            .env("GIT_NO_REPLACE_OBJECTS", "1")
            .env("GIT_DIR", &self.dir);
        for setting in RULES {
            command.args(["-c", setting]);
        }
        command.args(["-c", if self.allow_file { "protocol.file.allow=always" } else { "protocol.file.allow=never" }]);
        if let Some(ca_file) = &self.ca_file {
            command.arg("-c").arg(format!("http.sslCAInfo={}", ca_file.display()));
        }
        command.args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// When git can't be started, takes too long or exits with another code than 0.
    pub async fn run<I, S>(&self, args: I) -> Result<Vec<u8>, GitError>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let args: Vec<std::ffi::OsString> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        let name = args.first().map(|arg| arg.to_string_lossy().into_owned()).unwrap_or_default();
        let output = finish(&name, self.command(&args)).await?;
        checked(&name, output)
    }

    /// Makes the bare repository.
    ///
    /// # Errors
    /// When the folder can't be made or git fails.
    pub async fn init(&self) -> Result<(), GitError> {
        std::fs::create_dir_all(&self.dir).map_err(GitError::io(format!("can't make {}", self.dir.display())))?;
        // An empty template: a machine's own template could bring hooks.
        self.run(["init", "--quiet", "--bare", "--template=", "--initial-branch=main"]).await.map(drop)
    }

    /// A new repository that has this one's objects besides its own: for commits that nobody keeps.
    ///
    /// # Errors
    /// When it can't be made.
    pub async fn borrowing(&self, dir: PathBuf) -> Result<Self, GitError> {
        let borrower = Self { dir, ..self.clone() };
        borrower.init().await?;
        let lender = std::path::absolute(&self.dir).map_err(GitError::io("can't tell a repository's place"))?;
        let info = borrower.dir.join("objects/info");
        std::fs::create_dir_all(&info)
            .and_then(|()| std::fs::write(info.join("alternates"), format!("{}\n", lender.join("objects").display())))
            .map_err(GitError::io("can't lend objects"))?;
        Ok(borrower)
    }

    /// Runs a command and gives its output as one trimmed line.
    pub(crate) async fn line<I, S>(&self, args: I) -> Result<String, GitError>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        Ok(String::from_utf8_lossy(&self.run(args).await?).trim().to_owned())
    }
}

/// Settings that hold for every call. Given on the command line, they beat whatever stands in a repository's own configuration.
const RULES: [&str; 15] = [
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.attributesFile=/dev/null",
    "core.protectHFS=true",
    "core.protectNTFS=true",
    "protocol.allow=never",
    "protocol.https.allow=always",
    "protocol.ssh.allow=always",
    "http.followRedirects=false",
    "submodule.recurse=false",
    "fetch.recurseSubmodules=false",
    // Always one pack: it is what the agent's own fresh repository is made of.
    "fetch.unpackLimit=1",
    "gc.auto=0",
    "maintenance.auto=false",
    "credential.helper=",
];

pub(crate) async fn finish(name: &str, mut command: Command) -> Result<Output, GitError> {
    let child = command.spawn().map_err(GitError::Start)?;
    match tokio::time::timeout(COMMAND_LIMIT, child.wait_with_output()).await {
        Ok(output) => output.map_err(GitError::io(format!("git {name}"))),
        Err(_) => Err(GitError::TimedOut { command: name.to_owned() }),
    }
}

pub(crate) fn checked(name: &str, output: Output) -> Result<Vec<u8>, GitError> {
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(GitError::Failed { command: name.to_owned(), code: output.status.code(), stderr: last_lines(&output.stderr) })
}

/// The end of what git said, short enough for a log line.
fn last_lines(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let from = lines.len().saturating_sub(6);
    lines[from..].join("; ").chars().take(1000).collect()
}
