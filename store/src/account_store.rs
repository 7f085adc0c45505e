//! Users, tokens, device logins, credentials, secrets, quota.

use async_trait::async_trait;
use ckrv_core::id::{JobId, UserId};
use ckrv_core::wire::{CredentialType, Provider, Tier, WorkerInfo};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::StoreError;
use crate::vault::Sealed;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub id: UserId,
    pub email: String,
    pub name: String,
    pub tier: Tier,
    #[serde(default)]
    pub role: Role,
    pub created_at: Timestamp,
    /// No token of this user is good any more.
    #[serde(default)]
    pub disabled: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    #[default]
    User,
    /// May read the ledger and the audit records, and list, promote and disable users.
    Admin,
}

/// Who somebody is at an identity provider: `iss` and `sub` of OpenID Connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    pub issuer: String,
    pub subject: String,
}

/// A token for automation, as stored: only its hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceToken {
    pub id: String,
    pub sha256: String,
    pub owner: UserId,
    /// The owner's name for it.
    pub name: String,
    /// What it may do, for example `jobs:read`.
    pub scopes: Vec<String>,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub last_used_at: Option<Timestamp>,
}

/// One change, for those who must be able to tell later who did it. Never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    pub id: String,
    pub at: Timestamp,
    /// Who: a user's id, or `operator`, `worker`, `anonymous`.
    pub actor: String,
    /// By which token: a refresh family's or a service token's id.
    #[serde(default)]
    pub via: Option<String>,
    /// What was done, for example `credential.create`.
    pub action: String,
    /// To what: an id or a name.
    pub target: String,
    /// From where: the client's address as far as it is known.
    #[serde(default)]
    pub from: Option<String>,
    #[serde(default)]
    pub request_id: Option<String>,
    /// The user whose thing it is.
    #[serde(default)]
    pub owner: Option<UserId>,
}

/// A month of one user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MonthUsage {
    /// Jobs counted; those given back are not among them.
    pub jobs: u32,
    pub overage_jobs: u32,
    pub overage_micro_usd: u64,
    /// What the agents of the jobs that ended said they cost.
    pub agent_micro_usd: u64,
}

/// A job beyond the included ones, for billing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerEntry {
    pub month: String,
    pub owner: UserId,
    pub job: JobId,
    pub at: Timestamp,
    pub micro_usd: u64,
    /// Given back because the job failed by our fault or never began; not to be billed.
    pub voided_at: Option<Timestamp>,
}

/// An access token as stored: only its hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessToken {
    pub sha256: String,
    pub user: UserId,
    /// The refresh family that it came from; revoked with it.
    pub family: String,
    pub expires_at: Timestamp,
}

/// A refresh family: one login of one client. `current` is the hash of the only refresh token that is good now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefreshFamily {
    pub id: String,
    pub user: UserId,
    pub current_sha256: String,
    /// The token before it. Presented again within the grace it gives the same successors, which are derived from it (HMAC under the server's key).
    pub previous: Option<PreviousRefresh>,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    pub revoked: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviousRefresh {
    pub sha256: String,
    pub rotated_at: Timestamp,
    /// When the access token that was given then runs out.
    pub access_expires_at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceState {
    Pending,
    Approved,
    Denied,
    /// The tokens were fetched; the code is worth nothing now.
    Used,
}

/// A device login under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceLogin {
    pub device_sha256: String,
    /// Keyed hash (HMAC-SHA256) of the normalised user code.
    pub user_code_hmac: String,
    pub client_id: String,
    pub state: DeviceState,
    pub user: Option<UserId>,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    pub interval_seconds: u32,
    pub last_poll: Option<Timestamp>,
}

/// A git credential. The value is sealed with the owner's id and the name as context.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    pub name: String,
    pub provider: Provider,
    pub credential_type: CredentialType,
    /// `host` or `host:port`; offered nowhere else.
    pub hosts: Vec<String>,
    /// Lines in OpenSSH's known_hosts format, beside the built-in ones.
    pub known_hosts: Option<String>,
    pub value: Sealed,
    pub created_at: Timestamp,
    pub last_used_at: Option<Timestamp>,
}

/// An agent's secret, for example a model's API key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    pub name: String,
    pub value: SecretValue,
    pub created_at: Timestamp,
    pub last_used_at: Option<Timestamp>,
}

/// Where a secret's value is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SecretValue {
    /// Here, with the owner's id and the name as context.
    Sealed(Sealed),
    /// In the cloud's own secrets manager, read when a job needs it: [`crate::References`].
    Reference { reference: String },
}

/// A worker that was not seen for so long is forgotten. Whoever lists them has a shorter patience.
pub(crate) const WORKER_MEMORY: jiff::SignedDuration = jiff::SignedDuration::from_hours(1);

/// Whether a conditional put took place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    Done,
    /// Something of that name is there already.
    Exists,
}

#[async_trait]
pub trait AccountStore: Send + Sync {
    /// Inserts or replaces.
    async fn put_user(&self, user: &User) -> Result<(), StoreError>;
    async fn user(&self, id: UserId) -> Result<Option<User>, StoreError>;
    async fn users(&self) -> Result<Vec<User>, StoreError>;

    /// The user who was linked with this login.
    async fn user_by_login(&self, login: &Login) -> Result<Option<UserId>, StoreError>;
    /// Links a login with a user, once: of two first sign-ins at the same time one gets [`Put::Exists`].
    async fn link_login(&self, login: &Login, user: UserId) -> Result<Put, StoreError>;

    /// Jobs counted against the month `yyyy-mm`.
    async fn quota_used(&self, user: UserId, month: &str) -> Result<u32, StoreError>;
    async fn month_usage(&self, user: UserId, month: &str) -> Result<MonthUsage, StoreError>;
    /// The month's jobs beyond the included ones, of all users, ordered by owner and job.
    async fn ledger(&self, month: &str) -> Result<Vec<LedgerEntry>, StoreError>;

    async fn put_access_token(&self, token: &AccessToken) -> Result<(), StoreError>;
    async fn access_token(&self, sha256: &str) -> Result<Option<AccessToken>, StoreError>;

    async fn put_family(&self, family: &RefreshFamily) -> Result<(), StoreError>;
    async fn family(&self, id: &str) -> Result<Option<RefreshFamily>, StoreError>;
    /// Replaces a family only while its current token is `expected_current`; `false`: somebody else rotated it first.
    async fn rotate_family(&self, family: &RefreshFamily, expected_current: &str) -> Result<bool, StoreError>;
    /// Revokes a family and every access token of it.
    async fn revoke_family(&self, id: &str) -> Result<(), StoreError>;

    /// Logins that were not revoked, oldest first.
    async fn families_of(&self, user: UserId) -> Result<Vec<RefreshFamily>, StoreError>;

    /// [`Put::Exists`]: a token of this id or hash is there.
    async fn put_service_token(&self, token: &ServiceToken) -> Result<Put, StoreError>;
    async fn service_token(&self, sha256: &str) -> Result<Option<ServiceToken>, StoreError>;
    /// Oldest first.
    async fn service_tokens(&self, owner: UserId) -> Result<Vec<ServiceToken>, StoreError>;
    /// `false`: there was none. From then on [`AccountStore::service_token`] does not find it.
    async fn delete_service_token(&self, owner: UserId, id: &str) -> Result<bool, StoreError>;
    /// Notes the use, at most once a minute for each token, so that a busy one does not write each time.
    async fn service_token_used(&self, token: &ServiceToken, at: Timestamp) -> Result<(), StoreError>;

    async fn audit(&self, record: &AuditRecord) -> Result<(), StoreError>;
    /// Records of the day `yyyy-mm-dd` (UTC), oldest first.
    async fn audit_of(&self, day: &str) -> Result<Vec<AuditRecord>, StoreError>;

    async fn put_device(&self, login: &DeviceLogin) -> Result<(), StoreError>;
    async fn device(&self, device_sha256: &str) -> Result<Option<DeviceLogin>, StoreError>;
    async fn device_by_user_code(&self, user_code_hmac: &str) -> Result<Option<DeviceLogin>, StoreError>;
    /// Replaces a login only while it is in state `expected`; `false`: it was not.
    async fn update_device(&self, login: &DeviceLogin, expected: DeviceState) -> Result<bool, StoreError>;

    async fn put_credential(&self, owner: UserId, credential: &Credential) -> Result<Put, StoreError>;
    async fn credential(&self, owner: UserId, name: &str) -> Result<Option<Credential>, StoreError>;
    async fn credentials(&self, owner: UserId) -> Result<Vec<Credential>, StoreError>;
    /// `false`: there was none.
    async fn delete_credential(&self, owner: UserId, name: &str) -> Result<bool, StoreError>;
    async fn credential_used(&self, owner: UserId, name: &str, at: Timestamp) -> Result<(), StoreError>;

    async fn put_secret(&self, owner: UserId, secret: &Secret) -> Result<Put, StoreError>;
    async fn secret(&self, owner: UserId, name: &str) -> Result<Option<Secret>, StoreError>;
    async fn secrets(&self, owner: UserId) -> Result<Vec<Secret>, StoreError>;
    async fn delete_secret(&self, owner: UserId, name: &str) -> Result<bool, StoreError>;
    async fn secret_used(&self, owner: UserId, name: &str, at: Timestamp) -> Result<(), StoreError>;

    /// Notes a worker as it is now; by [`WorkerInfo::instance`] it replaces what was noted before.
    async fn put_worker(&self, worker: &WorkerInfo) -> Result<(), StoreError>;
    /// Workers that were seen at `since` or later, by name and instance.
    async fn workers(&self, since: Timestamp) -> Result<Vec<WorkerInfo>, StoreError>;

    /// Deletes what expired before `now`, where the backend doesn't do that by itself. Housekeeping only: whoever reads a record checks
    /// its time.
    async fn purge_tokens(&self, now: Timestamp) -> Result<(), StoreError>;
}
