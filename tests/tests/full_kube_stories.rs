//! The main job in a cluster: the chart's dispatcher, a job pod, agent pods; API, DynamoDB and S3 beside it.

use anyhow::{Context as _, Result};
use ckrv_tests::repo::Repo;
use ckrv_tests::scene::{Scene, script_spec};
use ckrv_tests::server::Setup;

/// The other scenarios get to the cluster by the same variable, set for a pass of their own.
fn in_cluster() -> Result<()> {
    anyhow::ensure!(ckrv_tests::bench::in_cluster(), "set CKRV_TEST_BACKEND=kube: `cargo xtask test` does so for these files");
    Ok(())
}

async fn scene() -> Result<Scene> {
    in_cluster()?;
    Scene::with(Setup::default(), Repo::small(&[("README.md", "# A project\n")])?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn us1_us4_a_job_goes_through_its_pods_and_is_pulled() -> Result<()> {
    let scene = scene().await?;
    let gate = scene.gate();
    let spec = script_spec("verify:\n  - test -s made.txt", &format!("echo made > made.txt; {}", gate.wait()));
    let id = scene.submit_spec(&spec).await?;
    let reached = gate.reached().await;
    reached.with_context(|| scene.server.log())?;
    let cluster = scene.server.cluster()?;
    assert_eq!(cluster.pods_of("job", &id).await?.len(), 1);
    assert_eq!(cluster.pods_of("agent", &id).await?.len(), 1);
    gate.open()?;
    scene.ckrv(&["wait", &id]).await?.ok().with_context(|| scene.server.log())?;
    scene.ckrv(&["pull", &id]).await?.ok()?;
    assert_eq!(std::fs::read_to_string(scene.project.join("made.txt"))?, "made\n");
    let log = scene.ckrv(&["logs", &id]).await?.ok()?;
    assert!(log.contains("by the kubernetes launcher"), "{log}");
    cluster.gone(&id).await
}
