//! Dispatch: take jobs from the queue, give each attempt a job runner, and settle what became of those that vanished.
//!
//! One loop, one task: a claim and its launch are never seen half-done by the same dispatcher's reaper. Of other replicas' attempts, their
//! [`Runners`] know which are too young to tell.

mod claim;
mod housekeeping;
mod local_runners;
mod pods;
mod settle;

use claim::LAUNCHES_AT_ONCE;
pub use housekeeping::housekeeping;
pub use local_runners::{LocalRunners, TASK};
pub use pods::{ConnectError, JobPods, PodRunners, WORK, connect, env};
pub(crate) use settle::compact_log;

use std::sync::{Arc, Mutex};
use std::time::Instant;

use async_trait::async_trait;
use ckrv_core::id::{Fence, JobId};
use ckrv_core::job::JobRecord;
use ckrv_store::{Signal, StoreError, Stores};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::gateway::{GatewayServer, Task};
use crate::metrics::Part;
use crate::settings::Settings;

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

/// Why a job runner was not started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no room for it now, or nobody who could give it some. Nothing of it has begun.
    #[error("{0}")]
    NoRoom(String),
    #[error(transparent)]
    Failed(#[from] std::io::Error),
}

/// Where job runners run: processes beside the server, pods in a cluster.
#[async_trait]
pub trait Runners: Send + Sync {
    /// Starts the job runner of one attempt.
    async fn start(&self, job: &JobRecord, task: &Task) -> Result<(), StartError>;
    /// Of a job's present attempt.
    async fn liveness(&self, job: &JobRecord) -> Liveness;
    /// How many run now.
    async fn running(&self) -> usize;
    /// Whether one could be started now. Where not, no job is claimed: each claim uses up one of its attempts.
    fn is_ready(&self) -> bool {
        true
    }
    /// How many are started side by side.
    fn at_once(&self) -> usize {
        LAUNCHES_AT_ONCE
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

impl std::fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dispatcher").finish_non_exhaustive()
    }
}

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
                        error = ckrv_store::chain(&error),
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

    fn is_ours(&self, job: &JobRecord) -> bool {
        job.lease.as_ref().is_none_or(|lease| lease.worker == self.settings.worker)
    }
}

#[cfg(test)]
mod tests;
