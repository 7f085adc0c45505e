//! One server of the bench: a process under a guard, with a folder and a port of its own.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// A busy machine takes its time; a server that takes longer is broken.
const PATIENCE: Duration = Duration::from_secs(90);

/// A server that is being put together.
#[derive(Debug)]
pub struct Plan {
    name: &'static str,
    pub command: Command,
    url: String,
    health: Vec<String>,
    scratch: tempfile::TempDir,
}

/// A running server; dropped, it stops and its folder is gone.
#[derive(Debug)]
pub struct Server {
    name: &'static str,
    pub url: String,
    health: Vec<String>,
    guard: Child,
    /// The guard ends the server when this closes.
    pipe: Option<ChildStdin>,
    scratch: tempfile::TempDir,
}

impl Server {
    /// Health is what answers when it is ready: paths of its port, or `:PORT/PATH`.
    #[expect(clippy::new_ret_no_self, reason = "a plan becomes a server by being started")]
    pub fn new(name: &'static str, program: impl AsRef<OsStr>, port: u16, health: &[&str]) -> Result<Plan> {
        let scratch = tempfile::Builder::new().prefix("ckrv-cloud-").tempdir()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("guard").arg("--scratch").arg(scratch.path()).arg("--").arg(program.as_ref());
        // Nothing of the user's: no configuration from a home folder, no credentials.
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("LANG", "C.UTF-8");
        command.current_dir(scratch.path()).env("HOME", scratch.path()).env("TMPDIR", scratch.path());
        let url = format!("http://127.0.0.1:{port}");
        let address =
            |path: &&str| if path.starts_with(':') { format!("http://127.0.0.1{path}") } else { format!("{url}{path}") };
        let health = health.iter().map(address).collect();
        Ok(Plan { name, command, url, health, scratch })
    }

    /// Waits until it answers.
    pub fn wait(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.health.iter().all(|url| answers(url)) {
            if let Some(status) = self.guard.try_wait()? {
                bail!("{} ended with {status}; the end of its log:\n{}", self.name, self.log());
            }
            if Instant::now() > deadline {
                bail!("{} did not answer within {} s; the end of its log:\n{}", self.name, PATIENCE.as_secs(), self.log());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn log(&self) -> String {
        let log = std::fs::read(self.scratch.path().join("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Plan {
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    pub fn start(mut self) -> Result<Server> {
        let log = File::create(self.scratch.path().join("log"))?;
        self.command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
        // Out of the terminal's group: Ctrl-C ends xtask, and then the guard has its turn.
        let mut guard = self.command.process_group(0).spawn().with_context(|| format!("can't start {}", self.name))?;
        let pipe = guard.stdin.take();
        Ok(Server { name: self.name, url: self.url, health: self.health, guard, pipe, scratch: self.scratch })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.pipe.take());
        let _ = self.guard.wait();
    }
}

/// It speaks HTTP and knows of no trouble of its own; that it wants a signature is an answer too.
fn answers(url: &str) -> bool {
    let request = ureq::get(url).config().http_status_as_error(false).timeout_global(Some(Duration::from_secs(5))).build();
    request.call().is_ok_and(|response| response.status().as_u16() < 500 && response.status().as_u16() != 404)
}

/// Ports below those that the system gives to outgoing connections and to everybody who asks for any: nobody takes them meanwhile.
pub fn free_ports<const COUNT: usize>() -> Result<[u16; COUNT]> {
    let mut listeners = Vec::new();
    while listeners.len() < COUNT {
        let [high, low] = random()?;
        let port = 12_000 + u16::from_be_bytes([high, low]) % 20_000;
        listeners.extend(TcpListener::bind(("127.0.0.1", port)));
    }
    let mut ports = [0; COUNT];
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}

pub fn random_hex(bytes: usize) -> Result<String> {
    (0..bytes).map(|_| Ok(format!("{:02x}", random::<1>()?[0]))).collect()
}

fn random<const LENGTH: usize>() -> Result<[u8; LENGTH]> {
    let mut bytes = [0; LENGTH];
    File::open("/dev/urandom")?.read_exact(&mut bytes).context("no randomness")?;
    Ok(bytes)
}
