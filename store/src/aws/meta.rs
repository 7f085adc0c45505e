//! A job's own item, `J#id` / `META`: the record, and beside it what a write needs to see.
//!
//! A beat writes this item every 20 seconds, and a write costs by the kilobyte of the whole item. So it is kept under one: the record is
//! packed, attribute names are single letters (they count), and the lease's end stands outside of the record, and of every index key.
//!
//! The job's events are kept in here too, packed: as items of their own each would make its step a transaction of two items, four write
//! units instead of one, some 40 of them in a job's life. Where they would make the item grow beyond the kilobyte, those so far move to an
//! item `J#id` / `E#version`.

use std::collections::BTreeMap;

use aws_sdk_dynamodb::types::AttributeValue;
use ckrv_core::id::{Fence, JobId};
use ckrv_core::job::{JobEvent, JobRecord};
use ckrv_core::log::Cursor;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::pack::{pack, unpack};
use super::table::{Item, META, bytes, bytes_of, job_key, key, number, number_of, string, text_of, to_json};
use crate::error::StoreError;

/// The record's version: what every write is conditional on.
pub(super) const VERSION: &str = "v";
/// The record, packed.
pub(super) const PACKED: &str = "r";
/// When the lease ends, in nanoseconds.
pub(super) const LEASE_UNTIL: &str = "l";
/// The events that have not moved to an item of their own, packed.
pub(super) const EVENTS: &str = "e";
/// Marks of the last writes, eight bytes each, newest last: a write whose answer was lost finds its own here.
pub(super) const WRITES: &str = "w";
/// The last log entry of each attempt that is over, `FENCE.SEQ` with spaces between. What lies behind is never read.
pub(super) const TAILS: &str = "t";
/// The shard of the queue's index that this job is in.
pub(super) const SHARD: &str = "s";
/// Where what stands in the compacted log, packed.
pub(super) const FULL_LOG: &str = "f";
/// The job expired and was purged.
pub(super) const PURGED: &str = "x";

const MARK: usize = 8;
const MARKS: usize = 4;

/// Who wrote: fresh for each logical write.
pub(super) type Mark = [u8; MARK];

#[derive(Clone, Debug)]
pub(super) struct Meta {
    pub job: JobRecord,
    pub events: Vec<JobEvent>,
    pub tails: Tails,
    pub full_log: Option<FullLog>,
    pub purged: bool,
    pub shard: u8,
    pub writes: Vec<u8>,
}

pub(super) type Tails = BTreeMap<Fence, u64>;

/// The compacted log's frames, in order. Each can be unpacked by itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct FullLog {
    pub frames: Vec<Frame>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Frame {
    /// The first entry in it.
    pub first: Cursor,
    pub offset: u64,
    pub length: u64,
}

/// An item that can't be read.
#[derive(Debug)]
pub(super) struct Bad {
    pub name: String,
    pub reason: String,
}

impl From<Bad> for StoreError {
    fn from(bad: Bad) -> Self {
        Self::Unreadable { name: bad.name, reason: bad.reason }
    }
}

pub(super) fn meta_key(id: JobId) -> Item {
    key(job_key(id), META)
}

/// The job that an item with the key `J#id` belongs to.
pub(super) fn job_of(item: &Item) -> Option<JobId> {
    text_of(item, super::table::PK)?.strip_prefix("J#")?.parse().ok()
}

impl Meta {
    pub(super) fn read(item: &Item) -> Result<Self, Bad> {
        let name = job_of(item).map_or_else(|| "a job without an id".to_owned(), |id| format!("job {id}"));
        Self::try_read(item).map_err(|reason| Bad { name, reason })
    }

    fn try_read(item: &Item) -> Result<Self, String> {
        let packed = bytes_of(item, PACKED).ok_or("it has no record")?;
        let mut job: JobRecord = serde_json::from_slice(&unpack(packed)?).map_err(|error| error.to_string())?;
        if job_of(item) != Some(job.id) {
            return Err(format!("it says that it is job {}", job.id));
        }
        job.version = number_of(item, VERSION).ok_or("it has no version")?;
        if let Some(lease) = &mut job.lease {
            let until = number_of::<i128>(item, LEASE_UNTIL).ok_or("its lease has no end")?;
            lease.until = Timestamp::from_nanosecond(until).map_err(|error| error.to_string())?;
        }
        let full_log = bytes_of(item, FULL_LOG).map(|packed| {
            let unpacked = unpack(packed)?;
            serde_json::from_slice(&unpacked).map_err(|error| error.to_string())
        });
        Ok(Self {
            events: bytes_of(item, EVENTS).map(unpack_events).transpose()?.unwrap_or_default(),
            tails: text_of(item, TAILS).map(parse_tails).transpose()?.unwrap_or_default(),
            full_log: full_log.transpose()?,
            purged: item.contains_key(PURGED),
            shard: number_of(item, SHARD).ok_or("it has no shard")?,
            writes: bytes_of(item, WRITES).unwrap_or_default().to_vec(),
            job,
        })
    }

    /// Whether this write is among the last ones that were carried out.
    pub(super) fn has_write(&self, mark: &Mark) -> bool {
        has_write(&self.writes, mark)
    }

    /// The marks with one more.
    pub(super) fn writes_and(&self, mark: &Mark) -> Vec<u8> {
        let mut writes = self.writes.clone();
        writes.extend_from_slice(mark);
        let beyond = writes.len().saturating_sub(MARK * MARKS);
        writes.split_off(beyond)
    }

    /// The attributes of the record and its events as they are now, without those of the index.
    pub(super) fn attributes(&self) -> Result<Item, StoreError> {
        let mut item = Item::from([
            (VERSION.to_owned(), number(self.job.version)),
            (PACKED.to_owned(), bytes(pack(to_json(&self.job)?.as_bytes()))),
            (SHARD.to_owned(), number(self.shard)),
            (WRITES.to_owned(), bytes(self.writes.clone())),
        ]);
        if let Some(lease) = &self.job.lease {
            item.insert(LEASE_UNTIL.to_owned(), number(lease.until.as_nanosecond()));
        }
        if !self.events.is_empty() {
            item.insert(EVENTS.to_owned(), bytes(pack_events(&self.events)?));
        }
        if !self.tails.is_empty() {
            item.insert(TAILS.to_owned(), string(tails_text(&self.tails)));
        }
        Ok(item)
    }
}

pub(super) fn has_write(writes: &[u8], mark: &Mark) -> bool {
    writes.chunks(MARK).any(|written| written == mark)
}

pub(super) fn new_mark() -> Mark {
    rand::random()
}

pub(super) fn pack_events(events: &[JobEvent]) -> Result<Vec<u8>, StoreError> {
    let mut lines = String::new();
    for event in events {
        lines.push_str(&to_json(event)?);
        lines.push('\n');
    }
    Ok(pack(lines.as_bytes()))
}

pub(super) fn unpack_events(packed: &[u8]) -> Result<Vec<JobEvent>, String> {
    let lines = unpack(packed)?;
    let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).map_err(|error| error.to_string())).collect()
}

fn tails_text(tails: &Tails) -> String {
    let tails = tails.iter().map(|(fence, seq)| Cursor { fence: *fence, seq: *seq }.to_string());
    tails.collect::<Vec<_>>().join(" ")
}

fn parse_tails(text: &str) -> Result<Tails, String> {
    let cursors = text.split(' ').map(|part| part.parse::<Cursor>().map_err(|error| error.to_string()));
    cursors.map(|cursor| cursor.map(|cursor| (cursor.fence, cursor.seq))).collect()
}

/// What a write of this item is charged by: names and values.
pub(super) fn size(item: &Item) -> usize {
    let value = |value: &AttributeValue| match value {
        AttributeValue::S(text) => text.len(),
        AttributeValue::N(digits) => digits.len() / 2 + 2,
        AttributeValue::B(blob) => blob.as_ref().len(),
        _ => 1,
    };
    item.iter().map(|(name, content)| name.len() + value(content)).sum()
}
