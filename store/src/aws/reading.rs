//! Reading a log: the attempts in order, each up to where it ended; from the compacted log once there is one.

use aws_sdk_dynamodb::operation::query::builders::QueryFluentBuilder;
use ckrv_core::id::{Fence, JobId};
use ckrv_core::log::{Cursor, LogEntry};

use super::compact;
use super::jobs::AwsJobs;
use super::logs::{Chunk, Content, decode, partition, sort};
use super::meta::{Bad, Meta};
use super::table::{COUNTED, Item, PK, SK, failed, string, text_of};
use crate::error::StoreError;

/// Chunks that one query asks for: of 1 to 8 KB each.
const CHUNKS: usize = 64;

/// An attempt whose log may be read.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    fence: Fence,
    /// Where it ended; `None`: it goes on.
    end: Option<u64>,
}

fn attempts(meta: &Meta) -> Vec<Attempt> {
    let mut attempts: Vec<Attempt> = meta.tails.iter().map(|(fence, end)| Attempt { fence: *fence, end: Some(*end) }).collect();
    if meta.job.lease.is_some() {
        attempts.push(Attempt { fence: meta.job.fence, end: None });
    }
    attempts
}

pub(super) async fn read(store: &AwsJobs, id: JobId, after: Cursor, limit: usize) -> Result<Vec<LogEntry>, StoreError> {
    let Some(meta) = store.meta(id).await?.filter(|meta| !meta.purged) else { return Ok(Vec::new()) };
    if let Some(full) = &meta.full_log {
        return compact::read(store, id, full, after, limit).await;
    }
    read_chunks(store, &meta, after, limit).await
}

pub(super) async fn read_chunks(store: &AwsJobs, meta: &Meta, after: Cursor, limit: usize) -> Result<Vec<LogEntry>, StoreError> {
    let mut entries = Vec::new();
    for attempt in attempts(meta).into_iter().filter(|attempt| attempt.fence >= after.fence) {
        if entries.len() >= limit {
            break;
        }
        let from = if attempt.fence == after.fence { after.seq } else { 0 };
        if attempt.end.is_none_or(|end| from < end) {
            read_attempt(store, meta.job.id, attempt, from, limit, &mut entries).await?;
        }
    }
    Ok(entries)
}

/// Reads behind `from`. The chunk that holds the next entry begins at it or before it, so the last one that does is asked for first: where a
/// follower has seen everything, that one query says so.
async fn read_attempt(
    store: &AwsJobs,
    id: JobId,
    attempt: Attempt,
    from: u64,
    limit: usize,
    entries: &mut Vec<LogEntry>,
) -> Result<(), StoreError> {
    let (mut seen, mut start) = (from, sort(from + 1));
    let nearest = query(store, id, attempt, "#s <= :s", &start).scan_index_forward(false).limit(1);
    let nearest = nearest.send().await.map_err(failed("reading a log"))?.items.unwrap_or_default();
    let Some(first) = nearest.first() else { return Ok(()) };
    take(store, id, attempt, first, limit, (&mut seen, entries)).await?;
    if seen == from {
        return Ok(());
    }
    if let Some(key) = text_of(first, SK) {
        start = key.to_owned();
    }
    while entries.len() < limit && attempt.end.is_none_or(|end| seen < end) {
        let chunks = (limit - entries.len()).min(CHUNKS);
        let page = query(store, id, attempt, "#s > :s", &start).limit(i32::try_from(chunks).unwrap_or(i32::MAX));
        let page = page.send().await.map_err(failed("reading a log"))?;
        for item in page.items() {
            let before = seen;
            take(store, id, attempt, item, limit, (&mut seen, entries)).await?;
            // A replica may be behind in one item and not in the next: what follows a hole comes with the next read.
            if seen == before || entries.len() >= limit {
                return Ok(());
            }
        }
        match page.last_evaluated_key.as_ref().and_then(|key| text_of(key, SK)) {
            Some(key) => start = key.to_owned(),
            None => return Ok(()),
        }
    }
    Ok(())
}

/// A log that goes on is read from any replica, at half the price: what it doesn't have yet comes with the next look.
fn query(store: &AwsJobs, id: JobId, attempt: Attempt, range: &str, sort: &str) -> QueryFluentBuilder {
    let query = store.table.client.query().table_name(&store.table.name).return_consumed_capacity(COUNTED);
    query
        .consistent_read(attempt.end.is_some())
        .key_condition_expression(format!("#p = :p AND {range}"))
        .expression_attribute_names("#p", PK)
        .expression_attribute_names("#s", SK)
        .expression_attribute_values(":p", string(partition(id, attempt.fence)))
        .expression_attribute_values(":s", string(sort))
}

/// Takes what is new of a chunk, if it goes on where the one before ended. One that can't be read is passed over.
async fn take(
    store: &AwsJobs,
    id: JobId,
    attempt: Attempt,
    item: &Item,
    limit: usize,
    (seen, entries): (&mut u64, &mut Vec<LogEntry>),
) -> Result<(), StoreError> {
    let name = || {
        format!("log of job {id} from entry {}.{} on", attempt.fence, text_of(item, SK).unwrap_or("?").trim_start_matches('0'))
    };
    let Some(chunk) = Chunk::read(item) else {
        store.aside.note(&store.table, &Bad { name: name(), reason: "it is no chunk".to_owned() }).await;
        return Ok(());
    };
    let last = attempt.end.map_or(chunk.last, |end| chunk.last.min(end));
    if chunk.first > *seen + 1 || last <= *seen {
        return Ok(());
    }
    let blob;
    let packed = match &chunk.content {
        Content::Packed(packed) => packed.as_slice(),
        Content::Blob(key) => {
            blob = store.blobs.get(key).await?;
            blob.as_deref().unwrap_or_default()
        }
    };
    match decode(packed) {
        Ok(found) => {
            let room = limit - entries.len();
            let new = found.into_iter().filter(|entry| entry.seq > *seen && entry.seq <= last).take(room);
            entries.extend(new);
            *seen = entries.last().filter(|entry| entry.fence == attempt.fence).map_or(last, |entry| entry.seq);
        }
        Err(reason) => {
            store.aside.note(&store.table, &Bad { name: name(), reason }).await;
            *seen = last;
        }
    }
    Ok(())
}

/// The last entry's place.
pub(super) async fn tail(store: &AwsJobs, id: JobId) -> Result<Cursor, StoreError> {
    let Some(meta) = store.meta(id).await?.filter(|meta| !meta.purged) else { return Ok(Cursor::default()) };
    if meta.job.lease.is_some() {
        let seq = store.stored_tail(id, meta.job.fence).await?;
        if seq > 0 {
            return Ok(Cursor { fence: meta.job.fence, seq });
        }
    }
    Ok(meta.tails.last_key_value().map(|(fence, seq)| Cursor { fence: *fence, seq: *seq }).unwrap_or_default())
}
