//! What an adapter asks for, in the host's own words. The WIT types of every interface version are converted to these once,
//! at the adapter host's edge; policy works on these and nothing else.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Where in its life a job is, as an adapter sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    Planning,
    Executing,
    Verifying,
}

/// What the adapter is told of a job. Never contains a credential.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterJob {
    pub run_id: String,
    /// Counts the runs of this job, from 1.
    pub run_number: u32,
    pub phase: Phase,
    pub prompt: String,
    /// What failed before, on a repair: the last 32 KiB of the checks' output, secrets masked.
    pub feedback: Option<String>,
    /// Absolute path of the checkout, as the agent will see it.
    pub workspace: String,
    pub model: Option<String>,
    pub session_id: Option<String>,
    pub deadline_seconds: u32,
    pub extra: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    pub cpu_millis: u32,
    pub memory_mib: u32,
    pub disk_mib: u32,
}

/// One exact DNS name and port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EgressRule {
    pub host: String,
    pub port: u16,
}

impl fmt::Display for EgressRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SecretRef {
    pub slot: String,
    pub env: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// Writable, private to the run.
    Home,
    /// Read-only, outside the checkout.
    Context,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanFile {
    pub place: Place,
    /// Relative, without `..`.
    pub path: String,
    pub content: String,
    pub executable: bool,
}

/// A model API that the agent calls without holding its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRoute {
    /// Variable that gets the route's loopback address.
    pub base_url_env: String,
    /// Appended to that address, for example `/v1`.
    pub path: String,
    pub upstream: EgressRule,
    pub slot: String,
    /// Header that carries the secret, for example `x-api-key`, and what stands before it, for example `Bearer `.
    pub header: String,
    pub prefix: String,
    /// Variable that the agent wants to see filled; it gets a placeholder.
    pub placeholder_env: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StopSignal {
    Term,
    Int,
    Hup,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    pub signal: StopSignal,
    pub grace_seconds: u32,
}

/// Silence that counts as hung, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watchdog {
    pub first_output_seconds: u32,
    pub idle_seconds: u32,
}

/// One container run that an adapter asks for. A request, not a grant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerRequest {
    pub image: String,
    pub command: Vec<String>,
    pub args: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub files: Vec<PlanFile>,
    pub routes: Vec<ModelRoute>,
    pub secrets: Vec<SecretRef>,
    pub resources: Resources,
    pub egress: Vec<EgressRule>,
    /// Written, then end of file; `None` is end of file at once.
    pub stdin: Option<String>,
    pub stop: Stop,
    pub watchdog: Watchdog,
    pub extra: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretSlot {
    pub name: String,
    pub description: String,
    pub required: bool,
}

/// The most that an adapter will ever ask for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Descriptor {
    pub id: String,
    pub version: String,
    pub display_name: String,
    pub phases: Vec<Phase>,
    pub images: Vec<String>,
    pub egress: Vec<EgressRule>,
    pub routes: Vec<ModelRoute>,
    pub secrets: Vec<SecretSlot>,
    pub max_resources: Resources,
    /// JSON Schema of the adapter's configuration keys.
    pub config_schema: String,
    pub extra: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    Stdout,
    Stderr,
}

/// One line of an agent's output: newline removed, invalid UTF-8 replaced, cut at the host's line limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputLine {
    pub seq: u32,
    pub source: Source,
    pub text: String,
    pub truncated: bool,
}

/// How a container run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitStatus {
    Code(i32),
    Signal(i32),
    OomKilled,
    Deadline,
    Evicted,
    /// Why the host ended it, for example `idle` or `cancelled`.
    Other(String),
}

/// What an adapter makes of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunOutcome {
    Success,
    Failure(String),
    Retryable(String),
    NeedsInput(String),
    Other { kind: String, json: String },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PastRun {
    pub number: u32,
    pub phase: Phase,
    pub exit: ExitStatus,
    pub outcome: RunOutcome,
}

/// What an adapter advises after a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    Advance,
    Retry { delay_seconds: u32, resume_session: bool, reason: String },
    BackTo(Phase),
    Stop(String),
    Other { kind: String, json: String },
}
