//! Nodes that don't exist: kwok answers for their kubelets, so that ten thousand pods run without a container.

use std::process::Stdio;

use anyhow::{Context as _, Result};
use k8s_openapi::api::authentication::v1::BoundObjectReference;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::{ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, ResourceExt as _};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::bench;
use crate::kube::kubectl_with;

/// Marks the nodes, and keeps pods away that don't ask for them.
pub const TAINT: &str = "kwok.x-k8s.io/node";
const PODS: u32 = 2_000;

/// Dropped, nobody answers for the nodes any more; they stay until the cluster ends.
#[derive(Debug)]
pub struct Kwok {
    _controller: Child,
    log: tempfile::NamedTempFile,
    _stages: tempfile::NamedTempFile,
}

impl Kwok {
    pub async fn start(nodes: u32) -> Result<Self> {
        let (log, stages) = (tempfile::NamedTempFile::new()?, tempfile::NamedTempFile::new()?);
        std::fs::write(stages.path(), include_str!("kwok_stages.yaml"))?;
        let mut command = Command::new(bench::kwok()?);
        command.arg("--kubeconfig").arg(bench::kubeconfig()?).arg("--config").arg(stages.path()).arg("--manage-all-nodes=false");
        command.arg(format!("--manage-nodes-with-annotation-selector={TAINT}=fake")).arg("--server-address=127.0.0.1:0");
        // Debian's etcd is too old for what its client library would rather use.
        command.env("KUBE_FEATURE_WatchListClient", "false");
        command.stdin(Stdio::null()).stdout(log.reopen()?).stderr(log.reopen()?).kill_on_drop(true);
        let controller = command.spawn().context("can't start kwok")?;
        let items: Vec<Value> = (0..nodes).map(node).collect();
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
        kubectl_with(&["apply", "--filename", "-"], Some(&list.to_string())).await?;
        let kwok = Self { _controller: controller, log, _stages: stages };
        let ready = ["wait", "--for=condition=Ready", "node", "--selector", "type=kwok", "--timeout=60s"];
        crate::kube::kubectl(&ready).await.with_context(|| kwok.log())?;
        Ok(kwok)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log.path()).unwrap_or_default()
    }
}

fn node(number: u32) -> Value {
    let name = format!("kwok-{number}");
    let room = json!({ "cpu": "100000", "memory": "1000Ti", "ephemeral-storage": "1000Ti", "pods": PODS.to_string() });
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": { "type": "kwok", "kubernetes.io/hostname": name, "kubernetes.io/os": "linux" },
            "annotations": { TAINT: "fake", "node.alpha.kubernetes.io/ttl": "0" },
        },
        "spec": { "taints": [{ "key": TAINT, "value": "fake", "effect": "NoSchedule" }] },
        "status": { "allocatable": room, "capacity": room },
    })
}

/// The cluster by its API, where kubectl would be too slow.
#[derive(Clone)]
pub struct Direct {
    client: Client,
    namespace: String,
}

impl std::fmt::Debug for Direct {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Direct").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Direct {
    pub async fn new(namespace: &str) -> Result<Self> {
        let kubeconfig = Kubeconfig::read_from(bench::kubeconfig()?)?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(Self { client: Client::try_from(config)?, namespace: namespace.to_owned() })
    }

    /// How many pods there are, and how many of them run.
    pub async fn pods(&self) -> Result<(usize, usize)> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let all = pods.list(&ListParams::default().match_any()).await?;
        let runs = |pod: &&Pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
        Ok((all.items.len(), all.items.iter().filter(runs).count()))
    }

    /// A token of this account that is bound to the pod, as its kubelet would ask for one.
    pub async fn token(&self, account: &str, pod: &str, audience: &str) -> Result<String> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &self.namespace);
        let uid = pods.get_metadata(pod).await?.uid();
        let bound =
            BoundObjectReference { api_version: Some("v1".into()), kind: Some("Pod".into()), name: Some(pod.into()), uid };
        let spec = TokenRequestSpec {
            audiences: vec![audience.to_owned()],
            bound_object_ref: Some(bound),
            expiration_seconds: Some(7200),
        };
        let request = TokenRequest { spec, ..Default::default() };
        let answer = accounts.create_token_request(account, &PostParams::default(), &request).await?;
        Ok(answer.status.context("no token came")?.token)
    }
}
