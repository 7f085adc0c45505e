//! One verb on one job: read, judge, write on the condition that nobody wrote in between.
//!
//! A write goes to the job's own item alone wherever it can: that is one request and one unit per kilobyte. Only an end that changes the
//! owner's month (a refund, a cost), and events that move to an item of their own, are transactions.
//!
//! Each logical write has a mark of its own, which it leaves in the item. So a write that was carried out and whose answer was lost is known
//! again: in the item that comes back where the condition of its repetition fails, or by reading back.

use aws_sdk_dynamodb::types::TransactWriteItem;
use ckrv_core::id::{Fence, JobId};
use ckrv_core::job::{JobEvent, JobRecord, State};
use ckrv_core::log::Cursor;
use ckrv_core::machine::{self, Change, Verb};
use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::edit::{Edit, Met, Sent, Tries, put};
use super::jobs::AwsJobs;
use super::meta::{EVENTS, LEASE_UNTIL, Mark, Meta, PACKED, TAILS, VERSION, WRITES, meta_key, new_mark, pack_events, size};
use super::queue::{index_attributes, moves, place_of};
use super::table::{Item, QPK, QSK, TTL, bytes, job_key, key, number, ttl};
use super::usage::{self, Settling};
use crate::error::{StoreError, VerbError};
use crate::signals::Signal;

const CONTEXT: &str = "changing a job";
/// Where a write unit ends, less what the index's keys and rounding may add.
const UNIT: usize = 1000;
/// Events beyond this move out whatever the rest is: an item is read whole each time.
const MOST_EVENTS: usize = 16 * 1024;
/// How long the record outlives its job's results, so that its owner is told that they are gone, not that they never were.
const REMEMBERED: SignedDuration = SignedDuration::from_hours(90 * 24);

/// One write, worked out in full.
struct Plan {
    meta: Meta,
    items: Vec<TransactWriteItem>,
    mark: Mark,
    event: Option<JobEvent>,
    ends: bool,
    /// Somebody else takes the lease away: its holder may be appending right now.
    evicts: bool,
}

pub(super) async fn apply(store: &AwsJobs, id: JobId, verb: &Verb, now: Timestamp) -> Result<JobRecord, VerbError> {
    let mut tries = Tries::begin();
    let (mut counted, mut sent) = (true, Vec::new());
    let mut found = store.meta(id).await?;
    loop {
        let meta = found.ok_or(VerbError::NotFound)?;
        let change = match machine::apply(&meta.job, verb, now) {
            Ok(change) => change,
            Err(refusal) => return Err(VerbError::Refused { refusal, job: Box::new(meta.job) }),
        };
        if change.job.version == meta.job.version {
            return Ok(change.job);
        }
        let plan = plan(store, &meta, change, now, counted).await?;
        sent.push(plan.mark);
        let token = Uuid::new_v4().to_string();
        let error = match store.table.write(CONTEXT, plan.items.clone(), &token).await? {
            Sent::Done => return Ok(done(store, plan).await),
            Sent::Refused(met) => {
                let [first, others @ ..] = met.as_slice() else {
                    return Err(StoreError::backend(CONTEXT, "the answer says nothing about the job").into());
                };
                found = match first {
                    Met::Broken(item) => item.as_ref().map(|item| store.read_meta(item)).transpose()?,
                    Met::Held => {
                        // Nothing is counted any more, or the ledger entry was just voided: the job's own change stands nevertheless.
                        counted &= !others.iter().any(|met| matches!(met, Met::Broken(_)));
                        store.meta(id).await?
                    }
                };
                StoreError::backend(CONTEXT, "others keep changing this job; try again")
            }
            Sent::Unsure(error) => {
                found = store.meta(id).await?;
                error
            }
        };
        match &found {
            Some(meta) if meta.has_write(&plan.mark) => return Ok(done(store, plan).await),
            // An earlier try that arrived late.
            Some(meta) if sent.iter().any(|mark| meta.has_write(mark)) => return Ok(meta.job.clone()),
            _ => {}
        }
        if !tries.again().await {
            return Err(error.into());
        }
    }
}

async fn plan(store: &AwsJobs, old: &Meta, change: Change, now: Timestamp, counted: bool) -> Result<Plan, StoreError> {
    let Change { job, event, refund } = change;
    let ends = job.state.is_final() && !old.job.state.is_final();
    let mark = new_mark();
    let mut new = Meta { job, writes: old.writes_and(&mark), ..old.clone() };
    if old.job.lease.is_some() && new.job.lease.is_none() {
        // What the log of this attempt really holds; what comes behind it is never read.
        let tail = store.stored_tail(old.job.id, old.job.fence).await?;
        if tail > 0 {
            new.tails.insert(old.job.fence, tail);
        }
    }
    if ends {
        // A caller's view may be older than the last append.
        new.job.log_end =
            Some(new.tails.last_key_value().map(|(fence, seq)| Cursor { fence: *fence, seq: *seq }).unwrap_or_default());
    }
    let moved = match &event {
        Some(event) => add_event(&mut new, event)?,
        None => Vec::new(),
    };
    let beats = event.is_none() && new.job.checkpoint == old.job.checkpoint && new.job.handed_out == old.job.handed_out;
    let mut items = vec![meta_write(store, old, &new, beats)?];
    if let Some(first) = moved.first() {
        let mut item = key(job_key(new.job.id), format!("E#{:010}", first.version));
        item.insert(EVENTS.to_owned(), bytes(pack_events(&moved)?));
        items.push(put(&store.table, item, Edit::default())?);
    }
    let cost = if ends { new.job.facts.usage.cost_micro_usd.unwrap_or_default() } else { 0 };
    let mut settling = Settling { refund: refund && counted, void: false, agent_micro_usd: cost };
    if settling.refund
        && let Some(voided) = usage::void(&store.table, &new.job, now).await?
    {
        settling.void = true;
        items.push(voided);
    }
    items.extend(settling.counters(&store.table, &new.job)?);
    let evicts = old.job.lease.is_some() && new.job.lease.is_none() && new.job.finished_by.is_none();
    Ok(Plan { meta: new, items, mark, event, ends, evicts })
}

/// Adds an event; gives those that have to move out to keep the item within one unit.
fn add_event(meta: &mut Meta, event: &JobEvent) -> Result<Vec<JobEvent>, StoreError> {
    meta.events.push(event.clone());
    let mut item = meta.attributes()?;
    let whole = size(&item);
    let events = item.remove(EVENTS).map(|events| Item::from([(EVENTS.to_owned(), events)]));
    let events = events.as_ref().map_or(0, size);
    // The keys: `PK`, `SK`, and those of the index.
    let keys = 2 + 38 + 2 + 4 + 2 * 3 + 9 + 88;
    // An ended job beats no more, so there is nothing to be saved by a dearer ending write.
    let pays = !meta.job.state.is_final() && whole + keys > UNIT && whole - events + keys + 120 <= UNIT;
    if meta.events.len() > 1 && (pays || events > MOST_EVENTS) {
        let last = meta.events.split_off(meta.events.len() - 1);
        return Ok(std::mem::replace(&mut meta.events, last));
    }
    Ok(Vec::new())
}

/// The write of the job's own item. `beats`: nothing but the lease changed.
fn meta_write(store: &AwsJobs, old: &Meta, new: &Meta, beats: bool) -> Result<TransactWriteItem, StoreError> {
    let mut edit = Edit::default();
    let mut attributes = new.attributes()?;
    for name in [VERSION, WRITES, LEASE_UNTIL, PACKED, EVENTS, TAILS] {
        if beats && !matches!(name, VERSION | WRITES | LEASE_UNTIL) {
            continue;
        }
        match attributes.remove(name) {
            Some(value) => edit.set(name, value),
            None => edit.remove(name),
        }
    }
    let places = (place_of(&old.job, old.purged), place_of(&new.job, new.purged));
    if moves(places.0.as_ref(), places.1.as_ref()) {
        match &places.1 {
            Some(place) => index_attributes(place, new.shard).into_iter().for_each(|(name, value)| edit.set(name, value)),
            None => [QPK, QSK].into_iter().for_each(|name| edit.remove(name)),
        }
    }
    if let Some(expires) = new.job.expires_at.filter(|_| old.job.expires_at.is_none()) {
        edit.set(TTL, ttl(expires + REMEMBERED));
    }
    let (version, seen) = (edit.name(VERSION), edit.value(number(old.job.version)));
    edit.condition(format!("{version} = {seen}"));
    edit.write(&store.table, meta_key(new.job.id))
}

async fn done(store: &AwsJobs, plan: Plan) -> JobRecord {
    let Plan { mut meta, event, ends, evicts, .. } = plan;
    if evicts {
        meta = mend_tail(store, meta).await;
    }
    let job = meta.job;
    if event.is_some() {
        store.signals.send(Signal::Changed(job.id));
    }
    if job.state == State::Queued {
        store.signals.send(Signal::Queued(job.id));
    }
    if ends && job.state == State::Succeeded {
        store.note_duration(&job).await;
    }
    job
}

/// A chunk may have come between the look at the log's end and the write that took the lease away; whoever appended it was told that it is
/// stored. From that write on none is, so a second look is the last one.
async fn mend_tail(store: &AwsJobs, meta: Meta) -> Meta {
    match try_mend_tail(store, &meta).await {
        Ok(Some(mended)) => mended,
        Ok(None) => meta,
        Err(error) => {
            tracing::warn!(error = crate::chain(&error), job = %meta.job.id, "a log may lack its last lines");
            meta
        }
    }
}

async fn try_mend_tail(store: &AwsJobs, meta: &Meta) -> Result<Option<Meta>, StoreError> {
    // A reap has raised the fence, an end has not.
    let fence = if meta.job.state.is_final() { meta.job.fence } else { Fence(meta.job.fence.0.saturating_sub(1)) };
    let seq = store.stored_tail(meta.job.id, fence).await?;
    if meta.tails.get(&fence).copied().unwrap_or(0) >= seq {
        return Ok(None);
    }
    let mut mended = Meta { writes: meta.writes_and(&new_mark()), ..meta.clone() };
    mended.tails.insert(fence, seq);
    mended.job.version += 1;
    if mended.job.log_end.is_some() {
        mended.job.log_end = Some(Cursor { fence, seq });
    }
    let items = vec![meta_write(store, meta, &mended, false)?];
    // Refused: the job has gone on, and with it who could miss those lines.
    let sent = store.table.write(CONTEXT, items, "").await?;
    Ok(matches!(sent, Sent::Done).then_some(mended))
}
