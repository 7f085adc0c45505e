//! Logs: one row for each batch that was appended, its entries as JSON lines, compressed where that pays.

use ckrv_core::id::{ClaimId, Fence, JobId};
use ckrv_core::log::{Cursor, LogEntry};
use rusqlite::{Connection, OptionalExtension, params};

use super::fault::{Bad, Fault, Place};
use super::job_rows::to_json;
use crate::error::{AppendError, StoreError};

/// Smaller batches are stored as they are.
const COMPRESS_FROM: usize = 1024;
const LEVEL: i32 = 1;
/// Nothing bigger is ever made from a stored chunk, whatever the row says.
const MAX_CHUNK_BYTES: usize = 256 * 1024 * 1024;

/// Stores what is new of `entries`; gives whether anything was.
pub(super) fn append(
    connection: &Connection,
    id: JobId,
    claim: ClaimId,
    fence: Fence,
    entries: &[LogEntry],
) -> Result<Result<bool, AppendError>, Fault> {
    let id = id.to_string();
    let holds: bool = connection
        .prepare_cached("SELECT claim = ?2 AND fence = ?3 FROM jobs WHERE id = ?1 AND claim IS NOT NULL")?
        .query_row(params![id, claim.to_string(), fence.0], |row| row.get(0))
        .optional()?
        .unwrap_or(false);
    if !holds || entries.iter().any(|entry| entry.fence != fence) {
        return Ok(Err(AppendError::Closed));
    }
    let tail: Option<i64> = connection
        .prepare_cached("SELECT last FROM log_chunks WHERE job = ?1 AND fence = ?2 ORDER BY first DESC LIMIT 1")?
        .query_row(params![id, fence.0], |row| row.get(0))
        .optional()?;
    let tail = tail.unwrap_or(0).unsigned_abs();
    let new = &entries[entries.partition_point(|entry| entry.seq <= tail)..];
    let (Some(first), Some(last)) = (new.first(), new.last()) else {
        return Ok(Ok(false));
    };
    for (expected, entry) in (tail + 1..).zip(new) {
        if entry.seq != expected {
            return Ok(Err(AppendError::Gap { expected }));
        }
    }
    let (bytes, data) = encode(new)?;
    let number = |seq: u64| i64::try_from(seq).unwrap_or(i64::MAX);
    connection
        .prepare_cached("INSERT INTO log_chunks (job, fence, first, last, bytes, data) VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
        .execute(params![id, fence.0, number(first.seq), number(last.seq), bytes, data])?;
    Ok(Ok(true))
}

fn encode(entries: &[LogEntry]) -> Result<(i64, Vec<u8>), Fault> {
    let mut lines = String::new();
    for entry in entries {
        lines.push_str(&to_json(entry)?);
        lines.push('\n');
    }
    if lines.len() < COMPRESS_FROM {
        return Ok((0, lines.into_bytes()));
    }
    let data =
        zstd::bulk::compress(lines.as_bytes(), LEVEL).map_err(|error| StoreError::backend("compressing log entries", error))?;
    Ok((i64::try_from(lines.len()).unwrap_or(i64::MAX), data))
}

fn decode(bytes: i64, data: &[u8]) -> Result<Vec<LogEntry>, String> {
    let plain;
    let lines = match usize::try_from(bytes) {
        Ok(0) => data,
        Ok(bytes) if bytes <= MAX_CHUNK_BYTES => {
            plain = zstd::bulk::decompress(data, bytes).map_err(|error| error.to_string())?;
            &plain
        }
        _ => return Err(format!("a chunk of {bytes} bytes")),
    };
    lines
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).map_err(|error| error.to_string()))
        .collect()
}

/// Entries behind `after`. A chunk that can't be read is an entry of the answer, too.
pub(super) fn read(connection: &Connection, id: JobId, after: Cursor, limit: usize) -> Result<Vec<Result<LogEntry, Bad>>, Fault> {
    let mut statement = connection.prepare_cached(
        "SELECT fence, first, bytes, data FROM log_chunks WHERE job = ?1 AND fence >= ?2 AND (fence > ?2 OR last > ?3) AND bytes >= 0
         ORDER BY fence, first",
    )?;
    let mut rows = statement.query(params![id.to_string(), after.fence.0, i64::try_from(after.seq).unwrap_or(i64::MAX)])?;
    let mut found = Vec::new();
    while found.len() < limit
        && let Some(row) = rows.next()?
    {
        let data = row.get_ref(3)?.as_bytes().map_err(rusqlite::Error::from)?;
        match decode(row.get(2)?, data) {
            Ok(entries) => {
                let room = limit - found.len();
                found.extend(entries.into_iter().filter(|entry| entry.cursor() > after).take(room).map(Ok));
            }
            Err(reason) => {
                let place = Place::Log { job: id.to_string(), fence: row.get(0)?, first: row.get(1)? };
                found.push(Err(Bad { place, reason, content: data.to_vec() }));
            }
        }
    }
    Ok(found)
}
