//! The chart: rendered, and installed as an admin does it.

use std::path::{Path, PathBuf};
use std::process::Output;

use anyhow::{Context as _, Result, ensure};
use ckrv_tests::bench;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Endpoints, ServiceAccount};
use kube::api::{Api, PostParams};
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

/// Of the service account of the dispatcher, its Deployment and its Service.
pub const NAME: &str = "dispatcher";

pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../infra/helm/ckrv")
}

/// The values files that stand for kinds of installations.
pub fn examples() -> Result<Vec<PathBuf>> {
    let mut all = std::fs::read_dir(folder().join("ci"))?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    all.sort();
    ensure!(all.len() >= 4, "{all:?}");
    Ok(all)
}

pub async fn helm(args: &[&str]) -> Result<Output> {
    let mut command = Command::new(bench::helm()?);
    command.args(args).arg("--kubeconfig").arg(bench::kubeconfig()?).kill_on_drop(true);
    Ok(command.output().await?)
}

pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What `helm template` makes of a values file for this namespace.
pub async fn render(values: &Path, namespace: &str, sets: &[&str]) -> Result<String> {
    let folder = folder();
    let mut args = vec!["template", NAME, path(&folder)?, "--namespace", namespace, "--values", path(values)?];
    args.extend(["--set", "fullnameOverride=dispatcher"]);
    args.extend(sets.iter().flat_map(|set| ["--set", set]));
    let output = helm(&args).await?;
    ensure!(output.status.success(), "{}", said(&output));
    Ok(String::from_utf8(output.stdout)?)
}

pub fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}

/// The documents of a YAML file.
pub fn documents(text: &str) -> Result<Vec<Value>> {
    let all: Vec<Value> = serde_saphyr::from_multiple(text)?;
    Ok(all.into_iter().filter(|document| !document.is_null()).collect())
}

async fn config() -> Result<Config> {
    let kubeconfig = Kubeconfig::read_from(bench::kubeconfig()?)?;
    Ok(Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?)
}

/// The cluster's administrator.
pub async fn admin() -> Result<Client> {
    Ok(Client::try_from(config().await?)?)
}

/// An installation in two namespaces of its own, without a running dispatcher.
pub struct Installed {
    pub admin: Client,
    pub system: String,
    pub jobs: String,
    pub image: String,
    scratch: TempDir,
}

impl Installed {
    pub async fn new(more: &Value) -> Result<Self> {
        let id = format!("t{:08x}", rand::random::<u32>());
        let (system, jobs) = (format!("{id}-system"), format!("{id}-jobs"));
        let admin = admin().await?;
        let installed = Self { admin, system, jobs, image: bench::kube_image()?, scratch: tempfile::tempdir()? };
        let mut values = installed.values().await?;
        merge(&mut values, more);
        std::fs::write(installed.scratch.path().join("values.json"), values.to_string())?;
        installed.helm("install", &["--create-namespace"]).await?;
        Ok(installed)
    }

    /// `helm install`, `helm upgrade`.
    pub async fn helm(&self, verb: &str, more: &[&str]) -> Result<String> {
        let (folder, values) = (folder(), self.scratch.path().join("values.json"));
        let args = [verb, NAME, path(&folder)?, "--namespace", &self.system, "--values", path(&values)?];
        let output = helm(&[&args, more].concat()).await?;
        ensure!(output.status.success(), "{}", said(&output));
        Ok(said(&output))
    }

    async fn values(&self) -> Result<Value> {
        let (repository, tag) = self.image.rsplit_once(':').context("our image has no tag")?;
        let agents = bench::kube_agents()?;
        let agents = agents.rsplit_once(':').context("the agents' image has no tag")?.0;
        // What stands behind the service `kubernetes`.
        let api: Endpoints = Api::namespaced(self.admin.clone(), "default").get("kubernetes").await?;
        let subsets = api.subsets.unwrap_or_default();
        let cidrs: Vec<_> =
            subsets.iter().flat_map(|subset| subset.addresses.iter().flatten()).map(|one| format!("{}/32", one.ip)).collect();
        let ports: Vec<_> = subsets.iter().flat_map(|subset| subset.ports.iter().flatten()).map(|port| port.port).collect();
        Ok(json!({
            "fullnameOverride": NAME,
            "serviceAccount": {"name": NAME},
            "image": {"repository": repository, "tag": tag, "pullPolicy": "Never"},
            "store": {"table": "ckrv", "bucket": "ckrv", "kmsKey": "alias/ckrv", "region": "us-east-1"},
            "dispatcher": {"replicas": 0},
            "jobs": {"namespace": self.jobs},
            "agents": {"images": [agents], "nodeSelector": {"kubernetes.io/os": "linux"}},
            "network": {"apiServer": {"cidrs": cidrs, "ports": ports}},
            // Nothing that a test sends may leave the machine.
            "probe": {"image": bench::kube_tiny()?, "pullPolicy": "Never", "public": format!("{}:1", bench::kube_host()?)},
        }))
    }

    /// A service account of this installation, with a token as the kubelet or anybody else may ask for it.
    pub async fn acting_as(&self, namespace: &str, account: &str, bound_to: Option<&PodRef>) -> Result<Client> {
        let bound_object_ref = bound_to.map(|pod| BoundObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(pod.name.clone()),
            uid: Some(pod.uid.clone()),
        });
        let spec = TokenRequestSpec { bound_object_ref, expiration_seconds: Some(3600), ..Default::default() };
        let accounts: Api<ServiceAccount> = Api::namespaced(self.admin.clone(), namespace);
        let request = TokenRequest { spec, ..Default::default() };
        let token = accounts.create_token_request(account, &PostParams::default(), &request).await?;
        let token = token.status.context("no token")?.token;
        let mut config = config().await?;
        config.auth_info = AuthInfo { token: Some(token.into()), ..Default::default() };
        Ok(Client::try_from(config)?)
    }
}

/// Also where a test failed: pods and namespaces of it would stay.
impl Drop for Installed {
    fn drop(&mut self) {
        let (Ok(helm), Ok(kubectl), Ok(kubeconfig)) = (bench::helm(), bench::kubectl(), bench::kubeconfig()) else { return };
        let quietly = |program: PathBuf, args: &[&str]| {
            let mut command = std::process::Command::new(program);
            let _ = command.args(args).arg("--kubeconfig").arg(&kubeconfig).output();
        };
        quietly(helm, &["uninstall", NAME, "--namespace", &self.system]);
        // A test may have made one of that name.
        quietly(kubectl.clone(), &["delete", "runtimeclass", &self.jobs, "--ignore-not-found"]);
        quietly(kubectl, &["delete", "namespace", &self.system, &self.jobs, "--ignore-not-found", "--wait=false"]);
    }
}

/// A pod as a token names it.
#[derive(Clone, Debug)]
pub struct PodRef {
    pub name: String,
    pub uid: String,
}

fn merge(into: &mut Value, more: &Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (key, value) in more {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, more) => *into = more.clone(),
    }
}
