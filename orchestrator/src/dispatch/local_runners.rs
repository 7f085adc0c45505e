//! Job runners as processes beside the server. Each holds a lock on a file in its folder for as long as it lives, so a restarted server knows
//! for certain which of them go on: by the lock, never by a process id.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use ckrv_core::id::{Fence, JobId};
use ckrv_core::job::JobRecord;

use super::{Liveness, Runners, StartError};
use crate::gateway::Task;
use crate::launch::{ContainerConfig, ContainerLauncher, Engine, Launcher as _};
use crate::launch_choice::LauncherChoice;
use crate::settings::Settings;

const LOCK: &str = "lock";
const LOG: &str = "runner.log";
/// What is passed on of one job runner's log; it writes a few lines.
const MAX_LOG: u64 = 256 * 1024;
/// What a job runner is told, read and then removed by it.
pub const TASK: &str = "task.json";

#[derive(Debug)]
pub struct LocalRunners {
    settings: Arc<Settings>,
    /// Processes that this server started, kept so that they are reaped when they end.
    children: Mutex<HashMap<PathBuf, tokio::process::Child>>,
}

impl LocalRunners {
    /// # Errors
    /// When the folder for runs can't be made.
    pub fn new(settings: Arc<Settings>) -> std::io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&settings.runs)?;
        Ok(Self { settings, children: Mutex::default() })
    }

    fn folder(&self, job: JobId, fence: Fence) -> PathBuf {
        self.settings.runs.join(format!("{job}-{fence}"))
    }

    fn attempts(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(&self.settings.runs) else { return Vec::new() };
        entries.filter_map(Result::ok).map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
    }

    fn reap_children(&self) {
        let mut children = self.children.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        children.retain(|_, child| matches!(child.try_wait(), Ok(None)));
    }
}

/// Of our environment, what a job runner needs: to find programs, and to log and trace as we do.
fn is_for_runners(name: &std::ffi::OsStr) -> bool {
    const NAMES: [&str; 6] = ["PATH", "TMPDIR", "RUST_LOG", "RUST_BACKTRACE", "CKRV_LOG", "CKRV_LOG_FORMAT"];
    name.to_str().is_some_and(|name| NAMES.contains(&name) || name.starts_with("OTEL_"))
}

/// What a job runner that has ended wrote to its log goes to ours, so that one log tells the whole story of a job.
fn pass_on_log(folder: &Path) {
    // In a command of one local job nobody listens.
    if !tracing::enabled!(tracing::Level::INFO) {
        return;
    }
    let mut text = Vec::new();
    let read = File::open(folder.join(LOG)).and_then(|file| file.take(MAX_LOG).read_to_end(&mut text));
    if read.is_ok() && !text.is_empty() {
        if !text.ends_with(b"\n") {
            text.push(b'\n');
        }
        let _ = std::io::stderr().lock().write_all(&text);
    }
}

/// Whether somebody holds the lock of an attempt's folder.
fn is_locked(folder: &Path) -> bool {
    match File::open(folder.join(LOCK)) {
        // The lock is given back as soon as the file is closed.
        Ok(file) => file.try_lock().is_err(),
        Err(_) => false,
    }
}

#[async_trait]
impl Runners for LocalRunners {
    async fn start(&self, _job: &JobRecord, task: &Task) -> Result<(), StartError> {
        let folder = self.folder(task.job, task.fence);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let lock = std::fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(folder.join(LOCK))?;
        lock.try_lock().map_err(std::io::Error::from)?;
        let mut file = std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(folder.join(TASK))?;
        serde_json::to_writer(&mut file, task).map_err(std::io::Error::from)?;
        let log = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(folder.join(LOG))?;
        let mut command = tokio::process::Command::new(&self.settings.program);
        command.args(["internal", "job-runner", "--dir"]).arg(&folder).env_clear();
        command.envs(std::env::vars_os().filter(|(name, _)| is_for_runners(name)));
        // The locked file is the child's standard input: lock and process end together, whatever happens to us.
        command.stdin(Stdio::from(lock)).stdout(Stdio::null()).stderr(Stdio::from(log)).kill_on_drop(false);
        let child = command.spawn()?;
        self.children.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(folder, child);
        Ok(())
    }

    async fn liveness(&self, job: &JobRecord) -> Liveness {
        let alive = is_locked(&self.folder(job.id, job.fence));
        if alive { Liveness::Alive } else { Liveness::Gone("its job runner ended without a report".to_owned()) }
    }

    async fn running(&self) -> usize {
        self.reap_children();
        self.attempts().iter().filter(|folder| is_locked(folder)).count()
    }

    async fn clear(&self, job: &JobRecord) {
        let job = job.id;
        // The shim of the process launcher ends with its job runner; a container is there until somebody removes it.
        let LauncherChoice::Container { engine } = &self.settings.launcher else { return };
        let swept = async {
            let launcher = ContainerLauncher::new(Engine::connect(engine).await?, ContainerConfig::new(bytes::Bytes::new()));
            launcher.sweep(crate::job::JOB_LABEL, &job.to_string()).await
        };
        if let Err(error) = swept.await {
            tracing::warn!(%job, error = ckrv_store::chain(&error), "what a job runner left in the container engine could not be removed");
        }
    }

    async fn sweep(&self, live: &[(JobId, Fence)]) {
        self.reap_children();
        let keep: Vec<PathBuf> = live.iter().map(|(job, fence)| self.folder(*job, *fence)).collect();
        for folder in self.attempts() {
            if keep.contains(&folder) || is_locked(&folder) {
                continue;
            }
            pass_on_log(&folder);
            if let Err(error) = std::fs::remove_dir_all(&folder) {
                tracing::warn!(folder = %folder.display(), %error, "what is left of an attempt could not be removed");
            }
        }
    }
}
