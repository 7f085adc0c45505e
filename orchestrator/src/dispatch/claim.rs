//! Taking jobs from the queue, and giving each a job runner.

use std::collections::HashMap;

use ckrv_core::id::{ClaimId, Fence, JobId, UserId};
use ckrv_core::job::JobRecord;
use ckrv_core::machine::Verb;
use ckrv_store::{StoreError, VerbError};
use jiff::SignedDuration;
use tracing::Instrument as _;

use super::settle::backoff;
use super::{Dispatcher, StartError};
use crate::gateway::Task;
use crate::settings::LEASE;
use crate::trace;

/// Job runners that are started side by side: a start in a cluster is a wait for its API.
pub(super) const LAUNCHES_AT_ONCE: usize = 16;
/// Queued jobs that one turn looks at, at most.
const LONGEST_PAGE: usize = 20_000;
/// How long a job waits for which there was no room.
const NO_ROOM: SignedDuration = SignedDuration::from_secs(30);

/// A job whose lease was just taken, and its job runner's task.
struct Claimed {
    job: JobRecord,
    task: Task,
    span: tracing::Span,
}

/// How many jobs each owner runs, and in which turn the store was asked.
#[derive(Default)]
struct Owners {
    running: HashMap<UserId, (u32, u32)>,
    turn: u32,
}

impl Owners {
    fn add(&mut self, owner: UserId) {
        if let Some((count, _)) = self.running.get_mut(&owner) {
            *count += 1;
        }
    }
}

impl Dispatcher {
    pub(super) async fn claim_due(&self, live: &mut Vec<(JobId, Fence)>) -> Result<(), StoreError> {
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
        let mut room = self.room().await;
        let mut owners = Owners::default();
        let (mut taken, mut seen) = (0, 0);
        let mut page = room * 4 + 16;
        while room > 0 {
            // Owners at their limit must not hide the jobs of others behind theirs, so a page without room for more is followed by a longer one.
            let due = self.stores.jobs.due((self.clock)(), page).await?;
            let is_last = due.len() < page || page >= LONGEST_PAGE;
            for job in due.into_iter().skip(seen - taken) {
                seen += 1;
                if self.running_of(job.owner, &mut owners).await? >= self.settings.max_running {
                    continue;
                }
                let Some(job) = self.claim(&job).await? else { continue };
                owners.add(job.job.owner);
                claimed.push(job);
                (taken, room) = (taken + 1, room - 1);
                if claimed.len() >= self.runners.at_once() {
                    self.launch_all(claimed, live).await?;
                    // Other replicas start some, too: by no more than this are their limits passed together.
                    room = room.min(self.room().await);
                    owners.turn += 1;
                }
                if room == 0 || !self.claims() {
                    return Ok(());
                }
            }
            if is_last {
                return Ok(());
            }
            page *= 8;
        }
        Ok(())
    }

    async fn room(&self) -> usize {
        self.settings.capacity.saturating_sub(self.runners.running().await)
    }

    /// The store's own count may lag behind: what was claimed here counts in any case.
    async fn running_of(&self, owner: UserId, owners: &mut Owners) -> Result<u32, StoreError> {
        let known = owners.running.get(&owner).copied();
        if let Some((count, turn)) = known
            && turn == owners.turn
        {
            return Ok(count);
        }
        let stored = self.stores.jobs.running_of(owner).await?;
        let count = known.map_or(stored, |(count, _)| count.max(stored));
        owners.running.insert(owner, (count, owners.turn));
        Ok(count)
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
        let Task { claim, fence, .. } = *task;
        let now = (self.clock)();
        let note = format!("its job runner could not be started: {error}");
        let verb = match &error {
            StartError::NoRoom(why) => {
                tracing::warn!(job = %job.id, why, "the job runner can't be started now; the job waits");
                Verb::Unclaim { claim, fence, not_before: now + NO_ROOM, note }
            }
            StartError::Failed(error) => {
                tracing::error!(job = %job.id, error = ckrv_store::chain(error), "the job runner could not be started");
                Verb::Release { claim, fence, not_before: now + backoff(job.attempt), note }
            }
        };
        self.settle_with(job, verb).await?;
        Ok(false)
    }
}
