//! What a job pod's state means for its job: a pure function.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;

use crate::launch::Fault;
use crate::launch::kubernetes::fault::{Trouble, describe, ended, is_over, is_scheduled, trouble};

/// A registry may fail for a moment.
const IMAGE_PATIENCE: SignedDuration = SignedDuration::from_secs(60);
/// From a node's yes to the first instruction: volumes, addresses, a big image on a slow line.
const START_PATIENCE: SignedDuration = SignedDuration::from_secs(600);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// On its way.
    Starting,
    /// Its program runs, or ran when its node was last heard of: only the lease tells.
    Running,
    /// It will never run: whoever says so deletes it.
    Hopeless(String),
    /// Nothing of it runs any more.
    Ended(String),
}

pub(super) fn verdict(pod: &Pod, unscheduled: SignedDuration, now: Timestamp) -> Verdict {
    if is_over(pod) {
        return Verdict::Ended(end_of(pod));
    }
    // One that is being deleted is soon over or gone.
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if phase.is_some_and(|phase| phase != "Pending") || pod.metadata.deletion_timestamp.is_some() {
        return Verdict::Running;
    }
    let age = pod.metadata.creation_timestamp.as_ref().map_or(SignedDuration::ZERO, |made| now.duration_since(made.0));
    match trouble(pod) {
        Some(Trouble::Unschedulable(message)) if age > unscheduled => {
            Verdict::Hopeless(format!("no node of the cluster took its job pod within {} s: {message}", unscheduled.as_secs()))
        }
        Some(Trouble::Image { message, lasting, .. }) if lasting || age > IMAGE_PATIENCE => {
            Verdict::Hopeless(format!("the image of its job pod could not be pulled: {message}"))
        }
        Some(Trouble::Container(message)) if age > IMAGE_PATIENCE => {
            Verdict::Hopeless(format!("its job pod could not be started: {message}"))
        }
        _ if !is_scheduled(pod) && age > unscheduled => {
            Verdict::Hopeless(format!("no scheduler looked at its job pod within {} s", unscheduled.as_secs()))
        }
        _ if age > unscheduled + START_PATIENCE => Verdict::Hopeless(format!("its job pod did not start: {}", describe(pod))),
        _ => Verdict::Starting,
    }
}

fn end_of(pod: &Pod) -> String {
    let end = ended(pod, false);
    match end.fault {
        Some(Fault::OutOfMemory) => "its job pod ran out of memory".to_owned(),
        Some(Fault::DiskFull(text)) => format!("its job pod ran out of disk: {text}"),
        Some(Fault::Evicted(text)) => format!("its job pod was evicted: {text}"),
        Some(Fault::NodeLost(text)) => format!("the node of its job pod was lost: {text}"),
        Some(Fault::Deleted) => "its job pod was deleted".to_owned(),
        Some(Fault::Deadline) => "the cluster ended its job pod at the deadline".to_owned(),
        None => match (end.code, end.said.lines().last()) {
            (Some(code), Some(said)) if code != 0 => format!("its job pod ended with code {code}: {said}"),
            (Some(code), None) if code != 0 => format!("its job pod ended with code {code}"),
            _ => "its job pod ended without a report".to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const UNSCHEDULED: SignedDuration = SignedDuration::from_secs(300);

    fn after(seconds: i64, spec: &Value, status: &Value) -> Verdict {
        let pod = json!({
            "metadata": {"name": "p", "creationTimestamp": "2027-01-15T08:00:00Z"},
            "spec": spec,
            "status": status,
        });
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        let made: Timestamp = "2027-01-15T08:00:00Z".parse().expect("a time");
        verdict(&pod, UNSCHEDULED, made + SignedDuration::from_secs(seconds))
    }

    fn placed() -> Value {
        json!({"containers": [], "nodeName": "n"})
    }

    fn waiting(reason: &str) -> Value {
        json!({"phase": "Pending", "containerStatuses": [{"name": "job", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": reason, "message": "the platform's words"}}}]})
    }

    #[test]
    fn a_pod_that_no_node_takes_is_waited_for_and_then_given_up() {
        let status = json!({"phase": "Pending", "conditions":
            [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available"}]});
        let spec = json!({"containers": []});
        assert_eq!(after(299, &spec, &status), Verdict::Starting);
        let Verdict::Hopeless(text) = after(301, &spec, &status) else { panic!("given up") };
        assert!(text.contains("0/3 nodes are available"), "{text}");
        assert!(matches!(after(301, &spec, &json!({"phase": "Pending"})), Verdict::Hopeless(_)), "no scheduler at all");
    }

    #[test]
    fn an_image_that_is_not_there_is_hopeless_at_once_and_a_registry_that_fails_after_a_minute() {
        assert!(matches!(after(1, &placed(), &waiting("ErrImageNeverPull")), Verdict::Hopeless(_)));
        assert_eq!(after(30, &placed(), &waiting("ImagePullBackOff")), Verdict::Starting);
        assert!(
            matches!(after(61, &placed(), &waiting("ImagePullBackOff")), Verdict::Hopeless(text) if text.contains("platform's words"))
        );
        assert_eq!(after(200, &placed(), &waiting("ContainerCreating")), Verdict::Starting);
        assert!(matches!(after(901, &placed(), &waiting("ContainerCreating")), Verdict::Hopeless(_)));
    }

    #[test]
    fn a_running_pod_is_never_believed_and_an_end_always_is() {
        assert_eq!(after(9_999, &placed(), &json!({"phase": "Running"})), Verdict::Running);
        assert_eq!(after(9_999, &placed(), &json!({"phase": "Unknown"})), Verdict::Running);
        let oom = json!({"phase": "Failed", "containerStatuses": [{"name": "job", "image": "i", "imageID": "", "ready": false,
            "restartCount": 0, "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]});
        assert_eq!(after(5, &placed(), &oom), Verdict::Ended("its job pod ran out of memory".to_owned()));
        let evicted = json!({"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."});
        assert!(matches!(after(5, &placed(), &evicted), Verdict::Ended(text) if text.contains("low on resource")));
    }
}
