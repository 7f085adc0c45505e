//! Removes pods that no attempt needs any more. Two rules, either is enough: the store says that the attempt is over, or the pod's own
//! deadline is long past.
//!
//! Invariant: before a pod is deleted, the store is asked about its job (strongly consistent) and the cluster about the pod; and only the
//! very pod that was looked at is deleted.

use std::collections::HashSet;

use ckrv_core::id::{Fence, JobId};
use futures::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::ListParams;

use super::PodRunners;
use crate::launch::kubernetes::create;
use crate::launch::kubernetes::pods::{DEADLINE, Role};

/// A younger pod's claim may not have been seen yet.
const YOUNG: SignedDuration = SignedDuration::from_secs(30);
/// Store, job runner, shim and cluster all end a job by then.
const OVERDUE: SignedDuration = SignedDuration::from_secs(300);
/// A pod that was told to go and didn't: its node may be gone.
const STUCK: SignedDuration = SignedDuration::from_secs(60);
const GRACE_SECONDS: u32 = 5;
const AT_ONCE: usize = 8;

impl PodRunners {
    /// Deletes the job pods of attempts other than `live`.
    pub(super) async fn sweep_jobs(&self, live: &[(JobId, Fence)]) {
        let live: HashSet<_> = live.iter().copied().collect();
        let now = (self.clock)();
        let over = self.pods.all().into_iter().filter(|pod| {
            let is_live = self.pods.attempt(pod).is_some_and(|(job, fence, _)| live.contains(&(job, fence)));
            // One that was told to go is given time to do so.
            let is_going = pod.metadata.deletion_timestamp.as_ref().is_some_and(|asked| now.duration_since(asked.0) <= STUCK);
            !is_going && ((!is_live && age(pod, now) > YOUNG) || is_overdue(pod, now))
        });
        futures::stream::iter(over).for_each_concurrent(AT_ONCE, |pod| async move { self.remove(&pod).await }).await;
    }

    async fn remove(&self, pod: &Pod) {
        let Some((job, fence, _)) = self.pods.attempt(pod) else { return };
        let now = (self.clock)();
        match self.is_over(job, fence).await {
            Some(false) if !is_overdue(pod, now) => return,
            None if !is_overdue(pod, now) => return,
            _ => {}
        }
        let live = match self.pods.live(&pod.name_any()).await {
            Ok(Some(live)) if live.metadata.uid == pod.metadata.uid => live,
            Ok(_) => return,
            Err(error) => return self.complain(&error),
        };
        let Some(grace) = grace(&live, now) else { return };
        match create::delete(self.pods.api(), &live, grace).await {
            Ok(()) => {
                self.metrics.pod_swept();
                tracing::debug!(%job, pod = live.name_any(), "removed the pod of an attempt that is over");
            }
            Err(error) => self.complain(&error),
        }
    }

    /// Whether the store has another attempt or an end; `None`: it can't be asked.
    async fn is_over(&self, job: JobId, fence: Fence) -> Option<bool> {
        match self.jobs.job(job).await {
            Ok(Some(record)) => Some(record.fence != fence || record.lease.is_none()),
            Ok(None) => Some(true),
            Err(error) => {
                tracing::warn!(%job, error = ckrv_store::chain(&error), "the store could not say whether a pod is still needed");
                None
            }
        }
    }

    /// Agent pods whose job pod is gone: the cluster's garbage collector removes them, and where it doesn't, or their node no longer answers,
    /// this does. `false`: some could not be looked at, or removed; the others were.
    pub(super) async fn sweep_agents(&self) -> bool {
        let list = ListParams::default().match_any().labels(&self.pods.selector(Role::Agent));
        let agents = match self.pods.api().list_metadata(&list).await {
            Ok(agents) => agents,
            Err(error) => {
                self.complain(&error);
                return false;
            }
        };
        let now = (self.clock)();
        let mut is_whole = true;
        for agent in agents {
            let made = agent.metadata.creation_timestamp.as_ref();
            let is_young = made.is_none_or(|made| now.duration_since(made.0) <= YOUNG + YOUNG);
            let Some(owner) = agent.owner_references().first().filter(|_| !is_young) else { continue };
            let is_owner = |job: &Pod| job.metadata.uid.as_deref() == Some(owner.uid.as_str());
            if self.pods.get(&owner.name).is_some_and(|job| is_owner(&job)) {
                continue;
            }
            match self.pods.live(&owner.name).await {
                Ok(Some(job)) if is_owner(&job) => continue,
                Ok(_) => {}
                Err(error) => {
                    self.complain(&error);
                    is_whole = false;
                    continue;
                }
            }
            let pod = Pod { metadata: agent.metadata, ..Pod::default() };
            let Some(grace) = grace(&pod, now) else { continue };
            match create::delete_once(self.pods.api(), &pod, grace).await {
                Ok(()) => self.metrics.pod_swept(),
                Err(error) => {
                    self.complain(&error);
                    is_whole = false;
                }
            }
        }
        is_whole
    }

    fn complain(&self, error: &(dyn std::error::Error + 'static)) {
        tracing::warn!(error, "pods that nobody needs could not be removed; trying again");
    }
}

/// The time that a pod is given to end; none where its node will never say that it has. `None`: it was told to go, and may yet do so.
fn grace(pod: &Pod, now: Timestamp) -> Option<u32> {
    match pod.metadata.deletion_timestamp.as_ref() {
        None => Some(GRACE_SECONDS),
        Some(asked) if now.duration_since(asked.0) > STUCK => Some(0),
        Some(_) => None,
    }
}

fn age(pod: &Pod, now: Timestamp) -> SignedDuration {
    pod.metadata.creation_timestamp.as_ref().map_or(SignedDuration::ZERO, |made| now.duration_since(made.0))
}

fn is_overdue(pod: &Pod, now: Timestamp) -> bool {
    let deadline = pod.annotations().get(DEADLINE).and_then(|text| text.parse::<Timestamp>().ok());
    deadline.is_some_and(|deadline| now >= deadline + OVERDUE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_was_told_to_go_is_given_a_minute_and_then_none() {
        let told: Timestamp = "2027-01-15T08:00:00Z".parse().expect("a time");
        let pod = |metadata| serde_json::from_value::<Pod>(serde_json::json!({ "metadata": metadata })).expect("a pod");
        let going = pod(serde_json::json!({ "deletionTimestamp": told }));
        assert_eq!(grace(&pod(serde_json::json!({})), told), Some(GRACE_SECONDS));
        assert_eq!(grace(&going, told + STUCK), None);
        assert_eq!(grace(&going, told + STUCK + SignedDuration::from_secs(1)), Some(0));
    }
}
