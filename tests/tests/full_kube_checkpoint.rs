//! Checkpoints in a cluster: what an attempt's pods take with them, and what the next one has.

use anyhow::{Context as _, Result, ensure};
use ckrv_tests::bench;
use ckrv_tests::kube::kubectl;
use ckrv_tests::repo::Repo;
use ckrv_tests::scene::Scene;
use ckrv_tests::server::Setup;
use ckrv_tests::wait::{PATIENCE, wait_until};

async fn scene(every_seconds: u32) -> Result<Scene> {
    bench::always_in_cluster();
    let config = format!("[checkpoints]\nevery_seconds = {every_seconds}").parse()?;
    let setup = Setup { config, ..Setup::default() };
    Scene::with(setup, Repo::small(&[("README.md", "# A project\n")])?).await
}

async fn until_log_says(scene: &Scene, id: &str, what: &str) -> Result<String> {
    let said = async || scene.ckrv(&["logs", id]).await.ok()?.ok().ok().filter(|log| log.contains(what));
    wait_until(&format!("the log says {what:?}"), PATIENCE * 3, said).await.with_context(|| scene.server.log())
}

async fn remove(scene: &Scene, role: &str, id: &str, grace: u32) -> Result<()> {
    let cluster = scene.server.cluster()?;
    let pod = cluster.pods_of(role, id).await?.pop().with_context(|| format!("no {role} pod"))?;
    let grace = format!("--grace-period={grace}");
    let mut args = vec!["delete", "pod", &pod, "--namespace", &cluster.jobs, &grace, "--wait=false"];
    if grace.ends_with("=0") {
        args.push("--force");
    }
    kubectl(&args).await.with_context(|| cluster.log()).map(drop)
}

/// Waits for the end; log and content of the file that each attempt has added a line to.
async fn pulled(scene: &Scene, id: &str) -> Result<(String, String)> {
    let waited = scene.ckrv(&["wait", id]).await?;
    let log = scene.ckrv(&["logs", id]).await?.ok()?;
    waited.ok().with_context(|| format!("{log}\n{}", scene.server.log()))?;
    scene.ckrv(&["pull", id]).await?.ok()?;
    Ok((log, std::fs::read_to_string(scene.project.join("steps.txt"))?))
}

/// One step in each attempt, each before a gate that only the pod's end opens; the last one ends by itself.
fn steps(last: usize) -> String {
    format!(
        "echo step >> steps.txt; echo this is step $(wc -l < steps.txt); if [ $(wc -l < steps.txt) -lt {last} ]; then sleep 600; fi"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_whose_pod_is_removed_at_once_is_followed_by_one_that_goes_on() -> Result<()> {
    let scene = scene(5).await?;
    let id = scene.submit(&steps(3)).await?;
    until_log_says(&scene, &id, "checkpoint 1 is kept").await?;
    remove(&scene, "agent", &id, 0).await?;
    until_log_says(&scene, &id, "goes on from the checkpoint of attempt 1").await?;
    let two = async || {
        let log = scene.ckrv(&["logs", &id]).await.ok()?.ok().ok()?;
        (log.matches("checkpoint 1 is kept").count() == 2).then_some(())
    };
    wait_until("the second attempt has one of its own", PATIENCE * 3, two).await.with_context(|| scene.server.log())?;
    remove(&scene, "job", &id, 0).await?;
    let (log, steps) = pulled(&scene, &id).await?;
    ensure!(log.contains("goes on from the checkpoint of attempt 2"), "{log}");
    ensure!(steps == "step\nstep\nstep\n", "{steps:?}\n{log}");
    scene.server.cluster()?.gone(&id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_asked_to_leave_keeps_one_last_checkpoint() -> Result<()> {
    let scene = scene(3600).await?;
    let id = scene.submit(&steps(3)).await?;
    // First the agent's pod, then the job's.
    until_log_says(&scene, &id, "this is step 1").await?;
    remove(&scene, "agent", &id, 30).await?;
    until_log_says(&scene, &id, "this is step 2").await?;
    remove(&scene, "job", &id, 30).await?;
    let (log, steps) = pulled(&scene, &id).await?;
    ensure!(log.contains("asked to leave its machine"), "{log}");
    for attempt in [1, 2] {
        ensure!(log.contains(&format!("goes on from the checkpoint of attempt {attempt}")), "{log}");
    }
    ensure!(steps == "step\nstep\nstep\n", "{steps:?}\n{log}");
    scene.server.cluster()?.gone(&id).await
}
