//! Jobs, logs and accounts in one SQLite file, for one server process.
//!
//! WAL mode with `synchronous = FULL`: what was acknowledged survives a power cut, not only a killed process. That is cheap here because
//! writes that wait for the writer share one commit, and so one fsync (`examples/bench_store.rs` measures both settings).
//!
//! Invariant: a record is written by the writer's thread only, in the transaction in which it was read and judged.

mod accounts;
mod connections;
mod fault;
mod job_rows;
mod jobs;
mod logs;
mod schema;
mod usage;

use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, OpenFlags};

use self::connections::{Readers, Writer, connect};
use self::fault::{Bad, Fault, move_aside};
use crate::error::StoreError;
use crate::signals::{Signal, Signals};

/// The embedded `JobStore` and `AccountStore`.
pub struct SqliteStore {
    writer: Writer,
    readers: Arc<Readers>,
    signals: Signals,
}

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteStore").finish_non_exhaustive()
    }
}

/// What a crash of the machine (not of the process) may take along.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Nothing that was acknowledged.
    #[default]
    PowerCut,
    /// The last commits. For benchmarks and tests.
    ProcessKill,
}

impl SqliteStore {
    /// Opens or creates the file, mode 0600. Its folder must exist.
    ///
    /// # Errors
    /// [`StoreError::TooNew`] for a file of a newer version; [`StoreError::Backend`] where the file can't be opened or is no database.
    pub fn open(file: &Path, signals: Signals, durability: Durability) -> Result<Self, StoreError> {
        private_file(file).map_err(|error| StoreError::backend(format!("opening {}", file.display()), error))?;
        let failed = |error| StoreError::backend(format!("opening the database {}", file.display()), error);
        let mut connection = connect(file, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(failed)?;
        schema::migrate(&mut connection)?;
        let synchronous = match durability {
            Durability::PowerCut => "full",
            Durability::ProcessKill => "normal",
        };
        connection.pragma_update(None, "synchronous", synchronous).map_err(failed)?;
        Ok(Self { writer: Writer::start(connection, signals.clone())?, readers: Arc::new(Readers::new(file)), signals })
    }

    async fn write<T, E>(
        &self,
        context: &'static str,
        change: impl FnOnce(&Connection, &mut Vec<Signal>) -> Result<Result<T, E>, Fault> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        match self.writer.write(context, change).await {
            Ok(answer) => answer,
            Err(fault) => Err(self.told(fault, context).await.into()),
        }
    }

    async fn read<T: Send + 'static>(
        &self,
        context: &'static str,
        query: impl FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        match self.readers.read(context, query).await {
            Ok(answer) => Ok(answer),
            Err(fault) => Err(self.told(fault, context).await),
        }
    }

    /// Runs a query whose rows may be unreadable; those are set aside, the others returned.
    async fn read_all<T: Send + 'static>(
        &self,
        context: &'static str,
        query: impl FnOnce(&Connection) -> Result<Vec<Result<T, Bad>>, Fault> + Send + 'static,
    ) -> Result<Vec<T>, StoreError> {
        let rows = self.read(context, query).await?;
        let mut readable = Vec::with_capacity(rows.len());
        for row in rows {
            match row {
                Ok(item) => readable.push(item),
                Err(bad) => self.put_aside(bad).await,
            }
        }
        Ok(readable)
    }

    /// Turns a fault into the error of the layer above, and sets aside the record that caused it.
    async fn told(&self, fault: Fault, context: &'static str) -> StoreError {
        if let Fault::Unreadable(bad) = fault {
            let told = StoreError::Unreadable { name: bad.place.name(), reason: bad.reason.clone() };
            self.put_aside(*bad).await;
            return told;
        }
        fault.into_store(context)
    }

    async fn put_aside(&self, bad: Bad) {
        let name = bad.place.name();
        let reason = bad.reason.clone();
        let moved = self
            .writer
            .write("setting a record aside", move |connection, _| Ok(Ok::<_, StoreError>(move_aside(connection, &bad)?)));
        match moved.await {
            Ok(Ok(true)) => tracing::error!(name, reason, "a record can't be read and was set aside; the rest is served"),
            Ok(_) => tracing::debug!(name, "an unreadable record had been changed or moved by somebody else"),
            Err(fault) => {
                let error = fault.into_store("setting a record aside");
                tracing::error!(name, reason, error = crate::chain(&error), "a record can't be read and could not be set aside");
            }
        }
    }
}

/// Creates the file, or takes away what others may do with it. SQLite gives its side files the same mode.
fn private_file(file: &Path) -> std::io::Result<()> {
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(file)?;
    if opened.metadata()?.permissions().mode() & 0o077 != 0 {
        opened.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(())
}
