//! Deletes what has expired. Nothing depends on when: every read checks the time itself.

use std::time::Duration;

use ckrv_store::StoreError;

use crate::state::ApiState;

const EVERY: Duration = Duration::from_secs(60);
const BATCH: usize = 100;

/// Runs until the server closes.
pub async fn housekeeping(state: ApiState) {
    let mut closing = state.closing();
    loop {
        if let Err(error) = purge_once(&state).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "expired jobs could not be purged; trying again in a minute"
            );
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            _ = closing.wait_for(|closed| *closed) => return,
        }
    }
}

/// Deletes what has expired by now.
///
/// # Errors
/// The store's; what was deleted stays deleted.
pub async fn purge_once(state: &ApiState) -> Result<(), StoreError> {
    let now = state.now();
    state.stores.accounts.purge_tokens(now).await?;
    loop {
        let expired = state.stores.jobs.purge_expired(now, BATCH).await?;
        for id in &expired {
            state.stores.blobs.delete_prefix(&format!("jobs/{id}")).await?;
        }
        if expired.len() < BATCH {
            return Ok(());
        }
    }
}
