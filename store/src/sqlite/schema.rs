//! The schema, as a list of steps. `user_version` counts the steps that a file has taken.

use rusqlite::{Connection, TransactionBehavior};

use crate::error::StoreError;

/// Never change a step that was released: add one.
const STEPS: &[&str] = &[STEP_1, STEP_2];

/// Times are microseconds since 1970, rounded down; the exact time is in the record. A query may therefore find a record a microsecond
/// early, and the code behind it compares again.
const STEP_1: &str = "
CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    state TEXT NOT NULL,
    fence INTEGER NOT NULL,
    claim TEXT,                         -- of the lease; null: nobody holds one
    attempt INTEGER NOT NULL,
    cancelled INTEGER NOT NULL,
    version INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    not_before INTEGER NOT NULL,
    deadline INTEGER,
    completed_at INTEGER,
    expires_at INTEGER,
    seconds REAL,                       -- from first claim to end
    repo TEXT NOT NULL,
    agent TEXT NOT NULL,
    listed INTEGER NOT NULL DEFAULT 1,  -- 0: purged; the record stays, so that its owner is told `gone`, not `unknown`
    record TEXT NOT NULL                -- JSON
) STRICT, WITHOUT ROWID;
CREATE INDEX jobs_by_owner ON jobs (owner, created_at, id) WHERE listed = 1;
CREATE INDEX jobs_queued ON jobs (created_at, id) WHERE state = 'queued';
CREATE INDEX jobs_leased ON jobs (owner) WHERE claim IS NOT NULL;
CREATE INDEX jobs_done ON jobs (owner, repo, agent, completed_at) WHERE state = 'succeeded';
CREATE INDEX jobs_expiring ON jobs (expires_at) WHERE listed = 1 AND expires_at IS NOT NULL;

CREATE TABLE events (
    job TEXT NOT NULL,
    version INTEGER NOT NULL,
    record TEXT NOT NULL,
    PRIMARY KEY (job, version)
) STRICT, WITHOUT ROWID;

CREATE TABLE log_chunks (
    job TEXT NOT NULL,
    fence INTEGER NOT NULL,
    first INTEGER NOT NULL,             -- sequence numbers, both included
    last INTEGER NOT NULL,
    bytes INTEGER NOT NULL,             -- of the JSON lines; 0: not compressed; -1: was set aside
    data BLOB NOT NULL,
    PRIMARY KEY (job, fence, first)
) STRICT;

CREATE TABLE quota (
    owner TEXT NOT NULL,
    month TEXT NOT NULL,
    used INTEGER NOT NULL,
    PRIMARY KEY (owner, month)
) STRICT, WITHOUT ROWID;

CREATE TABLE idempotency (
    owner TEXT NOT NULL,
    key TEXT NOT NULL,
    body TEXT NOT NULL,
    job TEXT NOT NULL,
    PRIMARY KEY (owner, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_by_job ON idempotency (job);

CREATE TABLE accounts (
    kind TEXT NOT NULL,                 -- user, token, family, device, credential, secret
    owner TEXT NOT NULL,                -- empty where the name alone is unique
    name TEXT NOT NULL,
    guard TEXT NOT NULL,                -- what a conditional replacement compares
    link TEXT NOT NULL,                 -- a second way in: a token's family, a device login's user code
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    record TEXT NOT NULL,
    PRIMARY KEY (kind, owner, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX accounts_by_link ON accounts (kind, link, created_at) WHERE link <> '';
CREATE INDEX accounts_expiring ON accounts (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE set_aside (
    name TEXT PRIMARY KEY,
    reason TEXT NOT NULL,
    content BLOB NOT NULL,
    at INTEGER NOT NULL
) STRICT;
";

const STEP_2: &str = "
ALTER TABLE quota ADD COLUMN overage_jobs INTEGER NOT NULL DEFAULT 0;
ALTER TABLE quota ADD COLUMN overage_micro_usd INTEGER NOT NULL DEFAULT 0;
ALTER TABLE quota ADD COLUMN agent_micro_usd INTEGER NOT NULL DEFAULT 0;

ALTER TABLE jobs ADD COLUMN notify_at INTEGER;  -- when a webhook is due
CREATE INDEX jobs_notify ON jobs (notify_at) WHERE notify_at IS NOT NULL;

CREATE TABLE ledger (
    month TEXT NOT NULL,
    owner TEXT NOT NULL,
    job TEXT NOT NULL,
    record TEXT NOT NULL,
    PRIMARY KEY (month, owner, job)
) STRICT, WITHOUT ROWID;

CREATE TABLE audit (
    day TEXT NOT NULL,                  -- yyyy-mm-dd, UTC
    at INTEGER NOT NULL,
    id TEXT NOT NULL,
    record TEXT NOT NULL,
    PRIMARY KEY (day, at, id)
) STRICT, WITHOUT ROWID;
";

fn version_of(connection: &Connection) -> rusqlite::Result<usize> {
    let version: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    Ok(version as usize)
}

/// Brings a file to this program's schema.
///
/// # Errors
/// [`StoreError::TooNew`] where a newer program has written the file: an older one could only damage it.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let failed = |error| StoreError::backend("bringing the database to this version's schema", error);
    let refuse_newer =
        |found: usize| if found > STEPS.len() { Err(StoreError::TooNew { found, known: STEPS.len() }) } else { Ok(()) };
    // Before anything is written.
    refuse_newer(version_of(connection).map_err(failed)?)?;
    connection.pragma_update(None, "journal_mode", "wal").map_err(failed)?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    // Again under the lock: another process may have been faster.
    let found = version_of(&transaction).map_err(failed)?;
    refuse_newer(found)?;
    for step in &STEPS[found..] {
        transaction.execute_batch(step).map_err(failed)?;
    }
    transaction.pragma_update(None, "user_version", STEPS.len() as u32).map_err(failed)?;
    transaction.commit().map_err(failed)
}
