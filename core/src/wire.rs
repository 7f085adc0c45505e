//! The HTTP contract's types, version 1. Fields may be added, never renamed, retyped or removed: clients that we don't control depend on them.

mod usage;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::id::JobId;
use crate::job::{DiffStat, State, Status, Verification};
use crate::log::LogEntry;

pub use usage::{Delivery, Ledger, LedgerLine, UsageReport, WebhookSecret};

macro_rules! redacted_debug {
    ($($name:ident),*) => {$(
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    )*};
}
mod identity;

pub use identity::*;

/// Largest spec, in bytes.
pub const MAX_SPEC_BYTES: usize = 256 * 1024;
/// Largest repository URL, in bytes.
pub const MAX_URL_BYTES: usize = 2 * 1024;
/// Largest credential or secret, in bytes.
pub const MAX_CREDENTIAL_BYTES: usize = 64 * 1024;
pub const MAX_LABELS: usize = 20;

pub const DEVICE_GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";
pub const REFRESH_GRANT: &str = "refresh_token";

/// `POST /v1/auth/device`. Unknown fields are ignored, as OAuth says.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DeviceRequest {
    #[schema(min_length = 1, max_length = 100, pattern = "^[!-~]{1,100}$")]
    pub client_id: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DeviceResponse {
    pub device_code: String,
    /// `ABCD-1234`.
    pub user_code: String,
    pub verification_uri: String,
    /// The same with the user code filled in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification_uri_complete: Option<String>,
    /// Seconds.
    pub expires_in: u32,
    /// Seconds between two polls.
    pub interval: u32,
}

#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct TokenRequest {
    #[serde(default)]
    #[schema(required = true)]
    pub client_id: String,
    #[serde(default)]
    #[schema(required = true)]
    pub device_code: String,
    #[serde(default)]
    #[schema(required = true, pattern = "^urn:ietf:params:oauth:grant-type:device_code$")]
    pub grant_type: String,
}

#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct RefreshRequest {
    #[serde(default)]
    #[schema(required = true)]
    pub refresh_token: String,
    #[serde(default)]
    #[schema(required = true, pattern = "^refresh_token$")]
    pub grant_type: String,
}

#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct TokenResponse {
    pub access_token: String,
    pub refresh_token: String,
    /// `Bearer`.
    pub token_type: String,
    /// Seconds.
    pub expires_in: u32,
}

redacted_debug!(ArtifactInfo, TokenRequest, RefreshRequest, TokenResponse, CreateCredential, CreateSecret);

/// An OAuth error (RFC 6749, RFC 8628): `authorization_pending`, `slow_down`, `access_denied`, `expired_token`, `invalid_grant`, ...
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct OauthError {
    pub error: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_description: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    Free,
    Pro,
    Enterprise,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UserInfo {
    pub id: String,
    pub email: String,
    pub name: String,
    pub subscription_tier: Tier,
    pub job_quota_remaining: u32,
    #[schema(value_type = String, format = DateTime)]
    pub billing_cycle_end: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    Github,
    Gitlab,
    Bitbucket,
    Generic,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CredentialType {
    Pat,
    DeployKey,
}

#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateCredential {
    #[schema(pattern = "^[a-z0-9-]{1,50}$")]
    pub name: String,
    pub provider: Provider,
    pub credential_type: CredentialType,
    /// The token, or the private key in OpenSSH or PEM format. Never returned.
    #[schema(min_length = 1)]
    pub value: String,
    /// Where the credential is offered, `host` or `host:port`; the provider's host by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: Option<Vec<String>>,
    /// Host keys in OpenSSH's known_hosts format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_hosts: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CredentialInfo {
    pub name: String,
    pub provider: Provider,
    pub credential_type: CredentialType,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_used_at: Option<Timestamp>,
    #[serde(default)]
    pub hosts: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CredentialList {
    pub credentials: Vec<CredentialInfo>,
}

#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSecret {
    #[schema(pattern = "^[a-z0-9-]{1,50}$")]
    pub name: String,
    /// Never returned. Either this or `reference`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Where the cloud's own secrets manager has the value, for example `aws-ssm:/ckrv/shared/NAME`; read when a job needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SecretInfo {
    pub name: String,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_used_at: Option<Timestamp>,
    /// Where its value is, if not here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SecretList {
    pub secrets: Vec<SecretInfo>,
}

fn main_branch() -> String {
    "main".to_owned()
}

/// `POST /v1/jobs`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateJob {
    /// At most 256 KiB.
    #[schema(min_length = 1)]
    pub spec_content: String,
    #[schema(min_length = 1, max_length = 2048)]
    pub git_repo_url: String,
    #[serde(default = "main_branch")]
    #[schema(min_length = 1)]
    pub git_base_branch: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git_credential_name: Option<String>,
    /// Overrides the spec's `agent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub timeout_seconds: Option<u32>,
    /// 1; more comes with best-of-N.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1)]
    pub best_of: Option<u32>,
    /// Slot of the adapter to the name of a stored secret.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(exclusive_minimum = 0.0, maximum = 1_000_000.0)]
    pub max_cost_usd: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notify_url: Option<String>,
    /// File name of the spec, for the id where the spec itself gives none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec_name: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UsageInfo {
    pub input_tokens: u64,
    pub output_tokens: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_usd: Option<f64>,
    pub turns: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Job {
    pub id: JobId,
    pub status: Status,
    pub git_repo_url: String,
    pub git_base_branch: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feature_branch_name: Option<String>,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub started_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub completed_at: Option<Timestamp>,
    /// `succeeded`, `failed` or `timeout`, once the job has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_status: Option<Status>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_summary: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,

    // What we add to version 1's fields.
    pub spec_id: String,
    pub state: State,
    /// While running: `preparing`, `planning`, `executing`, `verifying`, `publishing`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<State>,
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
    pub elapsed_seconds: f64,
    /// From earlier jobs of the same repository and agent; absent where there are none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub estimated_completion_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_position: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_sha: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_sha: Option<String>,
    pub agent: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    pub attempt: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<JobId>,
    pub verification: Verification,
    /// Where the diff is, once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_url: Option<String>,
    pub usage: UsageInfo,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diff_stat: Option<DiffStat>,
    pub labels: BTreeMap<String, String>,
    /// Why the job ended as it did, for programs; `error_message` is for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<crate::job::OutcomeClass>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    #[serde(default)]
    pub cancel_requested: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub deadline: Option<Timestamp>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct JobList {
    pub jobs: Vec<Job>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LogPage {
    pub logs: Vec<LogEntry>,
    /// Give it as `after` to go on; absent when there is no more for now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ArtifactList {
    pub artifacts: Vec<ArtifactInfo>,
}

#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct ArtifactInfo {
    /// `diff`, `transcript`, `log` or `manifest`.
    pub name: String,
    pub bytes: u64,
    pub sha256: String,
    /// Where it can be fetched by whoever has this address, for some minutes; to be fetched without the access token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AgentInfo {
    pub name: String,
    pub version: String,
    pub display_name: String,
    /// Default image.
    pub image: Option<String>,
    /// Secret slots: name, and whether it must be filled.
    pub secrets: Vec<AgentSecret>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AgentSecret {
    pub slot: String,
    pub required: bool,
    pub description: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AgentList {
    pub agents: Vec<AgentInfo>,
}

/// A dispatcher: what takes jobs from the queue and runs them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WorkerInfo {
    /// Replicas of one name share the work: capacity and load are then those of all of them together.
    pub name: String,
    /// The process.
    pub instance: String,
    pub region: Option<String>,
    /// `process`, `container` or `kubernetes`.
    pub launcher: String,
    /// Jobs that it runs at once.
    pub capacity: u32,
    /// Jobs that it runs now.
    pub load: u32,
    pub version: String,
    #[schema(value_type = String, format = DateTime)]
    pub started_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    pub last_seen: Timestamp,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct WorkerList {
    pub workers: Vec<WorkerInfo>,
}

/// RFC 9457, and beside it the fields that version 1 fixed for some answers.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    #[serde(rename = "type", default)]
    pub kind: String,
    #[serde(default)]
    pub title: String,
    #[serde(default)]
    pub status: u16,
    #[serde(default)]
    pub detail: String,
    /// For programs, for example `quota_exceeded`.
    #[serde(default)]
    pub code: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    #[serde(default)]
    pub request_id: String,
    /// Version 1's body for 402 and for OAuth errors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_description: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub quota_resets_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade_url: Option<String>,
    /// Of 503 at `/readyz`: each part of the service, `ok` or `down`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checks: Option<BTreeMap<String, String>>,
}
