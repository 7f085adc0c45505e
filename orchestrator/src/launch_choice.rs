//! Which launcher runs the containers of a job.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ckrv_core::plan::Resources;
use k8s_openapi::api::core::v1::Toleration;
use serde::{Deserialize, Serialize};

/// Chosen by the server's operator, handed to each job runner.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum LauncherChoice {
    /// Docker's or Podman's API on this socket (`unix:///...`).
    Container { engine: String },
    /// Pods of a cluster; the job runner is one itself.
    Kubernetes(Box<Cluster>),
    /// As the server's own user, beside that user's files: only with `--unsandboxed`.
    Process {
        /// `PATH` of what runs.
        path: String,
        /// The program that is the shim (`ckrv` itself), when it is not the running one.
        #[serde(default)]
        shim: Option<PathBuf>,
    },
}

impl LauncherChoice {
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Container { .. } => "container",
            Self::Kubernetes(_) => "kubernetes",
            Self::Process { .. } => "process",
        }
    }
}

/// `[kubernetes]` of the server's configuration: what pods are made of. Every name is that of something that the chart installs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Where job pods and agent pods live; the dispatcher lives elsewhere.
    pub namespace: String,
    /// Our own image: the job runner's, and where agent pods get the shim from.
    pub image: String,
    #[serde(default)]
    pub image_pull_policy: ImagePull,
    #[serde(default)]
    pub image_pull_secrets: Vec<String>,
    /// May create and delete its own agent pods, and nothing else.
    #[serde(default = "job_account")]
    pub job_service_account: String,
    /// May do nothing.
    #[serde(default = "agent_account")]
    pub agent_service_account: String,
    /// gVisor, Kata: of agent pods.
    #[serde(default)]
    pub runtime_class: Option<String>,
    #[serde(default)]
    pub priority_class: Option<String>,
    /// Of agent pods; job pods go to nodes that are not taken away, see `job_node_selector`.
    #[serde(default)]
    pub node_selector: BTreeMap<String, String>,
    #[serde(default)]
    pub job_node_selector: BTreeMap<String, String>,
    #[serde(default)]
    pub tolerations: Vec<Toleration>,
    /// A pod that no node took for so long is given up.
    #[serde(default = "unscheduled_seconds")]
    pub unscheduled_seconds: u64,
    /// What each job pod asks for: git, the adapter, what agents send back. Memory and disk are limits too, processor time is not.
    #[serde(default = "job_resources")]
    pub job_resources: Resources,
    /// Job pods that one dispatcher makes a second, at most.
    #[serde(default = "creates_per_second")]
    pub creates_per_second: u32,
    /// Outside the cluster: how the dispatcher reaches it. Inside it is known.
    #[serde(default)]
    pub kubeconfig: Option<PathBuf>,
    /// Inside the cluster: where its API is asked instead of at the Service `kubernetes`, by dispatchers and job pods. `https://host:port` of a
    /// private endpoint or a proxy, with a certificate of the cluster's own authority.
    #[serde(default)]
    pub api_server: Option<url::Url>,
    /// Where job pods reach the gateway, `https://name:port`.
    pub gateway_url: url::Url,
    /// A ConfigMap of that namespace whose `ca.crt` signed the gateway's certificate.
    #[serde(default = "gateway_ca")]
    pub gateway_ca: String,
}

/// As Kubernetes spells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImagePull {
    Always,
    #[default]
    IfNotPresent,
    Never,
}

impl ImagePull {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

fn job_account() -> String {
    "ckrv-job".to_owned()
}

fn agent_account() -> String {
    "ckrv-agent".to_owned()
}

fn gateway_ca() -> String {
    "ckrv-gateway-ca".to_owned()
}

fn unscheduled_seconds() -> u64 {
    300
}

fn job_resources() -> Resources {
    Resources { cpu_millis: 100, memory_mib: 512, disk_mib: 2048 }
}

fn creates_per_second() -> u32 {
    50
}
