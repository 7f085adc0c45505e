//! Deletes what has expired. Nothing depends on when: every read checks the time itself.

use ckrv_core::job::JobRecord;
use jiff::Timestamp;

use crate::Stores;
use crate::error::StoreError;

const BATCH: usize = 100;

/// Deletes the checkpoint of a job that has ended: no attempt will go on from it. Where it fails, it goes with the job's other blobs.
pub async fn forget_checkpoint(stores: &Stores, job: &JobRecord) {
    let Some(checkpoint) = job.checkpoint.as_ref().filter(|_| job.state.is_final()) else { return };
    if let Err(error) = stores.blobs.delete(&checkpoint.key(job.id)).await {
        tracing::warn!(job = %job.id, error = crate::chain(&error), "an ended job's checkpoint could not be deleted");
    }
}

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
