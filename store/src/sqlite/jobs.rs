//! The queue's verbs on SQLite.

use async_trait::async_trait;
use ckrv_core::id::{ClaimId, Fence, JobId, UserId};
use ckrv_core::job::{JobEvent, JobRecord, State};
use ckrv_core::log::{Cursor, LogEntry};
use ckrv_core::machine::{self, UNCLAIMED_LIMIT, Verb};
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::fault::{Fault, all as all_set_aside};
use super::job_rows::{self, list_cursor, micros, parse_list_cursor, row_limit};
use super::{SqliteStore, logs, usage};
use crate::error::{AppendError, CreateError, StoreError, VerbError};
use crate::job_store::{Created, Idempotency, JobFilter, JobStore, NewJob, Page, QueueDepth, SetAside};
use crate::signals::Signal;

#[async_trait]
impl JobStore for SqliteStore {
    async fn create_job(&self, new: NewJob, now: Timestamp) -> Result<Created, CreateError> {
        self.write("making a job", move |connection, signals| create(connection, new, now, signals)).await
    }

    async fn job(&self, id: JobId) -> Result<Option<JobRecord>, StoreError> {
        self.read("reading a job", move |connection| job_rows::find(connection, id)).await
    }

    async fn jobs_of(
        &self,
        owner: UserId,
        filter: &JobFilter,
        limit: usize,
        cursor: Option<&str>,
    ) -> Result<Page<JobRecord>, StoreError> {
        let (at, id) = cursor.map(parse_list_cursor).transpose()?.unwrap_or((i64::MAX, String::new()));
        let states = filter.states.iter().map(|state| format!("'{state}'")).collect::<Vec<_>>().join(", ");
        let wanted = if states.is_empty() { String::new() } else { format!("AND state IN ({states})") };
        let rows = self
            .read("listing jobs", move |connection| {
                let rest = format!("owner = ?1 AND listed = 1 AND (created_at, id) < (?2, ?3) {wanted} ORDER BY created_at DESC, id DESC LIMIT ?4");
                // One more than asked for tells whether there is a next page.
                job_rows::select(connection, &rest, params![owner.to_string(), at, id, row_limit(limit.saturating_add(1))])
            })
            .await?;
        let more = rows.len() > limit;
        let mut items = Vec::with_capacity(limit.min(rows.len()));
        for row in rows.into_iter().take(limit) {
            match row {
                Ok(job) => items.push(job),
                Err(bad) => self.put_aside(bad).await,
            }
        }
        let next = items.last().filter(|_| more).map(list_cursor);
        Ok(Page { items, next })
    }

    async fn durations(&self, owner: UserId, repo_url: &str, agent: &str, limit: usize) -> Result<Vec<f64>, StoreError> {
        let (repo, agent) = (repo_url.to_owned(), agent.to_owned());
        self.read("reading how long jobs took", move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT seconds FROM jobs WHERE owner = ?1 AND repo = ?2 AND agent = ?3 AND state = 'succeeded' AND seconds IS NOT NULL
                 ORDER BY completed_at DESC LIMIT ?4",
            )?;
            let rows = statement.query_map(params![owner.to_string(), repo, agent, row_limit(limit)], |row| row.get(0))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
        .await
    }

    async fn due(&self, now: Timestamp, limit: usize) -> Result<Vec<JobRecord>, StoreError> {
        let mut jobs = self
            .read_all("looking for work", move |connection| {
                let rest = "state = 'queued' AND not_before <= ?1 AND (deadline IS NULL OR deadline > ?1) AND cancelled = 0
                            ORDER BY created_at, id LIMIT ?2";
                job_rows::select(connection, rest, params![micros(now), row_limit(limit)])
            })
            .await?;
        jobs.retain(|job| job.not_before <= now);
        Ok(jobs)
    }

    async fn queue_position(&self, job: &JobRecord) -> Result<u64, StoreError> {
        let (at, id) = (micros(job.created_at), job.id.to_string());
        self.read("counting the queue", move |connection| {
            let before: i64 = connection
                .prepare_cached("SELECT count(*) FROM jobs WHERE state = 'queued' AND (created_at, id) < (?1, ?2)")?
                .query_row(params![at, id], |row| row.get(0))?;
            Ok(before.unsigned_abs())
        })
        .await
    }

    async fn running(&self) -> Result<Vec<JobRecord>, StoreError> {
        self.read_all("reading the running jobs", |connection| {
            job_rows::select(connection, "claim IS NOT NULL ORDER BY created_at, id", [])
        })
        .await
    }

    async fn stuck(&self, now: Timestamp, limit: usize) -> Result<Vec<JobRecord>, StoreError> {
        let unclaimed_since = now - UNCLAIMED_LIMIT;
        let mut jobs = self
            .read_all("looking for stuck jobs", move |connection| {
                let rest = "state = 'queued' AND (deadline <= ?1 OR cancelled = 1 OR (attempt = 0 AND created_at <= ?2))
                            ORDER BY created_at, id LIMIT ?3";
                job_rows::select(connection, rest, params![micros(now), micros(unclaimed_since), row_limit(limit)])
            })
            .await?;
        jobs.retain(|job| {
            job.cancel_at.is_some()
                || job.deadline.is_some_and(|deadline| deadline <= now)
                || (job.attempt == 0 && job.created_at <= unclaimed_since)
        });
        Ok(jobs)
    }

    async fn apply(&self, id: JobId, verb: &Verb, now: Timestamp) -> Result<JobRecord, VerbError> {
        let verb = verb.clone();
        self.write("changing a job", move |connection, signals| apply(connection, id, &verb, now, signals)).await
    }

    async fn running_of(&self, owner: UserId) -> Result<u32, StoreError> {
        self.read("counting running jobs", move |connection| {
            Ok(connection
                .prepare_cached("SELECT count(*) FROM jobs WHERE owner = ?1 AND claim IS NOT NULL")?
                .query_row([owner.to_string()], |row| row.get(0))?)
        })
        .await
    }

    async fn events(&self, id: JobId) -> Result<Vec<JobEvent>, StoreError> {
        self.read_all("reading a job's events", move |connection| job_rows::events(connection, id)).await
    }

    async fn append_log(&self, id: JobId, claim: ClaimId, fence: Fence, entries: &[LogEntry]) -> Result<(), AppendError> {
        let entries = entries.to_vec();
        self.write("appending to a log", move |connection, signals| {
            Ok(logs::append(connection, id, claim, fence, &entries)?.map(|new| {
                if new {
                    signals.push(Signal::Log(id));
                }
            }))
        })
        .await
    }

    async fn read_log(&self, id: JobId, after: Cursor, limit: usize) -> Result<Vec<LogEntry>, StoreError> {
        self.read_all("reading a log", move |connection| logs::read(connection, id, after, limit)).await
    }

    async fn log_tail(&self, id: JobId) -> Result<Cursor, StoreError> {
        self.read("reading a log's end", move |connection| job_rows::log_tail(connection, id)).await
    }

    async fn watch(&self, job: &JobRecord, _: Timestamp) -> Result<(), StoreError> {
        self.signals.send(Signal::Watched(job.id));
        Ok(())
    }

    async fn watched(&self, _: &str, _: Timestamp) -> Result<Vec<JobId>, StoreError> {
        Ok(Vec::new())
    }

    async fn to_notify(&self, now: Timestamp, limit: usize) -> Result<Vec<JobRecord>, StoreError> {
        let mut jobs = self
            .read_all("looking for webhooks that are due", move |connection| {
                job_rows::select(
                    connection,
                    "notify_at <= ?1 ORDER BY notify_at LIMIT ?2",
                    params![micros(now), row_limit(limit)],
                )
            })
            .await?;
        jobs.retain(|job| job.notice.as_ref().is_some_and(|notice| notice.due <= now));
        Ok(jobs)
    }

    /// Rows are cheap here: a log stays as it was appended.
    async fn compact_log(&self, _: JobId) -> Result<(), StoreError> {
        Ok(())
    }

    async fn depth(&self) -> Result<QueueDepth, StoreError> {
        self.read("measuring the queue", |connection| {
            let (queued, oldest) = connection
                .prepare_cached("SELECT count(*), min(created_at) FROM jobs WHERE state = 'queued'")?
                .query_row([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Option<i64>>(1)?)))?;
            let running: i64 = connection
                .prepare_cached("SELECT count(*) FROM jobs WHERE claim IS NOT NULL")?
                .query_row([], |row| row.get(0))?;
            let oldest = oldest.and_then(|at| Timestamp::from_microsecond(at).ok());
            Ok(QueueDepth { queued: queued.unsigned_abs(), oldest, running: running.unsigned_abs() })
        })
        .await
    }

    async fn purge_expired(&self, now: Timestamp, limit: usize) -> Result<Vec<JobId>, StoreError> {
        let expired = self
            .read_all("looking for expired jobs", move |connection| {
                job_rows::select(
                    connection,
                    "listed = 1 AND expires_at <= ?1 ORDER BY expires_at LIMIT ?2",
                    params![micros(now), row_limit(limit)],
                )
            })
            .await?;
        let expired: Vec<JobId> = expired.into_iter().filter(|job| job.is_expired(now)).map(|job| job.id).collect();
        if expired.is_empty() {
            return Ok(expired);
        }
        self.write("purging expired jobs", move |connection, _| {
            for id in &expired {
                let id = id.to_string();
                connection.prepare_cached("DELETE FROM log_chunks WHERE job = ?1")?.execute([&id])?;
                connection.prepare_cached("DELETE FROM idempotency WHERE job = ?1")?.execute([&id])?;
                connection.prepare_cached("UPDATE jobs SET listed = 0 WHERE id = ?1")?.execute([&id])?;
            }
            Ok(Ok(expired))
        })
        .await
    }

    async fn set_aside(&self) -> Result<Vec<SetAside>, StoreError> {
        self.read("listing what was set aside", all_set_aside).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        // Through the writer: a reader alone would also answer while nothing can be written.
        self.write("asking the store whether it answers", |connection, _| {
            Ok(Ok(connection.query_row("SELECT count(*) FROM (SELECT 1 FROM jobs LIMIT 1)", [], |_| Ok(()))?))
        })
        .await
    }
}

fn create(
    connection: &Connection,
    new: NewJob,
    now: Timestamp,
    signals: &mut Vec<Signal>,
) -> Result<Result<Created, CreateError>, Fault> {
    let NewJob { mut job, idempotency, quota } = new;
    if job.state != State::Queued {
        return Err(StoreError::backend("making a job", format!("a new job is queued, not {}", job.state)).into());
    }
    if let Some(given) = &idempotency {
        match used_key(connection, &job, given)? {
            Some((body, _)) if body != given.body_sha256 => return Ok(Err(CreateError::IdempotencyMismatch)),
            Some((_, earlier)) => {
                let earlier = earlier.parse().map_err(|error| StoreError::backend("reading an idempotency key", error))?;
                let found = job_rows::find(connection, earlier)?;
                let found = found.ok_or_else(|| StoreError::backend("reading an idempotency key", "its job is no more"))?;
                return Ok(Ok(Created::Replay(found)));
            }
            None => {}
        }
    }
    if let Some(cap) = usage::count_job(connection, &mut job, &quota, now)? {
        return Ok(Err(CreateError::QuotaExceeded { cap, resets_at: quota.resets_at }));
    }
    job_rows::insert(connection, &job)?;
    if let Some(given) = &idempotency {
        connection
            .prepare_cached("INSERT INTO idempotency (owner, key, body, job) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![job.owner.to_string(), given.key_sha256, given.body_sha256, job.id.to_string()])?;
    }
    let event =
        JobEvent { version: job.version, at: now, verb: "create".to_owned(), state: job.state, fence: job.fence, note: None };
    job_rows::insert_event(connection, job.id, &event)?;
    signals.extend([Signal::Queued(job.id), Signal::Changed(job.id)]);
    Ok(Ok(Created::New(job)))
}

/// Body and job that an idempotency key was used for.
fn used_key(connection: &Connection, job: &JobRecord, given: &Idempotency) -> rusqlite::Result<Option<(String, String)>> {
    connection
        .prepare_cached("SELECT body, job FROM idempotency WHERE owner = ?1 AND key = ?2")?
        .query_row(params![job.owner.to_string(), given.key_sha256], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()
}

fn apply(
    connection: &Connection,
    id: JobId,
    verb: &Verb,
    now: Timestamp,
    signals: &mut Vec<Signal>,
) -> Result<Result<JobRecord, VerbError>, Fault> {
    let Some(job) = job_rows::find(connection, id)? else {
        return Ok(Err(VerbError::NotFound));
    };
    let mut change = match machine::apply(&job, verb, now) {
        Ok(change) => change,
        Err(refusal) => return Ok(Err(VerbError::Refused { refusal, job: Box::new(job) })),
    };
    if change.job.version == job.version {
        return Ok(Ok(change.job));
    }
    let ends = change.job.state.is_final() && !job.state.is_final();
    if ends {
        // What the log really holds: a caller's view may be older than the last append, and nothing is appended from here on.
        change.job.log_end = Some(job_rows::log_tail(connection, id)?);
    }
    job_rows::update(connection, &change.job)?;
    if let Some(event) = &change.event {
        job_rows::insert_event(connection, id, event)?;
        signals.push(Signal::Changed(id));
    }
    if change.refund {
        usage::refund(connection, &change.job, now)?;
    }
    if ends {
        usage::add_agent_cost(connection, &change.job)?;
    }
    if change.job.state == State::Queued {
        signals.push(Signal::Queued(id));
    }
    Ok(Ok(change.job))
}
