//! What is known of this installation's job pods: one watch, shared by all who ask.
//!
//! Invariant: what the watch says may be old. An end that it shows is one; that a pod is absent, or of which attempt it is where that opens a
//! door, is asked of the cluster itself.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ckrv_core::id::{ClaimId, Fence, JobId};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use kube::api::ListParams;
use kube::runtime::reflector::{ObjectRef, Store, store::Writer};
use kube::runtime::watcher::{self, Event, watcher};
use kube::runtime::{WatchStreamExt as _, reflector};
use kube::{Api, Client, ResourceExt as _};

use crate::launch::kubernetes::WATCH_SECONDS;
use crate::launch::kubernetes::pods::{CLAIM, FENCE, INSTALL, JOB, MANAGED_BY, MANAGER, ROLE, Role, label_value};

/// How often a cluster that failed is asked whether it is back.
const PROBE: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(5);

pub type Attempt = (JobId, Fence, ClaimId);

#[derive(Clone, Copy, Debug, Default)]
struct Health {
    /// The first list is complete.
    listed: bool,
    /// The last thing heard of the cluster was a failure.
    failing: bool,
}

pub struct JobPods {
    api: Api<Pod>,
    namespace: String,
    install: String,
    store: Store<Pod>,
    writer: Mutex<Option<Writer<Pod>>>,
    health: Mutex<Health>,
}

impl std::fmt::Debug for JobPods {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JobPods").field("install", &self.install).finish_non_exhaustive()
    }
}

impl JobPods {
    /// Knows nothing until [`JobPods::keep`] runs. `install`: the worker's name in leases.
    #[must_use]
    pub fn new(client: Client, namespace: &str, install: &str) -> Arc<Self> {
        let (store, writer) = reflector::store();
        Arc::new(Self {
            api: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            install: label_value(install),
            store,
            writer: Mutex::new(Some(writer)),
            health: Mutex::default(),
        })
    }

    pub(super) fn api(&self) -> &Api<Pod> {
        &self.api
    }

    /// Follows the pods until it is dropped.
    pub async fn keep(&self) {
        let Some(writer) = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        tokio::join!(self.follow(writer), self.probe());
    }

    async fn follow(&self, writer: Writer<Pod>) {
        let config = watcher::Config::default().labels(&self.selector(Role::Job)).timeout(WATCH_SECONDS);
        let events = watcher(self.api.clone(), config).default_backoff().modify(forget_spec).reflect(writer);
        let mut events = std::pin::pin!(events);
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => self.change(|health| {
                    health.failing = false;
                    health.listed |= matches!(event, Event::InitDone);
                }),
                Err(error) => {
                    tracing::warn!(error = ckrv_store::chain(&error), "the watch on job pods broke; it begins anew");
                    self.note_failure();
                }
            }
        }
    }

    /// A watch on which nothing happens says nothing, so a cluster that failed is asked.
    async fn probe(&self) {
        loop {
            tokio::time::sleep(PROBE).await;
            if self.health().failing && self.ping().await {
                self.change(|health| health.failing = false);
            }
        }
    }

    /// Whether the cluster's API answers now.
    pub async fn ping(&self) -> bool {
        let one = ListParams::default().limit(1).match_any().labels(&self.selector(Role::Job));
        matches!(tokio::time::timeout(PATIENCE, self.api.list_metadata(&one)).await, Ok(Ok(_)))
    }

    pub(super) fn note_failure(&self) {
        self.change(|health| health.failing = true);
    }

    fn change(&self, how: impl FnOnce(&mut Health)) {
        how(&mut self.health.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn health(&self) -> Health {
        *self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the watch has seen everything once.
    #[must_use]
    pub fn is_listed(&self) -> bool {
        self.health().listed
    }

    /// Whether the watch has seen everything and goes on.
    #[must_use]
    pub fn is_current(&self) -> bool {
        let health = self.health();
        health.listed && !health.failing
    }

    pub(super) fn selector(&self, role: Role) -> String {
        format!("{MANAGED_BY}={MANAGER},{ROLE}={},{INSTALL}={}", role.name(), self.install)
    }

    pub(super) fn all(&self) -> Vec<Arc<Pod>> {
        self.store.state()
    }

    /// As the watch has it.
    pub(super) fn get(&self, name: &str) -> Option<Arc<Pod>> {
        self.store.get(&ObjectRef::new(name).within(&self.namespace))
    }

    /// As the cluster has it.
    pub(super) async fn live(&self, name: &str) -> Result<Option<Pod>, kube::Error> {
        let asked = tokio::time::timeout(PATIENCE, self.api.get_opt(name)).await;
        asked.unwrap_or_else(|_| Err(kube::Error::Service("the cluster's API did not answer in time".into())))
    }

    /// The attempt of the pod of this name and uid; `None`: it isn't there, or isn't a job pod of ours.
    pub(crate) async fn attempt_of(&self, name: &str, uid: &str) -> Result<Option<Attempt>, kube::Error> {
        let is_it = |pod: &Pod| pod.metadata.uid.as_deref() == Some(uid);
        if let Some(pod) = self.get(name).filter(|pod| is_it(pod)) {
            return Ok(self.attempt(&pod));
        }
        let found = self.live(name).await?;
        Ok(found.filter(is_it).and_then(|pod| self.attempt(&pod)))
    }

    /// What a job pod's labels and annotations say.
    pub(super) fn attempt(&self, pod: &Pod) -> Option<Attempt> {
        let label = |name: &str| pod.labels().get(name).map(String::as_str);
        let is_ours = label(MANAGED_BY) == Some(MANAGER)
            && label(ROLE) == Some(Role::Job.name())
            && label(INSTALL) == Some(self.install.as_str());
        if !is_ours {
            return None;
        }
        let claim = pod.annotations().get(CLAIM)?;
        Some((label(JOB)?.parse().ok()?, Fence(label(FENCE)?.parse().ok()?), claim.parse().ok()?))
    }
}

/// Ten thousand pods are kept in memory: of what each was made from, nothing is asked again.
fn forget_spec(pod: &mut Pod) {
    pod.metadata.managed_fields = None;
    let node_name = pod.spec.take().and_then(|spec| spec.node_name);
    pod.spec = Some(PodSpec { node_name, ..PodSpec::default() });
}
