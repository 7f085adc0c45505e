//! Job runners as pods of a cluster. Any replica of the dispatcher may start one, look after it and remove it: what they know of them comes
//! from the cluster, not from a memory of their own.

mod build;
mod hold;
mod known;
mod pace;
mod sweep;
mod verdict;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use ckrv_core::id::{Fence, JobId};
use ckrv_core::job::JobRecord;
use ckrv_store::JobStore;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, ResourceExt as _};

pub use build::{WORK, env};
use hold::Hold;
pub use known::JobPods;
use pace::Pace;
use verdict::{Verdict, verdict};

use super::{LAUNCHES_AT_ONCE, Liveness, Runners, StartError};
use crate::gateway::Task;
use crate::launch::LaunchError;
use crate::launch::kubernetes::{create, fault};
use crate::launch_choice::Cluster;
use crate::metrics::Metrics;

/// Names the dispatcher's requests in the cluster's audit log and metrics.
const USER_AGENT: &str = concat!("ckrv-dispatcher/", env!("CARGO_PKG_VERSION"));
/// A claim that is younger may belong to a replica that is still making its pod: longer than that tries.
const SETTLED: SignedDuration = SignedDuration::from_secs(45);
/// A pod that this replica made counts although the watch hasn't shown it yet.
const UNSEEN: Duration = Duration::from_secs(30);
/// The cluster's garbage collector does the same, and sooner.
const SWEEP_AGENTS: Duration = Duration::from_secs(300);
const SWEEP_AGAIN: Duration = Duration::from_secs(30);

/// Why the cluster can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("the kubeconfig can't be used")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    #[error("neither a pod's service account nor a kubeconfig was found")]
    Nowhere(#[from] kube::config::InferConfigError),
    #[error(transparent)]
    Client(#[from] LaunchError),
}

/// The dispatcher's way to the cluster.
///
/// # Errors
/// A kubeconfig that can't be used; inside a cluster, no service account.
pub async fn connect(cluster: &Cluster) -> Result<Client, ConnectError> {
    let config = match &cluster.kubeconfig {
        Some(path) => Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &KubeConfigOptions::default()).await?,
        None if cluster.api_server.is_some() => create::in_cluster(cluster.api_server.as_ref())?,
        None => Config::infer().await?,
    };
    Ok(create::client(config, USER_AGENT)?)
}

pub struct PodRunners {
    cluster: Cluster,
    /// The worker's name in leases, which all replicas share.
    install: String,
    pods: Arc<JobPods>,
    jobs: Arc<dyn JobStore>,
    pace: Pace,
    hold: Hold,
    /// Pods that were made here and that the watch hasn't shown yet.
    unseen: Mutex<HashMap<String, Instant>>,
    metrics: Metrics,
    clock: fn() -> Timestamp,
}

impl std::fmt::Debug for PodRunners {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PodRunners").field("install", &self.install).finish_non_exhaustive()
    }
}

impl PodRunners {
    #[must_use]
    pub fn new(
        cluster: Cluster,
        install: String,
        pods: Arc<JobPods>,
        jobs: Arc<dyn JobStore>,
        metrics: Metrics,
        clock: fn() -> Timestamp,
    ) -> Self {
        let pace = Pace::new(cluster.creates_per_second);
        let hold = Hold::new(LAUNCHES_AT_ONCE);
        Self { cluster, install, pods, jobs, pace, hold, unseen: Mutex::default(), metrics, clock }
    }

    /// Follows the cluster's pods until it is dropped.
    pub async fn keep(&self) {
        let sweeping = async {
            let mut pause = SWEEP_AGENTS;
            loop {
                tokio::time::sleep(pause).await;
                pause = if self.sweep_agents().await { SWEEP_AGENTS } else { SWEEP_AGAIN };
            }
        };
        let telling = async {
            loop {
                self.metrics.pod_watch(self.pods.is_current());
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        tokio::join!(self.pods.keep(), sweeping, telling);
    }

    /// The watch doesn't show the pod of this attempt.
    async fn absent(&self, job: &JobRecord, name: &str) -> Liveness {
        if (self.clock)() < claimed_at(job) + SETTLED {
            return Liveness::Unknown;
        }
        match self.pods.live(name).await {
            Ok(None) => Liveness::Gone("its job pod was deleted".to_owned()),
            // The watch will show it; until then it is judged all the same.
            Ok(Some(pod)) => self.judged(job, &pod).await,
            Err(error) => {
                tracing::warn!(job = %job.id, error = ckrv_store::chain(&error), "the cluster could not say whether a job pod is there");
                self.pods.note_failure();
                Liveness::Unknown
            }
        }
    }

    async fn judged(&self, job: &JobRecord, pod: &Pod) -> Liveness {
        let unscheduled = SignedDuration::from_secs(self.cluster.unscheduled_seconds.cast_signed());
        match verdict(pod, unscheduled, (self.clock)()) {
            Verdict::Starting => Liveness::Starting,
            Verdict::Running => Liveness::Unknown,
            Verdict::Ended(how) => Liveness::Gone(how),
            Verdict::Hopeless(why) => self.give_up(job, pod, why).await,
        }
    }

    async fn give_up(&self, job: &JobRecord, pod: &Pod, why: String) -> Liveness {
        match create::delete_once(self.pods.api(), pod, 0).await {
            Ok(()) => Liveness::Gone(why),
            // It may start after all: nobody beats for it, and its lease will tell.
            Err(error) => {
                tracing::warn!(job = %job.id, error = ckrv_store::chain(&error), "a job pod that doesn't start could not be deleted");
                Liveness::Unknown
            }
        }
    }

    fn not_started(&self, error: LaunchError) -> StartError {
        match error {
            error @ LaunchError::Quota { .. } => StartError::NoRoom(error.to_string()),
            // If it was made all the same, its claim is no more: the gateway refuses it, and it is swept.
            LaunchError::Cluster { ref source, .. } if create::is_passing(source) => {
                self.pods.note_failure();
                StartError::NoRoom(format!("the cluster's API is away: {source}"))
            }
            error => {
                if matches!(error, LaunchError::Cluster { .. }) {
                    self.pods.note_failure();
                }
                StartError::Failed(io::Error::other(error))
            }
        }
    }

    fn unseen(&self) -> usize {
        let mut unseen = self.unseen.lock().unwrap_or_else(PoisonError::into_inner);
        unseen.retain(|name, made| made.elapsed() < UNSEEN && self.pods.get(name).is_none());
        unseen.len()
    }
}

/// The claim's id says when it was made.
fn claimed_at(job: &JobRecord) -> Timestamp {
    let made = job.lease.as_ref().and_then(|lease| lease.claim.0.get_timestamp());
    made.and_then(|made| Timestamp::from_second(made.to_unix().0.cast_signed()).ok()).unwrap_or(job.updated_at)
}

#[async_trait]
impl Runners for PodRunners {
    fn is_ready(&self) -> bool {
        self.pods.is_current() && self.hold.is_over(Instant::now())
    }

    fn at_once(&self) -> usize {
        self.hold.at_once()
    }

    async fn start(&self, job: &JobRecord, task: &Task) -> Result<(), StartError> {
        let pod = build::job_pod(&self.cluster, &self.install, job, task);
        self.pace.take().await;
        if let Err(error) = create::create_or_adopt(self.pods.api(), &pod, create::PATIENCE).await {
            self.hold.failed(Instant::now());
            return Err(self.not_started(error));
        }
        self.hold.succeeded(Instant::now());
        self.metrics.pod_created();
        self.unseen.lock().unwrap_or_else(PoisonError::into_inner).insert(pod.name_any(), Instant::now());
        Ok(())
    }

    async fn liveness(&self, job: &JobRecord) -> Liveness {
        let name = build::name(job.id, job.fence);
        match self.pods.get(&name) {
            Some(pod) => self.judged(job, &pod).await,
            None => self.absent(job, &name).await,
        }
    }

    /// Of all replicas together.
    async fn running(&self) -> usize {
        let runs = |pod: &Arc<Pod>| pod.metadata.deletion_timestamp.is_none() && !fault::is_over(pod);
        self.pods.all().iter().filter(|pod| runs(pod)).count() + self.unseen()
    }

    async fn clear(&self, job: &JobRecord) {
        let Some(pod) = self.pods.get(&build::name(job.id, job.fence)) else { return };
        // Its agents' pods go with it.
        if let Err(error) = create::delete_once(self.pods.api(), &pod, 0).await {
            tracing::warn!(job = %job.id, error = ckrv_store::chain(&error), "the pod of a lost attempt could not be deleted");
        }
    }

    async fn sweep(&self, live: &[(JobId, Fence)]) {
        if self.pods.is_current() {
            self.sweep_jobs(live).await;
        }
    }
}

#[cfg(test)]
mod tests;
