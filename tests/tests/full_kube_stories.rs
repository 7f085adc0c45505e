//! The main job in a cluster: the chart's dispatchers, a job pod, agent pods; API, DynamoDB and S3 beside it. The scenarios of `full_agents`
//! and `full_git` come here too, in a pass of their own (`CKRV_TEST_BACKEND=kube`).

use std::time::Duration;

use anyhow::{Context as _, Result};
use ckrv_tests::bench;
use ckrv_tests::kube::{Installed, kubectl};
use ckrv_tests::repo::Repo;
use ckrv_tests::scene::{Scene, script_spec};
use ckrv_tests::server::Setup;
use ckrv_tests::wait::{PATIENCE, wait_until};
use tokio::sync::{Semaphore, SemaphorePermit};

/// The node has two processors.
static NODE: Semaphore = Semaphore::const_new(3);

async fn scene() -> Result<(Scene, SemaphorePermit<'static>)> {
    bench::always_in_cluster();
    let turn = NODE.acquire().await?;
    Ok((Scene::with(Setup::default(), Repo::small(&[("README.md", "# A project\n")])?).await?, turn))
}

/// Waits for success; what the log says with it.
async fn succeeds(scene: &Scene, id: &str) -> Result<String> {
    let waited = scene.ckrv(&["wait", id]).await?;
    let log = scene.ckrv(&["logs", id]).await?.ok()?;
    waited.ok().with_context(|| format!("{log}\n{}", scene.server.log()))?;
    Ok(log)
}

async fn delete(cluster: &Installed, namespace: &str, what: &[&str], grace: u32) -> Result<()> {
    let grace = format!("--grace-period={grace}");
    let mut args = vec!["delete", "--namespace", namespace, &grace, "--force", "--wait=false"];
    args.extend(what);
    kubectl(&args).await.with_context(|| cluster.log()).map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn us1_us4_a_job_goes_through_its_pods_and_is_pulled() -> Result<()> {
    let (scene, _turn) = scene().await?;
    let gate = scene.gate();
    let spec = script_spec("verify:\n  - test -s made.txt", &format!("echo made > made.txt; {}", gate.wait()));
    let id = scene.submit_spec(&spec).await?;
    gate.reached().await.with_context(|| scene.server.log())?;
    let cluster = scene.server.cluster()?;
    assert_eq!(cluster.pods_of("job", &id).await?.len(), 1);
    assert_eq!(cluster.pods_of("agent", &id).await?.len(), 1);
    gate.open()?;
    let log = succeeds(&scene, &id).await?;
    assert!(log.contains("by the kubernetes launcher"), "{log}");
    scene.ckrv(&["pull", &id]).await?.ok()?;
    assert_eq!(std::fs::read_to_string(scene.project.join("made.txt"))?, "made\n");
    cluster.gone(&id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_pod_that_is_removed_at_once_gives_another_attempt() -> Result<()> {
    let (scene, _turn) = scene().await?;
    let gate = scene.gate();
    let id = scene.submit(&format!("echo made > made.txt; {}", gate.wait())).await?;
    gate.reached().await.with_context(|| scene.server.log())?;
    let cluster = scene.server.cluster()?;
    let pods = cluster.pods_of("job", &id).await?;
    delete(cluster, &cluster.jobs, &["pod", &pods[0]], 0).await?;
    let next = wait_until("another attempt has its pod", PATIENCE * 3, async || {
        cluster.pods_of("job", &id).await.ok()?.into_iter().find(|pod| *pod != pods[0])
    });
    next.await.with_context(|| scene.server.log())?;
    wait_until("the second attempt's agent stands before the gate", PATIENCE * 2, async || gate.open().ok()).await?;
    let log = succeeds(&scene, &id).await?;
    assert!(log.contains("attempt 2"), "{log}");
    cluster.gone(&id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_pod_that_is_removed_at_once_is_no_success() -> Result<()> {
    let (scene, _turn) = scene().await?;
    let gate = scene.gate();
    let id = scene.submit(&format!("echo made > made.txt; {}", gate.wait())).await?;
    gate.reached().await.with_context(|| scene.server.log())?;
    let cluster = scene.server.cluster()?;
    let pods = cluster.pods_of("agent", &id).await?;
    delete(cluster, &cluster.jobs, &["pod", &pods[0]], 0).await?;
    wait_until("another agent stands before the gate", PATIENCE * 3, async || {
        let pods_now = cluster.pods_of("agent", &id).await.ok()?;
        if pods_now.iter().all(|pod| *pod == pods[0]) {
            return None;
        }
        gate.open().ok()
    })
    .await
    .with_context(|| scene.server.log())?;
    let log = succeeds(&scene, &id).await?;
    assert!(log.contains("attempt 2"), "{log}");
    cluster.gone(&id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_on_while_all_dispatchers_are_killed() -> Result<()> {
    let (scene, _turn) = scene().await?;
    let gate = scene.gate();
    let id = scene.submit(&format!("echo one; echo made > made.txt; {}; echo two", gate.wait())).await?;
    gate.reached().await.with_context(|| scene.server.log())?;
    let cluster = scene.server.cluster()?;
    delete(cluster, &cluster.namespace, &["pods", "--all"], 0).await?;
    gate.open()?;
    // The job pod ends its work meanwhile, and waits for somebody to report to.
    cluster.ready().await?;
    let log = succeeds(&scene, &id).await?;
    assert!(log.contains("one") && log.contains("two") && !log.contains("attempt 2"), "{log}");
    cluster.gone(&id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_job_leaves_no_pod() -> Result<()> {
    let (scene, _turn) = scene().await?;
    let gate = scene.gate();
    let id = scene.submit(&gate.wait()).await?;
    gate.reached().await.with_context(|| scene.server.log())?;
    scene.ckrv(&["cancel", &id]).await?.ok()?;
    scene.until(&id, "cancelled").await?;
    scene.server.cluster()?.gone(&id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_past_its_deadline_times_out_and_leaves_no_pod() -> Result<()> {
    let (scene, _turn) = scene().await?;
    let spec = scene.spec(script_spec("", "echo begun; sleep 600"))?;
    let id = scene.ckrv(&["run", "--cloud", "--timeout", "60s", &spec]).await?.ok()?;
    let ended = async || scene.job(&id).await.ok().filter(|job| job["state"] == "timeout");
    let job = wait_until("the job timed out", Duration::from_secs(180), ended).await.with_context(|| scene.server.log())?;
    assert!(job["error_message"].as_str().is_some_and(|text| text.contains("time limit of 60 seconds")), "{job}");
    scene.server.cluster()?.gone(&id).await
}
