//! What became of jobs under a lease, and the end of those that nobody will ever run.

use ckrv_core::id::JobId;
use ckrv_core::job::JobRecord;
use ckrv_core::machine::{CLOCK_SKEW, EndReason, Evidence, MAX_ATTEMPTS, Refusal, Verb};
use ckrv_store::{StoreError, Stores, VerbError};
use jiff::{SignedDuration, Timestamp};
use tracing::Instrument as _;

use super::{Dispatcher, Liveness};
use crate::settings::LEASE;
use crate::trace;

/// The job runner ends a job at its deadline; only when it doesn't, the dispatcher does.
const DEADLINE_GRACE: SignedDuration = SignedDuration::from_secs(30);
/// Nobody reaps a lapsed lease within this time of its own start or of a failure of its store: the holder may have been cut off, too.
const UNSURE: SignedDuration = SignedDuration::from_secs(90);

impl Dispatcher {
    /// Looks after one running job; `true` when it is no longer under its lease.
    pub(super) async fn settle(&self, job: &JobRecord) -> Result<bool, StoreError> {
        let now = (self.clock)();
        let mut note = "its job runner ended without a report".to_owned();
        let evidence = match self.liveness(job).await {
            Liveness::Alive | Liveness::Starting | Liveness::Unknown
                if job.deadline.is_some_and(|deadline| now >= deadline + DEADLINE_GRACE) =>
            {
                return self.end(job, EndReason::Deadline, Evidence::Lapsed).await;
            }
            Liveness::Alive => return Ok(false),
            // Nothing of it has begun. One that starts all the same is told that its job has ended.
            Liveness::Starting if job.cancel_at.is_some() => {
                self.runners.clear(job).await;
                Evidence::Gone
            }
            Liveness::Starting => return self.beat_for(job).await,
            Liveness::Gone(how) => {
                note = how;
                self.runners.clear(job).await;
                Evidence::Gone
            }
            Liveness::Unknown
                if now < self.unsure_until() || job.lease.as_ref().is_some_and(|lease| now <= lease.until + CLOCK_SKEW) =>
            {
                return Ok(false);
            }
            Liveness::Unknown => Evidence::Lapsed,
        };
        if job.cancel_at.is_some() {
            return self.end(job, EndReason::Cancelled, evidence).await;
        }
        if job.deadline.is_some_and(|deadline| now >= deadline) {
            return self.end(job, EndReason::Deadline, evidence).await;
        }
        if job.attempt >= MAX_ATTEMPTS {
            return self.end(job, EndReason::AttemptsExhausted, evidence).await;
        }
        self.settle_with(job, Verb::Reap { fence: job.fence, evidence, not_before: now + backoff(job.attempt), note }).await
    }

    /// Keeps the lease of an attempt whose job runner is not up yet.
    async fn beat_for(&self, job: &JobRecord) -> Result<bool, StoreError> {
        let Some(lease) = &job.lease else { return Ok(false) };
        let now = (self.clock)();
        if lease.until > now + LEASE / 2 {
            return Ok(false);
        }
        let verb = Verb::Beat { claim: lease.claim, fence: job.fence, until: now + LEASE };
        match self.stores.jobs.apply(job.id, &verb, now).await {
            Ok(_) | Err(VerbError::Refused { .. }) => Ok(false),
            Err(VerbError::NotFound) => Ok(true),
            Err(VerbError::Store(error)) => Err(error),
        }
    }

    /// Of an attempt that another dispatcher holds, only the lease tells.
    async fn liveness(&self, job: &JobRecord) -> Liveness {
        if self.is_ours(job) { self.runners.liveness(job).await } else { Liveness::Unknown }
    }

    fn unsure_until(&self) -> Timestamp {
        *self.unsure_since.lock().unwrap_or_else(std::sync::PoisonError::into_inner) + UNSURE
    }

    pub(super) async fn end_queued(&self, job: &JobRecord) -> Result<(), StoreError> {
        let now = (self.clock)();
        let reason = if job.cancel_at.is_some() {
            EndReason::Cancelled
        } else if job.deadline.is_some_and(|deadline| now >= deadline) {
            EndReason::Deadline
        } else if job.attempt >= MAX_ATTEMPTS {
            EndReason::AttemptsExhausted
        } else {
            EndReason::Unclaimed
        };
        self.end(job, reason, Evidence::Lapsed).await.map(drop)
    }

    async fn end(&self, job: &JobRecord, reason: EndReason, evidence: Evidence) -> Result<bool, StoreError> {
        let log_end = self.stores.jobs.log_tail(job.id).await?;
        self.settle_with(job, Verb::End { fence: job.fence, reason, evidence, log_end }).await
    }

    pub(super) async fn settle_with(&self, job: &JobRecord, verb: Verb) -> Result<bool, StoreError> {
        let (span, _) = trace::span(self.settings.link_span, verb.name(), job.id, job.fence, job.trace.as_deref());
        self.settle_in_span(job, verb).instrument(span).await
    }

    async fn settle_in_span(&self, job: &JobRecord, verb: Verb) -> Result<bool, StoreError> {
        trace::note_attempt(job.attempt);
        let now = (self.clock)();
        match self.stores.jobs.apply(job.id, &verb, now).await {
            Ok(next) => {
                match verb {
                    Verb::Reap { .. } => self.gateway.metrics().reaped(),
                    Verb::Release { .. } | Verb::Unclaim { .. } => self.gateway.metrics().released(),
                    _ => self.gateway.metrics().ended(&next, now),
                }
                if next.state.is_final() {
                    compact_log(&self.stores, job.id).await;
                    ckrv_store::forget_checkpoint(&self.stores, &next).await;
                }
                tracing::warn!(job = %job.id, verb = verb.name(), state = %next.state, "settled a job whose runner is no more");
                Ok(true)
            }
            // Its runner came first, or its lease still holds.
            Err(VerbError::Refused { refusal, .. }) => Ok(refusal == Refusal::Ended),
            Err(VerbError::NotFound) => Ok(true),
            Err(VerbError::Store(error)) => Err(error),
        }
    }
}

/// Where it fails, the log stays as it was appended: readable as long as the result is, only dearer.
pub(crate) async fn compact_log(stores: &Stores, job: JobId) {
    if let Err(error) = stores.jobs.compact_log(job).await {
        tracing::warn!(%job, error = ckrv_store::chain(&error), "an ended job's log could not be compacted");
    }
}

/// How long the next attempt waits: 1, 4, 16 seconds.
pub(super) fn backoff(attempt: u32) -> SignedDuration {
    SignedDuration::from_secs(4_i64.pow(attempt.saturating_sub(1).min(4)))
}
