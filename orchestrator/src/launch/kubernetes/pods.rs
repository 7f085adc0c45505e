//! What the dispatcher's job pods and a job runner's agent pods have in common: who they belong to, and the rights that none of them has.

use std::collections::BTreeMap;

use ckrv_core::id::{ClaimId, Fence, JobId};
use ckrv_core::plan::Resources;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Capabilities, Container, EmptyDirVolumeSource, LocalObjectReference, PodSecurityContext, PodSpec, ResourceRequirements,
    SeccompProfile, SecurityContext, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::launch_choice::Cluster;

pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
pub const MANAGER: &str = "ckrv";
pub const JOB: &str = "ckrv.dev/job";
pub const FENCE: &str = "ckrv.dev/fence";
pub const ROLE: &str = "ckrv.dev/role";
/// The installation: all replicas of a dispatcher share its name.
pub const INSTALL: &str = "ckrv.dev/install";
pub const CLAIM: &str = "ckrv.dev/claim";
/// RFC 3339.
pub const DEADLINE: &str = "ckrv.dev/deadline";
pub const ATTEMPT: &str = "ckrv.dev/attempt";

/// User and group of everything in our pods.
pub const USER: i64 = 1000;
/// The platform's clock is the third to end a job, after shim and job runner.
const DEADLINE_SLACK_SECONDS: i64 = 120;
const MAX_LABEL: usize = 63;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Job,
    Agent,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Self::Job => "job",
            Self::Agent => "agent",
        }
    }
}

/// The attempt that a pod belongs to.
#[derive(Clone, Debug)]
pub struct Belongs {
    pub job: JobId,
    pub fence: Fence,
    pub attempt: u32,
    pub claim: ClaimId,
    /// The worker's name in the lease.
    pub install: String,
    pub deadline: Option<Timestamp>,
}

impl Belongs {
    pub(crate) fn labels(&self, role: Role) -> BTreeMap<String, String> {
        let own = [
            (MANAGED_BY, MANAGER.to_owned()),
            (JOB, self.job.to_string()),
            (FENCE, self.fence.to_string()),
            (ROLE, role.name().to_owned()),
            (INSTALL, label_value(&self.install)),
        ];
        own.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    pub(crate) fn annotations(&self) -> BTreeMap<String, String> {
        let mut all = BTreeMap::from([
            (CLAIM.to_owned(), self.claim.to_string()),
            (ATTEMPT.to_owned(), self.attempt.to_string()),
            // Hints to what scales clusters down; a pod that is taken away all the same is another attempt.
            ("cluster-autoscaler.kubernetes.io/safe-to-evict".to_owned(), "false".to_owned()),
            ("karpenter.sh/do-not-disrupt".to_owned(), "true".to_owned()),
        ]);
        if let Some(deadline) = self.deadline {
            all.insert(DEADLINE.to_owned(), deadline.to_string());
        }
        all
    }

    pub(crate) fn metadata(&self, name: &str, namespace: &str, role: Role) -> ObjectMeta {
        ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            labels: Some(self.labels(role)),
            annotations: Some(self.annotations()),
            ..Default::default()
        }
    }
}

/// A worker's name is free text; a label's value is not.
pub(crate) fn label_value(text: &str) -> String {
    let good = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' };
    let value: String = text.chars().map(good).take(MAX_LABEL).collect();
    value.trim_matches(['-', '_', '.']).to_owned()
}

/// A pod without containers and volumes, as Pod Security `restricted` demands it and as the operator configured it.
pub(crate) fn base(cluster: &Cluster, role: Role, deadline: Option<Timestamp>, grace_seconds: i64) -> PodSpec {
    let (account, nodes, runtime) = match role {
        Role::Job => (&cluster.job_service_account, &cluster.job_node_selector, None),
        Role::Agent => (&cluster.agent_service_account, &cluster.node_selector, cluster.runtime_class.clone()),
    };
    let secrets = cluster.image_pull_secrets.iter().map(|name| LocalObjectReference { name: name.clone() });
    PodSpec {
        service_account_name: Some(account.clone()),
        // The job pod's two tokens are volumes of its own, with the audience that each is for.
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        restart_policy: Some("Never".to_owned()),
        active_deadline_seconds: deadline.map(|deadline| active_seconds(deadline, crate::clock::now())),
        termination_grace_period_seconds: Some(grace_seconds),
        runtime_class_name: runtime,
        priority_class_name: cluster.priority_class.clone(),
        node_selector: (!nodes.is_empty()).then(|| nodes.clone()),
        tolerations: (!cluster.tolerations.is_empty()).then(|| cluster.tolerations.clone()),
        image_pull_secrets: (!cluster.image_pull_secrets.is_empty()).then(|| secrets.collect()),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: Some(USER),
            seccomp_profile: Some(runtime_default()),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn active_seconds(deadline: Timestamp, now: Timestamp) -> i64 {
    deadline.duration_since(now).as_secs().max(1) + DEADLINE_SLACK_SECONDS
}

fn runtime_default() -> SeccompProfile {
    SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }
}

/// A container without a right, on a root file system that it can't write.
pub(crate) fn container(name: &str, image: &str, cluster: &Cluster, resources: Resources) -> Container {
    Container {
        name: name.to_owned(),
        image: Some(image.to_owned()),
        image_pull_policy: Some(cluster.image_pull_policy.name().to_owned()),
        resources: limits(resources),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            privileged: Some(false),
            read_only_root_filesystem: Some(true),
            run_as_non_root: Some(true),
            capabilities: Some(Capabilities { add: None, drop: Some(vec!["ALL".to_owned()]) }),
            seccomp_profile: Some(runtime_default()),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// What is asked for is what there is at most, so that a pod is the last to be evicted. Zero is no limit.
fn limits(resources: Resources) -> Option<ResourceRequirements> {
    let amounts = [
        ("cpu", resources.cpu_millis, "m"),
        ("memory", resources.memory_mib, "Mi"),
        ("ephemeral-storage", resources.disk_mib, "Mi"),
    ];
    let set = amounts.into_iter().filter(|(_, amount, _)| *amount > 0);
    let all: BTreeMap<_, _> = set.map(|(name, amount, unit)| (name.to_owned(), Quantity(format!("{amount}{unit}")))).collect();
    (!all.is_empty()).then(|| ResourceRequirements { limits: Some(all.clone()), requests: Some(all), claims: None })
}

/// An empty folder that goes with its pod. Zero is no limit.
pub(crate) fn scratch(name: &str, most_mib: u32) -> Volume {
    let size_limit = (most_mib > 0).then(|| Quantity(format!("{most_mib}Mi")));
    Volume { name: name.to_owned(), empty_dir: Some(EmptyDirVolumeSource { size_limit, medium: None }), ..Default::default() }
}

pub(crate) fn mount(volume: &str, path: &str) -> VolumeMount {
    VolumeMount { name: volume.to_owned(), mount_path: path.to_owned(), ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workers_name_becomes_a_labels_value() {
        assert_eq!(label_value("eu-west-1"), "eu-west-1");
        assert_eq!(label_value("-my worker/é!"), "my-worker");
        assert_eq!(label_value(&"x".repeat(100)).len(), 63);
    }

    #[test]
    fn the_platforms_clock_is_two_minutes_behind_and_never_zero() {
        let now = Timestamp::UNIX_EPOCH;
        let after = |seconds| now + jiff::SignedDuration::from_secs(seconds);
        assert_eq!(active_seconds(after(600), now), 720);
        assert_eq!(active_seconds(now, after(600)), 121);
    }

    #[test]
    fn requests_are_limits_and_nothing_is_asked_for_without_one() {
        let some = limits(Resources { cpu_millis: 500, memory_mib: 256, disk_mib: 0 }).expect("limits");
        assert_eq!(some.requests, some.limits);
        let amounts: Vec<_> = some.limits.into_iter().flatten().map(|(name, amount)| (name, amount.0)).collect();
        assert_eq!(amounts, [("cpu".to_owned(), "500m".to_owned()), ("memory".to_owned(), "256Mi".to_owned())]);
        assert!(limits(Resources::default()).is_none());
    }
}
