//! The job record: everything that the service knows of one job.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::event::Usage;
use crate::id::{ClaimId, Fence, JobId, UserId};
use crate::log::Cursor;

/// The fine word for where a job is. Version 1 of the HTTP contract has a closed, coarser set: [`State::status`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Queued,
    Preparing,
    Planning,
    Executing,
    Verifying,
    Publishing,
    Succeeded,
    Failed,
    Timeout,
    Cancelled,
}

/// Version 1's word for a job's state. Closed: an old client knows no others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Pending,
    Running,
    Succeeded,
    Failed,
    Timeout,
}

impl State {
    pub const ALL: [Self; 10] = [
        Self::Queued,
        Self::Preparing,
        Self::Planning,
        Self::Executing,
        Self::Verifying,
        Self::Publishing,
        Self::Succeeded,
        Self::Failed,
        Self::Timeout,
        Self::Cancelled,
    ];

    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Timeout | Self::Cancelled)
    }

    #[must_use]
    pub fn is_running(self) -> bool {
        !self.is_final() && self != Self::Queued
    }

    /// Version 1's word. Cancelled is `failed` there: that set was closed before jobs could be cancelled.
    #[must_use]
    pub fn status(self) -> Status {
        match self {
            Self::Queued => Status::Pending,
            Self::Succeeded => Status::Succeeded,
            Self::Failed | Self::Cancelled => Status::Failed,
            Self::Timeout => Status::Timeout,
            _ => Status::Running,
        }
    }

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Preparing => "preparing",
            Self::Planning => "planning",
            Self::Executing => "executing",
            Self::Verifying => "verifying",
            Self::Publishing => "publishing",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a job ended as it did. Each class has its own text and its own rule for a refund of the quota unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OutcomeClass {
    Success,
    /// The agent ended without success, or its adapter said so.
    Agent,
    /// The spec's checks did not pass.
    Verification,
    /// The adapter trapped, looped, used too much memory or answered nonsense.
    Adapter,
    /// Policy denied what the adapter or the job asked for.
    Policy,
    /// The repository could not be used: bad credential, unknown key, no such branch, empty.
    Repository,
    /// The result holds a secret of the job.
    SecretInResult,
    /// The result can't be published: too large, or an entry that is never accepted.
    Result,
    /// The job's own cost limit was reached.
    CostLimit,
    OutOfMemory,
    /// It wrote more than its disk limit allows.
    DiskFull,
    Timeout,
    Cancelled,
    /// Nobody claimed the job within a day.
    NoWorker,
    /// Our fault: a worker that vanished, a store that failed.
    Infrastructure,
}

impl OutcomeClass {
    /// The final state that this class belongs to.
    #[must_use]
    pub fn state(self) -> State {
        match self {
            Self::Success => State::Succeeded,
            Self::Timeout => State::Timeout,
            Self::Cancelled => State::Cancelled,
            _ => State::Failed,
        }
    }

    /// Whether the quota unit is given back whatever the job's state was.
    #[must_use]
    pub fn is_infrastructure(self) -> bool {
        matches!(self, Self::Infrastructure | Self::NoWorker)
    }
}

/// How a job ended, in words for its owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    pub class: OutcomeClass,
    /// What happened, one paragraph, no secrets.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Outcome {
    #[must_use]
    pub fn new(class: OutcomeClass, message: impl Into<String>) -> Self {
        Self { class, message: message.into(), hint: None }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// What the user asked for; never changed after the job was made. The spec's text is in the blob store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobRequest {
    pub git_repo_url: String,
    pub git_base_branch: String,
    #[serde(default)]
    pub git_credential_name: Option<String>,
    pub spec_id: String,
    #[serde(default)]
    pub spec_name: Option<String>,
    pub agent: String,
    #[serde(default)]
    pub model: Option<String>,
    pub timeout_seconds: u32,
    /// Slot of the adapter -> name of a stored secret.
    #[serde(default)]
    pub secrets: BTreeMap<String, String>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub push: bool,
    #[serde(default)]
    pub max_cost_micro_usd: Option<u64>,
    #[serde(default)]
    pub notify_url: Option<String>,
    #[serde(default)]
    pub retry_of: Option<JobId>,
}

/// Who works on a job, and until when that counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub claim: ClaimId,
    /// The dispatcher that holds the lease.
    pub worker: String,
    pub until: Timestamp,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DiffStat {
    pub files: u64,
    pub insertions: u64,
    pub deletions: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verification {
    Passed,
    Failed,
    /// The spec has no checks, or the job did not come that far.
    #[default]
    None,
}

/// A webhook that is still to be delivered for a job that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// Deliveries begun so far.
    pub attempts: u32,
    /// When the next one is due.
    pub due: Timestamp,
}

/// A published blob of one attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Artifact {
    /// `diff`, `transcript`, `log` or `manifest`.
    pub name: String,
    /// Key in the blob store. Not shown to clients.
    #[serde(default)]
    pub key: String,
    pub bytes: u64,
    pub sha256: String,
}

/// What an attempt's agent had changed while it was at work, in the blob store: from there the next attempt goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Of the attempt that made it.
    pub fence: Fence,
    pub attempt: u32,
    /// Counts within the attempt, from 1.
    pub number: u32,
    pub at: Timestamp,
    pub bytes: u64,
    pub sha256: String,
}

impl Checkpoint {
    /// Its key in the blob store. One that has been replaced is deleted, so keys are never used twice.
    #[must_use]
    pub fn key(&self, job: JobId) -> String {
        format!("jobs/{job}/checkpoints/{}-{}", self.fence, self.number)
    }
}

/// A secret that the present attempt was given: to whom, since an answer that was lost may be asked for again, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandedOut {
    pub to: String,
    pub at: Timestamp,
}

/// What the job runner found out on its way; each is set once and kept over later attempts only if it is set again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    pub base_sha: Option<String>,
    pub head_sha: Option<String>,
    pub feature_branch: Option<String>,
    pub usage: Usage,
    pub diff_stat: Option<DiffStat>,
    pub verification: Verification,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobRecord {
    pub id: JobId,
    pub owner: UserId,
    pub request: JobRequest,
    /// Blob key of the spec.
    pub spec_key: String,
    pub state: State,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// When the job was claimed for the first time.
    #[serde(default)]
    pub started_at: Option<Timestamp>,
    #[serde(default)]
    pub completed_at: Option<Timestamp>,
    #[serde(default)]
    pub fence: Fence,
    /// Attempts begun so far.
    #[serde(default)]
    pub attempt: u32,
    #[serde(default)]
    pub lease: Option<Lease>,
    pub not_before: Timestamp,
    /// Absolute; set by the first claim and never moved.
    #[serde(default)]
    pub deadline: Option<Timestamp>,
    #[serde(default)]
    pub cancel_at: Option<Timestamp>,
    #[serde(default)]
    pub outcome: Option<Outcome>,
    #[serde(default)]
    pub facts: Facts,
    #[serde(default)]
    pub artifacts: Vec<Artifact>,
    /// The last entry of the log; nothing is ever appended behind it.
    #[serde(default)]
    pub log_end: Option<Cursor>,
    /// The claim that wrote the end, so that a repeated `finish` whose first answer was lost is recognised.
    #[serde(default)]
    pub finished_by: Option<ClaimId>,
    /// Why the attempt before this one ended.
    #[serde(default)]
    pub last_fault: Option<String>,
    /// Counts the writes to this record.
    #[serde(default)]
    pub version: u64,
    /// How long results and log are kept after the end.
    pub retention_seconds: u32,
    /// From this moment on results and log are gone; set when the job ends.
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
    /// The month whose quota this job was taken from, `yyyy-mm`.
    pub quota_month: String,
    /// What the job costs beyond the included ones, in millionths of a US dollar; 0: it is an included one.
    #[serde(default)]
    pub charge_micro_usd: u64,
    /// The newest one of any attempt. Of a job that has ended its content is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<Checkpoint>,
    /// By the name under which it was asked for. Gone with the attempt.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub handed_out: BTreeMap<String, HandedOut>,
    /// Set by the end of a job whose owner asked to be told; removed when they were told, or when it was given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notice: Option<Notice>,
    /// `traceparent` of the request that made the job, 55 bytes: what is done for the job joins that trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
}

impl JobRecord {
    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|at| now >= at)
    }
}

/// A step in a job's life, kept for its owner and for audits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobEvent {
    pub version: u64,
    pub at: Timestamp,
    pub verb: String,
    pub state: State,
    pub fence: Fence,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}
