//! What a month's jobs add up to: the quota counter, and the ledger of jobs beyond the included ones.

use ckrv_core::id::UserId;
use ckrv_core::job::JobRecord;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::fault::Fault;
use super::job_rows::to_json;
use crate::account_store::{LedgerEntry, MonthUsage};
use crate::error::StoreError;
use crate::job_store::QuotaRule;

/// SQLite counts in `i64`.
fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Counts one job and sets its charge; gives the cap where it was reached already.
pub(super) fn count_job(
    connection: &Connection,
    job: &mut JobRecord,
    quota: &QuotaRule,
    now: Timestamp,
) -> Result<Option<u32>, Fault> {
    let owner = job.owner.to_string();
    connection
        .prepare_cached("INSERT INTO quota (owner, month, used) VALUES (?1, ?2, 0) ON CONFLICT DO NOTHING")?
        .execute(params![owner, quota.month])?;
    let counted = connection
        .prepare_cached(
            "UPDATE quota SET used = used + 1 WHERE owner = ?1 AND month = ?2 AND (?3 IS NULL OR used < ?3) RETURNING used",
        )?
        .query_row(params![owner, quota.month, quota.cap], |row| row.get::<_, u32>(0))
        .optional()?;
    let Some(used) = counted else { return Ok(quota.cap) };
    // What was counted there is given back there.
    job.quota_month.clone_from(&quota.month);
    job.charge_micro_usd = 0;
    if quota.included.is_some_and(|included| used > included) && quota.overage_micro_usd > 0 {
        job.charge_micro_usd = quota.overage_micro_usd;
        charge(connection, job, now)?;
    }
    Ok(None)
}

fn charge(connection: &Connection, job: &JobRecord, now: Timestamp) -> Result<(), Fault> {
    let entry = LedgerEntry {
        month: job.quota_month.clone(),
        owner: job.owner,
        job: job.id,
        at: now,
        micro_usd: job.charge_micro_usd,
        voided_at: None,
    };
    put_entry(connection, &entry)?;
    add_overage(connection, job, 1)
}

/// Gives one job back: uncounted, and its ledger entry void.
pub(super) fn refund(connection: &Connection, job: &JobRecord, now: Timestamp) -> Result<(), Fault> {
    connection
        .prepare_cached("UPDATE quota SET used = used - 1 WHERE owner = ?1 AND month = ?2 AND used > 0")?
        .execute(params![job.owner.to_string(), job.quota_month])?;
    if job.charge_micro_usd == 0 {
        return Ok(());
    }
    let found: Option<String> = connection
        .prepare_cached("SELECT record FROM ledger WHERE month = ?1 AND owner = ?2 AND job = ?3")?
        .query_row(params![job.quota_month, job.owner.to_string(), job.id.to_string()], |row| row.get(0))
        .optional()?;
    let Some(text) = found else { return Ok(()) };
    let entry: LedgerEntry = serde_json::from_str(&text).map_err(|error| StoreError::backend("reading a ledger entry", error))?;
    if entry.voided_at.is_none() {
        put_entry(connection, &LedgerEntry { voided_at: Some(now), ..entry })?;
        add_overage(connection, job, -1)?;
    }
    Ok(())
}

fn put_entry(connection: &Connection, entry: &LedgerEntry) -> Result<(), Fault> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO ledger (month, owner, job, record) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![entry.month, entry.owner.to_string(), entry.job.to_string(), to_json(entry)?])?;
    Ok(())
}

fn add_overage(connection: &Connection, job: &JobRecord, jobs: i64) -> Result<(), Fault> {
    connection
        .prepare_cached(
            "UPDATE quota SET overage_jobs = max(0, overage_jobs + ?3), overage_micro_usd = max(0, overage_micro_usd + ?3 * ?4)
             WHERE owner = ?1 AND month = ?2",
        )?
        .execute(params![job.owner.to_string(), job.quota_month, jobs, number(job.charge_micro_usd)])?;
    Ok(())
}

/// Adds what the agent of an ended job said it cost.
pub(super) fn add_agent_cost(connection: &Connection, job: &JobRecord) -> Result<(), Fault> {
    if let Some(cost) = job.facts.usage.cost_micro_usd.filter(|cost| *cost > 0) {
        connection
            .prepare_cached("UPDATE quota SET agent_micro_usd = agent_micro_usd + ?3 WHERE owner = ?1 AND month = ?2")?
            .execute(params![job.owner.to_string(), job.quota_month, number(cost)])?;
    }
    Ok(())
}

pub(super) fn month_usage(connection: &Connection, user: UserId, month: &str) -> Result<MonthUsage, Fault> {
    let found = connection
        .prepare_cached(
            "SELECT used, overage_jobs, overage_micro_usd, agent_micro_usd FROM quota WHERE owner = ?1 AND month = ?2",
        )?
        .query_row(params![user.to_string(), month], |row| {
            Ok(MonthUsage {
                jobs: row.get(0)?,
                overage_jobs: row.get(1)?,
                overage_micro_usd: row.get::<_, i64>(2)?.unsigned_abs(),
                agent_micro_usd: row.get::<_, i64>(3)?.unsigned_abs(),
            })
        })
        .optional()?;
    Ok(found.unwrap_or_default())
}

pub(super) fn ledger(connection: &Connection, month: &str) -> Result<Vec<LedgerEntry>, Fault> {
    let mut statement = connection.prepare_cached("SELECT record FROM ledger WHERE month = ?1 ORDER BY owner, job")?;
    let rows = statement.query_map([month], |row| row.get::<_, String>(0))?;
    let mut entries = Vec::new();
    for row in rows {
        entries.push(serde_json::from_str(&row?).map_err(|error| StoreError::backend("reading a ledger entry", error))?);
    }
    Ok(entries)
}
