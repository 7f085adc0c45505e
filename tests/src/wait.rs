//! Waiting for a condition instead of sleeping for a time.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Long enough for a busy machine; a test that waits this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks every 20 ms until there is an answer. The error after `limit` says what never came.
pub async fn wait_until<T>(what: &str, limit: Duration, mut ask: impl AsyncFnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask().await {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            bail!("after {} s still not: {what}", limit.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
