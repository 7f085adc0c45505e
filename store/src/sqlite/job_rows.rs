//! Job records as rows: the columns that are queried, and the record as JSON.

use ckrv_core::id::JobId;
use ckrv_core::job::{JobEvent, JobRecord};
use ckrv_core::log::Cursor;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Params, Row, named_params, params};

use super::fault::{Bad, Fault, Place, reason_of};
use crate::error::StoreError;

pub(super) fn micros(at: Timestamp) -> i64 {
    at.as_microsecond()
}

pub(super) fn to_json(value: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::backend("writing a record as JSON", error))
}

/// `limit` of a query; SQLite counts in `i64`.
pub(super) fn row_limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// Reads the row `(id, record)`.
fn decode(row: &Row<'_>) -> rusqlite::Result<Result<JobRecord, Bad>> {
    let id: String = row.get(0)?;
    let content = row.get_ref(1)?.as_bytes()?;
    let reason = match serde_json::from_slice::<JobRecord>(content) {
        Ok(job) if job.id.to_string() == id => return Ok(Ok(job)),
        Ok(job) => format!("it says that it is job {}", job.id),
        Err(error) => error.to_string(),
    };
    Ok(Err(Bad { place: Place::Job(id), reason, content: content.to_vec() }))
}

/// All rows of `SELECT id, record FROM jobs WHERE ...`.
pub(super) fn select(connection: &Connection, rest: &str, params: impl Params) -> Result<Vec<Result<JobRecord, Bad>>, Fault> {
    let mut statement = connection.prepare_cached(&format!("SELECT id, record FROM jobs WHERE {rest}"))?;
    let rows = statement.query_map(params, decode)?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// One job. A record that was set aside earlier stays an error: its owner must not be told that it never was.
pub(super) fn find(connection: &Connection, id: JobId) -> Result<Option<JobRecord>, Fault> {
    let key = id.to_string();
    let row = connection.prepare_cached("SELECT id, record FROM jobs WHERE id = ?1")?.query_row([&key], decode).optional()?;
    match row {
        Some(job) => Ok(Some(job?)),
        None => match reason_of(connection, &Place::Job(key))? {
            Some(error) => Err(error.into()),
            None => Ok(None),
        },
    }
}

const INSERT: &str = "
INSERT INTO jobs (id, owner, state, fence, claim, attempt, cancelled, version, created_at, not_before, deadline, completed_at, expires_at,
                  seconds, repo, agent, notify_at, record)
VALUES (:id, :owner, :state, :fence, :claim, :attempt, :cancelled, :version, :created_at, :not_before, :deadline, :completed_at, :expires_at,
        :seconds, :repo, :agent, :notify_at, :record)";

const UPDATE: &str = "
UPDATE jobs SET owner = :owner, state = :state, fence = :fence, claim = :claim, attempt = :attempt, cancelled = :cancelled,
    version = :version, created_at = :created_at, not_before = :not_before, deadline = :deadline, completed_at = :completed_at,
    expires_at = :expires_at, seconds = :seconds, repo = :repo, agent = :agent, notify_at = :notify_at, record = :record
WHERE id = :id";

pub(super) fn insert(connection: &Connection, job: &JobRecord) -> Result<(), Fault> {
    put(connection, job, INSERT)
}

pub(super) fn update(connection: &Connection, job: &JobRecord) -> Result<(), Fault> {
    put(connection, job, UPDATE)
}

fn put(connection: &Connection, job: &JobRecord, sql: &str) -> Result<(), Fault> {
    let seconds = job.started_at.zip(job.completed_at).map(|(start, end)| end.duration_since(start).as_secs_f64());
    connection.prepare_cached(sql)?.execute(named_params! {
        ":id": job.id.to_string(),
        ":owner": job.owner.to_string(),
        ":state": job.state.as_str(),
        ":fence": job.fence.0,
        ":claim": job.lease.as_ref().map(|lease| lease.claim.to_string()),
        ":attempt": job.attempt,
        ":cancelled": job.cancel_at.is_some(),
        ":version": i64::try_from(job.version).unwrap_or(i64::MAX),
        ":created_at": micros(job.created_at),
        ":not_before": micros(job.not_before),
        ":deadline": job.deadline.map(micros),
        ":completed_at": job.completed_at.map(micros),
        ":expires_at": job.expires_at.map(micros),
        ":seconds": seconds,
        ":repo": job.request.git_repo_url,
        ":agent": job.request.agent,
        ":notify_at": job.notice.as_ref().map(|notice| micros(notice.due)),
        ":record": to_json(job)?,
    })?;
    Ok(())
}

pub(super) fn insert_event(connection: &Connection, id: JobId, event: &JobEvent) -> Result<(), Fault> {
    connection.prepare_cached("INSERT INTO events (job, version, record) VALUES (?1, ?2, ?3)")?.execute(params![
        id.to_string(),
        i64::try_from(event.version).unwrap_or(i64::MAX),
        to_json(event)?
    ])?;
    Ok(())
}

pub(super) fn events(connection: &Connection, id: JobId) -> Result<Vec<Result<JobEvent, Bad>>, Fault> {
    let mut statement = connection.prepare_cached("SELECT version, record FROM events WHERE job = ?1 ORDER BY version")?;
    let rows = statement.query_map([id.to_string()], |row| {
        let content = row.get_ref(1)?.as_bytes()?;
        let version = row.get(0)?;
        Ok(serde_json::from_slice(content).map_err(|error| Bad {
            place: Place::Event { job: id.to_string(), version },
            reason: error.to_string(),
            content: content.to_vec(),
        }))
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// A place in the list of an owner's jobs, written `MICROSECONDS_ID`.
pub(super) fn list_cursor(job: &JobRecord) -> String {
    format!("{}_{}", micros(job.created_at), job.id)
}

pub(super) fn parse_list_cursor(text: &str) -> Result<(i64, String), StoreError> {
    let parsed = text.split_once('_').and_then(|(at, id)| Some((at.parse().ok()?, id.parse::<JobId>().ok()?.to_string())));
    parsed.ok_or(StoreError::BadCursor)
}

/// The last entry's place.
pub(super) fn log_tail(connection: &Connection, id: JobId) -> Result<Cursor, Fault> {
    let tail = connection
        .prepare_cached("SELECT fence, last FROM log_chunks WHERE job = ?1 ORDER BY fence DESC, first DESC LIMIT 1")?
        .query_row([id.to_string()], |row| {
            Ok(Cursor { fence: ckrv_core::id::Fence(row.get(0)?), seq: row.get::<_, i64>(1)?.unsigned_abs() })
        })
        .optional()?;
    Ok(tail.unwrap_or_default())
}
