//! The chart, installed in the test cluster: the dispatcher of one test, in namespaces of its own.

use std::path::Path;
use std::process::{Output, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::aws::Aws;
use crate::bench;
use crate::relay::Relay;
use crate::wait::{PATIENCE, wait_until};

const RELEASE: &str = "ckrv";
/// What of a server's configuration the chart writes itself.
const OF_THE_CHART: [&str; 7] = ["store", "worker", "metrics_listen", "gateway", "kubernetes", "ca_file", "public_url"];

/// Dropped, it is uninstalled and its namespaces go.
#[derive(Debug)]
pub struct Installed {
    /// The dispatcher's.
    pub namespace: String,
    /// The jobs'.
    pub jobs: String,
    _relays: Vec<Relay>,
    values: tempfile::NamedTempFile,
}

impl Installed {
    /// Installs the chart with this server.toml on the stand-ins of `aws`, and waits until its dispatchers take jobs.
    /// `api_server`: where they ask the cluster instead of at its own Service.
    pub async fn install(config: &toml::Table, aws: &Aws, replicas: u32, api_server: Option<&str>) -> Result<Self> {
        let namespace = format!("ckrv-{:08x}", rand::random::<u32>());
        let jobs = format!("{namespace}-jobs");
        let host = bench::kube_host()?;
        let mut relays = Vec::new();
        let mut endpoints = serde_json::Map::new();
        for (names, url) in
            [(["dynamodb"].as_slice(), &aws.dynamodb), (&["s3"], &aws.s3), (&["kms", "secrets_manager", "ssm"], &aws.other)]
        {
            let (relay, there) = Relay::to_url(host, url).await?;
            relays.push(relay);
            endpoints.extend(names.iter().map(|name| ((*name).to_owned(), json!(there))));
        }
        let mut values = values(config, aws, &jobs, &Value::Object(endpoints), replicas)?;
        values["network"]["apiServer"]["url"] = json!(api_server.unwrap_or_default());
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), values.to_string())?;
        let installed = Self { namespace, jobs, _relays: relays, values: file };
        installed.secret(aws).await?;
        installed.helm("install").await?;
        installed.ready().await?;
        Ok(installed)
    }

    /// What the SDK finds its credentials by; in a real account there would be a role.
    async fn secret(&self, aws: &Aws) -> Result<()> {
        let data: serde_json::Map<_, _> = aws.environment().into_iter().map(|(name, value)| (name, json!(value))).collect();
        let object = json!({
            "apiVersion": "v1", "kind": "List", "items": [
                { "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": self.namespace } },
                { "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "store", "namespace": self.namespace }, "stringData": data },
            ],
        });
        kubectl_with(&["apply", "-f", "-"], Some(&object.to_string())).await.map(drop)
    }

    async fn helm(&self, verb: &str) -> Result<()> {
        let mut helm = Command::new(bench::helm()?);
        helm.args([verb, RELEASE])
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("infra/helm/ckrv"))
            .args(["--namespace", &self.namespace]);
        helm.arg("--values").arg(self.values.path()).env("KUBECONFIG", bench::kubeconfig()?);
        said(helm.stdin(Stdio::null()).output().await.context("can't start helm")?).map(drop)
    }

    /// Waits until all replicas are ready.
    pub async fn ready(&self) -> Result<()> {
        let args = ["rollout", "status", "--namespace", &self.namespace, "deployment/ckrv", "--timeout=90s"];
        if let Err(error) = kubectl(&args).await {
            let pods = kubectl(&["describe", "pods", "--namespace", &self.namespace]).await.unwrap_or_default();
            bail!("the dispatchers are never ready: {error:#}\n{pods}\n{}", self.log());
        }
        Ok(())
    }

    /// What all its dispatchers have said, also those that were started again.
    pub fn log(&self) -> String {
        let print = |more: &[&str]| {
            let (kubectl, kubeconfig) = (bench::kubectl().ok()?, bench::kubeconfig().ok()?);
            let mut command = std::process::Command::new(kubectl);
            command.arg("--kubeconfig").arg(kubeconfig).args(["logs", "--namespace", &self.namespace, "--prefix", "--tail=-1"]);
            let output = command.args(["--selector", "app.kubernetes.io/name=ckrv"]).args(more).output().ok()?;
            Some(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        print(&["--previous"]).unwrap_or_default() + &print(&[]).unwrap_or_default()
    }

    /// The pods of a role: `job`, `agent`, as the API server tells them.
    pub async fn pods(&self, role: &str) -> Result<Vec<Value>> {
        let label = format!("ckrv.dev/role={role}");
        let text = kubectl(&["get", "pods", "--namespace", &self.jobs, "--selector", &label, "--output", "json"]).await?;
        let list: Value = serde_json::from_str(&text)?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Names of the pods of a role and job.
    pub async fn pods_of(&self, role: &str, job: &str) -> Result<Vec<String>> {
        let of_job = |pod: &&Value| pod["metadata"]["labels"]["ckrv.dev/job"] == job;
        let pods = self.pods(role).await?;
        Ok(pods.iter().filter(of_job).filter_map(|pod| pod["metadata"]["name"].as_str()).map(str::to_owned).collect())
    }

    /// Runs a shell command in the agent's container of a pod.
    pub async fn exec(&self, pod: &str, script: &str) -> Result<String> {
        kubectl(&["exec", "--namespace", &self.jobs, pod, "--container", "agent", "--", "sh", "-c", script]).await
    }

    /// Every object of its two namespaces, but for the gateway's key and what opens the store.
    pub async fn everything(&self) -> Result<String> {
        let mut text = String::new();
        for namespace in [&self.namespace, &self.jobs] {
            let kinds = "pods,configmaps,events,serviceaccounts";
            text += &kubectl(&["get", kinds, "--namespace", namespace, "--output", "yaml", "--show-managed-fields"]).await?;
        }
        Ok(text + &kubectl(&["get", "secrets", "--namespace", &self.jobs, "--output", "yaml"]).await?)
    }

    /// Waits until no pod of the job is left.
    pub async fn gone(&self, job: &str) -> Result<()> {
        let left = async || {
            let mut left = self.pods_of("job", job).await.ok()?;
            left.extend(self.pods_of("agent", job).await.ok()?);
            left.is_empty().then_some(())
        };
        wait_until(&format!("no pod of job {job} is left"), PATIENCE * 2, left).await
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        let (Ok(kubectl), Ok(kubeconfig), Ok(helm)) = (bench::kubectl(), bench::kubeconfig(), bench::helm()) else {
            return;
        };
        let quiet = |command: &mut std::process::Command| {
            command.env("KUBECONFIG", &kubeconfig).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()
        };
        // The cluster's own end would take what is left.
        let _ = quiet(std::process::Command::new(helm).args(["uninstall", RELEASE, "--namespace", &self.namespace]));
        let namespaces = ["delete", "namespace", &self.namespace, &self.jobs, "--wait=false", "--ignore-not-found"];
        let _ = quiet(std::process::Command::new(kubectl).args(namespaces));
    }
}

/// What a shell command prints in the first agent pod of a namespace where it succeeds.
pub fn in_any_agent(jobs: &str, script: &str) -> Option<String> {
    let run = |args: &[&str]| {
        let mut command = std::process::Command::new(bench::kubectl().ok()?);
        command.arg("--kubeconfig").arg(bench::kubeconfig().ok()?).args(["--namespace", jobs]).args(args).stdin(Stdio::null());
        let output = command.output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let names =
        run(&["get", "pods", "--selector", "ckrv.dev/role=agent", "--field-selector=status.phase=Running", "--output=name"])?;
    names.lines().find_map(|pod| run(&["exec", pod, "--container", "agent", "--", "/bin/sh", "-c", script]))
}

fn values(config: &toml::Table, aws: &Aws, jobs: &str, endpoints: &Value, replicas: u32) -> Result<Value> {
    let mut rest = config.clone();
    rest.retain(|name, _| !OF_THE_CHART.contains(&name));
    // The test's node has two processors for all tests at once.
    let policy =
        rest.entry("policy").or_insert_with(|| toml::Table::new().into()).as_table_mut().context("policy is not a table")?;
    let most = policy.entry("max_resources").or_insert_with(|| toml::Table::new().into());
    most.as_table_mut().context("max_resources is not a table")?.entry("cpu_millis").or_insert(300.into());
    let image = bench::kube_image()?;
    let (repository, tag) = image.rsplit_once(':').with_context(|| format!("{image} has no tag"))?;
    let ca = match config.get("ca_file").and_then(toml::Value::as_str) {
        Some(path) => std::fs::read_to_string(path)?,
        None => String::new(),
    };
    Ok(json!({
        "image": { "repository": repository, "tag": tag, "pullPolicy": "Never" },
        "store": { "table": aws.table, "bucket": aws.bucket, "kmsKey": aws.kms_key, "region": "us-east-1", "endpoints": endpoints, "forcePathStyle": true },
        "config": rest.to_string(),
        "cloneCa": ca,
        "dispatcher": { "replicas": replicas, "extraEnvFrom": [{ "secretRef": { "name": "store" } }],
                        "resources": { "requests": { "cpu": "10m", "memory": "64Mi" }, "limits": { "memory": "512Mi" } },
                        "terminationGracePeriodSeconds": 15 },
        "jobs": { "namespace": jobs, "resources": { "cpu_millis": 50, "memory_mib": 512, "disk_mib": 2048 } },
        "agents": { "images": ["localhost/ckrv", "localhost/ckrv-test-agents", "localhost/ckrv-test-tiny", "localhost/ckrv-test-scratch"] },
        "network": { "apiServer": { "cidrs": ["0.0.0.0/0"] } },
    }))
}

/// Runs kubectl as the admin; what it prints.
pub async fn kubectl(args: &[&str]) -> Result<String> {
    kubectl_with(args, None).await
}

pub async fn kubectl_with(args: &[&str], stdin: Option<&str>) -> Result<String> {
    let mut command = Command::new(bench::kubectl()?);
    command.arg("--kubeconfig").arg(bench::kubeconfig()?).args(args).kill_on_drop(true);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("can't start kubectl")?;
    let mut input = child.stdin.take().context("kubectl has no stdin")?;
    let text = stdin.unwrap_or_default().to_owned();
    // It may not read it all.
    let _ = input.write_all(text.as_bytes()).await;
    drop(input);
    said(child.wait_with_output().await?).with_context(|| format!("kubectl {}", args.join(" ")))
}

fn said(output: Output) -> Result<String> {
    if !output.status.success() {
        bail!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
