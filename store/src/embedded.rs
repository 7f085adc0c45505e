//! The embedded default: everything in one folder.

use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use crate::files::FileBlobs;
use crate::local_vault::LocalVault;
use crate::signals::Signals;
use crate::sqlite::{Durability, SqliteStore};
use crate::{NoReferences, StoreError, Stores};

/// Opens or creates the stores in `folder`: `ckrv.db`, `blobs/` and `master.key`, readable by their owner only.
/// Takes no lock: a server that must be the only one takes its own. To be called where blocking is allowed; it takes some milliseconds.
///
/// # Errors
/// [`StoreError::TooNew`] for the data of a newer version; [`StoreError::Backend`] with the reason where folder, database or master
/// key can't be used.
pub fn open_embedded(folder: &Path) -> Result<Stores, StoreError> {
    let failed = |error| StoreError::backend(format!("making the data folder {}", folder.display()), error);
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    if std::fs::metadata(folder).map_err(failed)?.permissions().mode() & 0o077 != 0 {
        std::fs::set_permissions(folder, Permissions::from_mode(0o700)).map_err(failed)?;
    }
    let signals = Signals::default();
    let database = Arc::new(SqliteStore::open(&folder.join("ckrv.db"), signals.clone(), Durability::PowerCut)?);
    let vault = Arc::new(LocalVault::open(&folder.join("master.key"))?);
    Ok(Stores {
        jobs: database.clone(),
        accounts: database,
        blobs: Arc::new(FileBlobs::open(folder)?),
        sealer: vault.clone(),
        opener: vault,
        references: Arc::new(NoReferences),
        signals,
    })
}
