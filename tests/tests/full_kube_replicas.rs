//! Several dispatchers, no leader: each job runs once, whoever took it, and goes on while replicas come and go.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ckrv_tests::bench;
use ckrv_tests::kube::{Installed, kubectl};
use ckrv_tests::repo::Repo;
use ckrv_tests::scene::{Gate, Scene};
use ckrv_tests::server::Setup;
use ckrv_tests::wait::{PATIENCE, wait_until};
use serde_json::Value;

/// Four jobs are eight pods, which start in turn on two processors.
const LONG: Duration = Duration::from_secs(180);

async fn dispatchers(cluster: &Installed) -> Result<Vec<String>> {
    let args =
        ["get", "pods", "--namespace", &cluster.namespace, "--selector", "app.kubernetes.io/name=ckrv", "--output", "json"];
    let list: Value = serde_json::from_str(&kubectl(&args).await?)?;
    let names = list["items"].as_array().into_iter().flatten().filter_map(|pod| pod["metadata"]["name"].as_str());
    Ok(names.map(str::to_owned).collect())
}

/// The replicas that said that they claimed this job.
async fn claimers(cluster: &Installed, job: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for name in dispatchers(cluster).await? {
        let log = kubectl(&["logs", "--namespace", &cluster.namespace, &name]).await?;
        let claims = log.lines().filter(|line| line.contains("claimed a job") && line.contains(job)).count();
        found.extend(std::iter::repeat_n(name, claims));
    }
    Ok(found)
}

async fn scale(cluster: &Installed, replicas: usize) -> Result<()> {
    let number = format!("--replicas={replicas}");
    kubectl(&["scale", "--namespace", &cluster.namespace, "deployment/ckrv", &number]).await?;
    let there = async || dispatchers(cluster).await.ok().filter(|names| names.len() == replicas).map(drop);
    wait_until("there are as many dispatchers as asked for", PATIENCE * 2, there).await?;
    cluster.ready().await
}

/// The script goes on at once, so that the word of who opened may be lost with its pod.
async fn open(scene: &Scene, gate: &Gate, id: &str) -> Result<()> {
    let cluster = scene.server.cluster()?;
    let opened = async || match gate.open() {
        Ok(()) => Some(()),
        Err(_) => cluster.pods_of("agent", id).await.ok().filter(Vec::is_empty).map(drop),
    };
    wait_until("a job went through its gate", LONG, opened).await.with_context(|| scene.server.log())
}

async fn succeeds_in_its_first_attempt(scene: &Scene, id: &str) -> Result<()> {
    let waited = scene.ckrv(&["wait", id]).await?;
    let log = scene.ckrv(&["logs", id]).await?.ok()?;
    waited.ok().with_context(|| format!("{log}\n{}", scene.server.log()))?;
    let job = scene.job(id).await?;
    ensure!(job["attempt"] == 1, "{job}\n{}", scene.server.log());
    ensure!(log.matches("by the kubernetes launcher").count() == 1, "it ran more than once: {log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_run_once_and_go_on_while_replicas_are_killed_and_scaled() -> Result<()> {
    bench::always_in_cluster();
    let config = toml::toml! {
        [policy.max_resources]
        cpu_millis = 100
    };
    let setup = Setup { config, replicas: 2, ..Setup::default() };
    let scene = Scene::with(setup, Repo::small(&[("README.md", "# A project\n")])?).await?;
    let cluster = scene.server.cluster()?;
    let gates: [Gate; 4] = std::array::from_fn(|_| scene.gate());
    let mut jobs = Vec::new();
    for gate in &gates {
        jobs.push(scene.submit(&format!("echo made > made.txt; {}", gate.wait())).await?);
    }
    let all_wait = async || gates.iter().all(Gate::was_reached).then_some(());
    wait_until("all jobs stand before their gates", LONG, all_wait).await.with_context(|| scene.server.log())?;
    for id in &jobs {
        ensure!(claimers(cluster, id).await?.len() == 1, "claimed more than once\n{}", scene.server.log());
        ensure!(cluster.pods_of("job", id).await?.len() == 1);
    }
    // Who took the first job is no more: somebody else hears of its end.
    let taker = claimers(cluster, &jobs[0]).await?.remove(0);
    kubectl(&["delete", "pod", "--namespace", &cluster.namespace, &taker, "--grace-period=0", "--force", "--wait=false"]).await?;
    open(&scene, &gates[0], &jobs[0]).await?;
    succeeds_in_its_first_attempt(&scene, &jobs[0]).await?;
    // One that is told to stop lets the jobs go on.
    cluster.ready().await?;
    let meanwhile = async {
        open(&scene, &gates[1], &jobs[1]).await?;
        succeeds_in_its_first_attempt(&scene, &jobs[1]).await
    };
    tokio::try_join!(scale(cluster, 1), meanwhile)?;
    scale(cluster, 3).await?;
    for number in [2, 3] {
        open(&scene, &gates[number], &jobs[number]).await?;
        succeeds_in_its_first_attempt(&scene, &jobs[number]).await?;
    }
    for id in &jobs {
        cluster.gone(id).await?;
    }
    Ok(())
}
