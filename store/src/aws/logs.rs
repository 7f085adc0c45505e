//! Appending to a log. Each batch is one chunk, `L#id#fence` / its first entry's number, so an attempt's chunks are a chain: the next one
//! begins behind the last one's end, and of two that begin at the same entry only one is put. Nothing can overlap, whoever appends.
//!
//! A chunk of up to 8 KB stands in its item: above that, a blob and an item that names it cost less than the item's write units (a PUT costs
//! as much as eight of them).
//!
//! Who appends must hold the lease. The claim is checked before the first chunk, and the lease behind every chunk, consistently: so an
//! append that succeeds was under the lease. A chunk of a holder that was replaced may still be stored, and is never read: the write that
//! took the lease away noted where its log ended.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use ckrv_core::id::{ClaimId, Fence, JobId};
use ckrv_core::job::JobRecord;
use ckrv_core::log::LogEntry;
use jiff::{SignedDuration, Timestamp};

use super::edit::{Met, Sent, Tries, absent, put};
use super::jobs::AwsJobs;
use super::meta::Meta;
use super::pack::{pack, unpack};
use super::table::{
    COUNTED, Item, PK, SK, TTL, bytes, bytes_of, failed, key, number, number_of, sha256_hex, string, text_of, to_json, ttl,
};
use crate::blobs::PutBlobError;
use crate::error::{AppendError, StoreError};
use crate::signals::Signal;

const CONTEXT: &str = "appending to a log";
/// The number of the chunk's last entry.
const LAST: &str = "n";
/// The entries as JSON lines, packed.
const DATA: &str = "d";
/// Or the blob that holds them.
const BLOB: &str = "b";
const IN_ITEM: usize = 8 * 1024;
/// Chunks go a day after the latest moment at which their log may be read; the blob store's own rule removes the big ones.
const SLACK: SignedDuration = SignedDuration::from_hours(24);
/// Attempts whose state this process remembers; beyond that it forgets all and reads it once more.
const REMEMBERED: usize = 4096;

/// What this process knows of attempts that append through it, so that a steady append costs one write and one read.
#[derive(Debug, Default)]
pub(super) struct Appenders(Mutex<HashMap<(JobId, Fence), Appender>>);

#[derive(Clone, Copy, Debug)]
struct Appender {
    claim: ClaimId,
    /// The last entry that was stored when we last knew.
    tail: u64,
    /// When its chunks may go.
    until: Timestamp,
}

impl Appenders {
    fn get(&self, attempt: (JobId, Fence)) -> Option<Appender> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&attempt).copied()
    }

    fn put(&self, attempt: (JobId, Fence), appender: Appender) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(attempt, appender);
    }

    fn forget(&self, attempt: (JobId, Fence)) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&attempt);
    }
}

/// A chunk as it is stored.
#[derive(Debug)]
pub(super) struct Chunk {
    pub first: u64,
    pub last: u64,
    pub content: Content,
}

#[derive(Debug)]
pub(super) enum Content {
    Packed(Vec<u8>),
    Blob(String),
}

pub(super) fn partition(id: JobId, fence: Fence) -> String {
    format!("L#{id}#{fence}")
}

pub(super) fn sort(first: u64) -> String {
    format!("{first:020}")
}

impl Chunk {
    pub(super) fn read(item: &Item) -> Option<Self> {
        let content = match (bytes_of(item, DATA), text_of(item, BLOB)) {
            (Some(packed), _) => Content::Packed(packed.to_vec()),
            (None, Some(blob)) => Content::Blob(blob.to_owned()),
            (None, None) => return None,
        };
        Some(Self { first: text_of(item, SK)?.parse().ok()?, last: number_of(item, LAST)?, content })
    }
}

pub(super) fn decode(packed: &[u8]) -> Result<Vec<LogEntry>, String> {
    let lines = unpack(packed)?;
    let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).map_err(|error| error.to_string())).collect()
}

pub(super) fn lines(entries: &[LogEntry]) -> Result<String, StoreError> {
    let mut lines = String::new();
    for entry in entries {
        lines.push_str(&to_json(entry)?);
        lines.push('\n');
    }
    Ok(lines)
}

fn holds(job: &JobRecord, claim: ClaimId, fence: Fence) -> bool {
    job.fence == fence && job.lease.as_ref().is_some_and(|lease| lease.claim == claim)
}

pub(super) async fn append(
    store: &AwsJobs,
    id: JobId,
    claim: ClaimId,
    fence: Fence,
    entries: &[LogEntry],
) -> Result<(), AppendError> {
    let attempt = (id, fence);
    let mut appender = match store.appenders.get(attempt).filter(|known| known.claim == claim) {
        Some(known) => known,
        None => begin(store, id, claim, fence).await?,
    };
    if entries.iter().any(|entry| entry.fence != fence) {
        return Err(AppendError::Closed);
    }
    let mut tries = Tries::begin();
    loop {
        let new = &entries[entries.partition_point(|entry| entry.seq <= appender.tail)..];
        if let Some((expected, _)) = (appender.tail + 1..).zip(new).find(|(expected, entry)| entry.seq != *expected) {
            return Err(AppendError::Gap { expected });
        }
        let Some(last) = new.last() else { break };
        let (last, error) = match put_chunk(store, attempt, new, appender.until).await? {
            Sent::Done => {
                appender.tail = last.seq;
                store.appenders.put(attempt, appender);
                store.signals.send(Signal::Log(id));
                break;
            }
            // Another one was faster, or this is our own chunk and its answer was lost: what is stored decides.
            Sent::Refused(met) => (last_of(&met), None),
            Sent::Unsure(error) => (None, Some(error)),
        };
        appender.tail = match last {
            Some(last) => last,
            None => store.stored_tail(id, fence).await?,
        };
        store.appenders.put(attempt, appender);
        if let Some(error) = error
            && !tries.again().await
        {
            return Err(error.into());
        }
    }
    match store.meta(id).await? {
        Some(meta) if holds(&meta.job, claim, fence) => Ok(()),
        _ => {
            store.appenders.forget(attempt);
            Err(AppendError::Closed)
        }
    }
}

/// The end of the chunk that stands where ours was to be.
fn last_of(met: &[Met]) -> Option<u64> {
    match met.first() {
        Some(Met::Broken(Some(item))) => number_of(item, LAST),
        _ => None,
    }
}

async fn begin(store: &AwsJobs, id: JobId, claim: ClaimId, fence: Fence) -> Result<Appender, AppendError> {
    match store.meta(id).await? {
        Some(Meta { job, .. }) if holds(&job, claim, fence) => {
            let retention = SignedDuration::from_secs(i64::from(job.retention_seconds));
            let until = job.deadline.unwrap_or(job.created_at) + retention + SLACK;
            let appender = Appender { claim, tail: store.stored_tail(id, fence).await?, until };
            store.appenders.put((id, fence), appender);
            Ok(appender)
        }
        _ => Err(AppendError::Closed),
    }
}

async fn put_chunk(
    store: &AwsJobs,
    (id, fence): (JobId, Fence),
    entries: &[LogEntry],
    until: Timestamp,
) -> Result<Sent, StoreError> {
    let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return Ok(Sent::Done) };
    let packed = pack(lines(entries)?.as_bytes());
    let mut item = key(partition(id, fence), sort(first.seq));
    if packed.len() <= IN_ITEM {
        item.insert(DATA.to_owned(), bytes(packed));
    } else {
        // Its hash is in its name, because a repetition may cut the batches differently.
        let blob = format!("jobs/{id}/{fence}/log-{}-{}", first.seq, &sha256_hex(&packed)[..16]);
        match store.blobs.put(&blob, Bytes::from(packed)).await {
            Ok(()) => {}
            Err(PutBlobError::Store(error)) => return Err(error),
            Err(error @ PutBlobError::Conflict(_)) => return Err(StoreError::backend(CONTEXT, error)),
        }
        item.insert(BLOB.to_owned(), string(blob));
    }
    item.insert(LAST.to_owned(), number(last.seq));
    item.insert(TTL.to_owned(), ttl(until));
    store.table.write(CONTEXT, vec![put(&store.table, item, absent())?], "").await
}

impl AwsJobs {
    /// The number of the last entry that is stored of one attempt; 0: none.
    pub(super) async fn stored_tail(&self, id: JobId, fence: Fence) -> Result<u64, StoreError> {
        let query =
            self.table.client.query().table_name(&self.table.name).consistent_read(true).return_consumed_capacity(COUNTED);
        let answer = query
            .key_condition_expression("#p = :p")
            .expression_attribute_names("#p", PK)
            .expression_attribute_values(":p", string(partition(id, fence)))
            .projection_expression("#n")
            .expression_attribute_names("#n", LAST)
            .scan_index_forward(false)
            .limit(1)
            .send()
            .await
            .map_err(failed("reading a log's end"))?;
        Ok(answer.items().first().and_then(|item| number_of(item, LAST)).unwrap_or(0))
    }
}
