//! Where jobs, accounts and artifacts are kept: small traits in plain data, and the embedded backend (SQLite and files).
//!
//! Every backend passes the same suite: [`contract`].

mod account_store;
mod blobs;
pub mod contract;
mod embedded;
mod error;
mod files;
mod job_store;
mod local_vault;
mod signals;
mod sqlite;
mod vault;

pub use account_store::*;
pub use blobs::*;
pub use embedded::open_embedded;
pub use error::*;
pub use files::FileBlobs;
pub use job_store::*;
pub use local_vault::LocalVault;
pub use signals::*;
pub use sqlite::{Durability, SqliteStore};
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
