//! Where jobs, accounts and artifacts are kept: small traits in plain data, and two backends: embedded (SQLite and files) and aws (DynamoDB
//! and S3).
//!
//! Every backend passes the same suite: [`contract`].

mod account_store;
#[cfg(feature = "aws")]
mod aws;
mod blobs;
mod config;
pub mod contract;
#[cfg(feature = "embedded")]
mod embedded;
mod envelope;
mod error;
#[cfg(feature = "embedded")]
mod files;
mod job_store;
#[cfg(feature = "embedded")]
mod local_vault;
mod purge;
mod references;
mod signals;
#[cfg(feature = "embedded")]
mod sqlite;
mod vault;

pub use account_store::*;
#[cfg(feature = "aws")]
pub use aws::open_aws;
pub use blobs::*;
pub use config::*;
#[cfg(feature = "embedded")]
pub use embedded::open_embedded;
pub use error::*;
#[cfg(feature = "embedded")]
pub use files::FileBlobs;
pub use job_store::*;
#[cfg(feature = "embedded")]
pub use local_vault::LocalVault;
pub use purge::{forget_checkpoint, purge};
pub use references::*;
pub use signals::*;
#[cfg(feature = "embedded")]
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
    pub references: Arc<dyn References>,
    /// Hints within this process that something changed. Losing one costs time, never truth.
    pub signals: Signals,
}

impl std::fmt::Debug for Stores {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stores").finish_non_exhaustive()
    }
}
