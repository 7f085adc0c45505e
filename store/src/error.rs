//! What can go wrong in a store. No status codes here: layers above decide what a client is told.

use ckrv_core::job::JobRecord;
use ckrv_core::machine::Refusal;
use jiff::Timestamp;

/// A failure of the store itself. Worth trying again, unlike a refusal.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The backend did not answer or answered with a fault. `context` says what was tried.
    #[error("{context}")]
    Backend {
        context: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A record that can't be read. It has been set aside under this name; everything else goes on.
    #[error("the record of {name} can't be read: {reason}")]
    Unreadable { name: String, reason: String },
    /// The key or the context of an encrypted value does not fit: it was tampered with, or moved.
    #[error("an encrypted value can't be opened: {0}")]
    Sealed(String),
    /// A newer program has written this data; this one would damage it.
    #[error(
        "the data was written by a newer version of ckrv (schema {found}, this version knows {known}): use that version or a later one"
    )]
    TooNew { found: usize, known: usize },
    /// A page cursor that none of this store's pages gave. The client's mistake, not the store's.
    #[error("this is not a cursor of an earlier page")]
    BadCursor,
}

impl StoreError {
    pub fn backend(context: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Backend { context: context.into(), source: source.into() }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    #[error("the month's quota of {cap} jobs is used up until {resets_at}")]
    QuotaExceeded { cap: u32, resets_at: Timestamp },
    /// The same idempotency key came with another body.
    #[error("this idempotency key was used for a different request")]
    IdempotencyMismatch,
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[derive(Debug, thiserror::Error)]
pub enum VerbError {
    #[error("no such job")]
    NotFound,
    /// The state machine said no; nothing was stored. The record is as it was found.
    #[error("{refusal}")]
    Refused { refusal: Refusal, job: Box<JobRecord> },
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The claim or fence is not the job's any more, or the job has ended.
    #[error("the log is closed for this attempt")]
    Closed,
    /// Entries between what is stored and what came are missing; send from `expected` on.
    #[error("the log goes on at entry {expected}")]
    Gap { expected: u64 },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// An error with its causes: a log of JSON lines shows of an error only what it says itself.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
