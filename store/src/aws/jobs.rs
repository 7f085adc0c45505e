//! The `JobStore` on DynamoDB.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use aws_sdk_dynamodb::types::AttributeValue;
use ckrv_core::id::{ClaimId, Fence, JobId, UserId};
use ckrv_core::job::{JobEvent, JobRecord, State};
use ckrv_core::log::{Cursor, LogEntry};
use ckrv_core::machine::{UNCLAIMED_LIMIT, Verb};
use futures::future::{try_join, try_join_all};
use jiff::Timestamp;

use super::aside::{self, Aside};
use super::edit::{Edit, Sent};
use super::logs::Appenders;
use super::meta::{Bad, EVENTS, Meta, PURGED, meta_key, unpack_events};
use super::queue::{List, Part, place_of};
use super::table::{Item, META, QPK, QSK, SK, Table, bytes_of, job_key, key, text_of};
use super::{changes, compact, create, lists, logs, reading};
use crate::blobs::Blobs;
use crate::error::{AppendError, CreateError, StoreError, VerbError};
use crate::job_store::{Created, JobFilter, JobStore, NewJob, Page, QueueDepth, SetAside};
use crate::signals::{Signal, Signals};

/// Jobs that are purged at a time: a few requests under way, so that housekeeping takes no capacity from anybody.
const PURGES: usize = 8;

pub(super) struct AwsJobs {
    pub table: Table,
    /// For log chunks that are too big for an item, and for compacted logs.
    pub blobs: Arc<dyn Blobs>,
    pub signals: Signals,
    pub aside: Aside,
    pub appenders: Appenders,
    /// Until when this process has noted that a job's log is followed.
    pub followed: Mutex<HashMap<JobId, Timestamp>>,
}

impl AwsJobs {
    pub(super) fn new(table: Table, blobs: Arc<dyn Blobs>, signals: Signals) -> Self {
        Self { table, blobs, signals, aside: Aside::default(), appenders: Appenders::default(), followed: Mutex::default() }
    }

    /// A job's item, strongly consistent.
    pub(super) async fn meta(&self, id: JobId) -> Result<Option<Meta>, StoreError> {
        let Some(item) = self.table.get("reading a job", meta_key(id)).await? else { return Ok(None) };
        match Meta::read(&item) {
            Ok(meta) => Ok(Some(meta)),
            Err(bad) => {
                self.aside.note(&self.table, &bad).await;
                Err(bad.into())
            }
        }
    }

    /// An item that came with an answer.
    pub(super) fn read_meta(&self, item: &Item) -> Result<Meta, StoreError> {
        Ok(Meta::read(item)?)
    }

    /// Marks a job as purged and takes it out of the index; `false`: it was.
    async fn purge(&self, meta: &Meta) -> Result<bool, StoreError> {
        let mut edit = Edit::default();
        edit.set(PURGED, AttributeValue::Bool(true));
        let expires = place_of(&meta.job, false).is_some_and(|place| place.list == List::Expire);
        if expires {
            edit.remove(QPK);
            edit.remove(QSK);
        }
        let purged = edit.name(PURGED);
        edit.condition(format!("attribute_not_exists({purged})"));
        let key = meta_key(meta.job.id);
        match self.table.write("purging a job", vec![edit.write(&self.table, key)?], "").await? {
            Sent::Done => Ok(true),
            Sent::Refused(_) => Ok(false),
            Sent::Unsure(error) => Err(error),
        }
    }
}

#[async_trait]
impl JobStore for AwsJobs {
    async fn create_job(&self, new: NewJob, now: Timestamp) -> Result<Created, CreateError> {
        create::create(self, new, now).await
    }

    async fn job(&self, id: JobId) -> Result<Option<JobRecord>, StoreError> {
        Ok(self.meta(id).await?.map(|meta| meta.job))
    }

    async fn jobs_of(
        &self,
        owner: UserId,
        filter: &JobFilter,
        limit: usize,
        cursor: Option<&str>,
    ) -> Result<Page<JobRecord>, StoreError> {
        lists::jobs_of(self, owner, filter, limit, cursor).await
    }

    async fn durations(&self, owner: UserId, repo_url: &str, agent: &str, limit: usize) -> Result<Vec<f64>, StoreError> {
        lists::durations(self, owner, repo_url, agent, limit).await
    }

    async fn due(&self, now: Timestamp, limit: usize) -> Result<Vec<JobRecord>, StoreError> {
        let due = |meta: &Meta| {
            let job = &meta.job;
            job.state == State::Queued
                && job.not_before <= now
                && job.deadline.is_none_or(|deadline| deadline > now)
                && job.cancel_at.is_none()
        };
        let found = self.select(List::Ready, Part::UpTo(now), limit, due).await?;
        Ok(oldest_first(found, limit))
    }

    /// Those that may start before it. A job that waits for its second attempt stands where that may start.
    async fn queue_position(&self, job: &JobRecord) -> Result<u64, StoreError> {
        let place = JobRecord { state: State::Queued, ..job.clone() };
        let Some(place) = place_of(&place, false) else { return Ok(0) };
        self.count(List::Ready, Part::Before(place.sort)).await
    }

    async fn running(&self) -> Result<Vec<JobRecord>, StoreError> {
        let look = self.look(List::Run, Part::All, None).await?;
        let ids: Vec<JobId> = look.found.into_iter().map(|found| found.id).collect();
        let leased = self.metas(&ids).await?.into_iter().filter(|meta| meta.job.lease.is_some()).collect();
        Ok(oldest_first(leased, usize::MAX))
    }

    async fn stuck(&self, now: Timestamp, limit: usize) -> Result<Vec<JobRecord>, StoreError> {
        lists::stuck(self, now, now - UNCLAIMED_LIMIT, limit).await.map(|found| oldest_first(found, limit))
    }

    async fn apply(&self, id: JobId, verb: &Verb, now: Timestamp) -> Result<JobRecord, VerbError> {
        changes::apply(self, id, verb, now).await
    }

    async fn running_of(&self, owner: UserId) -> Result<u32, StoreError> {
        let count = self.count(List::Run, Part::Of(owner)).await?;
        Ok(u32::try_from(count).unwrap_or(u32::MAX))
    }

    async fn events(&self, id: JobId) -> Result<Vec<JobEvent>, StoreError> {
        let (mut events, mut newest) = (Vec::new(), Vec::new());
        for item in self.table.all("reading a job's events", &job_key(id), "").await? {
            let sort = text_of(&item, SK).unwrap_or_default();
            let Some(packed) = bytes_of(&item, EVENTS) else { continue };
            match unpack_events(packed) {
                // The newest are still in the job's own item, which comes behind them only by its letter.
                Ok(found) if sort == META => newest = found,
                Ok(found) => events.extend(found),
                Err(reason) => {
                    let name = format!("events {} of job {id}", sort.trim_start_matches("E#"));
                    self.aside.note(&self.table, &Bad { name, reason }).await;
                }
            }
        }
        events.append(&mut newest);
        Ok(events)
    }

    async fn append_log(&self, id: JobId, claim: ClaimId, fence: Fence, entries: &[LogEntry]) -> Result<(), AppendError> {
        logs::append(self, id, claim, fence, entries).await
    }

    async fn read_log(&self, id: JobId, after: Cursor, limit: usize) -> Result<Vec<LogEntry>, StoreError> {
        reading::read(self, id, after, limit).await
    }

    async fn log_tail(&self, id: JobId) -> Result<Cursor, StoreError> {
        reading::tail(self, id).await
    }

    async fn watch(&self, job: &JobRecord, until: Timestamp) -> Result<(), StoreError> {
        self.signals.send(Signal::Watched(job.id));
        lists::watch(self, job, until).await
    }

    async fn watched(&self, worker: &str, now: Timestamp) -> Result<Vec<JobId>, StoreError> {
        lists::watched(self, worker, now).await
    }

    async fn to_notify(&self, now: Timestamp, limit: usize) -> Result<Vec<JobRecord>, StoreError> {
        let due = |meta: &Meta| meta.job.notice.as_ref().is_some_and(|notice| notice.due <= now);
        let mut found = self.select(List::Notify, Part::UpTo(now), limit, due).await?;
        found.truncate(limit);
        Ok(found.into_iter().map(|meta| meta.job).collect())
    }

    async fn compact_log(&self, id: JobId) -> Result<(), StoreError> {
        compact::compact(self, id).await
    }

    /// The age is that of the jobs that come first, one of each shard.
    async fn depth(&self) -> Result<QueueDepth, StoreError> {
        let first = async {
            let first = self.look(List::Ready, Part::All, Some(1)).await?;
            let ids: Vec<JobId> = first.found.into_iter().map(|found| found.id).collect();
            let queued = self.metas(&ids).await?.into_iter().filter(|meta| meta.job.state == State::Queued);
            Ok(queued.map(|meta| meta.job.created_at).min())
        };
        let counts = try_join(self.count(List::Ready, Part::All), self.count(List::Run, Part::All));
        let (oldest, (queued, running)) = try_join(first, counts).await?;
        Ok(QueueDepth { queued, oldest, running })
    }

    /// One write for each job. Its log's items, its list entry and its idempotency key are deleted by their TTL, which costs nothing; until
    /// then the mark that the job was purged hides them.
    async fn purge_expired(&self, now: Timestamp, limit: usize) -> Result<Vec<JobId>, StoreError> {
        let expired = |meta: &Meta| meta.job.is_expired(now) && !meta.purged;
        let mut found = self.select(List::Expire, Part::UpTo(now), limit, expired).await?;
        found.truncate(limit);
        let mut purged = Vec::with_capacity(found.len());
        for batch in found.chunks(PURGES) {
            let done = try_join_all(batch.iter().map(|meta| self.purge(meta))).await?;
            purged.extend(batch.iter().zip(done).filter_map(|(meta, done)| done.then_some(meta.job.id)));
        }
        Ok(purged)
    }

    async fn set_aside(&self) -> Result<Vec<SetAside>, StoreError> {
        aside::all(&self.table).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.table.get("asking the store whether it answers", key("PING", META)).await.map(drop)
    }
}

fn oldest_first(found: Vec<Meta>, limit: usize) -> Vec<JobRecord> {
    let mut jobs: Vec<JobRecord> = found.into_iter().map(|meta| meta.job).collect();
    jobs.sort_by_key(|job| (job.created_at, job.id));
    jobs.truncate(limit);
    jobs
}
