//! One agent pod that is up.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use tokio::sync::OnceCell;

use super::create::delete;
use super::fault::ended;
use super::launcher::{Launching, STOP_SECONDS, end_of};
use crate::launch::{Ended, Instance};

pub(super) struct PodInstance {
    launching: Arc<Launching>,
    pod: Pod,
    stopped: OnceCell<Ended>,
}

impl PodInstance {
    pub fn new(launching: Arc<Launching>, pod: Pod) -> Self {
        Self { launching, pod, stopped: OnceCell::new() }
    }

    fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    async fn remove(&self) -> Ended {
        // Before it is deleted: what is seen afterwards is our own doing.
        let seen = self.launching.watching.get(self.uid());
        if !seen.as_ref().is_some_and(|seen| seen.gone)
            && let Err(error) = delete(&self.launching.api, &self.pod, STOP_SECONDS).await
        {
            tracing::warn!(%error, pod = %self.pod.name_any(), "the pod could not be deleted");
        }
        seen.map(|seen| ended(&seen.pod, seen.gone)).unwrap_or_default()
    }
}

#[async_trait]
impl Instance for PodInstance {
    async fn watch(&self) -> Ended {
        let seen = self.launching.watching.until(self.uid(), end_of).await;
        ended(&seen.pod, seen.gone)
    }

    /// Does not wait for the node: the pod is cut off already, and its owner's end would take it along.
    async fn stop(&self) -> Ended {
        self.stopped.get_or_init(|| self.remove()).await.clone()
    }
}

impl Drop for PodInstance {
    /// A run that was given up half-way leaves no pod behind, as far as there is still somebody to remove it.
    fn drop(&mut self) {
        if self.stopped.initialized() {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (api, pod) = (self.launching.api.clone(), std::mem::take(&mut self.pod));
            runtime.spawn(async move { delete(&api, &pod, STOP_SECONDS).await });
        }
    }
}
