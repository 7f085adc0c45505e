//! How soon a step runs, and what the API server is asked for it: a bare pod, a plain Job, and our job, in turn.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use ckrv_tests::audit::{Audit, Mark, Request};
use ckrv_tests::bench;
use ckrv_tests::kube::{kubectl, kubectl_with};
use ckrv_tests::repo::Repo;
use ckrv_tests::scene::{Scene, script_spec};
use ckrv_tests::server::Setup;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{percentile, row};

const ROUNDS: usize = 20;
/// What both the bare pod and the agent run first. The kernel's own clock in hundredths, by the shell alone: the image's `date` knows seconds.
const SAY_WHEN: &str = "read up rest < /proc/uptime; echo at=$up=";
const IMAGE: &str = "localhost/ckrv/script:1";
const IDLE: Duration = Duration::from_secs(60);

/// What was taken of one way to run the step.
#[derive(Debug)]
struct Taken {
    /// Seconds until the first instruction, in order.
    seconds: Vec<f64>,
    /// Requests for one, of who makes the pods: kubectl, the Job's controller, our two processes.
    asked: f64,
    /// With scheduler, kubelet and the other controllers.
    in_all: f64,
}

/// A way to run it without us, in a namespace of its own.
struct Plain {
    kind: &'static str,
    namespace: String,
    /// kubectl's requests of all rounds; what the bench itself asks is not among them.
    by_kubectl: usize,
    seconds: Vec<f64>,
}

struct Bench {
    scene: Scene,
    audit: Audit,
    /// Requests a second of a dispatcher that has nothing to do.
    idle: f64,
}

pub async fn run() -> Result<()> {
    bench::always_in_cluster();
    let bench = Bench::start().await?;
    let (mut pod, mut job) = (bench.plain("pod").await?, bench.plain("job").await?);
    let (mut ours, mut ids, mut steps) = (Vec::new(), Vec::new(), Vec::new());
    // The first of each finds nothing in any cache, and its time is not counted.
    let (mark, began) = (bench.audit.mark()?, now()?);
    for _ in 0..=ROUNDS {
        bench.run_plain(&mut pod).await?;
        bench.run_plain(&mut job).await?;
        let (id, seconds, of_steps) = bench.run_ours().await?;
        ours.push(seconds);
        steps.push(of_steps);
        ids.push(id);
    }
    for id in &ids {
        bench.scene.server.cluster()?.gone(id).await?;
    }
    let idle = bench.idle * (now()? - began);
    let ours = bench.ours(mark, ours, idle)?;
    let (pod, job) = (bench.taken(mark, pod)?, bench.taken(mark, job)?);
    print(&pod, &job, &ours, bench.idle);
    print_steps(&steps);
    for (namespace, _) in [&pod, &job] {
        kubectl(&["delete", "namespace", namespace, "--wait=false"]).await?;
    }
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
        let audit = Audit::open()?;
        let mark = audit.mark()?;
        tokio::time::sleep(IDLE).await;
        let idle = audit.since(mark)?.iter().filter(|request| is_ours(request)).count() as f64 / IDLE.as_secs_f64();
        Ok(Self { scene, audit, idle })
    }

    async fn plain(&self, kind: &'static str) -> Result<Plain> {
        let namespace = format!("{}-{kind}", self.scene.server.cluster()?.namespace);
        let labels = json!({ "pod-security.kubernetes.io/enforce": "restricted" });
        let object = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace, "labels": labels } });
        kubectl_with(&["apply", "--filename", "-"], Some(&object.to_string())).await?;
        Ok(Plain { kind, namespace, by_kubectl: 0, seconds: Vec::new() })
    }

    /// By `kubectl apply`, from the start of that process.
    async fn run_plain(&self, plain: &mut Plain) -> Result<()> {
        let name = format!("{}-{}", plain.kind, plain.seconds.len());
        let (object, until) = if plain.kind == "job" {
            let spec = json!({ "backoffLimit": 0, "template": { "spec": spec() } });
            (json!({ "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": name }, "spec": spec }), "condition=Complete")
        } else {
            let object = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name }, "spec": spec() });
            (object, "jsonpath={.status.phase}=Succeeded")
        };
        let within = ["--namespace", plain.namespace.as_str()];
        let (mark, began) = (self.audit.mark()?, now()?);
        kubectl_with(&[&within[..], &["apply", "--filename", "-"]].concat(), Some(&object.to_string())).await?;
        let of_apply =
            self.audit.since(mark)?.into_iter().filter(|request| request.namespace == plain.namespace && is_kubectl(request));
        plain.by_kubectl += of_apply.count();
        let (name, until) = (format!("{}/{name}", plain.kind), format!("--for={until}"));
        kubectl(&[&within[..], &["wait", &name, &until, "--timeout=60s"]].concat()).await?;
        let log = kubectl(&[&within[..], &["logs", &name]].concat()).await?;
        plain.seconds.push(said(&log)? - began);
        Ok(())
    }

    /// By `ckrv run --cloud`, from the start of that process. Gives also how long each of its [`STEPS`] took.
    async fn run_ours(&self) -> Result<(String, f64, [f64; 4])> {
        let spec = self.scene.spec(script_spec("", SAY_WHEN))?;
        let (mark, began) = (self.audit.mark()?, now()?);
        let id = self.scene.ckrv(&["run", "--cloud", &spec]).await?.ok()?;
        self.scene.ckrv(&["wait", &id]).await?.ok().with_context(|| self.scene.server.log())?;
        let log = self.scene.ckrv(&["logs", &id]).await?.ok()?;
        let ran = said(&log)?;
        let requests = self.audit.since(mark)?;
        // The audit log has the time of day.
        let boot = Timestamp::now().duration_since(Timestamp::UNIX_EPOCH).as_secs_f64() - now()?;
        let first = |agent: &str, verb: &str, resource: &str| -> Result<f64> {
            let is_it =
                |request: &&Request| request.agent.starts_with(agent) && request.verb == verb && request.resource == resource;
            let request = requests.iter().find(is_it).with_context(|| format!("{agent} never asked to {verb} {resource}"))?;
            let at: Timestamp = request.at.parse()?;
            Ok(at.duration_since(Timestamp::UNIX_EPOCH).as_secs_f64() - boot)
        };
        let claimed = first("ckrv-dispatcher", "create", "pods")?;
        let reports = first("ckrv-dispatcher", "create", "tokenreviews")?;
        let planned = first("ckrv-job-runner", "create", "pods")?;
        Ok((id, ran - began, [claimed - began, reports - claimed, planned - reports, ran - planned]))
    }

    fn taken(&self, mark: Mark, plain: Plain) -> Result<(String, Taken)> {
        let requests: Vec<Request> = self
            .audit
            .since(mark)?
            .into_iter()
            .filter(|request| request.namespace == plain.namespace && !is_kubectl(request))
            .collect();
        let by_controller = requests.iter().filter(|request| request.user.ends_with(":job-controller")).count();
        let each = |count: usize| count as f64 / plain.seconds.len() as f64;
        let taken = Taken {
            asked: each(plain.by_kubectl + by_controller),
            in_all: each(plain.by_kubectl + requests.len()),
            seconds: sorted(plain.seconds),
        };
        Ok((plain.namespace, taken))
    }

    /// `idle` of the requests would have been made without a job.
    fn ours(&self, mark: Mark, seconds: Vec<f64>, idle: f64) -> Result<Taken> {
        let namespace = &self.scene.server.cluster()?.jobs;
        let requests = self.audit.since(mark)?;
        let (ours, others): (Vec<_>, Vec<_>) = requests.into_iter().partition(is_ours);
        let others = others.iter().filter(|request| request.namespace == *namespace && !is_kubectl(request)).count();
        show(&ours, seconds.len());
        let each = |count: f64| count / seconds.len() as f64;
        let asked = each(ours.len() as f64 - idle);
        Ok(Taken { asked, in_all: asked + each(others as f64), seconds: sorted(seconds) })
    }
}

/// Without the first.
fn sorted(seconds: Vec<f64>) -> Vec<f64> {
    let mut counted = seconds.into_iter().skip(1).collect::<Vec<_>>();
    counted.sort_by(f64::total_cmp);
    counted
}

fn is_kubectl(request: &Request) -> bool {
    request.agent.starts_with("kubectl")
}

fn is_ours(request: &Request) -> bool {
    request.agent.starts_with("ckrv-")
}

/// To stderr: what the figure is made of.
fn show(requests: &[Request], jobs: usize) {
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for request in requests {
        let agent = request.agent.split('/').next().unwrap_or_default();
        *kinds.entry(format!("{agent} {} {}", request.verb, request.resource)).or_default() += 1;
    }
    eprintln!("  of {jobs} jobs: {kinds:?}");
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

/// By the clock that the pods see, too.
pub fn now() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/uptime")?;
    text.split(' ').next().context("no time in /proc/uptime")?.parse().context("not a time")
}

/// When the first instruction ran, by the clock of this very machine.
pub fn said(log: &str) -> Result<f64> {
    let at = log.split("at=").nth(1).and_then(|rest| rest.split('=').next()).with_context(|| format!("no time in: {log}"))?;
    at.parse().with_context(|| format!("{at} is no time"))
}

/// What follows what until the agent's first instruction.
const STEPS: [&str; 4] = ["until the job pod is asked for", "until its program reports", "clone and plan", "the agent pod"];

fn print_steps(rounds: &[[f64; 4]]) {
    let medians = STEPS.iter().enumerate().map(|(at, name)| {
        let step = sorted(rounds.iter().map(|round| round[at]).collect());
        format!("{name} {:.2} s", percentile(&step, 50))
    });
    row("of which (medians)", &medians.collect::<Vec<_>>().join(", "), "-", None);
}

fn print((_, pod): &(String, Taken), (_, job): &(String, Taken), ours: &Taken, idle: f64) {
    let mid = |taken: &Taken| percentile(&taken.seconds, 50);
    let times = |taken: &Taken| {
        format!("p50 {:.2} s, p90 {:.2} s (n = {})", mid(taken), percentile(&taken.seconds, 90), taken.seconds.len())
    };
    let name = "`ckrv run --cloud` until the agent's first instruction";
    let beside = format!("a bare pod of its image, by `kubectl apply`: {}", times(pod));
    row(name, &times(ours), &beside, Some(mid(ours) / mid(pod)));
    row("the same", &times(ours), &format!("a plain Job of it: {}", times(job)), Some(mid(ours) / mid(job)));
    let name = "API requests of ours for a job: dispatcher and job pod";
    let figure = format!("{:.1} (an idle dispatcher: {:.0} a minute, not counted)", ours.asked, idle * 60.0);
    let beside = format!("a plain Job's, by kubectl and the Job controller: {:.1}", job.asked);
    row(name, &figure, &beside, Some(ours.asked / job.asked));
    let beside = format!("a plain Job's: {:.1}; a bare pod's: {:.1}", job.in_all, pod.in_all);
    let name = "the same with scheduler, kubelet and controllers";
    row(name, &format!("{:.1}", ours.in_all), &beside, Some(ours.in_all / job.in_all));
}
