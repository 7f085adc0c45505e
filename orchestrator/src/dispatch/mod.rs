//! Dispatch: take jobs from the queue, give each attempt a job runner, and settle what became of those that vanished.
//!
//! One loop, one task: a claim and its launch are never seen half-done by the same dispatcher's reaper. Of other replicas' attempts, their
//! [`Runners`] know which are too young to tell.

mod housekeeping;
mod local_runners;
mod pods;

pub use housekeeping::housekeeping;
pub use local_runners::{LocalRunners, TASK};
pub use pods::{ConnectError, JobPods, PodRunners, WORK, connect, env};

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use async_trait::async_trait;
use ckrv_core::id::{ClaimId, Fence, JobId, UserId};
use ckrv_core::job::JobRecord;
use ckrv_core::machine::{CLOCK_SKEW, EndReason, Evidence, MAX_ATTEMPTS, Refusal, Verb};
use ckrv_store::{Signal, StoreError, Stores, VerbError};
use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::gateway::{GatewayServer, Task};
use crate::metrics::Part;
use crate::settings::{LEASE, Settings};
use crate::trace;

/// The job runner ends a job at its deadline; only when it doesn't, the dispatcher does.
const DEADLINE_GRACE: SignedDuration = SignedDuration::from_secs(30);

/// Job runners that are started side by side: a start in a cluster is a wait for its API.
const LAUNCHES_AT_ONCE: usize = 16;

/// Queued jobs that one turn looks at, at most.
const LONGEST_PAGE: usize = 20_000;

/// What is known of an attempt's job runner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Liveness {
    Alive,
    /// It is on its way and can't beat yet: the dispatcher beats for it.
    Starting,
    /// It is no more; nothing of this attempt runs. What ended it, in words for the job's log.
    Gone(String),
    /// Can't be told from here: only the lease counts.
    Unknown,
}

/// Where job runners run: processes beside the server, pods in a cluster.
#[async_trait]
pub trait Runners: Send + Sync {
    /// Starts the job runner of one attempt.
    async fn start(&self, job: &JobRecord, task: &Task) -> std::io::Result<()>;
    /// Of a job's present attempt.
    async fn liveness(&self, job: &JobRecord) -> Liveness;
    /// How many run now.
    async fn running(&self) -> usize;
    /// Whether one could be started now. Where not, no job is claimed: each claim uses up one of its attempts.
    fn is_ready(&self) -> bool {
        true
    }
    /// Ends what a job's present attempt, whose job runner is gone, may have left running.
    async fn clear(&self, job: &JobRecord);
    /// Forgets what is left of attempts other than `live`.
    async fn sweep(&self, live: &[(JobId, Fence)]);
}

pub struct Dispatcher {
    stores: Stores,
    settings: Arc<Settings>,
    gateway: Arc<GatewayServer>,
    runners: Arc<dyn Runners>,
    clock: fn() -> Timestamp,
    /// The start, or the last time that the store failed.
    unsure_since: Mutex<Timestamp>,
    /// Once cancelled, nothing more is claimed.
    draining: CancellationToken,
}

/// A job whose lease was just taken, and its job runner's task.
struct Claimed {
    job: JobRecord,
    task: Task,
    span: tracing::Span,
}

impl std::fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dispatcher").finish_non_exhaustive()
    }
}

/// Nobody reaps a lapsed lease within this time of its own start or of a failure of its store: the holder may have been cut off, too.
const UNSURE: SignedDuration = SignedDuration::from_secs(90);

impl Dispatcher {
    #[must_use]
    pub fn new(
        stores: Stores,
        settings: Arc<Settings>,
        gateway: Arc<GatewayServer>,
        runners: Arc<dyn Runners>,
        clock: fn() -> Timestamp,
    ) -> Self {
        Self { stores, settings, gateway, runners, clock, unsure_since: Mutex::new(clock()), draining: CancellationToken::new() }
    }

    /// Runs until `shutdown`, and claims nothing more once `draining`. Job runners are left to go on: the next dispatcher adopts them.
    pub async fn run(mut self, draining: CancellationToken, shutdown: CancellationToken) {
        self.draining = draining;
        let mut signals = self.stores.signals.subscribe();
        let mut settled: Option<Instant> = None;
        loop {
            let settles = settled.is_none_or(|at| at.elapsed() >= self.settings.pace.settles);
            let turn = if settles { self.turn().await } else { self.short_turn().await };
            match turn {
                Ok(()) if settles => settled = Some(Instant::now()),
                Ok(()) => {}
                Err(error) => {
                    self.gateway.metrics().store_failed(Part::Dispatcher);
                    *self.unsure_since.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = (self.clock)();
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "the dispatcher could not reach its store; it tries again"
                    );
                }
            }
            let deadline = tokio::time::Instant::now() + self.settings.pace.claims;
            loop {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    signal = tokio::time::timeout_at(deadline, signals.recv()) => match signal {
                        Ok(Ok(Signal::Log(_) | Signal::Watched(_))) => {}
                        _ => break,
                    },
                }
            }
        }
    }

    /// One look around.
    ///
    /// # Errors
    /// When the store fails; the next turn tries again.
    pub async fn turn(&self) -> Result<(), StoreError> {
        let running = self.stores.jobs.running().await?;
        self.gateway.metrics().running(running.iter().filter(|job| self.is_ours(job)));
        let mut live = Vec::new();
        for job in &running {
            if !self.settle(job).await? {
                live.push((job.id, job.fence));
            }
        }
        for job in self.stores.jobs.stuck((self.clock)(), 100).await? {
            self.end_queued(&job).await?;
        }
        self.claim_due(&mut live).await?;
        self.runners.sweep(&live).await;
        self.hear().await
    }

    /// What can't wait for the next whole look.
    async fn short_turn(&self) -> Result<(), StoreError> {
        self.claim_due(&mut Vec::new()).await?;
        self.hear().await
    }

    /// Passes on what other processes noted about jobs that run here: followed, or cancelled.
    async fn hear(&self) -> Result<(), StoreError> {
        if self.runners.running().await == 0 {
            return Ok(());
        }
        for job in self.stores.jobs.watched(&self.settings.worker, (self.clock)()).await? {
            self.stores.signals.send(Signal::Watched(job));
            self.stores.signals.send(Signal::Changed(job));
        }
        Ok(())
    }

    async fn claim_due(&self, live: &mut Vec<(JobId, Fence)>) -> Result<(), StoreError> {
        if !self.claims() {
            return Ok(());
        }
        let mut claimed = Vec::new();
        let looked = self.claim_while_room(&mut claimed, live).await;
        // What was claimed is launched, whatever befell the others.
        self.launch_all(&mut claimed, live).await.and(looked)
    }

    fn claims(&self) -> bool {
        !self.draining.is_cancelled() && self.runners.is_ready()
    }

    async fn claim_while_room(&self, claimed: &mut Vec<Claimed>, live: &mut Vec<(JobId, Fence)>) -> Result<(), StoreError> {
        let room = self.settings.capacity.saturating_sub(self.runners.running().await);
        if room == 0 {
            return Ok(());
        }
        let mut taken = 0;
        let mut seen = 0;
        let mut page = room * 4 + 16;
        let mut running_of: HashMap<UserId, u32> = HashMap::new();
        loop {
            // Owners at their limit must not hide the jobs of others behind theirs, so a page without room for more is followed by a longer one.
            let due = self.stores.jobs.due((self.clock)(), page).await?;
            let is_last = due.len() < page || page >= LONGEST_PAGE;
            for job in due.into_iter().skip(seen - taken) {
                seen += 1;
                let running = match running_of.get(&job.owner) {
                    Some(running) => *running,
                    None => self.stores.jobs.running_of(job.owner).await?,
                };
                running_of.insert(job.owner, running);
                if running < self.settings.max_running
                    && let Some(job) = self.claim(&job).await?
                {
                    running_of.insert(job.job.owner, running + 1);
                    claimed.push(job);
                    taken += 1;
                    if claimed.len() == LAUNCHES_AT_ONCE {
                        self.launch_all(claimed, live).await?;
                    }
                    if taken == room || !self.claims() {
                        return Ok(());
                    }
                }
            }
            if is_last {
                return Ok(());
            }
            page *= 8;
        }
    }

    /// Takes the lease; `None`: somebody else has it, or it may not start now.
    async fn claim(&self, job: &JobRecord) -> Result<Option<Claimed>, StoreError> {
        let (span, trace) = trace::span(self.settings.link_span, "claim", job.id, job.fence.next(), job.trace.as_deref());
        let claimed = self.claim_in_span(job, trace).instrument(span.clone()).await?;
        Ok(claimed.map(|(job, task)| Claimed { job, task, span }))
    }

    async fn claim_in_span(&self, job: &JobRecord, trace: Option<String>) -> Result<Option<(JobRecord, Task)>, StoreError> {
        let now = (self.clock)();
        let claim = ClaimId(uuid::Uuid::now_v7());
        let verb = Verb::Claim { claim, worker: self.settings.worker.clone(), until: now + LEASE, has_room: true };
        let claimed = match self.stores.jobs.apply(job.id, &verb, now).await {
            Ok(claimed) => claimed,
            Err(VerbError::Refused { refusal, .. }) => {
                self.gateway.metrics().claim_refused(&refusal);
                tracing::debug!(job = %job.id, %refusal, "the job was not claimed");
                return Ok(None);
            }
            Err(VerbError::NotFound) => return Ok(None),
            Err(VerbError::Store(error)) => return Err(error),
        };
        let fence = claimed.fence;
        self.gateway.metrics().claimed(&claimed, now);
        trace::note_attempt(claimed.attempt);
        tracing::info!(worker = self.settings.worker, "claimed a job");
        let task = Task { job: job.id, fence, claim, gateway: self.gateway.address(job.id, fence, claim), trace };
        Ok(Some((claimed, task)))
    }

    /// Starts the job runners of what was claimed, side by side.
    async fn launch_all(&self, claimed: &mut Vec<Claimed>, live: &mut Vec<(JobId, Fence)>) -> Result<(), StoreError> {
        let launches = claimed.drain(..).map(|Claimed { job, task, span }| async move {
            let launched = self.launch(&job, &task).instrument(span).await?;
            Ok::<_, StoreError>(launched.then_some((job.id, job.fence)))
        });
        for launched in futures::future::join_all(launches).await {
            live.extend(launched?);
        }
        Ok(())
    }

    async fn launch(&self, job: &JobRecord, task: &Task) -> Result<bool, StoreError> {
        let Err(error) = self.runners.start(job, task).await else {
            tracing::info!("launched its job runner");
            return Ok(true);
        };
        self.gateway.metrics().launch_failed();
        tracing::error!(job = %job.id, error = &error as &dyn std::error::Error, "the job runner could not be started");
        let note = format!("its job runner could not be started: {error}");
        let not_before = (self.clock)() + backoff(job.attempt);
        let verb = Verb::Release { claim: task.claim, fence: task.fence, not_before, note };
        self.settle_with(job, verb).await?;
        Ok(false)
    }

    /// Looks after one running job; `true` when it is no longer under its lease.
    async fn settle(&self, job: &JobRecord) -> Result<bool, StoreError> {
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

    fn is_ours(&self, job: &JobRecord) -> bool {
        job.lease.as_ref().is_none_or(|lease| lease.worker == self.settings.worker)
    }

    fn unsure_until(&self) -> Timestamp {
        *self.unsure_since.lock().unwrap_or_else(std::sync::PoisonError::into_inner) + UNSURE
    }

    async fn end_queued(&self, job: &JobRecord) -> Result<(), StoreError> {
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

    async fn settle_with(&self, job: &JobRecord, verb: Verb) -> Result<bool, StoreError> {
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
                    Verb::Release { .. } => self.gateway.metrics().released(),
                    _ => self.gateway.metrics().ended(&next, now),
                }
                if next.state.is_final() {
                    compact_log(&self.stores, job.id).await;
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
        tracing::warn!(%job, error = &error as &dyn std::error::Error, "an ended job's log could not be compacted");
    }
}

/// How long the next attempt waits: 1, 4, 16 seconds.
fn backoff(attempt: u32) -> SignedDuration {
    SignedDuration::from_secs(4_i64.pow(attempt.saturating_sub(1).min(4)))
}
