//! The process launcher: the shim as a child, in a folder and a session of its own. No isolation: it runs as this user.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ckrv_shim::protocol::ShimPaths;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use super::{Ended, Instance, LaunchError, LaunchSpec, Launched, Launcher, Tail, check_name};

/// For the shim to kill what runs beneath it, when asked to end.
const END_WITHIN: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub struct ProcessConfig {
    /// Program and arguments that run the shim on stdin and stdout: this very binary and `internal shim`.
    pub shim: Vec<OsString>,
    /// `PATH` of the agent: the one variable it gets from here.
    pub path: OsString,
}

impl ProcessConfig {
    /// With this binary as the shim.
    ///
    /// # Errors
    /// When the system can't say what this binary is.
    pub fn with_own_binary(path: OsString) -> io::Result<Self> {
        let own = std::env::current_exe()?.into_os_string();
        Ok(Self { shim: vec![own, "internal".into(), "shim".into()], path })
    }
}

#[derive(Clone, Debug)]
pub struct ProcessLauncher {
    config: ProcessConfig,
}

impl ProcessLauncher {
    pub fn new(config: ProcessConfig) -> Self {
        Self { config }
    }

    fn spawn(&self, folder: &Path) -> io::Result<Child> {
        let (program, args) = self.config.shim.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        Command::new(program)
            .args(args)
            .env_clear()
            .env("PATH", &self.config.path)
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
    }
}

#[async_trait]
impl Launcher for ProcessLauncher {
    fn name(&self) -> &'static str {
        "process"
    }

    async fn launch(&self, spec: &LaunchSpec) -> Result<Launched, LaunchError> {
        check_name(&spec.name)?;
        let folder = spec.run_dir.join(&spec.name);
        let made = DirBuilder::new().mode(0o700).create(&folder);
        made.map_err(|source| LaunchError::Local { step: "making the run's folder", source })?;
        let mut child = self.spawn(&folder).map_err(|source| {
            let _ = fs::remove_dir(&folder);
            LaunchError::Local { step: "starting the shim", source }
        })?;
        let (Some(write), Some(read)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(LaunchError::Local { step: "starting the shim", source: io::ErrorKind::BrokenPipe.into() });
        };
        let pid = child.id().map(|id| Pid::from_raw(id.cast_signed()));
        let (ended, end) = watch::channel(None);
        tokio::spawn(await_end(child, ended));
        let paths = paths_in(&folder);
        let instance = Arc::new(ProcessInstance { pid, end, folder });
        Ok(Launched { read: Box::new(read), write: Box::new(write), paths, instance })
    }

    /// A shim ends with its job runner's stream, so a dead runner leaves none behind.
    async fn sweep(&self, _label: &str, _value: &str) -> Result<usize, LaunchError> {
        Ok(0)
    }
}

fn paths_in(folder: &Path) -> ShimPaths {
    let at = |name: &str| folder.join(name).to_string_lossy().into_owned();
    ShimPaths { workspace: at("workspace"), home: at("home"), context: at("context"), tmp: at("tmp") }
}

async fn await_end(mut child: Child, ended: watch::Sender<Option<Ended>>) {
    let said = Tail::default();
    let session_over = child.id().map(|id| end_with(Pid::from_raw(id.cast_signed())));
    if let Some(mut stderr) = child.stderr.take() {
        let mut buffer = [0; 1024];
        while let Ok(n @ 1..) = stderr.read(&mut buffer).await {
            said.push(&buffer[..n]);
        }
    }
    if let Some(session_over) = session_over {
        let _ = session_over.await;
    }
    let code = child.wait().await.ok().and_then(|status| status.code());
    ended.send_replace(Some(Ended { code, fault: None, said: said.text() }));
}

/// Kills what a shim leaves behind that could not do so itself: one that was killed. The answer comes once that is done.
///
/// On a thread of its own: it may wait for as long as the shim lives, and must not keep the job runner from ending.
#[cfg(target_os = "linux")]
fn end_with(shim: Pid) -> oneshot::Receiver<()> {
    use nix::sys::wait::{Id, WaitPidFlag, waitid};
    let (done, over) = oneshot::channel();
    std::thread::spawn(move || {
        // Without reaping it: until then its number names its session and nothing else.
        while waitid(Id::Pid(shim), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(nix::errno::Errno::EINTR) {}
        kill_session(shim);
        let _ = done.send(());
    });
    over
}

/// There is no way here to tell a shim's end before its number is free.
#[cfg(not(target_os = "linux"))]
fn end_with(_shim: Pid) -> oneshot::Receiver<()> {
    oneshot::channel().1
}

struct ProcessInstance {
    pid: Option<Pid>,
    end: watch::Receiver<Option<Ended>>,
    folder: PathBuf,
}

#[async_trait]
impl Instance for ProcessInstance {
    async fn watch(&self) -> Ended {
        let mut end = self.end.clone();
        let ended = end.wait_for(Option::is_some).await.ok().and_then(|ended| ended.clone());
        ended.unwrap_or_default()
    }

    async fn stop(&self) -> Ended {
        if let Some(pid) = self.pid.filter(|_| self.end.borrow().is_none()) {
            // The shim kills everything beneath it; only one that can't do so any more is killed itself, with its session.
            let _ = kill(pid, Signal::SIGTERM);
            if timeout(END_WITHIN, self.watch()).await.is_err() {
                kill_session(pid);
                let _ = kill(pid, Signal::SIGKILL);
            }
        }
        let ended = self.watch().await;
        let folder = self.folder.clone();
        let removed = tokio::task::spawn_blocking(move || remove(&folder)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(%error, folder = %self.folder.display(), "the run's folder could not be removed");
        }
        ended
    }
}

/// Everything whose session the shim began. What took itself a session of its own is found only by a living shim.
#[cfg(target_os = "linux")]
fn kill_session(session: Pid) {
    // Again, until none is new: a process may have forked between being listed and being killed.
    let mut known = std::collections::HashSet::new();
    loop {
        let mut found_new = false;
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).map(Pid::from_raw);
            if let Some(pid) = pid.filter(|pid| *pid != session && nix::unistd::getsid(Some(*pid)) == Ok(session)) {
                let _ = kill(pid, Signal::SIGKILL);
                found_new |= known.insert(pid);
            }
        }
        if !found_new {
            return;
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn kill_session(session: Pid) {
    let _ = nix::sys::signal::killpg(session, Signal::SIGKILL);
}

/// An agent may have taken itself, and the shim the context, the right to write in folders.
fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => return other,
    }
    open_up(folder)?;
    fs::remove_dir_all(folder)
}

fn open_up(folder: &Path) -> io::Result<()> {
    fs::set_permissions(folder, Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_up(&entry.path())?;
        }
    }
    Ok(())
}
