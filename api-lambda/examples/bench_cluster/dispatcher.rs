//! One dispatcher on this machine, whose job pods go to nodes that don't exist; and its queue.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use backon::{ConstantBuilder, Retryable as _};
use ckrv_core::Timestamp;
use ckrv_core::id::{JobId, UserId};
use ckrv_core::job::JobRecord;
use ckrv_core::machine::Verb;
use ckrv_store::{NewJob, QuotaRule, Signals, StoreConfig, Stores};
use ckrv_tests::aws::Aws;
use ckrv_tests::bench;
use ckrv_tests::kube::kubectl_with;
use ckrv_tests::kwok::TAINT;
use ckrv_tests::server::{Server, Setup};
use ckrv_tests::wait::{PATIENCE, wait_until};
use futures::StreamExt as _;
use jiff::SignedDuration;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::json;
use uuid::Uuid;

/// Calls to the store at once.
const CLIENTS: usize = 16;
/// Longer than the measurement, in whose time nobody beats unless it is measured.
const LEASE: SignedDuration = SignedDuration::from_hours(2);

pub struct Dispatcher {
    pub server: Server,
    pub stores: Stores,
    pub namespace: String,
    pub gateway: SocketAddr,
    /// What signed the gateway's certificate, PEM.
    pub ca: String,
    metrics: String,
    owner: UserId,
    _files: tempfile::TempDir,
}

/// What a process has used.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    pub resident_mb: f64,
    pub highest_mb: f64,
    pub cpu_seconds: f64,
    pub files: usize,
}

impl Dispatcher {
    pub async fn start() -> Result<Self> {
        let (aws, host, files) = (Aws::make().await?, bench::kube_host()?, tempfile::tempdir()?);
        // Free a moment ago.
        let gateway = std::net::TcpListener::bind((host, 0))?.local_addr()?;
        let namespace = namespace().await?;
        let ca = certificate(files.path(), gateway)?;
        let path = |name: &str| files.path().join(name).display().to_string();
        let config = json!({
            "worker": "bench", "capacity": 20_000, "max_running": 20_000, "metrics_listen": "127.0.0.1:0",
            "gateway": { "listen": gateway.to_string(), "certificate": path("tls.crt"), "key": path("tls.key"), "drain_seconds": 1 },
            "kubernetes": {
                "namespace": namespace, "image": bench::kube_image()?, "image_pull_policy": "Never",
                "kubeconfig": bench::kubeconfig()?, "gateway_url": format!("https://{gateway}"),
                "job_node_selector": { "type": "kwok" },
                "tolerations": [{ "key": TAINT, "operator": "Exists", "effect": "NoSchedule" }],
                // The machine's own pace is what is measured.
                "creates_per_second": 1000,
            },
        });
        let mut whole = toml::Table::new();
        whole.insert("store".to_owned(), aws.store_config()?.into());
        let StoreConfig::Aws(store) = whole.remove("store").context("no store")?.try_into()? else { anyhow::bail!("not on AWS") };
        let stores = ckrv_store::open_aws(&store, Signals::default()).await?;
        let owner = ckrv_api::ensure_owner(&stores, ckrv_core::wire::Tier::Enterprise, Timestamp::now()).await?.id;
        let config = toml::Value::try_from(config)?.as_table().context("not a table")?.clone();
        let server = Server::start_on_aws(Setup { config, ..Setup::default() }, aws).await?;
        let printed = async || {
            let log = server.log();
            // The API has printed its own before.
            let mut lines = log.lines().filter_map(|line| line.strip_prefix("metrics at "));
            lines.nth(1).map(str::to_owned)
        };
        let metrics = wait_until("the dispatcher tells where its metrics are", PATIENCE, printed).await?;
        Ok(Self { server, stores, namespace, gateway, ca, metrics, owner, _files: files })
    }

    fn pid(&self) -> Result<Pid> {
        self.server.dispatcher_pid().context("the dispatcher has ended")
    }

    /// Fills the queue; the dispatcher stands still meanwhile.
    pub async fn fill(&self, jobs: usize) -> Result<()> {
        kill(self.pid()?, Signal::SIGSTOP)?;
        let made = futures::stream::iter(0..jobs).map(|_| self.make()).buffer_unordered(CLIENTS).collect::<Vec<_>>().await;
        kill(self.pid()?, Signal::SIGCONT)?;
        made.into_iter().collect::<Result<Vec<()>>>().map(drop)
    }

    async fn make(&self) -> Result<()> {
        let (id, now) = (JobId(Uuid::now_v7()), Timestamp::now());
        let job: JobRecord = serde_json::from_value(json!({
            "id": id, "owner": self.owner, "spec_key": format!("jobs/{id}/spec"), "state": "queued", "created_at": now,
            "updated_at": now, "not_before": now, "retention_seconds": 604_800, "quota_month": "2027-01",
            "request": { "git_repo_url": "https://git.example/shop.git", "git_base_branch": "main", "spec_id": "fix", "agent": "script",
                         "timeout_seconds": 36_000 },
        }))?;
        let quota = QuotaRule { month: "2027-01".to_owned(), included: None, cap: None, overage_micro_usd: 0, resets_at: now };
        self.stores
            .jobs
            .create_job(NewJob { job, idempotency: None, quota }, now)
            .await
            .map(drop)
            .map_err(|error| anyhow::anyhow!("{error:?}"))
    }

    /// Gives every running job a lease that outlasts the measurement: there is no job runner that would beat.
    pub async fn hold(&self) -> Result<Vec<JobRecord>> {
        // DynamoDB Local takes longer than DynamoDB may to give thousands of jobs.
        let running = (|| self.stores.jobs.running()).retry(ConstantBuilder::default().with_max_times(20)).await?;
        let now = Timestamp::now();
        let short = |job: &&JobRecord| job.lease.as_ref().is_some_and(|lease| lease.until < now + LEASE / 2);
        let beats = running.iter().filter(short).filter_map(|job| {
            let verb = Verb::Beat { claim: job.lease.as_ref()?.claim, fence: job.fence, until: now + LEASE };
            Some(async move { self.stores.jobs.apply(job.id, &verb, now).await })
        });
        // One that is refused has changed meanwhile; the next round sees it.
        let _ = futures::stream::iter(beats).buffer_unordered(CLIENTS).collect::<Vec<_>>().await;
        Ok(running)
    }

    /// A counter of its own metrics.
    pub async fn counted(&self, name: &str) -> Result<f64> {
        let text = reqwest::get(&self.metrics).await?.error_for_status()?.text().await?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.with_context(|| format!("no {name} among its metrics"))?.trim().parse().context("not a number")
    }

    pub fn used(&self) -> Result<Used> {
        let pid = self.pid()?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let kib = |name: &str| -> Result<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
            Ok(line.split_whitespace().next().context("no number")?.parse()?)
        };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |at: usize| -> Result<f64> { Ok(fields.get(at).context("too few fields")?.parse()?) };
        Ok(Used {
            resident_mb: kib("VmRSS:")? * 1024.0 / 1e6,
            highest_mb: kib("VmHWM:")? * 1024.0 / 1e6,
            // Of the user and of the kernel, in hundredths.
            cpu_seconds: (ticks(11)? + ticks(12)?) / 100.0,
            files: std::fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
        })
    }
}

async fn namespace() -> Result<String> {
    let name = format!("ckrv-bench-{:08x}", rand::random::<u32>());
    let of =
        |kind: &str, object: &str| json!({ "apiVersion": "v1", "kind": kind, "metadata": { "name": object, "namespace": name } });
    let mut home = of("Namespace", &name);
    home["metadata"] = json!({ "name": name, "labels": { "pod-security.kubernetes.io/enforce": "restricted" } });
    let items = [home, of("ServiceAccount", "ckrv-job"), of("ServiceAccount", "ckrv-agent")];
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
    kubectl_with(&["apply", "--filename", "-"], Some(&list.to_string())).await?;
    Ok(name)
}

/// Writes the gateway's certificate; gives who signed it.
fn certificate(folder: &std::path::Path, gateway: SocketAddr) -> Result<String> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(vec![gateway.ip().to_string()])?.signed_by(&key, &issuer)?;
    std::fs::write(folder.join("tls.key"), key.serialize_pem())?;
    std::fs::write(folder.join("tls.crt"), certificate.pem())?;
    Ok(issuer.pem())
}
