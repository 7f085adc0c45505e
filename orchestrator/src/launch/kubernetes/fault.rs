//! What a pod's status says of its end, or of what keeps it from beginning.
//!
//! The pod as a whole is read before its containers: an eviction may leave no container's end at all, or one that looks like success.

use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod, PodCondition, PodStatus};

use crate::launch::{Ended, Fault};

/// What keeps a pod from starting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// No node takes it; the scheduler's words.
    Unschedulable(String),
    /// The image of that container isn't there. `lasting` when trying again can't help.
    Image { container: String, message: String, lasting: bool },
    /// A container can't be made.
    Container(String),
}

fn status(pod: &Pod) -> Option<&PodStatus> {
    pod.status.as_ref()
}

fn containers(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let main = status(pod).and_then(|status| status.container_statuses.as_ref());
    let init = status(pod).and_then(|status| status.init_container_statuses.as_ref());
    main.into_iter().chain(init).flatten()
}

fn terminated(container: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    container.state.as_ref()?.terminated.as_ref()
}

fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    status(pod)?.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

/// Whether nothing of it runs any more, or will: a failed init container ends a pod that is never restarted.
pub(crate) fn is_over(pod: &Pod) -> bool {
    let phase = status(pod).and_then(|status| status.phase.as_deref());
    let main = status(pod).and_then(|status| status.container_statuses.as_ref());
    matches!(phase, Some("Succeeded" | "Failed"))
        || main.is_some_and(|all| !all.is_empty() && all.iter().all(|one| terminated(one).is_some()))
}

/// What the platform blames for a pod's end; nothing where the pod's program ended by itself.
pub(crate) fn fault_of(pod: &Pod) -> Option<Fault> {
    fault_of_status(pod).or_else(|| fault_of_disruption(pod)).or_else(|| fault_of_containers(pod))
}

fn fault_of_status(pod: &Pod) -> Option<Fault> {
    let status = status(pod)?;
    let text = say(status.reason.as_deref(), status.message.as_deref());
    match status.reason.as_deref()? {
        "Evicted" if is_over_limit(&text) => Some(Fault::DiskFull(text)),
        "Evicted" | "Preempting" => Some(Fault::Evicted(text)),
        "DeadlineExceeded" => Some(Fault::Deadline),
        // `Terminated` is what a node says that shuts down in order; the others are its kubelet's, which could not take the pod.
        "NodeLost"
        | "NodeShutdown"
        | "Shutdown"
        | "Terminated"
        | "NodeAffinity"
        | "UnexpectedAdmissionError"
        | "OutOfcpu"
        | "OutOfmemory"
        | "OutOfpods"
        | "OutOfephemeral-storage" => Some(Fault::NodeLost(text)),
        _ => None,
    }
}

/// Its own limit, and not its node's distress.
fn is_over_limit(text: &str) -> bool {
    ["exceeds the limit", "exceeds the total limit", "exceeded its local ephemeral storage limit"]
        .iter()
        .any(|part| text.contains(part))
}

fn fault_of_disruption(pod: &Pod) -> Option<Fault> {
    let disruption = condition(pod, "DisruptionTarget").filter(|condition| condition.status == "True")?;
    let text = say(disruption.reason.as_deref(), disruption.message.as_deref());
    Some(match disruption.reason.as_deref() {
        Some("DeletionByTaintManager" | "DeletionByPodGC") => Fault::NodeLost(text),
        _ if is_over_limit(&text) => Fault::DiskFull(text),
        _ => Fault::Evicted(text),
    })
}

fn fault_of_containers(pod: &Pod) -> Option<Fault> {
    let reason = |container: &ContainerStatus| terminated(container).and_then(|end| end.reason.clone());
    let mut reasons = containers(pod).filter_map(reason);
    reasons.find_map(|reason| match reason.as_str() {
        "OOMKilled" => Some(Fault::OutOfMemory),
        "ContainerStatusUnknown" => Some(Fault::NodeLost("its node lost the container".to_owned())),
        _ => None,
    })
}

/// The end of a pod that is over or gone. One that was taken away has a fault, unless its program had ended in order by then.
pub(crate) fn ended(pod: &Pod, gone: bool) -> Ended {
    let main = status(pod).and_then(|status| status.container_statuses.as_ref());
    let code = main.into_iter().flatten().filter_map(terminated).map(|end| end.exit_code).next();
    let in_order = is_over(pod) && code == Some(0);
    let taken_away = pod.metadata.deletion_timestamp.is_some() || (gone && !is_over(pod));
    let said = containers(pod).filter_map(|one| terminated(one)?.message.as_deref()).map(str::trim).find(|text| !text.is_empty());
    Ended {
        code,
        fault: fault_of(pod).or_else(|| (taken_away && !in_order).then_some(Fault::Deleted)),
        said: said.unwrap_or_default().to_owned(),
    }
}

/// One line of why a pod is where it is, for the log.
pub(crate) fn describe(pod: &Pod) -> String {
    let whole = status(pod).map(|status| say(status.reason.as_deref(), status.message.as_deref())).unwrap_or_default();
    if !whole.is_empty() {
        return whole;
    }
    let of_container = |container: &ContainerStatus| {
        let state = container.state.as_ref()?;
        let (reason, message) = match (&state.waiting, &state.terminated) {
            (Some(waiting), _) => (waiting.reason.clone(), waiting.message.clone()),
            (_, Some(end)) if end.exit_code != 0 => {
                let reason = end.reason.clone().unwrap_or_default();
                (Some(format!("{reason} with code {}", end.exit_code)), end.message.clone())
            }
            _ => return None,
        };
        let text = say(reason.as_deref(), message.as_deref());
        (!text.is_empty()).then(|| format!("{}: {text}", container.name))
    };
    if let Some(text) = containers(pod).find_map(of_container) {
        return text;
    }
    if let Some(Trouble::Unschedulable(text)) = trouble(pod) {
        return text;
    }
    let phase = status(pod).and_then(|status| status.phase.clone());
    phase.unwrap_or_else(|| "nothing is known of it".to_owned())
}

/// What keeps a pod from starting, where something does.
pub(crate) fn trouble(pod: &Pod) -> Option<Trouble> {
    if let Some(scheduled) = condition(pod, "PodScheduled").filter(|scheduled| scheduled.status == "False") {
        return Some(Trouble::Unschedulable(say(None, scheduled.message.as_deref())));
    }
    containers(pod).find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let text = || say(waiting.reason.as_deref(), waiting.message.as_deref());
        let image = |lasting| Trouble::Image { container: container.name.clone(), message: text(), lasting };
        match waiting.reason.as_deref()? {
            "ErrImagePull" | "ImagePullBackOff" | "ImageInspectError" | "RegistryUnavailable" => Some(image(false)),
            "InvalidImageName" | "ErrImageNeverPull" => Some(image(true)),
            "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
                Some(Trouble::Container(format!("{}: {}", container.name, text())))
            }
            _ => None,
        }
    })
}

/// Whether a registry has said that the image isn't there, or not for us. Anything else, from a name that isn't resolved to a limit of its
/// rate, may pass.
pub(crate) fn is_refusal(message: &str) -> bool {
    const SAID: [&str; 9] = [
        "not found",
        "notfound",
        "manifest unknown",
        "name unknown",
        "does not exist",
        "denied",
        "unauthorized",
        "forbidden",
        "no match for platform",
    ];
    let message = message.to_lowercase();
    SAID.iter().any(|said| message.contains(said))
}

/// Whether a node took it.
pub(crate) fn is_scheduled(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some())
}

fn say(reason: Option<&str>, message: Option<&str>) -> String {
    let (reason, message) = (reason.unwrap_or_default().trim(), message.unwrap_or_default().trim());
    match (reason, message) {
        ("", text) | (text, "") => text.to_owned(),
        (reason, message) => format!("{reason}: {message}"),
    }
}

#[cfg(test)]
mod tests;
