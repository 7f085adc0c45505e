//! How soon a step runs, and what the API server is asked for it: a bare pod, a plain Job, and our job, in turn.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use ckrv_tests::audit::{Audit, Mark, Request};
use ckrv_tests::bench;
use ckrv_tests::kube::{kubectl, kubectl_with};
use ckrv_tests::repo::Repo;
use ckrv_tests::scene::{Scene, script_spec};
use ckrv_tests::server::Setup;
use serde_json::{Value, json};

use crate::{percentile, row};

const ROUNDS: usize = 20;
/// What both the bare pod and the agent run first.
const SAY_WHEN: &str = "date +at=%s.%N=";
const IMAGE: &str = "localhost/ckrv/script:1";
/// For what the API server is asked after the end: owners, quotas, the last status.
const AFTER: Duration = Duration::from_secs(2);
const IDLE: Duration = Duration::from_secs(60);

/// Seconds until the first instruction, and requests.
#[derive(Debug, Default)]
struct Taken {
    seconds: Vec<f64>,
    /// Of who made the pods: kubectl, the Job's controller, our two processes.
    asked: Vec<f64>,
    /// With scheduler, kubelet and the other controllers.
    in_all: Vec<f64>,
}

struct Bench {
    scene: Scene,
    audit: Audit,
    /// Of the bare pods and plain Jobs.
    namespace: String,
    /// Requests a second of a dispatcher that has nothing to do.
    idle: f64,
}

pub async fn run() -> Result<()> {
    bench::always_in_cluster();
    let bench = Bench::start().await?;
    let (mut pod, mut job, mut ours) = (Taken::default(), Taken::default(), Taken::default());
    // The first of each finds nothing in any cache, and is not counted.
    for round in 0..=ROUNDS {
        let taken = [bench.pod(round).await?, bench.job(round).await?, bench.ours().await?];
        for (all, (seconds, asked, in_all)) in
            [&mut pod, &mut job, &mut ours].into_iter().zip(taken).skip(usize::from(round == 0) * 3)
        {
            all.seconds.push(seconds);
            all.asked.push(asked);
            all.in_all.push(in_all);
        }
    }
    bench.remove().await?;
    print(pod, job, ours, bench.idle);
    Ok(())
}

impl Bench {
    async fn start() -> Result<Self> {
        // The agent is not to wait for processor time that the bare pod has.
        let config = toml::toml! {
            [policy.max_resources]
            cpu_millis = 1000
        };
        let setup = Setup { config, ..Setup::default() };
        let scene = Scene::with(setup, Repo::small(&[("README.md", "# A project\n")])?).await?;
        let namespace = format!("{}-plain", scene.server.cluster()?.namespace);
        let labels = json!({ "pod-security.kubernetes.io/enforce": "restricted" });
        let object = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace, "labels": labels } });
        kubectl_with(&["apply", "--filename", "-"], Some(&object.to_string())).await?;
        let mut bench = Self { scene, audit: Audit::open()?, namespace, idle: 0.0 };
        let mark = bench.audit.mark()?;
        tokio::time::sleep(IDLE).await;
        bench.idle = bench.of_ours(mark)?.len() as f64 / IDLE.as_secs_f64();
        Ok(bench)
    }

    async fn pod(&self, round: usize) -> Result<(f64, f64, f64)> {
        let name = format!("pod-{round}");
        let object = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name }, "spec": spec() });
        self.plain(&object, &format!("pod/{name}"), "jsonpath={.status.phase}=Succeeded").await
    }

    async fn job(&self, round: usize) -> Result<(f64, f64, f64)> {
        let name = format!("job-{round}");
        let spec = json!({ "backoffLimit": 0, "template": { "spec": spec() } });
        let object = json!({ "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": name }, "spec": spec });
        self.plain(&object, &format!("job/{name}"), "condition=Complete").await
    }

    /// By `kubectl apply`, from the start of that process.
    async fn plain(&self, object: &Value, name: &str, until: &str) -> Result<(f64, f64, f64)> {
        let mark = self.audit.mark()?;
        let began = now();
        let within = ["--namespace", &self.namespace];
        kubectl_with(&[&within[..], &["apply", "--filename", "-"]].concat(), Some(&object.to_string())).await?;
        let by_kubectl = self.of_plain(mark)?.iter().filter(|request| request.agent.starts_with("kubectl")).count();
        let until = format!("--for={until}");
        kubectl(&[&within[..], &["wait", name, &until, "--timeout=60s"]].concat()).await?;
        tokio::time::sleep(AFTER).await;
        // Ours are asked for with the pods' ends, so here too the object is removed within the count.
        let requests = self.of_plain(mark)?;
        let log = kubectl(&[&within[..], &["logs", name]].concat()).await?;
        let others = requests.iter().filter(|request| !request.agent.starts_with("kubectl"));
        let by_controller = others.clone().filter(|request| request.user.ends_with(":job-controller")).count();
        Ok((said(&log)? - began, (by_kubectl + by_controller) as f64, (by_kubectl + others.count()) as f64))
    }

    /// By `ckrv run --cloud`, from the start of that process; until nothing of the job is left.
    async fn ours(&self) -> Result<(f64, f64, f64)> {
        let spec = self.scene.spec(script_spec("", SAY_WHEN))?;
        let mark = self.audit.mark()?;
        let began = now();
        let id = self.scene.ckrv(&["run", "--cloud", &spec]).await?.ok()?;
        self.scene.ckrv(&["wait", &id]).await?.ok().with_context(|| self.scene.server.log())?;
        let cluster = self.scene.server.cluster()?;
        cluster.gone(&id).await?;
        tokio::time::sleep(AFTER).await;
        let requests = self.of_ours(mark)?;
        let idle = self.idle * (now() - began);
        let asked = requests.len() as f64 - idle;
        let everybody = self.audit.since(mark)?.into_iter().filter(|request| request.namespace == cluster.jobs);
        let others = everybody.filter(|request| !is_ours(request) && !request.agent.starts_with("kubectl")).count();
        show(&requests);
        let log = self.scene.ckrv(&["logs", &id]).await?.ok()?;
        Ok((said(&log)? - began, asked, asked + others as f64))
    }

    fn of_plain(&self, mark: Mark) -> Result<Vec<Request>> {
        Ok(self.audit.since(mark)?.into_iter().filter(|request| request.namespace == self.namespace).collect())
    }

    fn of_ours(&self, mark: Mark) -> Result<Vec<Request>> {
        Ok(self.audit.since(mark)?.into_iter().filter(is_ours).collect())
    }

    async fn remove(&self) -> Result<()> {
        kubectl(&["delete", "namespace", &self.namespace, "--wait=false"]).await.map(drop)
    }
}

fn is_ours(request: &Request) -> bool {
    request.agent.starts_with("ckrv-")
}

/// To stderr: what the figure is made of.
fn show(requests: &[Request]) {
    let lines = requests.iter().map(|request| {
        let agent = request.agent.split('/').next().unwrap_or_default();
        format!("{agent} {} {}", request.verb, request.resource)
    });
    eprintln!("  {}", lines.collect::<Vec<_>>().join(", "));
}

/// As narrow as our pods.
fn spec() -> Value {
    let narrow =
        json!({ "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] } });
    json!({
        "restartPolicy": "Never",
        "automountServiceAccountToken": false,
        "terminationGracePeriodSeconds": 1,
        "securityContext": { "runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": { "type": "RuntimeDefault" } },
        "containers": [{ "name": "one", "image": IMAGE, "imagePullPolicy": "Never", "command": ["sh", "-c", SAY_WHEN],
            "securityContext": narrow }],
    })
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// When the first instruction ran, by the clock of this very machine.
fn said(log: &str) -> Result<f64> {
    let at = log.split("at=").nth(1).and_then(|rest| rest.split('=').next()).with_context(|| format!("no time in: {log}"))?;
    at.parse().with_context(|| format!("{at} is no time"))
}

fn print(mut pod: Taken, mut job: Taken, mut ours: Taken, idle: f64) {
    for all in [&mut pod, &mut job, &mut ours] {
        for list in [&mut all.seconds, &mut all.asked, &mut all.in_all] {
            list.sort_by(f64::total_cmp);
        }
    }
    let times = |taken: &Taken| {
        format!("p50 {:.2} s, p90 {:.2} s (n = {ROUNDS})", percentile(&taken.seconds, 50), percentile(&taken.seconds, 90))
    };
    let name = "`ckrv run --cloud` until the agent's first instruction";
    let ratio = |other: &Taken| Some(percentile(&ours.seconds, 50) / percentile(&other.seconds, 50));
    row(name, &times(&ours), &format!("a bare pod of its image, by `kubectl apply`: {}", times(&pod)), ratio(&pod));
    row("the same", &times(&ours), &format!("a plain Job of it: {}", times(&job)), ratio(&job));
    let mid = |list: &[f64]| percentile(list, 50);
    let beside = format!("a plain Job, kubectl and the Job controller: {:.0}", mid(&job.asked));
    let name = "API requests of ours for a job: dispatcher and job pod";
    let figure = format!("{:.1} (and {:.0} a minute of an idle dispatcher)", mid(&ours.asked), idle * 60.0);
    row(name, &figure, &beside, Some(mid(&ours.asked) / mid(&job.asked)));
    let beside = format!("a plain Job's: {:.0}, a bare pod's: {:.0}", mid(&job.in_all), mid(&pod.in_all));
    let ratio = Some(mid(&ours.in_all) / mid(&job.in_all));
    row("the same with scheduler, kubelet and controllers", &format!("{:.1}", mid(&ours.in_all)), &beside, ratio);
}
