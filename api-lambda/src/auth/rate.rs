//! A bound on how often something may begin.

use std::sync::{Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};

/// So many a minute, counted from the first.
#[derive(Debug)]
pub(crate) struct Window {
    limit: u32,
    current: Mutex<Option<(Timestamp, u32)>>,
}

impl Window {
    pub(crate) fn per_minute(limit: u32) -> Self {
        Self { limit, current: Mutex::new(None) }
    }

    /// Counts one; `Err`: too many, come back in so many seconds.
    pub(crate) fn enter(&self, now: Timestamp) -> Result<(), u64> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let (began, count) =
            current.filter(|(began, _)| now.duration_since(*began) < SignedDuration::from_mins(1)).unwrap_or((now, 0));
        if count >= self.limit {
            let left = 60 - now.duration_since(began).as_secs();
            return Err(u64::try_from(left).unwrap_or(60));
        }
        *current = Some((began, count + 1));
        Ok(())
    }
}
