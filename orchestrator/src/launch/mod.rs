//! Launching agents: a [`Launcher`] starts the shim somewhere, a [`ShimSession`] speaks with it.
//!
//! Invariant: a launcher knows nothing of agents, keys or jobs. It gives a byte stream to a shim and a way to end it.
//! Invariant: no secret is in what a launcher is given, but for a run's environment where policy grants that (see [`session`]).

mod attach;
mod container;
pub mod door;
mod engine;
pub mod kubernetes;
mod lines;
mod process;
pub mod proxy;
mod session;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use ckrv_core::plan::Resources;
use ckrv_shim::protocol::ShimPaths;
use tokio::io::{AsyncRead, AsyncWrite};

pub use ckrv_shim::archive::ArchiveWriter;
pub use ckrv_shim::path::BytePath;
pub use ckrv_shim::protocol::{
    ChangeKind, Changed, CollectLimits, ExitRecord, ExitStatus, OutputFrame, Place, PlacedFile, Refused, Source, StopSignal,
};
pub use container::{ContainerConfig, ContainerLauncher, PullPolicy};
pub use door::{Door, Guest};
pub use engine::{Engine, EngineKind};
pub use lines::{Line, LineSplitter, MAX_LINE};
pub use process::{ProcessConfig, ProcessLauncher};
pub use session::{
    Checkpointer, Collection, Egress, Hung, Route, RunEnd, RunSpec, SessionConfig, SessionError, ShimSession, Stopper, Watchdog,
};

/// What to launch. The command itself is said later, over the session.
#[derive(Clone, Debug)]
pub struct LaunchSpec {
    /// Unique: made from job, attempt and run. Lower-case letters, digits and dashes, at most 63.
    pub name: String,
    /// The process launcher has no images and ignores it.
    pub image: String,
    /// By these, what a crash left behind is found again: see [`Launcher::sweep`].
    pub labels: BTreeMap<String, String>,
    /// Zero is no limit. Disk isn't enforced by any launcher here; nothing is by the process launcher.
    pub resources: Resources,
    /// The process launcher makes a folder `name` in it.
    pub run_dir: PathBuf,
}

/// A shim that is up, its stream, and where its folders are.
pub struct Launched {
    pub read: Box<dyn AsyncRead + Send + Unpin>,
    pub write: Box<dyn AsyncWrite + Send + Unpin>,
    pub paths: ShimPaths,
    pub instance: Arc<dyn Instance>,
}

impl std::fmt::Debug for Launched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Launched").field("paths", &self.paths).finish_non_exhaustive()
    }
}

/// A way to run the shim.
#[async_trait]
pub trait Launcher: Send + Sync {
    /// `container` or `process`, as in policy and in the log.
    fn name(&self) -> &'static str;

    /// Starts a shim. What a failed launch had made already is removed.
    async fn launch(&self, spec: &LaunchSpec) -> Result<Launched, LaunchError>;

    /// Ends and removes whatever of this machine carries the label, and gives their number: the leftovers of a job runner that died.
    async fn sweep(&self, label: &str, value: &str) -> Result<usize, LaunchError>;
}

/// One launched shim.
#[async_trait]
pub trait Instance: Send + Sync {
    /// Waits for the shim's own end. It may be awaited several times.
    async fn watch(&self) -> Ended;

    /// Kills it with everything beneath it and removes what the launch made. Again is no error.
    async fn stop(&self) -> Ended;
}

/// The end of a shim as its launcher sees it. It never means that a run went well: only an exit record does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Exit code, where it had one.
    pub code: Option<i32>,
    /// What its platform blames, where it blames anything.
    pub fault: Option<Fault>,
    /// The last of what the shim said on stderr.
    pub said: String,
}

/// Why a platform ended a shim, or says that it did. The text is the platform's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The container as a whole ran out of memory.
    OutOfMemory,
    /// More was written than the disk limit allows.
    DiskFull(String),
    /// Its node wanted the room: not the job's doing.
    Evicted(String),
    /// Its node is gone, or was never able to run it.
    NodeLost(String),
    /// Somebody removed it.
    Deleted,
    /// The platform's own clock ended it at the job's deadline.
    Deadline,
}

/// Why nothing was launched. `Display` is for the log and for operators, [`LaunchError::hint`] says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("the container engine at {socket} doesn't answer")]
    EngineUnreachable { socket: String, source: bollard::errors::Error },
    #[error("the image {image} is not on this machine")]
    ImageNotFound { image: String },
    #[error("the image {image} could not be pulled: {message}")]
    ImagePull { image: String, message: String },
    #[error("the image {image} could not be pulled for now: {message}")]
    RegistryAway { image: String, message: String },
    #[error("the container engine refused to {step}")]
    Refused { step: &'static str, source: bollard::errors::Error },
    #[error("the name {0:?} can't be used for a launch")]
    Name(String),
    #[error("the cluster refused to {step}")]
    Cluster { step: &'static str, source: Box<kube::Error> },
    #[error("the cluster's quota has no room: {message}")]
    Quota { message: String },
    #[error("no node of the cluster took the pod within {seconds} s: {message}")]
    Unschedulable { seconds: u64, message: String },
    #[error("the pod ended before its shim was there: {message}")]
    NeverUp { fault: Option<Fault>, message: String },
    #[error("this build has no shim for containers")]
    NoShim,
    #[error("{step} failed")]
    Local { step: &'static str, source: std::io::Error },
}

impl LaunchError {
    /// What the reader can do.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::EngineUnreachable { .. } => {
                "start Docker or Podman (`podman system service`), or check that this user may use its socket"
            }
            Self::ImageNotFound { .. } => "pull or build the image on this machine, or let the policy pull missing images",
            Self::ImagePull { .. } => "check the image's name and digest, and that this machine may read its registry",
            Self::RegistryAway { .. } => "see whether the registry answers the cluster's nodes",
            Self::Refused { .. } => "the engine's own message says which limit or setting it can't serve",
            Self::Name(_) => "names have lower-case letters, digits and dashes, at most 63",
            Self::Cluster { .. } => "`kubectl auth can-i` and the cluster's own message say what is missing",
            Self::Quota { .. } => "raise the namespace's ResourceQuota, or lower the service's capacity",
            Self::Unschedulable { .. } => "add nodes, or lower what the policy lets a job ask for",
            Self::NeverUp { .. } => "look at the pod's events: `kubectl get events`",
            Self::NoShim => "use a build for Linux, or the process launcher",
            Self::Local { .. } => "check free space and permissions of the run folder",
        }
    }

    /// Whether another attempt may go better without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::EngineUnreachable { .. }
                | Self::RegistryAway { .. }
                | Self::Local { .. }
                | Self::Cluster { .. }
                | Self::Quota { .. }
                | Self::Unschedulable { .. }
                | Self::NeverUp { .. }
        )
    }
}

fn check_name(name: &str) -> Result<(), LaunchError> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if (1..=63).contains(&name.len()) && name.chars().all(good) && !name.starts_with('-') {
        return Ok(());
    }
    Err(LaunchError::Name(name.to_owned()))
}

/// The last of a text that never ends.
#[derive(Clone, Debug, Default)]
struct Tail(Arc<std::sync::Mutex<Vec<u8>>>);

impl Tail {
    const KEPT: usize = 4096;

    fn push(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        kept.extend_from_slice(bytes);
        let over = kept.len().saturating_sub(Self::KEPT);
        kept.drain(..over);
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)).trim().to_owned()
    }
}
