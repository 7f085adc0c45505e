//! The kubernetes launcher: the shim as process 1 of a pod that may do nothing, which belongs to the job runner's own pod and goes with it.
//!
//! Invariant: a pod that vanished, and a pod's phase, never mean success. What a pod's status says is a claim of its node's.
//!
//! Of each agent pod the API server hears a create and a delete from us; one watch tells of all pods of the attempt.

pub(crate) mod create;
pub(crate) mod fault;
mod instance;
mod launcher;
pub(crate) mod pods;
#[cfg(test)]
pub(crate) mod stub;
mod watching;

use std::net::IpAddr;

pub use self::create::client;
pub use self::launcher::KubernetesLauncher;
pub use self::pods::Belongs;
pub(crate) use self::watching::WATCH_SECONDS;
use crate::launch_choice::Cluster;

/// Where a job pod takes shims in: what network policies open to its agent pods.
pub const SHIM_PORT: u16 = 7443;

/// What a pod knows of itself, by the downward API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodIdentity {
    pub name: String,
    pub uid: String,
    pub ip: IpAddr,
}

impl PodIdentity {
    /// From `CKRV_POD_NAME`, `CKRV_POD_UID` and `CKRV_POD_IP`; none of a process that runs in no pod.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        Some(Self {
            name: variable("CKRV_POD_NAME")?,
            uid: variable("CKRV_POD_UID")?,
            ip: variable("CKRV_POD_IP")?.parse().ok()?,
        })
    }
}

#[derive(Clone, Debug)]
pub struct KubernetesConfig {
    pub cluster: Cluster,
    /// The job runner's own pod. Agent pods belong to it and reach it.
    pub owner: PodIdentity,
    pub belongs: Belongs,
    /// Where shims knock; zero takes any port.
    pub port: u16,
}
