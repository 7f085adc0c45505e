//! Deletes what has expired. Nothing depends on when: every read checks the time itself.

use jiff::Timestamp;

use crate::Stores;
use crate::error::StoreError;

const BATCH: usize = 100;

/// Deletes what has expired by `now`.
///
/// # Errors
/// The store's; what was deleted stays deleted.
pub async fn purge(stores: &Stores, now: Timestamp) -> Result<(), StoreError> {
    stores.accounts.purge_tokens(now).await?;
    loop {
        let expired = stores.jobs.purge_expired(now, BATCH).await?;
        for id in &expired {
            stores.blobs.delete_prefix(&format!("jobs/{id}")).await?;
        }
        if expired.len() < BATCH {
            return Ok(());
        }
    }
}
