//! Where jobs, accounts and artifacts are kept: small traits in plain data, and the embedded backend (SQLite and files).
//!
//! Every backend passes the same suite: [`contract`].

mod account_store;
mod blobs;
mod error;
mod job_store;
mod signals;
mod vault;

pub use account_store::*;
pub use blobs::*;
pub use error::*;
pub use job_store::*;
pub use signals::*;
pub use vault::*;

use std::sync::Arc;

/// Everything that a server needs of its store.
#[derive(Clone)]
pub struct Stores {
    pub jobs: Arc<dyn JobStore>,
    pub accounts: Arc<dyn AccountStore>,
    pub blobs: Arc<dyn Blobs>,
    pub sealer: Arc<dyn Sealer>,
    pub opener: Arc<dyn Opener>,
    /// Hints within this process that something changed. Losing one costs time, never truth.
    pub signals: Signals,
}

impl std::fmt::Debug for Stores {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stores").finish_non_exhaustive()
    }
}
