//! Job pods on a stand-in for the cluster's API that hangs or refuses where a test says so.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Json;
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use ckrv_core::id::{ClaimId, UserId};
use ckrv_core::job::Lease;
use serde_json::{Value, json};

use super::*;
use crate::fixture;
use crate::gateway::GatewayAddress;
use crate::launch::kubernetes::pods::{CLAIM, FENCE, INSTALL, JOB, MANAGED_BY, MANAGER, ROLE, Role};
use crate::launch::kubernetes::stub;

/// Now, to the second.
fn clock() -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap()
}

/// What the cluster does with a request that makes or removes a pod: as often as it was asked before.
type Does = fn(usize) -> Option<(StatusCode, Value)>;

struct Bench {
    runners: PodRunners,
    asked: Arc<AtomicUsize>,
    job: JobRecord,
    _folder: tempfile::TempDir,
}

fn api_error(code: u16, reason: &str, message: &str) -> Option<(StatusCode, Value)> {
    let status = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code, "reason": reason, "message": message });
    Some((StatusCode::from_u16(code).unwrap(), status))
}

fn hangs(_: usize) -> Option<(StatusCode, Value)> {
    None
}

fn hangs_once(before: usize) -> Option<(StatusCode, Value)> {
    let made = json!({ "kind": "Pod", "apiVersion": "v1", "metadata": { "name": "p", "uid": "u" } });
    (before > 0).then_some((StatusCode::CREATED, made))
}

fn full(_: usize) -> Option<(StatusCode, Value)> {
    api_error(403, "Forbidden", "pods \"p\" is forbidden: exceeded quota: ckrv, requested: pods=1, used: pods=9, limited: pods=9")
}

fn away(_: usize) -> Option<(StatusCode, Value)> {
    api_error(503, "ServiceUnavailable", "apiserver is shutting down")
}

fn forbidden(_: usize) -> Option<(StatusCode, Value)> {
    api_error(403, "Forbidden", "pods is forbidden: User \"x\" cannot create resource \"pods\"")
}

async fn answer(request: Request, pod: Value, watched: bool, does: Does, asked: Arc<AtomicUsize>) -> Response {
    let query = request.uri().query().unwrap_or_default();
    let is_list = request.uri().path().ends_with("/pods");
    match (request.method(), is_list) {
        (&Method::GET, true) if query.contains("watch=") => std::future::pending().await,
        (&Method::GET, true) if query.contains("agent") => {
            let orphan = |name: &str| {
                json!({ "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": { "name": name,
                "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z",
                "ownerReferences": [{ "apiVersion": "v1", "kind": "Pod", "name": "gone", "uid": "gone" }] } })
            };
            let items = [orphan("a"), orphan("b")];
            Json(json!({ "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": {}, "items": items }))
                .into_response()
        }
        (&Method::GET, true) => {
            let items = if watched { vec![pod] } else { Vec::new() };
            Json(json!({ "kind": "PodList", "apiVersion": "v1", "metadata": { "resourceVersion": "1" }, "items": items }))
                .into_response()
        }
        (&Method::GET, false) => Json(pod).into_response(),
        _ => match does(asked.fetch_add(1, Ordering::SeqCst)) {
            Some((code, body)) => (code, Json(body)).into_response(),
            None => std::future::pending().await,
        },
    }
}

/// A cluster with a pending pod of one job, which the watch shows or doesn't.
async fn bench(watched: bool, does: Does) -> Bench {
    let claim = ClaimId(uuid::Uuid::now_v7());
    let lease = Lease { claim, worker: "w".to_owned(), until: clock() };
    let queued = fixture::record(UserId(uuid::Uuid::now_v7()), clock());
    let job = JobRecord { fence: Fence(1), attempt: 1, lease: Some(lease), ..queued };
    let id = job.id;
    let labels = json!({ MANAGED_BY: MANAGER, ROLE: Role::Job.name(), INSTALL: "w", JOB: id, FENCE: "1" });
    let metadata = json!({ "name": build::name(id, Fence(1)), "namespace": "jobs", "uid": "u", "labels": labels,
        "annotations": { CLAIM: claim }, "creationTimestamp": clock() });
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": { "containers": [], "nodeName": "n" },
        "status": { "phase": "Pending" } });
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let router = axum::Router::new().fallback(move |request| answer(request, pod, watched, does, counted));
    let client = stub::cluster(router).await;
    let (stores, folder) = fixture::stores().await;
    let cluster: Cluster =
        serde_json::from_value(json!({ "namespace": "jobs", "image": "i", "gateway_url": "https://nowhere.invalid" })).unwrap();
    let pods = JobPods::new(client, "jobs", "w");
    let following = Arc::clone(&pods);
    tokio::spawn(async move { following.keep().await });
    while !pods.is_current() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let runners = PodRunners::new(cluster, "w".to_owned(), pods, stores.jobs, Metrics::default(), || {
        // The claim is so old that its pod should be seen.
        Timestamp::now() + SETTLED
    });
    Bench { runners, asked, job, _folder: folder }
}

impl Bench {
    async fn start(&self) -> Result<(), StartError> {
        let lease = self.job.lease.as_ref().unwrap();
        let gateway = GatewayAddress::in_pod("https://nowhere.invalid".parse().unwrap());
        let task = Task { job: self.job.id, fence: self.job.fence, claim: lease.claim, gateway, trace: None };
        self.runners.start(&self.job, &task).await
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn a_pending_pod_that_the_watch_does_not_show_is_on_its_way() {
    let bench = bench(false, hangs).await;
    assert_eq!(bench.runners.liveness(&bench.job).await, Liveness::Starting, "the dispatcher beats for it");
}

#[tokio::test]
async fn a_cluster_that_hangs_is_asked_once_to_remove_a_pod() {
    let bench = bench(true, hangs).await;
    bench.runners.clear(&bench.job).await;
    assert_eq!(bench.asked(), 1, "whoever clears comes by again");
}

#[tokio::test]
async fn an_agent_pod_that_can_not_be_removed_holds_up_no_other_and_is_tried_again() {
    let bench = bench(false, |before| if before == 0 { away(before) } else { hangs_once(before) }).await;
    assert!(!bench.runners.sweep_agents().await);
    assert_eq!(bench.asked(), 2);
    assert!(bench.runners.sweep_agents().await);
}

#[tokio::test]
async fn a_request_that_gets_no_answer_is_given_up_and_made_again() {
    let bench = bench(false, hangs_once).await;
    bench.start().await.unwrap();
    assert_eq!(bench.asked(), 2);
    assert_eq!(bench.runners.running().await, 1);
}

#[tokio::test]
async fn a_full_quota_is_no_room_and_holds_the_next_starts_back() {
    let bench = bench(false, full).await;
    assert!(bench.runners.is_ready() && bench.runners.at_once() == LAUNCHES_AT_ONCE);
    assert!(matches!(bench.start().await, Err(StartError::NoRoom(why)) if why.contains("exceeded quota")));
    assert!(!bench.runners.is_ready());
    assert_eq!((bench.runners.at_once(), bench.asked()), (1, 1));
}

#[tokio::test]
async fn a_cluster_that_is_away_for_long_costs_no_attempt() {
    let bench = bench(false, away).await;
    assert!(matches!(bench.start().await, Err(StartError::NoRoom(why)) if why.contains("shutting down")));
    assert!(!bench.runners.is_ready());
    assert!(bench.asked() > 1, "it was tried again before");
}

#[tokio::test]
async fn any_other_refusal_is_a_failed_start_and_holds_the_next_ones_back() {
    let bench = bench(false, forbidden).await;
    assert!(matches!(bench.start().await, Err(StartError::Failed(_))));
    assert_eq!((bench.runners.is_ready(), bench.runners.at_once()), (false, 1));
}
