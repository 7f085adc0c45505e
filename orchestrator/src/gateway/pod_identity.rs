//! Which attempt a pod's token stands for: the cluster says which pod it belongs to, the pod which attempt it is.
//!
//! Invariant: only a token with our audience, of the account of job pods, bound to a pod that this installation made, is anybody's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ckrv_core::id::{ClaimId, Fence, JobId};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use kube::api::PostParams;
use kube::{Api, Client};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use crate::dispatch::JobPods;
use crate::launch_choice::Cluster;

/// What a job pod's token is for.
pub const AUDIENCE: &str = "ckrv-gateway";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// A good token is asked about again after this time.
const FRESH: Duration = Duration::from_secs(60);
/// Until that is answered, what the cluster said last counts for so long: its API may be away or hang, our pods work on.
const STALE: Duration = Duration::from_secs(600);
/// A bad token is asked about again after this time: its pod may be newer than what we know.
const REFUSED: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(10);
/// Tokens that are remembered: each of ten thousand pods has two when one is replaced.
const MOST: usize = 25_000;
/// Questions to the cluster at once; whoever can reach the gateway can send tokens.
const AT_ONCE: usize = 16;
const LONGEST: usize = 16 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    #[error("the cluster's API failed")]
    Cluster(#[from] kube::Error),
    #[error("the cluster's API did not answer in time")]
    Slow(#[from] tokio::time::error::Elapsed),
    #[error("the cluster's API could not check the token: {0}")]
    Unchecked(String),
}

/// A pod, by its name and what no other pod of that name has.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PodRef {
    name: String,
    uid: String,
}

struct Review {
    at: Instant,
    /// `None`: nobody's.
    pod: Option<PodRef>,
    /// The cluster is being asked again.
    asking: bool,
}

/// What is known of a token without asking.
enum Known {
    Fresh(Option<PodRef>),
    Stale(PodRef),
    Nothing,
}

impl Review {
    fn is_fresh(&self) -> bool {
        self.at.elapsed() < if self.pod.is_some() { FRESH } else { REFUSED }
    }

    fn known(&self) -> Known {
        match &self.pod {
            pod if self.is_fresh() => Known::Fresh(pod.clone()),
            Some(pod) if self.at.elapsed() < STALE => Known::Stale(pod.clone()),
            _ => Known::Nothing,
        }
    }
}

pub struct PodIdentity {
    client: Client,
    /// As the cluster names the account of job pods.
    account: String,
    pods: Arc<JobPods>,
    /// By the tokens' SHA-256.
    reviews: Mutex<HashMap<[u8; 32], Review>>,
    slots: Semaphore,
}

impl std::fmt::Debug for PodIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PodIdentity").field("account", &self.account).finish_non_exhaustive()
    }
}

impl PodIdentity {
    #[must_use]
    pub fn new(client: Client, cluster: &Cluster, pods: Arc<JobPods>) -> Arc<Self> {
        let account = format!("system:serviceaccount:{}:{}", cluster.namespace, cluster.job_service_account);
        Arc::new(Self { client, account, pods, reviews: Mutex::default(), slots: Semaphore::new(AT_ONCE) })
    }

    /// The attempt of the pod whose token this is; `None`: it is nobody's here.
    pub(super) async fn attempt_of(self: &Arc<Self>, token: &str) -> Result<Option<(JobId, Fence, ClaimId)>, Unanswered> {
        if token.is_empty() || token.len() > LONGEST {
            return Ok(None);
        }
        match self.pod_of(token).await? {
            Some(pod) => Ok(tokio::time::timeout(PATIENCE, self.pods.attempt_of(&pod.name, &pod.uid)).await??),
            None => Ok(None),
        }
    }

    async fn pod_of(self: &Arc<Self>, token: &str) -> Result<Option<PodRef>, Unanswered> {
        let key: [u8; 32] = Sha256::digest(token).into();
        match self.known(&key) {
            Known::Fresh(pod) => Ok(pod),
            // A beat must not wait for a cluster that hangs.
            Known::Stale(pod) => {
                self.refresh(key, token);
                Ok(Some(pod))
            }
            Known::Nothing => self.ask(key, token).await,
        }
    }

    /// Asks again beside the request, once at a time for each token.
    fn refresh(self: &Arc<Self>, key: [u8; 32], token: &str) {
        if self.set_asking(&key, true) {
            return;
        }
        let (this, token) = (Arc::clone(self), SecretString::from(token));
        tokio::spawn(async move {
            if let Err(error) = this.ask(key, token.expose_secret()).await {
                tracing::warn!(error = ckrv_store::chain(&error), "the cluster could not say again whose token it is");
                this.set_asking(&key, false);
            }
        });
    }

    async fn ask(&self, key: [u8; 32], token: &str) -> Result<Option<PodRef>, Unanswered> {
        let _slot = tokio::time::timeout(PATIENCE, self.slots.acquire()).await?;
        // Somebody may have asked the same while this one waited.
        if let Known::Fresh(pod) = self.known(&key) {
            return Ok(pod);
        }
        let pod = self.review(token).await?;
        self.remember(key, pod.clone());
        Ok(pod)
    }

    fn known(&self, key: &[u8; 32]) -> Known {
        self.reviews().get(key).map_or(Known::Nothing, Review::known)
    }

    /// Gives how it was.
    fn set_asking(&self, key: &[u8; 32], asking: bool) -> bool {
        self.reviews().get_mut(key).is_some_and(|review| std::mem::replace(&mut review.asking, asking))
    }

    fn reviews(&self) -> MutexGuard<'_, HashMap<[u8; 32], Review>> {
        self.reviews.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, key: [u8; 32], pod: Option<PodRef>) {
        let mut reviews = self.reviews();
        if reviews.len() >= MOST {
            reviews.retain(|_, review| !matches!(review.known(), Known::Nothing));
        }
        // Still full: a flood of bad tokens, which only costs questions.
        if reviews.len() >= MOST {
            reviews.retain(|_, review| review.pod.is_some());
        }
        reviews.insert(key, Review { at: Instant::now(), pod, asking: false });
    }

    async fn review(&self, token: &str) -> Result<Option<PodRef>, Unanswered> {
        let audiences = Some(vec![AUDIENCE.to_owned()]);
        let review = TokenReview { spec: TokenReviewSpec { audiences, token: Some(token.to_owned()) }, ..Default::default() };
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let answer = tokio::time::timeout(PATIENCE, reviews.create(&PostParams::default(), &review)).await??;
        let status = answer.status.unwrap_or_default();
        if let Some(error) = status.error.filter(|error| status.authenticated != Some(true) && !is_verdict(error)) {
            return Err(Unanswered::Unchecked(error));
        }
        let is_ours = status.authenticated == Some(true)
            && status.audiences.is_some_and(|audiences| audiences.iter().any(|audience| audience == AUDIENCE));
        Ok(if is_ours { self.bound_pod(&status.user.unwrap_or_default()) } else { None })
    }

    fn bound_pod(&self, user: &UserInfo) -> Option<PodRef> {
        if user.username.as_deref() != Some(self.account.as_str()) {
            return None;
        }
        let extra = user.extra.as_ref()?;
        let one = |name: &str| match extra.get(name).map(Vec::as_slice) {
            Some([value]) => Some(value.clone()),
            _ => None,
        };
        Some(PodRef { name: one(POD_NAME)?, uid: one(POD_UID)? })
    }
}

/// Whether the cluster has judged the token. It tells in the same place that a token is bad and that it could not be looked at; what is not
/// known to be the first is taken for the second.
fn is_verdict(error: &str) -> bool {
    const BAD: &str = "invalid bearer token";
    const WHY: [&str; 6] = [
        "is invalid for the target audiences",
        "cryptographic primitive",
        "token has been invalidated",
        "token has expired",
        "token is expired",
        "token is malformed",
    ];
    error == BAD || WHY.iter().any(|why| error.contains(why))
}

#[cfg(test)]
mod tests;
