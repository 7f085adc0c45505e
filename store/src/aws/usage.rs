//! What a month's jobs add up to: counters in `U#uid` / `Q#yyyy-mm`, and the ledger of jobs beyond the included ones.

use aws_sdk_dynamodb::types::TransactWriteItem;
use ckrv_core::job::JobRecord;
use jiff::Timestamp;

use super::edit::{Edit, absent, put};
use super::table::{
    AGENT_MICRO_USD, Item, OVERAGE_JOBS, OVERAGE_MICRO_USD, RECORD, Table, USED, key, ledger_key, ledger_partition, number,
    quota_key, string, text_of, to_json, user_key,
};
use crate::account_store::LedgerEntry;
use crate::error::StoreError;
use crate::job_store::QuotaRule;

/// Which of the month's jobs a new one is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seat {
    /// One that costs nothing extra. Holds how many there are.
    Included(Option<u32>),
    /// One beyond those, up to the cap.
    Beyond { included: u32, cap: Option<u32> },
}

impl Seat {
    /// The one to try first.
    pub(super) fn first(quota: &QuotaRule) -> Self {
        match quota.included {
            Some(included) if quota.overage_micro_usd > 0 => {
                let within = quota.cap.map_or(included, |cap| cap.min(included));
                if within == 0 { Self::Beyond { included, cap: quota.cap } } else { Self::Included(Some(within)) }
            }
            _ => Self::Included(quota.cap),
        }
    }

    /// What to try where the counter stands at `used` and refused this one; `None`: there is no room.
    pub(super) fn next(quota: &QuotaRule, used: u32) -> Option<Self> {
        if quota.cap.is_some_and(|cap| used >= cap) {
            return None;
        }
        match (Self::first(quota), quota.included) {
            (_, Some(included)) if quota.overage_micro_usd > 0 && used >= included => {
                Some(Self::Beyond { included, cap: quota.cap })
            }
            (first, _) => Some(first),
        }
    }
}

pub(super) fn month_key(job: &JobRecord) -> Item {
    key(user_key(job.owner), quota_key(&job.quota_month))
}

/// Counts one job. An expression's condition can't add, so the counter is compared before it is raised.
pub(super) fn count_job(table: &Table, job: &JobRecord, seat: Seat) -> Result<TransactWriteItem, StoreError> {
    let mut edit = Edit::default();
    edit.add(USED, number(1));
    let used = edit.name(USED);
    let condition = match seat {
        Seat::Included(None) => None,
        Seat::Included(Some(limit)) => Some(below(&mut edit, limit)),
        Seat::Beyond { included, cap } => {
            edit.add(OVERAGE_JOBS, number(1));
            edit.add(OVERAGE_MICRO_USD, number(job.charge_micro_usd));
            match (included, cap) {
                (0, None) => None,
                (0, Some(cap)) => Some(below(&mut edit, cap)),
                (_, cap) => {
                    let included = edit.value(number(included));
                    let at_least = format!("{used} >= {included}");
                    let cap = cap.map(|cap| edit.value(number(cap)));
                    Some(cap.map_or(at_least.clone(), |cap| format!("{at_least} AND {used} < {cap}")))
                }
            }
        }
    };
    if let Some(condition) = condition {
        edit.condition(condition);
    }
    edit.write(table, month_key(job))
}

/// A month without a job has no counter, which no comparison holds for.
fn below(edit: &mut Edit, limit: u32) -> String {
    let (used, value) = (edit.name(USED), edit.value(number(limit)));
    if limit == 0 { format!("{used} < {value}") } else { format!("attribute_not_exists({used}) OR {used} < {value}") }
}

fn entry_key(job: &JobRecord) -> Item {
    key(ledger_partition(&job.quota_month), ledger_key(job.owner, job.id))
}

/// Writes the ledger entry of a new job.
pub(super) fn charge(table: &Table, job: &JobRecord, now: Timestamp) -> Result<TransactWriteItem, StoreError> {
    let entry = LedgerEntry {
        month: job.quota_month.clone(),
        owner: job.owner,
        job: job.id,
        at: now,
        micro_usd: job.charge_micro_usd,
        voided_at: None,
    };
    let mut item = entry_key(job);
    item.insert(RECORD.to_owned(), string(to_json(&entry)?));
    put(table, item, absent())
}

/// What the end of a job changes in its owner's month.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Settling {
    /// The job is given back.
    pub refund: bool,
    /// The job's ledger entry is voided.
    pub void: bool,
    pub agent_micro_usd: u64,
}

impl Settling {
    /// Gives the write of the counters, where they change. It may be refused: of a refund where nothing is counted.
    pub(super) fn counters(self, table: &Table, job: &JobRecord) -> Result<Option<TransactWriteItem>, StoreError> {
        if !self.refund && self.agent_micro_usd == 0 {
            return Ok(None);
        }
        let mut edit = Edit::default();
        if self.agent_micro_usd > 0 {
            edit.add(AGENT_MICRO_USD, number(self.agent_micro_usd));
        }
        if self.refund {
            edit.add(USED, number(-1));
            if self.void {
                edit.add(OVERAGE_JOBS, number(-1));
                edit.add(OVERAGE_MICRO_USD, number(-i128::from(job.charge_micro_usd)));
            }
            let (used, zero) = (edit.name(USED), edit.value(number(0)));
            edit.condition(format!("{used} > {zero}"));
        }
        edit.write(table, month_key(job)).map(Some)
    }
}

/// The write that voids a job's ledger entry; `None`: there is none, or it is void.
pub(super) async fn void(table: &Table, job: &JobRecord, now: Timestamp) -> Result<Option<TransactWriteItem>, StoreError> {
    const CONTEXT: &str = "reading a ledger entry";
    if job.charge_micro_usd == 0 {
        return Ok(None);
    }
    let found = table.get(CONTEXT, entry_key(job)).await?;
    let Some(text) = found.as_ref().and_then(|item| text_of(item, RECORD)) else { return Ok(None) };
    let entry: LedgerEntry = serde_json::from_str(text).map_err(|error| StoreError::backend(CONTEXT, error))?;
    if entry.voided_at.is_some() {
        return Ok(None);
    }
    let mut edit = Edit::default();
    edit.set(RECORD, string(to_json(&LedgerEntry { voided_at: Some(now), ..entry })?));
    let (name, seen) = (edit.name(RECORD), edit.value(string(text)));
    edit.condition(format!("{name} = {seen}"));
    edit.write(table, entry_key(job)).map(Some)
}
