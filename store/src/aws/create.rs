//! Making a job: idempotency key, quota, job, list entry and ledger entry in one transaction.

use aws_sdk_dynamodb::types::TransactWriteItem;
use ckrv_core::id::JobId;
use ckrv_core::job::{JobEvent, JobRecord, State};
use ckrv_core::machine::UNCLAIMED_LIMIT;
use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::edit::{Edit, Met, Sent, Tries, absent, put};
use super::jobs::AwsJobs;
use super::meta::{Mark, Meta, WRITES, has_write, meta_key, new_mark};
use super::queue::{index_attributes, place_of, shard_of};
use super::table::{Item, PK, TTL, USED, bytes_of, key, number, number_of, string, text_of, ttl, user_key};
use super::usage::{Seat, charge, count_job};
use crate::error::{CreateError, StoreError};
use crate::job_store::{Created, Idempotency, NewJob, QuotaRule};
use crate::signals::Signal;

const CONTEXT: &str = "making a job";
const JOB: &str = "jid";
const BODY: &str = "body";
/// When the key may be used anew, in seconds.
const EXPIRES: &str = "exp";
/// How long after everything else an item is certainly of no use.
const SLACK: SignedDuration = SignedDuration::from_hours(24);

/// The list entry's sort key: newest last, by creation, then by id.
pub(super) fn list_key(created_micros: i64, id: &str) -> String {
    format!("J#{created_micros:016}#{id}")
}

/// When a job that goes on for as long as it may is expired.
pub(super) fn latest_expiry(job: &JobRecord) -> Timestamp {
    let seconds = |seconds: u32| SignedDuration::from_secs(i64::from(seconds));
    // A deadline is enforced by whoever looks next; an hour is far more than that takes.
    let slack = SignedDuration::from_hours(1);
    job.created_at + UNCLAIMED_LIMIT + seconds(job.request.timeout_seconds) + slack + seconds(job.retention_seconds)
}

struct Creation<'a> {
    store: &'a AwsJobs,
    job: JobRecord,
    idempotency: Option<Idempotency>,
    quota: QuotaRule,
    now: Timestamp,
    mark: Mark,
}

/// What the transaction's refusal comes to.
enum Verdict {
    Answer(Box<Created>),
    /// Try as this one.
    Seat(Seat),
    /// The key belongs to a job that is gone: take it.
    Take(JobId),
}

pub(super) async fn create(store: &AwsJobs, new: NewJob, now: Timestamp) -> Result<Created, CreateError> {
    let NewJob { mut job, idempotency, quota } = new;
    if job.state != State::Queued {
        return Err(StoreError::backend(CONTEXT, format!("a new job is queued, not {}", job.state)).into());
    }
    // What was counted there is given back there.
    job.quota_month.clone_from(&quota.month);
    let mut seat = Seat::first(&quota);
    let mut creation = Creation { store, job, idempotency, quota, now, mark: new_mark() };
    let mut tries = Tries::begin();
    let mut takes = None;
    loop {
        let items = creation.items(seat, takes)?;
        let token = Uuid::new_v4().to_string();
        let error = match store.table.write(CONTEXT, items, &token).await? {
            Sent::Done => return Ok(creation.made()),
            Sent::Refused(met) => {
                match creation.judge(met, seat).await? {
                    Verdict::Answer(created) => return Ok(*created),
                    Verdict::Seat(other) => seat = other,
                    Verdict::Take(gone) => takes = Some(gone),
                }
                StoreError::backend(CONTEXT, "the owner's counters keep changing; try again")
            }
            Sent::Unsure(error) => {
                if let Some(created) = creation.stored().await? {
                    return Ok(created);
                }
                error
            }
        };
        if !tries.again().await {
            return Err(error.into());
        }
    }
}

impl Creation<'_> {
    fn items(&mut self, seat: Seat, takes: Option<JobId>) -> Result<Vec<TransactWriteItem>, StoreError> {
        let table = &self.store.table;
        let beyond = matches!(seat, Seat::Beyond { .. });
        self.job.charge_micro_usd = if beyond { self.quota.overage_micro_usd } else { 0 };
        let job = &self.job;
        // The order counts: a refusal is told item by item.
        let mut items = vec![self.job_item()?, count_job(table, job, seat)?];
        if let Some(given) = &self.idempotency {
            items.push(self.key_item(given, takes)?);
        }
        let mut entry = key(user_key(job.owner), list_key(job.created_at.as_microsecond(), &job.id.to_string()));
        entry.insert(TTL.to_owned(), ttl(latest_expiry(job) + SLACK));
        items.push(put(table, entry, Edit::default())?);
        if beyond {
            items.push(charge(table, job, self.now)?);
        }
        Ok(items)
    }

    fn job_item(&self) -> Result<TransactWriteItem, StoreError> {
        let job = &self.job;
        let event = JobEvent {
            version: job.version,
            at: self.now,
            verb: "create".to_owned(),
            state: job.state,
            fence: job.fence,
            note: None,
        };
        let meta = Meta {
            job: job.clone(),
            events: vec![event],
            tails: Default::default(),
            full_log: None,
            purged: false,
            shard: shard_of(job.id),
            writes: self.mark.to_vec(),
        };
        let mut item = meta_key(job.id);
        item.extend(meta.attributes()?);
        if let Some(place) = place_of(job, false) {
            item.extend(index_attributes(&place, meta.shard).map(|(name, value)| (name.to_owned(), value)));
        }
        put(&self.store.table, item, absent())
    }

    fn idempotency_key(&self, given: &Idempotency) -> Item {
        key(user_key(self.job.owner), format!("I#{}", given.key_sha256))
    }

    /// A key that has expired does not count, whether DynamoDB has deleted it yet or not.
    fn key_item(&self, given: &Idempotency, takes: Option<JobId>) -> Result<TransactWriteItem, StoreError> {
        let mut item = self.idempotency_key(given);
        let until = latest_expiry(&self.job);
        item.extend([
            (JOB.to_owned(), string(self.job.id.to_string())),
            (BODY.to_owned(), string(given.body_sha256.clone())),
            (EXPIRES.to_owned(), number(until.as_second())),
            (TTL.to_owned(), ttl(until + SLACK)),
        ]);
        let mut edit = Edit::default();
        let (pk, expires, now) = (edit.name(PK), edit.name(EXPIRES), edit.value(number(self.now.as_second())));
        let mut condition = format!("attribute_not_exists({pk}) OR {expires} <= {now}");
        if let Some(gone) = takes {
            let (name, gone) = (edit.name(JOB), edit.value(string(gone.to_string())));
            condition = format!("{condition} OR {name} = {gone}");
        }
        edit.condition(condition);
        put(&self.store.table, item, edit)
    }

    fn made(self) -> Created {
        for signal in [Signal::Queued(self.job.id), Signal::Changed(self.job.id)] {
            self.store.signals.send(signal);
        }
        Created::New(self.job)
    }

    /// The job as it was made by this call, if it was: the answer to an earlier try was lost.
    async fn stored(&self) -> Result<Option<Created>, StoreError> {
        let found = self.store.meta(self.job.id).await?;
        let ours = found.filter(|meta| meta.has_write(&self.mark) || meta.job.version > 0);
        Ok(ours.map(|meta| {
            self.store.signals.send(Signal::Queued(meta.job.id));
            Created::New(meta.job)
        }))
    }

    async fn judge(&self, met: Vec<Met>, seat: Seat) -> Result<Verdict, CreateError> {
        let mut met = met.into_iter();
        let (job, counters) = (met.next(), met.next());
        if let Some(Met::Broken(found)) = job {
            let writes = found.as_ref().and_then(|item| bytes_of(item, WRITES)).unwrap_or_default();
            if has_write(writes, &self.mark)
                && let Some(created) = self.stored().await?
            {
                return Ok(Verdict::Answer(Box::new(created)));
            }
            return Err(StoreError::backend(CONTEXT, "there is a job of this id already").into());
        }
        if let Some(given) = &self.idempotency {
            // A cancelled transaction need not tell every condition that failed; a key that was used comes before a quota that is used up.
            let used = match (met.next(), &counters) {
                (Some(Met::Broken(found)), _) => found,
                (_, Some(Met::Broken(_))) => self.store.table.get(CONTEXT, self.idempotency_key(given)).await?,
                _ => None,
            };
            if let Some(used) = used.filter(|item| number_of::<i64>(item, EXPIRES).is_none_or(|at| at > self.now.as_second())) {
                return self.replay(&used, given).await;
            }
        }
        let Some(Met::Broken(found)) = counters else { return Ok(Verdict::Seat(seat)) };
        let used = found.as_ref().and_then(|item| number_of(item, USED)).unwrap_or(0);
        match (Seat::next(&self.quota, used), self.quota.cap) {
            (Some(other), _) => Ok(Verdict::Seat(other)),
            (None, cap) => Err(CreateError::QuotaExceeded { cap: cap.unwrap_or_default(), resets_at: self.quota.resets_at }),
        }
    }

    async fn replay(&self, used: &Item, given: &Idempotency) -> Result<Verdict, CreateError> {
        let unreadable = |reason: String| StoreError::backend("reading an idempotency key", reason);
        let earlier = text_of(used, JOB).ok_or_else(|| unreadable("it names no job".to_owned()))?;
        let earlier: JobId = earlier.parse().map_err(|error: uuid::Error| unreadable(error.to_string()))?;
        let found = self.store.meta(earlier).await?;
        let Some(meta) = found.filter(|meta| !meta.purged) else { return Ok(Verdict::Take(earlier)) };
        if text_of(used, BODY) != Some(given.body_sha256.as_str()) {
            return Err(CreateError::IdempotencyMismatch);
        }
        if meta.job.id == self.job.id {
            Ok(Verdict::Answer(Box::new(Created::New(meta.job))))
        } else {
            Ok(Verdict::Answer(Box::new(Created::Replay(meta.job))))
        }
    }
}
