//! Jobs, the queue's verbs, and logs.

use async_trait::async_trait;
use ckrv_core::id::{ClaimId, Fence, JobId, UserId};
use ckrv_core::job::{JobEvent, JobRecord, State};
use ckrv_core::log::{Cursor, LogEntry};
use ckrv_core::machine::Verb;
use jiff::Timestamp;

use crate::error::{AppendError, CreateError, StoreError, VerbError};

/// A job to be made. The spec is already in the blob store.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// Complete record in state `queued`.
    pub job: JobRecord,
    pub idempotency: Option<Idempotency>,
    pub quota: QuotaRule,
}

#[derive(Clone, Debug)]
pub struct Idempotency {
    /// SHA-256 of the client's key, hexadecimal.
    pub key_sha256: String,
    /// SHA-256 of the request's body, hexadecimal.
    pub body_sha256: String,
}

/// How many jobs the owner may make in the month `month` (`yyyy-mm`, UTC).
#[derive(Clone, Debug)]
pub struct QuotaRule {
    pub month: String,
    /// Jobs that cost nothing extra; each one beyond is recorded in the ledger. `None`: all.
    pub included: Option<u32>,
    /// Included jobs plus allowed overage; `None` is no limit.
    pub cap: Option<u32>,
    /// The price of a job beyond the included ones, in millionths of a US dollar.
    pub overage_micro_usd: u64,
    pub resets_at: Timestamp,
}

/// What waits and what runs, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueDepth {
    /// Queued jobs, due or not.
    pub queued: u64,
    /// When the oldest of them was made.
    pub oldest: Option<Timestamp>,
    /// Jobs under a lease.
    pub running: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Created {
    New(JobRecord),
    /// The idempotency key was used before with the same body: this is the job it made. Nothing was counted.
    Replay(JobRecord),
}

#[derive(Clone, Debug, Default)]
pub struct JobFilter {
    /// Any of these states; empty is all.
    pub states: Vec<State>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Opaque; give it back to get what follows.
    pub next: Option<String>,
}

/// A record that couldn't be read and was set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    pub name: String,
    pub reason: String,
}

#[async_trait]
pub trait JobStore: Send + Sync {
    /// Makes a job: idempotency key, quota, job and list entry in one transaction, and a ledger entry where the job is beyond the included
    /// ones (its `charge_micro_usd` is set here). A replay answers even at full quota.
    async fn create_job(&self, new: NewJob, now: Timestamp) -> Result<Created, CreateError>;

    /// Strongly consistent.
    async fn job(&self, id: JobId) -> Result<Option<JobRecord>, StoreError>;

    /// Newest first. `cursor` comes from an earlier page. [`StoreError::BadCursor`]: it does not. Purged jobs are not listed.
    async fn jobs_of(
        &self,
        owner: UserId,
        filter: &JobFilter,
        limit: usize,
        cursor: Option<&str>,
    ) -> Result<Page<JobRecord>, StoreError>;

    /// How long earlier successful jobs of the same repository and agent took, in seconds, newest first.
    async fn durations(&self, owner: UserId, repo_url: &str, agent: &str, limit: usize) -> Result<Vec<f64>, StoreError>;

    /// Queued jobs that may start now, oldest first.
    async fn due(&self, now: Timestamp, limit: usize) -> Result<Vec<JobRecord>, StoreError>;

    /// Jobs that were made before this one and are still queued; 0 is next in line.
    async fn queue_position(&self, job: &JobRecord) -> Result<u64, StoreError>;

    /// Jobs under a lease: what a reaper looks through.
    async fn running(&self) -> Result<Vec<JobRecord>, StoreError>;

    /// Queued jobs that will never be due by themselves: the deadline passed while they waited, cancelled, unclaimed too long.
    async fn stuck(&self, now: Timestamp, limit: usize) -> Result<Vec<JobRecord>, StoreError>;

    /// Applies one verb: read, [`ckrv_core::machine::apply`], conditional write with event, quota refund (which also voids the job's ledger
    /// entry), the agent's cost in the month's usage, and queue keys, in one transaction.
    /// When the job ends, `log_end` becomes the place of the last entry that is stored, whatever the verb says: a caller's view may be older.
    /// `Verb::Claim { has_room }` is the caller's view; use [`JobStore::running_of`].
    async fn apply(&self, id: JobId, verb: &Verb, now: Timestamp) -> Result<JobRecord, VerbError>;

    /// How many jobs of this owner are under a lease.
    async fn running_of(&self, owner: UserId) -> Result<u32, StoreError>;

    async fn events(&self, id: JobId) -> Result<Vec<JobEvent>, StoreError>;

    /// Appends entries of one attempt, in order, without a gap. Entries that are already stored are passed over, so that a call whose
    /// answer was lost can be repeated. Refused with [`AppendError::Closed`] unless claim and fence hold the lease.
    async fn append_log(&self, id: JobId, claim: ClaimId, fence: Fence, entries: &[LogEntry]) -> Result<(), AppendError>;

    /// Entries behind `after`, in order, at most `limit`.
    async fn read_log(&self, id: JobId, after: Cursor, limit: usize) -> Result<Vec<LogEntry>, StoreError>;

    /// The last entry's place, or the default cursor of an empty log.
    async fn log_tail(&self, id: JobId) -> Result<Cursor, StoreError>;

    /// Notes that somebody follows the job's log until `until`, for the worker that holds it. A hint.
    async fn watch(&self, job: &JobRecord, until: Timestamp) -> Result<(), StoreError>;

    /// The jobs of this worker whose logs are followed by now, as far as other processes have noted it; those of this process are signalled.
    async fn watched(&self, worker: &str, now: Timestamp) -> Result<Vec<JobId>, StoreError>;

    /// Ended jobs whose webhook is due, longest due first.
    async fn to_notify(&self, now: Timestamp, limit: usize) -> Result<Vec<JobRecord>, StoreError>;

    /// Puts an ended job's log into the form in which it is kept: cheap to hold and to read. May be repeated; reads give the same as before.
    async fn compact_log(&self, id: JobId) -> Result<(), StoreError>;

    async fn depth(&self) -> Result<QueueDepth, StoreError>;

    /// Deletes logs and list entries of jobs that expired before `now`; gives the jobs whose blobs may go too. Housekeeping: every read checks the time itself.
    async fn purge_expired(&self, now: Timestamp, limit: usize) -> Result<Vec<JobId>, StoreError>;

    /// Records that couldn't be read and were set aside, by name.
    async fn set_aside(&self) -> Result<Vec<SetAside>, StoreError>;

    /// One cheap round trip, for readiness.
    async fn ping(&self) -> Result<(), StoreError>;
}
