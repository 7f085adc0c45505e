//! What job runner and gateway say to each other: JSON over HTTP on a unix socket (embedded) or on TLS inside the cluster.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ckrv_core::id::{ClaimId, Fence, JobId};
use ckrv_core::job::{Facts, JobRecord, State};
use ckrv_core::log::LogEntry;
use ckrv_core::machine::Refusal;
use ckrv_core::policy::Policy;
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use url::Url;

use crate::launch_choice::LauncherChoice;
use crate::settings::{Checkpoints, LogPace};

/// A diff, a transcript, a checkpoint: what a job runner may upload at once.
pub const LARGEST_ARTIFACT: u64 = 100 << 20;
/// Anything else that it says, log entries above all.
pub const LARGEST_MESSAGE: u64 = 32 << 20;

/// In a job pod: the token that names it to the gateway, and the gateway's authority.
pub const POD_GATEWAY: &str = "/var/run/ckrv/gateway";

/// What a job runner finds in its folder (mode 0600) when it is started.
#[derive(Clone, Serialize, Deserialize)]
pub struct Task {
    pub job: JobId,
    pub fence: Fence,
    pub claim: ClaimId,
    pub gateway: GatewayAddress,
    /// `traceparent` of what started it.
    #[serde(default)]
    pub trace: Option<String>,
}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Task").field("job", &self.job).field("fence", &self.fence).finish_non_exhaustive()
    }
}

/// Where the gateway is, and by what a job runner proves which attempt it is.
#[derive(Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum GatewayAddress {
    /// On the same machine.
    Socket {
        path: PathBuf,
        #[serde(serialize_with = "expose")]
        token: SecretString,
    },
    /// In a cluster: `url` with a certificate that `ca_file` signed. The token in `token_file` names the pod, and is replaced now and then.
    Tls { url: Url, ca_file: PathBuf, token_file: PathBuf },
}

impl GatewayAddress {
    /// Of a job pod: its folder of the gateway's is where the dispatcher mounts it.
    #[must_use]
    pub fn in_pod(url: Url) -> Self {
        let folder = Path::new(POD_GATEWAY);
        Self::Tls { url, ca_file: folder.join("ca.crt"), token_file: folder.join("token") }
    }
}

impl std::fmt::Debug for GatewayAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket { path, .. } => f.debug_tuple("Socket").field(path).finish(),
            Self::Tls { url, .. } => f.debug_tuple("Tls").field(&url.as_str()).finish(),
        }
    }
}

fn expose<S: serde::Serializer>(value: &SecretString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(value.expose_secret())
}

/// Everything that a job runner needs to know to begin.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JobView {
    pub job: JobRecord,
    pub spec: String,
    pub policy: Policy,
    pub launcher: LauncherChoice,
    /// Repositories by path: the embedded default only.
    pub allow_paths: bool,
    pub ca_file: Option<PathBuf>,
    /// Where compiled adapters are cached.
    pub cache: Option<PathBuf>,
    /// The operator's own adapter for this job's agent, instead of a built-in one.
    #[serde(default)]
    pub adapter: Option<PathBuf>,
    #[serde(default)]
    pub log_pace: LogPace,
    #[serde(default)]
    pub checkpoints: Checkpoints,
    /// The files themselves, where the job runner can't read the server's.
    #[serde(default)]
    pub files: OperatorFiles,
}

/// What an operator gives each job, as files. None of them is secret.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct OperatorFiles {
    /// Of [`JobView::ca_file`].
    #[serde(default)]
    pub ca: Option<String>,
    /// Of [`JobView::adapter`], base64.
    #[serde(default)]
    pub adapter: Option<String>,
}

impl JobView {
    /// With the operator's files as files in this folder.
    ///
    /// # Errors
    /// When they can't be written.
    pub(crate) fn unpacked(mut self, dir: &Path) -> std::io::Result<Self> {
        let write = |name: &str, content: &[u8]| {
            let path = dir.join(name);
            std::fs::write(&path, content).map(|()| path)
        };
        if let Some(ca) = self.files.ca.take() {
            self.ca_file = Some(write("operator-ca.pem", ca.as_bytes())?);
        }
        if let Some(adapter) = self.files.adapter.take() {
            let content = BASE64.decode(adapter).map_err(std::io::Error::other)?;
            self.adapter = Some(write("adapter.wasm", &content)?);
        }
        Ok(self)
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BeatAnswer {
    pub cancel: bool,
    pub deadline: Option<Timestamp>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AdvanceRequest {
    pub to: State,
    pub facts: Facts,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LogRequest {
    pub entries: Vec<LogEntry>,
}

/// What a job runner believes when it asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttentionQuery {
    #[serde(default)]
    pub watched: bool,
}

/// The answer to a long poll: what the job runner should know at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attention {
    pub cancel: bool,
    /// Somebody follows the log now.
    pub watched: bool,
}

/// Asks for a secret of one slot, or for the git credential. The nonce makes a repeated question the same question.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SecretRequest {
    pub nonce: String,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct SecretAnswer {
    #[serde(serialize_with = "expose_option")]
    pub value: Option<SecretString>,
}

impl std::fmt::Debug for SecretAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretAnswer").field("present", &self.value.is_some()).finish()
    }
}

fn expose_option<S: serde::Serializer>(value: &Option<SecretString>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.serialize_some(value.expose_secret()),
        None => serializer.serialize_none(),
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReleaseRequest {
    pub not_before_seconds: u32,
    pub note: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stored {
    pub key: String,
    pub sha256: String,
    pub bytes: u64,
}

/// Why the gateway said no.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "kind", content = "detail", rename_all = "kebab-case")]
pub enum Denial {
    #[error("{0}")]
    Refused(Refusal),
    #[error("the log is closed for this attempt")]
    LogClosed,
    #[error("the log goes on at entry {0}")]
    LogGap(u64),
    #[error("there is other content under this name already")]
    ArtifactConflict,
    #[error("this secret was handed out already")]
    HandedOut,
    #[error("{0}")]
    Missing(String),
    #[error("the token is not valid for this job and attempt")]
    Unauthorized,
    #[error("the request is not valid: {0}")]
    Invalid(String),
    #[error("it has more than {0} MiB")]
    TooLarge(u64),
    /// Worth trying again, a moment later.
    #[error("too much is being uploaded at once; try again")]
    Busy,
    /// Worth trying again.
    #[error("the service has a fault; try again")]
    Fault,
}
