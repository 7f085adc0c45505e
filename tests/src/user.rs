//! A user's machine: a home folder of its own, and `ckrv` run in it with nothing else in its environment.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::bench;
use crate::server::{Server, link};
use crate::wait::wait_until;

/// No command of a test takes longer than this on a busy machine.
const LIMIT: Duration = Duration::from_secs(300);

#[derive(Debug)]
pub struct User {
    folder: tempfile::TempDir,
    ckrv: PathBuf,
    env: Vec<(String, String)>,
}

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    pub stdout: String,
    pub stderr: String,
    /// -1 when a signal ended it.
    pub code: i32,
}

impl Ran {
    /// Its trimmed stdout, if it succeeded.
    pub fn ok(self) -> Result<String> {
        if self.code == 0 {
            Ok(self.stdout.trim_end().to_owned())
        } else {
            bail!("exit code {}\n{}\n{}", self.code, self.stdout, self.stderr)
        }
    }

    /// Its stdout as JSON, whatever the exit code.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("no JSON: {self:?}"))
    }
}

impl User {
    pub fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("ckrv-user-").tempdir()?;
        std::fs::create_dir(folder.path().join("run"))?;
        Ok(Self { folder, ckrv: bench::ckrv()?, env: Vec::new() })
    }

    /// One who uses this server, and isn't logged in.
    pub fn of(server: &Server) -> Result<Self> {
        let mut user = Self::new()?;
        user.set("CKRV_URL", server.url());
        Ok(user)
    }

    /// A variable for every command from now on.
    pub fn set(&mut self, name: &str, value: &str) {
        self.env.push((name.to_owned(), value.to_owned()));
    }

    pub fn home(&self) -> &Path {
        self.folder.path()
    }

    /// `ckrv` in a folder, without stdin, killed when it is dropped.
    pub fn command<S: AsRef<OsStr>>(&self, folder: &Path, args: &[S]) -> Command {
        let mut command = Command::new(&self.ckrv);
        command.args(args).current_dir(folder).env_clear().kill_on_drop(true);
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", self.home());
        // No keychain, no browser, no configuration of the machine.
        command.env("XDG_RUNTIME_DIR", self.home().join("run")).env("CKRV_KEYRING", "off").env("BROWSER", "true");
        command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_TERMINAL_PROMPT", "0");
        for who in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{who}_NAME"), "User").env(format!("GIT_{who}_EMAIL"), "user@example.com");
        }
        command.envs(self.env.iter().cloned()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs it to its end.
    pub async fn run<S: AsRef<OsStr>>(&self, folder: &Path, args: &[S]) -> Result<Ran> {
        self.run_with_input(folder, args, b"").await
    }

    pub async fn run_with_input<S: AsRef<OsStr>>(&self, folder: &Path, args: &[S], input: &[u8]) -> Result<Ran> {
        let mut child = self.command(folder, args).stdin(Stdio::piped()).spawn().context("can't start ckrv")?;
        let mut stdin = child.stdin.take().context("no stdin")?;
        let input = input.to_owned();
        // A command that doesn't read its stdin closes it: no error of ours.
        tokio::spawn(async move { stdin.write_all(&input).await });
        let output = tokio::time::timeout(LIMIT, child.wait_with_output()).await.context("ckrv does not end")??;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Ran { stdout: text(output.stdout), stderr: text(output.stderr), code: output.status.code().unwrap_or(-1) })
    }

    /// `ckrv cloud login`, confirmed by the server's owner on the activation page.
    pub async fn login(&self, server: &Server) -> Result<()> {
        let path = self.home().join("login.log");
        let log = std::fs::File::create(&path)?;
        let mut command = self.command(self.home(), &["cloud", "login"]);
        let mut login = command.stdout(log.try_clone()?).stderr(log).spawn()?;
        let said = || std::fs::read_to_string(&path).unwrap_or_default();
        let found = wait_until("ckrv cloud login names page and code", Duration::from_secs(30), async || {
            let text = said();
            text.lines().find_map(link).zip(user_code(&text))
        });
        let (page, code) = found.await.with_context(said)?;
        server.activate(&page, &code).await?;
        let status = tokio::time::timeout(Duration::from_secs(60), login.wait()).await.context("the login never ends")??;
        if status.success() { Ok(()) } else { bail!("ckrv cloud login ended with {status}:\n{}", said()) }
    }
}

/// `ABCD-1234`
fn user_code(text: &str) -> Option<String> {
    let code = |word: &&str| {
        let part = |part: &str| part.len() == 4 && part.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit());
        word.len() == 9 && word.split('-').count() == 2 && word.split('-').all(part)
    };
    text.split(|c: char| c.is_whitespace() || "=&.,".contains(c)).find(code).map(str::to_owned)
}
