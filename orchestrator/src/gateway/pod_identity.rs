//! Which attempt a pod's token stands for: the cluster says which pod it belongs to, the pod which attempt it is.
//!
//! Invariant: only a token with our audience, of the account of job pods, bound to a pod that this installation made, is anybody's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ckrv_core::id::{ClaimId, Fence, JobId};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use kube::api::PostParams;
use kube::{Api, Client};
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
/// While the cluster doesn't answer, what it said last counts for so long: its API may be away, our pods work on.
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
}

impl Review {
    fn is_fresh(&self) -> bool {
        self.at.elapsed() < if self.pod.is_some() { FRESH } else { REFUSED }
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
    pub(super) async fn attempt_of(&self, token: &str) -> Result<Option<(JobId, Fence, ClaimId)>, Unanswered> {
        if token.is_empty() || token.len() > LONGEST {
            return Ok(None);
        }
        match self.pod_of(token).await? {
            Some(pod) => Ok(tokio::time::timeout(PATIENCE, self.pods.attempt_of(&pod.name, &pod.uid)).await??),
            None => Ok(None),
        }
    }

    async fn pod_of(&self, token: &str) -> Result<Option<PodRef>, Unanswered> {
        let key: [u8; 32] = Sha256::digest(token).into();
        if let Some(known) = self.known(&key, Review::is_fresh) {
            return Ok(known);
        }
        let _slot = self.slots.acquire().await;
        // Somebody may have asked the same while this one waited.
        if let Some(known) = self.known(&key, Review::is_fresh) {
            return Ok(known);
        }
        match self.review(token).await {
            Ok(pod) => {
                self.remember(key, pod.clone());
                Ok(pod)
            }
            Err(error) => {
                let last = self.known(&key, |review| review.pod.is_some() && review.at.elapsed() < STALE);
                last.ok_or(error)
            }
        }
    }

    fn known(&self, key: &[u8; 32], counts: impl Fn(&Review) -> bool) -> Option<Option<PodRef>> {
        let reviews = self.reviews.lock().unwrap_or_else(PoisonError::into_inner);
        reviews.get(key).filter(|review| counts(review)).map(|review| review.pod.clone())
    }

    fn remember(&self, key: [u8; 32], pod: Option<PodRef>) {
        let mut reviews = self.reviews.lock().unwrap_or_else(PoisonError::into_inner);
        if reviews.len() >= MOST {
            reviews.retain(|_, review| review.is_fresh());
        }
        // Still full: a flood of bad tokens, which only costs questions.
        if reviews.len() >= MOST {
            reviews.retain(|_, review| review.pod.is_some());
        }
        reviews.insert(key, Review { at: Instant::now(), pod });
    }

    async fn review(&self, token: &str) -> Result<Option<PodRef>, Unanswered> {
        let audiences = Some(vec![AUDIENCE.to_owned()]);
        let review = TokenReview { spec: TokenReviewSpec { audiences, token: Some(token.to_owned()) }, ..Default::default() };
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let answer = tokio::time::timeout(PATIENCE, reviews.create(&PostParams::default(), &review)).await??;
        let status = answer.status.unwrap_or_default();
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
