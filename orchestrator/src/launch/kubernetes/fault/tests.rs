//! Pods as API servers of 1.30 to 1.34 show them, cut down to what is read.

use serde_json::{Value, json};

use super::*;

fn pod(status: Value) -> Pod {
    serde_json::from_value(json!({ "metadata": { "name": "p", "uid": "u" }, "spec": { "containers": [] }, "status": status }))
        .expect("a pod")
}

fn main_container(state: Value) -> Value {
    json!({ "name": "agent", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state })
}

fn evicted(message: &str) -> Value {
    json!({ "phase": "Failed", "reason": "Evicted", "message": message,
        "conditions": [{ "type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet", "message": message }],
        // What an eviction may leave behind of its container.
        "containerStatuses": [main_container(json!({ "terminated": { "exitCode": 137, "reason": "ContainerStatusUnknown",
            "message": "The container could not be located when the pod was terminated" } }))] })
}

#[test]
fn the_pods_own_status_is_read_before_its_containers() {
    let limit = "Usage of EmptyDir volume \"work\" exceeds the limit \"64Mi\". ";
    let total = "Pod ephemeral local storage usage exceeds the total limit of containers 64Mi. ";
    let container = "Container agent exceeded its local ephemeral storage limit \"64Mi\". ";
    let pressure = "The node was low on resource: ephemeral-storage. Threshold quantity: 1Gi, available: 900Mi. ";
    let full = |text: &str| Fault::DiskFull(format!("Evicted: {}", text.trim()));
    let failed = |reason: &str| json!({ "phase": "Failed", "reason": reason, "message": "why" });
    let lost = |reason: &str| Fault::NodeLost(format!("{reason}: why"));
    let table = [
        (evicted(limit), full(limit)),
        (evicted(total), full(total)),
        (evicted(container), full(container)),
        (evicted(pressure), Fault::Evicted(format!("Evicted: {}", pressure.trim()))),
        (json!({ "phase": "Failed", "reason": "Preempting", "message": "m" }), Fault::Evicted("Preempting: m".to_owned())),
        (
            json!({ "phase": "Failed", "reason": "DeadlineExceeded", "message": "Pod was active on the node longer than the specified deadline" }),
            Fault::Deadline,
        ),
        (json!({ "phase": "Running", "reason": "NodeLost", "message": "why" }), lost("NodeLost")),
        (failed("NodeShutdown"), lost("NodeShutdown")),
        (failed("Terminated"), lost("Terminated")),
        (failed("NodeAffinity"), lost("NodeAffinity")),
        (failed("UnexpectedAdmissionError"), lost("UnexpectedAdmissionError")),
        (failed("OutOfmemory"), lost("OutOfmemory")),
    ];
    for (status, fault) in table {
        assert_eq!(fault_of(&pod(status.clone())), Some(fault), "{status}");
        assert!(!pod(status.clone()).status.is_none_or(|_| describe(&pod(status)).is_empty()));
    }
}

#[test]
fn a_disruption_without_a_reason_of_the_pod_counts_even_with_exit_code_zero() {
    let disrupted = |reason: &str| {
        pod(json!({ "phase": "Succeeded",
            "conditions": [{ "type": "DisruptionTarget", "status": "True", "reason": reason, "message": "m" }],
            "containerStatuses": [main_container(json!({ "terminated": { "exitCode": 0, "reason": "Completed" } }))] }))
    };
    let of = |reason| ended(&disrupted(reason), false).fault;
    assert_eq!(of("EvictionByEvictionAPI"), Some(Fault::Evicted("EvictionByEvictionAPI: m".to_owned())));
    assert_eq!(of("PreemptionByScheduler"), Some(Fault::Evicted("PreemptionByScheduler: m".to_owned())));
    assert_eq!(of("DeletionByTaintManager"), Some(Fault::NodeLost("DeletionByTaintManager: m".to_owned())));
    assert_eq!(of("DeletionByPodGC"), Some(Fault::NodeLost("DeletionByPodGC: m".to_owned())));
}

#[test]
fn a_containers_end_is_told() {
    let oom = pod(
        json!({ "phase": "Failed", "containerStatuses": [main_container(json!({ "terminated": { "exitCode": 137, "reason": "OOMKilled" } }))] }),
    );
    assert_eq!(ended(&oom, false), Ended { code: Some(137), fault: Some(Fault::OutOfMemory), said: String::new() });
    let error = json!({ "terminated": { "exitCode": 74, "reason": "Error", "message": "the runner is silent\n" } });
    let error = pod(json!({ "phase": "Failed", "containerStatuses": [main_container(error)] }));
    assert_eq!(ended(&error, true), Ended { code: Some(74), fault: None, said: "the runner is silent".to_owned() });
    assert_eq!(describe(&error), "agent: Error with code 74: the runner is silent");
    let done = pod(
        json!({ "phase": "Succeeded", "containerStatuses": [main_container(json!({ "terminated": { "exitCode": 0, "reason": "Completed" } }))] }),
    );
    assert_eq!(ended(&done, true), Ended { code: Some(0), fault: None, said: String::new() });
}

#[test]
fn a_pod_that_vanished_has_a_fault() {
    let running =
        json!({ "phase": "Running", "podIP": "10.0.0.7", "containerStatuses": [main_container(json!({ "running": {} }))] });
    assert_eq!(ended(&pod(running.clone()), true).fault, Some(Fault::Deleted));
    let mut leaving = pod(running);
    leaving.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
    assert_eq!(ended(&leaving, false).fault, Some(Fault::Deleted));
    assert_eq!(ended(&pod(json!({})), true).fault, Some(Fault::Deleted));
}

#[test]
fn a_pod_that_was_asked_to_go_is_deleted_unless_its_shim_had_ended_in_order() {
    let with_code = |code: i32| {
        let state = json!({ "terminated": { "exitCode": code, "reason": "Error" } });
        let mut leaving = pod(json!({ "phase": "Failed", "containerStatuses": [main_container(state)] }));
        leaving.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
        ended(&leaving, true).fault
    };
    assert_eq!((with_code(143), with_code(0)), (Some(Fault::Deleted), None));
}

#[test]
fn what_keeps_a_pod_from_starting_is_told() {
    let waiting = |reason: &str| {
        pod(
            json!({ "phase": "Pending", "containerStatuses": [main_container(json!({ "waiting": { "reason": reason, "message": "m" } }))] }),
        )
    };
    let image =
        |lasting, reason: &str| Trouble::Image { container: "agent".to_owned(), message: format!("{reason}: m"), lasting };
    for (reason, lasting) in
        [("ErrImagePull", false), ("ImagePullBackOff", false), ("InvalidImageName", true), ("ErrImageNeverPull", true)]
    {
        assert_eq!(trouble(&waiting(reason)), Some(image(lasting, reason)));
    }
    let config = waiting("CreateContainerConfigError");
    assert_eq!(trouble(&config), Some(Trouble::Container("agent: CreateContainerConfigError: m".to_owned())));
    assert_eq!(trouble(&waiting("ContainerCreating")), None);
    assert_eq!(trouble(&waiting("PodInitializing")), None);
    let message =
        "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption victims found.";
    let unscheduled = pod(json!({ "phase": "Pending",
        "conditions": [{ "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message }] }));
    assert_eq!(trouble(&unscheduled), Some(Trouble::Unschedulable(message.to_owned())));
    assert_eq!(describe(&unscheduled), message);
    assert!(!is_over(&unscheduled) && !is_over(&config));
}

#[test]
fn an_init_container_that_failed_is_the_pods_end() {
    let failed = pod(json!({ "phase": "Failed",
        "initContainerStatuses": [main_container(json!({ "terminated": { "exitCode": 1, "reason": "Error", "message": "no space left on device" } }))],
        "containerStatuses": [main_container(json!({ "waiting": { "reason": "PodInitializing" } }))] }));
    assert!(is_over(&failed));
    assert_eq!(ended(&failed, false), Ended { code: None, fault: None, said: "no space left on device".to_owned() });
}

#[test]
fn a_registry_that_is_away_is_told_from_one_that_refuses() {
    // As containerd words them.
    for refused in [
        "ErrImagePull: rpc error: code = NotFound desc = failed to pull and unpack image \"r/i:1\": failed to resolve reference \"r/i:1\": r/i:1: not found",
        "ErrImagePull: failed to authorize: failed to fetch anonymous token: unexpected status from GET request to https://r/token: 401 Unauthorized",
        "ErrImagePull: pull access denied, repository does not exist or may require authorization: server message: insufficient_scope: authorization failed",
        "ImagePullBackOff: Back-off pulling image \"r/i:1\": ErrImagePull: unexpected status from HEAD request to https://r/v2/i/manifests/1: 403 Forbidden",
        "ErrImagePull: no match for platform in manifest: not found",
    ] {
        assert!(is_refusal(refused), "{refused}");
    }
    for away in [
        "ErrImagePull: failed to do request: Head \"https://r/v2/i/manifests/1\": dial tcp 10.0.0.1:443: connect: connection refused",
        "ErrImagePull: failed to do request: Head \"https://r/v2/i/manifests/1\": dial tcp: lookup r on 10.0.0.10:53: no such host",
        "ErrImagePull: failed to do request: dial tcp 10.0.0.1:443: i/o timeout",
        "ErrImagePull: unexpected status from HEAD request to https://r/v2/i/manifests/1: 503 Service Unavailable",
        "ErrImagePull: 429 Too Many Requests - Server message: toomanyrequests: You have reached your pull rate limit",
        "ImagePullBackOff: Back-off pulling image \"r/i:1\"",
    ] {
        assert!(!is_refusal(away), "{away}");
    }
}
