//! A scene in the cluster whose jobs meet faults: private repositories, so that there is a secret; jobs that bear witness; and what must hold
//! of each afterwards.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use super::Pod;
use super::figures::{Figure, seconds, time, went_on};
use crate::api::Api;
use crate::bench;
use crate::forge::Forge;
use crate::kube::{Installed, kubectl};
use crate::leaks::Needles;
use crate::records::Records;
use crate::repo::Repo;
use crate::scene::Scene;
use crate::server::Setup;
use crate::wait::{PATIENCE, wait_until};
use crate::witness::{Witness, log_is_whole, one_end};

/// What an accepted job may take beyond its deadline.
const BEYOND: Duration = Duration::from_secs(300);
const PODS_GONE: Duration = Duration::from_secs(600);
const SECRETS_GONE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(250);

/// How a job that met a fault is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Success,
    /// In this state.
    State(&'static str),
}

/// A job whose agent runs.
#[derive(Clone, Debug)]
pub struct Target {
    pub witness: Witness,
    pub job: Pod,
    pub agent: Pod,
    pub fence: u64,
}

#[derive(Debug)]
pub struct Bench {
    pub scene: Scene,
    pub api: Api,
    pub random: StdRng,
    records: Records,
    forge: Forge,
    needles: Needles,
    made: usize,
}

impl Bench {
    pub async fn start(seed: u64) -> Result<Self> {
        bench::always_in_cluster();
        let repo = Repo::small(&[("README.md", "# A project\n")])?;
        let forge = Forge::https(&repo).await?;
        let mut setup = Setup::default();
        let ca = forge.ca_file().context("no authority")?;
        // Small, so that several scenes find room on the node.
        setup.config = format!(
            "ca_file = '{}'\n[policy]\nprivate_git_hosts = true\n[policy.max_resources]\ncpu_millis = 100\n",
            ca.display()
        )
        .parse()?;
        let scene = Scene::with(setup, repo).await?;
        forge.add_credential(&scene).await?;
        let (api, records) = (Api::login(&scene.server).await?, Records::of(&scene.server));
        let needles = Needles::of([forge.secret()?.as_str()]);
        Ok(Self { scene, api, random: StdRng::seed_from_u64(seed), records, forge, needles, made: 0 })
    }

    pub fn cluster(&self) -> Result<&Installed> {
        self.scene.server.cluster()
    }

    pub async fn submit(&mut self, lines: usize, timeout: Option<u64>) -> Result<Witness> {
        self.made += 1;
        let mut body = json!({ "git_repo_url": self.forge.url(), "git_credential_name": "forge" });
        if let Some(seconds) = timeout {
            body["timeout_seconds"] = seconds.into();
        }
        Witness::submit_with(&self.api, body, &format!("w{}", self.made), lines, PAUSE).await
    }

    /// Waits until its agent runs.
    pub async fn running(&self, witness: Witness) -> Result<Target> {
        let found = wait_until("the agent runs", PATIENCE * 3, async || self.target(&witness).await.ok().flatten());
        found.await.with_context(|| format!("job {}:\n{}", witness.id, self.scene.server.log()))
    }

    /// `None`: its agent doesn't run now.
    pub async fn target(&self, witness: &Witness) -> Result<Option<Target>> {
        let fence = self.records.job(&witness.id).await?["fence"].as_u64().context("no fence")?;
        let (job, agent) = (self.pod("job", &witness.id, fence).await?, self.pod("agent", &witness.id, fence).await?);
        let (Some(job), Some(agent)) = (job, agent) else { return Ok(None) };
        let runs = agent.shim().is_some() && !agent.agents().is_empty() && job.job_runner().is_some();
        Ok(runs.then(|| Target { witness: witness.clone(), job, agent, fence }))
    }

    /// The pod of its present attempt, from the first moment on.
    pub async fn job_pod(&self, witness: &Witness) -> Result<Option<Pod>> {
        let fence = self.records.job(&witness.id).await?["fence"].as_u64().context("no fence")?;
        self.pod("job", &witness.id, fence).await
    }

    async fn pod(&self, role: &str, job: &str, fence: u64) -> Result<Option<Pod>> {
        let pods = self.cluster()?.pods(role).await?;
        let label = |pod: &Value, name: &str| pod["metadata"]["labels"][name].as_str().map(str::to_owned);
        let is_its = |pod: &&Value| {
            label(pod, "ckrv.dev/job").as_deref() == Some(job) && label(pod, "ckrv.dev/fence") == Some(fence.to_string())
        };
        pods.iter().find(is_its).map(Pod::of).transpose()
    }

    /// The dispatchers' pods.
    pub async fn dispatchers(&self) -> Result<Vec<Pod>> {
        let args = ["get", "pods", "--namespace", &self.cluster()?.namespace, "--selector", "app.kubernetes.io/name=ckrv"];
        let list: Value = serde_json::from_str(&kubectl(&[&args[..], &["--output", "json"]].concat()).await?)?;
        list["items"].as_array().into_iter().flatten().map(Pod::of).collect()
    }

    /// Jobs whose agents all run, each at another line.
    pub async fn targets(&mut self, count: usize, lines: usize, timeout: Option<u64>) -> Result<Vec<Target>> {
        let mut witnesses = Vec::new();
        for _ in 0..count {
            witnesses.push(self.submit(lines, timeout).await?);
        }
        let mut targets = Vec::new();
        for witness in witnesses {
            targets.push(self.running(witness).await?);
        }
        tokio::time::sleep(Duration::from_millis(self.random.random_range(300..3000))).await;
        Ok(targets)
    }

    /// Waits for the jobs' ends, and looks at everything that must hold of each then.
    pub async fn settle_each(&self, targets: &[Target], fault: &'static str, struck: Timestamp, end: End) -> Result<()> {
        let settled = targets.iter().map(|target| self.settle(target, fault, struck, end));
        for figure in futures::future::join_all(settled).await {
            figure?.tell()?;
        }
        Ok(())
    }

    /// Waits for a job's end, and looks at everything that must hold of it then.
    pub async fn settle(&self, target: &Target, fault: &'static str, struck: Timestamp, end: End) -> Result<Figure> {
        let settled = self.settle_all(target, fault, struck, end).await;
        settled
            .with_context(|| format!("{fault}, seed {}: job {}\n{}", bench::seed(), target.witness.id, self.scene.server.log()))
    }

    async fn settle_all(&self, target: &Target, fault: &'static str, struck: Timestamp, end: End) -> Result<Figure> {
        let id = &target.witness.id;
        let deadline = time(&self.records.job(id).await?, "deadline")?;
        let left = deadline.duration_since(Timestamp::now()).as_secs().max(0).unsigned_abs();
        self.api.ended(id, Duration::from_secs(left) + BEYOND).await?;
        let record = self.records.job(id).await?;
        match end {
            End::Success => drop(target.witness.check(&self.api, &self.scene.server).await?),
            End::State(state) => ensure!(record["state"] == state, "it ended otherwise: {record:#}"),
        }
        one_end(&self.records.events(id).await?)?;
        let log = log_is_whole(&self.api, id, &record).await?;
        self.gone(id).await?;
        let gone = Timestamp::now();
        let recovery = seconds(struck, went_on(&log, &record, struck, target.fence)?);
        let figure = Figure {
            fault,
            recovery: (record["state"] != "timeout").then_some(recovery),
            attempts: record["attempt"].as_u64().context("no attempt")?,
            end: record["state"].as_str().context("no state")?.to_owned(),
            pods_gone: seconds(time(&record, "completed_at")?, gone),
        };
        ensure!(self.api.log(id).await? == log, "its log has changed behind its end");
        Ok(figure)
    }

    async fn gone(&self, id: &str) -> Result<()> {
        let left = async || {
            let cluster = self.cluster().ok()?;
            let mut left = cluster.pods_of("job", id).await.ok()?;
            left.extend(cluster.pods_of("agent", id).await.ok()?);
            left.is_empty().then_some(())
        };
        wait_until(&format!("no pod of job {id} is left"), PODS_GONE, left).await
    }

    /// Neither the cluster's objects nor what a node keeps of these pods has the secret; call it when their jobs have ended. Of a node that is
    /// away only the objects can be looked at.
    pub async fn keeps_no_secret(&self, targets: &[Target], node_is_there: bool) -> Result<()> {
        ensure!(!self.needles.are_in(self.cluster()?.everything().await?.as_bytes()), "an object of the cluster has a secret");
        for pod in targets.iter().flat_map(|target| [&target.job, &target.agent]).filter(|_| node_is_there) {
            let empty = async || kept(pod).ok().filter(Vec::is_empty).map(drop);
            let gone = wait_until("nothing of an ended job's pod is kept", SECRETS_GONE, empty).await;
            gone.with_context(|| format!("{}: {:?}", pod.name, kept(pod)))?;
        }
        Ok(())
    }
}

/// What the node has of a pod: processes, volumes, logs.
fn kept(pod: &Pod) -> Result<Vec<PathBuf>> {
    let folder = bench::kube_folder()?;
    let mut kept: Vec<_> = pod.processes().into_iter().map(|pid| PathBuf::from(format!("/proc/{pid}"))).collect();
    kept.extend(Some(folder.join("kubelet/pods").join(&pod.uid)).filter(|path| path.exists()));
    for entry in std::fs::read_dir(folder.join("pod-logs"))? {
        let path = entry?.path();
        kept.extend(Some(path).filter(|path| path.to_string_lossy().ends_with(&pod.uid)));
    }
    Ok(kept)
}
