use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Json;
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::*;
use crate::launch::kubernetes::pods::{CLAIM, FENCE, INSTALL, JOB, MANAGED_BY, MANAGER, ROLE, Role};
use crate::launch::kubernetes::stub;

const TOKEN: &str = "a token";
const CLAIM_ID: &str = "01900000-0000-7000-8000-000000000002";

/// What the cluster says of any token; `None`: it hangs.
type Says = Option<Value>;

struct Bench {
    identity: Arc<PodIdentity>,
    says: watch::Sender<Says>,
    asked: Arc<AtomicUsize>,
}

fn good() -> Says {
    let extra = json!({ POD_NAME: ["p"], POD_UID: ["u"] });
    let user = json!({ "username": "system:serviceaccount:jobs:ckrv-job", "extra": extra });
    Some(json!({ "authenticated": true, "audiences": [AUDIENCE], "user": user }))
}

fn error(text: &str) -> Says {
    Some(json!({ "error": text, "user": {} }))
}

fn job() -> JobId {
    "01900000-0000-7000-8000-000000000001".parse().unwrap()
}

async fn bench() -> Bench {
    let (says, _) = watch::channel(good());
    let asked = Arc::new(AtomicUsize::new(0));
    let (said, counted) = (says.clone(), Arc::clone(&asked));
    let review = move || async move {
        counted.fetch_add(1, Ordering::SeqCst);
        let mut said = said.subscribe();
        let status = said.wait_for(Option::is_some).await.unwrap().clone();
        Json(
            json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {}, "spec": {}, "status": status }),
        )
    };
    let labels = json!({ MANAGED_BY: MANAGER, ROLE: Role::Job.name(), INSTALL: "w", JOB: job(), FENCE: "1" });
    let pod = json!({ "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "p", "uid": "u", "labels": labels, "annotations": { CLAIM: CLAIM_ID } } });
    let router = axum::Router::new()
        .route("/apis/authentication.k8s.io/v1/tokenreviews", post(review))
        .route("/api/v1/namespaces/jobs/pods/p", get(move || async move { Json(pod) }));
    let client = stub::cluster(router).await;
    let cluster = json!({ "namespace": "jobs", "image": "i", "gateway_url": "https://nowhere.invalid" });
    let pods = JobPods::new(client.clone(), "jobs", "w");
    Bench { identity: PodIdentity::new(client, &serde_json::from_value(cluster).unwrap(), pods), says, asked }
}

impl Bench {
    async fn ask(&self) -> Result<Option<JobId>, Unanswered> {
        Ok(self.identity.attempt_of(TOKEN).await?.map(|(job, _, _)| job))
    }

    /// As if the last answer had been given so long ago.
    fn age(&self, by: Duration) {
        self.identity.reviews().values_mut().for_each(|review| review.at -= by);
    }

    async fn asked(&self, times: usize) {
        while self.asked.load(Ordering::SeqCst) < times {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

#[tokio::test]
async fn a_known_token_does_not_wait_for_a_cluster_that_hangs() {
    let bench = bench().await;
    assert_eq!(bench.ask().await.unwrap(), Some(job()));
    bench.says.send_replace(None);
    bench.age(FRESH);
    // Its question stays open for as long as this test runs: an answer that waited for it would never come.
    for _ in 0..100 {
        assert_eq!(bench.ask().await.unwrap(), Some(job()));
    }
    bench.asked(2).await;
    assert_eq!(bench.asked.load(Ordering::SeqCst), 2, "it is asked again once, however many ask us");
    bench.says.send_replace(good());
    while !bench.identity.reviews().values().all(Review::is_fresh) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(bench.ask().await.unwrap(), Some(job()));
    assert_eq!(bench.asked.load(Ordering::SeqCst), 2, "the late answer counts");
}

#[tokio::test]
async fn an_old_answer_counts_for_ten_minutes_and_a_new_one_at_once() {
    let bench = bench().await;
    bench.ask().await.unwrap();
    bench.says.send_replace(error("token lookup failed"));
    bench.age(STALE - Duration::from_secs(5));
    assert_eq!(bench.ask().await.unwrap(), Some(job()));
    bench.age(Duration::from_secs(5));
    assert!(matches!(bench.ask().await, Err(Unanswered::Unchecked(_))), "too old");
    bench.says.send_replace(error("[invalid bearer token, service account token has been invalidated]"));
    assert_eq!(bench.ask().await.unwrap(), None);
}

#[tokio::test]
async fn a_token_that_could_not_be_checked_is_not_nobodys() {
    let bench = bench().await;
    // As a 1.34 API server words them.
    for bad in [
        "invalid bearer token",
        "[invalid bearer token, token audiences [\"a\"] is invalid for the target audiences [\"ckrv-gateway\"]]",
        "[invalid bearer token, go-jose/go-jose: error in cryptographic primitive]",
        "[invalid bearer token, service account token has been invalidated]",
        "[invalid bearer token, service account token has expired]",
    ] {
        bench.says.send_replace(error(bad));
        assert_eq!(bench.ask().await.unwrap(), None, "{bad}");
        bench.age(REFUSED);
    }
    for passing in ["[invalid bearer token, context deadline exceeded]", "etcdserver: request timed out"] {
        bench.says.send_replace(error(passing));
        assert!(matches!(bench.ask().await, Err(Unanswered::Unchecked(_))), "{passing}");
    }
    bench.says.send_replace(good());
    assert_eq!(bench.ask().await.unwrap(), Some(job()), "that it could not be checked is not remembered");
}
