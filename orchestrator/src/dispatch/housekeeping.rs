//! Now and then deletes what has expired. Where several dispatchers share a store, each does: it may be repeated.

use std::time::Duration;

use ckrv_store::Stores;
use jiff::Timestamp;

const EVERY: Duration = Duration::from_secs(60);

/// Runs until it is dropped.
pub async fn housekeeping(stores: Stores, clock: fn() -> Timestamp) {
    loop {
        if let Err(error) = ckrv_store::purge(&stores, clock()).await {
            tracing::warn!(error = ckrv_store::chain(&error), "expired jobs could not be purged; trying again in a minute");
        }
        tokio::time::sleep(EVERY).await;
    }
}
