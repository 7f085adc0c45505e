//! One writer connection on a thread of its own, a few readers beside it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::fault::Fault;
use crate::error::StoreError;
use crate::signals::{Signal, Signals};

/// Writes that may wait for the writer; a caller beyond that waits for room.
const QUEUE: usize = 256;
/// Writes that share one commit, and so one fsync.
const BATCH: usize = 64;
const READERS: usize = 3;
const BUSY: Duration = Duration::from_secs(10);
const STATEMENTS: usize = 64;

type Shared = Arc<rusqlite::Error>;
/// Told once the commit is done, or why it failed.
type Answer = Box<dyn FnOnce(Result<(), &Shared>) + Send>;
type Work = Box<dyn FnOnce(Result<&mut Transaction<'_>, &Shared>) -> Option<Answer> + Send>;

/// Opens one connection with the settings that all of them share.
pub(super) fn connect(file: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(file, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    Ok(connection)
}

/// The only connection that writes. Waiting writes are committed together: each in its own savepoint, so that one that fails takes
/// nothing of its neighbours along, and all answered after the commit.
pub(super) struct Writer {
    queue: Option<mpsc::Sender<Work>>,
    thread: Option<JoinHandle<()>>,
    signals: Signals,
}

impl Writer {
    pub(super) fn start(connection: Connection, signals: Signals) -> Result<Self, StoreError> {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("ckrv-store".to_owned())
            .spawn(move || run(connection, waiting))
            .map_err(|error| StoreError::backend("starting the store's writer", error))?;
        Ok(Self { queue: Some(queue), thread: Some(thread), signals })
    }

    /// Runs `change` in a transaction. An inner error (the domain said no) is rolled back like a fault. Signals go out after the commit.
    pub(super) async fn write<T, E>(
        &self,
        context: &'static str,
        change: impl FnOnce(&Connection, &mut Vec<Signal>) -> Result<Result<T, E>, Fault> + Send + 'static,
    ) -> Result<Result<T, E>, Fault>
    where
        T: Send + 'static,
        E: Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let signals = self.signals.clone();
        let work: Work = Box::new(move |transaction| {
            let mut told = Vec::new();
            let done = match transaction {
                Ok(transaction) => in_savepoint(transaction, |connection| change(connection, &mut told)),
                Err(error) => Err(Fault::Commit(error.clone())),
            };
            Some(Box::new(move |committed: Result<(), &Shared>| {
                let done = match committed {
                    Ok(()) => done,
                    Err(error) => Err(Fault::Commit(error.clone())),
                };
                if matches!(done, Ok(Ok(_))) {
                    told.into_iter().for_each(|signal| signals.send(signal));
                }
                // Nobody waits any more: the write counts all the same.
                let _ = sender.send(done);
            }))
        });
        let gone = || Fault::Writer(context);
        self.queue.as_ref().ok_or_else(gone)?.send(work).await.map_err(|_| gone())?;
        receiver.await.map_err(|_| gone())?
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // So that a store that was dropped has closed its files; what waits in the queue is written first.
            let _ = thread.join();
        }
    }
}

fn run(mut connection: Connection, mut waiting: mpsc::Receiver<Work>) {
    while let Some(first) = waiting.blocking_recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH
            && let Ok(next) = waiting.try_recv()
        {
            batch.push(next);
        }
        commit(&mut connection, batch);
    }
}

fn commit(connection: &mut Connection, batch: Vec<Work>) {
    let mut answers = Vec::with_capacity(batch.len());
    let committed = match connection.transaction_with_behavior(TransactionBehavior::Immediate) {
        Ok(mut transaction) => {
            for work in batch {
                // A full disk makes SQLite roll back the whole transaction; what follows must not run outside of one.
                let lost = transaction.is_autocommit().then(|| Arc::new(rusqlite::Error::InvalidQuery));
                let attempt = match &lost {
                    None => Ok(&mut transaction),
                    Some(error) => Err(error),
                };
                // A panic in one write must not end the writer; its caller is told that the writer gave up on it.
                answers.extend(catch_unwind(AssertUnwindSafe(|| work(attempt))).ok().flatten());
            }
            transaction.commit().map_err(Arc::new)
        }
        Err(error) => {
            let error = Arc::new(error);
            answers.extend(batch.into_iter().filter_map(|work| work(Err(&error))));
            Err(error)
        }
    };
    for answer in answers {
        answer(committed.as_ref().copied());
    }
}

fn in_savepoint<T, E>(
    transaction: &mut Transaction<'_>,
    change: impl FnOnce(&Connection) -> Result<Result<T, E>, Fault>,
) -> Result<Result<T, E>, Fault> {
    let savepoint = transaction.savepoint()?;
    let done = change(&savepoint)?;
    if done.is_ok() {
        savepoint.commit()?;
    }
    Ok(done)
}

/// Connections for reading; each call takes one for as long as it runs.
pub(super) struct Readers {
    file: PathBuf,
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
}

impl Readers {
    pub(super) fn new(file: &Path) -> Self {
        Self { file: file.to_owned(), idle: Mutex::default(), permits: Arc::new(Semaphore::new(READERS)) }
    }

    fn take(&self) -> rusqlite::Result<Connection> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match idle {
            Some(connection) => Ok(connection),
            None => {
                let connection = connect(&self.file, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
                connection.pragma_update(None, "query_only", true)?;
                Ok(connection)
            }
        }
    }

    pub(super) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        context: &'static str,
        query: impl FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| Fault::Writer(context))?;
        let readers = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let connection = readers.take()?;
            // One snapshot for all statements of the query.
            let snapshot = connection.unchecked_transaction()?;
            let answer = query(&snapshot);
            drop(snapshot);
            readers.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
            answer
        })
        .await
        .map_err(|_| Fault::Writer(context))?
    }
}
