//! What goes wrong inside the SQLite backend, and how a record that can't be read is set aside.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};

use crate::error::StoreError;
use crate::job_store::SetAside;

#[derive(Debug)]
pub(super) enum Fault {
    Sql(rusqlite::Error),
    /// The transaction that this write shared with others could not begin or commit.
    Commit(Arc<rusqlite::Error>),
    /// The thread that was asked is no more, or panicked.
    Writer(&'static str),
    Unreadable(Box<Bad>),
    /// Already one of the layer above.
    Store(StoreError),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<Bad> for Fault {
    fn from(bad: Bad) -> Self {
        Self::Unreadable(Box::new(bad))
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Fault {
    pub(super) fn into_store(self, context: &'static str) -> StoreError {
        match self {
            Self::Sql(error) => StoreError::backend(context, error),
            Self::Commit(error) => StoreError::backend(context, error),
            Self::Writer(what) => StoreError::backend(context, format!("the store's thread gave up on {what}")),
            Self::Unreadable(bad) => StoreError::Unreadable { name: bad.place.name(), reason: bad.reason },
            Self::Store(error) => error,
        }
    }
}

/// Where a record stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Job(String),
    Event { job: String, version: i64 },
    Log { job: String, fence: i64, first: i64 },
    Account { kind: &'static str, owner: String, name: String },
}

impl Place {
    /// Says which record it is; holds no secret.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Job(id) => format!("job {id}"),
            Self::Event { job, version } => format!("event {version} of job {job}"),
            Self::Log { job, fence, first } => format!("log of job {job} from entry {fence}.{first} on"),
            Self::Account { kind, owner, name } if owner.is_empty() => {
                // Tokens and device logins are named by their hash, of which a part is enough.
                format!("{kind} {}", name.chars().take(12).collect::<String>())
            }
            Self::Account { kind, owner, name } => format!("{kind} {name} of user {owner}"),
        }
    }
}

/// A record that can't be read, as it was found.
#[derive(Debug)]
pub(super) struct Bad {
    pub place: Place,
    pub reason: String,
    pub content: Vec<u8>,
}

/// Moves a record out of the way, unless somebody has changed it since it was read.
pub(super) fn move_aside(connection: &Connection, bad: &Bad) -> rusqlite::Result<bool> {
    let content = &bad.content;
    let moved = match &bad.place {
        Place::Job(id) => {
            connection.execute("DELETE FROM jobs WHERE id = ?1 AND CAST(record AS BLOB) = ?2", params![id, content])?
        }
        Place::Event { job, version } => connection.execute(
            "DELETE FROM events WHERE job = ?1 AND version = ?2 AND CAST(record AS BLOB) = ?3",
            params![job, version, content],
        )?,
        Place::Log { job, fence, first } => connection.execute(
            "UPDATE log_chunks SET bytes = -1, data = x'' WHERE job = ?1 AND fence = ?2 AND first = ?3 AND data = ?4",
            params![job, fence, first, content],
        )?,
        Place::Account { kind, owner, name } => connection.execute(
            "DELETE FROM accounts WHERE kind = ?1 AND owner = ?2 AND name = ?3 AND CAST(record AS BLOB) = ?4",
            params![kind, owner, name, content],
        )?,
    };
    if moved == 0 {
        return Ok(false);
    }
    connection.execute(
        "INSERT INTO set_aside (name, reason, content, at) VALUES (?1, ?2, ?3, unixepoch())
         ON CONFLICT (name) DO UPDATE SET reason = excluded.reason, content = excluded.content, at = excluded.at",
        params![bad.place.name(), bad.reason, content],
    )?;
    Ok(true)
}

/// The reason why a record of this name was set aside earlier, if it was.
pub(super) fn reason_of(connection: &Connection, place: &Place) -> rusqlite::Result<Option<StoreError>> {
    let name = place.name();
    let reason: Option<String> = connection
        .prepare_cached("SELECT reason FROM set_aside WHERE name = ?1")?
        .query_row([&name], |row| row.get(0))
        .optional()?;
    Ok(reason.map(|reason| StoreError::Unreadable { name, reason }))
}

pub(super) fn all(connection: &Connection) -> Result<Vec<SetAside>, Fault> {
    let mut statement = connection.prepare_cached("SELECT name, reason FROM set_aside ORDER BY at, name")?;
    let rows = statement.query_map([], |row| Ok(SetAside { name: row.get(0)?, reason: row.get(1)? }))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}
