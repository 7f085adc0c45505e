//! That somebody follows a log is told to the worker that writes it, which then sends what it has sooner.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ckrv_core::id::{Fence, JobId};
use ckrv_core::job::JobRecord;
use jiff::SignedDuration;
use tokio::time::Instant;

use crate::error::chain;
use crate::state::ApiState;

/// How often the worker is told.
const EVERY: Duration = Duration::from_secs(10);
/// For how long that counts.
const COUNTS: SignedDuration = SignedDuration::from_secs(25);

/// When each attempt's worker was last told, by this process: however many follow a log, and however often they come back, it is told
/// once in a while.
#[derive(Debug, Default)]
pub(crate) struct Watching(Mutex<HashMap<(JobId, Fence), Instant>>);

impl Watching {
    fn is_due(&self, job: &JobRecord) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|_, at| at.elapsed() < EVERY);
        let due = !told.contains_key(&(job.id, job.fence));
        if due {
            told.insert((job.id, job.fence), Instant::now());
        }
        due
    }
}

/// A hint: where it can't be noted, the log comes later.
pub(super) async fn tell_worker(state: &ApiState, job: &JobRecord) {
    if job.state.is_final() || !state.watching.is_due(job) {
        return;
    }
    if let Err(error) = state.stores.jobs.watch(job, state.now() + COUNTS).await {
        tracing::warn!(error = chain(&error), job = %job.id, "that a log is followed could not be noted");
    }
}
