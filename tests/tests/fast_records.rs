//! What is stored, and what is refused before it is: late workers, unreadable records. The state machine's refusals themselves are
//! tested in `ckrv-core`, the store's atomicity in `ckrv-store`; here they meet through the real gateway.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ckrv_tests::api::Api;
use ckrv_tests::processes::{gone, runner, signal};
use ckrv_tests::records::{Records, Stored};
use ckrv_tests::scene::{Gate, Scene};
use ckrv_tests::wait::{PATIENCE, wait_until};
use ckrv_tests::witness::{log_is_whole, one_end};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;

/// A job runner that stands still in the middle of its job, as on a machine that was suspended or cut off, and has lost its lock: for
/// the dispatcher it is no more.
struct Frozen {
    scene: Scene,
    api: Api,
    records: Records,
    id: String,
    runner: Pid,
    gate: Gate,
    /// Its folder, kept from being swept.
    folder: PathBuf,
}

impl Frozen {
    async fn start() -> Result<Self> {
        let scene = Scene::start().await?;
        let api = Api::login(&scene.server).await?;
        let gate = scene.gate();
        let id = scene.submit(&format!("echo before\n{}\necho after\necho done > done.txt", gate.wait())).await?;
        gate.reached().await?;
        let records = Records::of(&scene.server);
        let fence = records.job(&id).await?["fence"].as_u64().context("no fence")?;
        let folder = records.attempt(&id, fence);
        let runner = runner(&folder).await?;
        signal(runner, Signal::SIGSTOP)?;
        Ok(Self { scene, api, records, id, runner, gate, folder })
    }

    /// From now on the dispatcher holds it for dead.
    fn lose_lock(&self) -> Result<()> {
        std::fs::remove_file(self.folder.join("lock")).context("there was no lock")
    }

    async fn ended(&self, state: &str) -> Result<Stored> {
        self.api.ended(&self.id, PATIENCE).await?;
        let record = self.records.job(&self.id).await?;
        ensure!(record["state"] == state, "{record:#}");
        self.records.stored(&self.id).await
    }

    /// Lets it go on, with everything that it wanted to report, until it gives up.
    async fn thaw(&self) -> Result<()> {
        self.gate.open()?;
        signal(self.runner, Signal::SIGCONT)?;
        gone(self.runner, PATIENCE).await
    }

    async fn is_unchanged(&self, before: &Stored) -> Result<()> {
        let after = self.records.stored(&self.id).await?;
        ensure!(*before == after, "a late report changed\n{before:#?}\nto\n{after:#?}");
        one_end(&self.records.events(&self.id).await?)?;
        log_is_whole(&self.api, &self.id, &self.records.job(&self.id).await?).await?;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn edge_a_worker_that_reports_after_a_cancel_changes_nothing() -> Result<()> {
    let frozen = Frozen::start().await?;
    frozen.scene.ckrv(&["cancel", &frozen.id]).await?.ok()?;
    frozen.lose_lock()?;
    let before = frozen.ended("cancelled").await?;
    frozen.thaw().await?;
    frozen.is_unchanged(&before).await
}

#[tokio::test(flavor = "multi_thread")]
async fn edge_a_worker_that_reports_after_a_takeover_changes_nothing() -> Result<()> {
    let frozen = Frozen::start().await?;
    frozen.lose_lock()?;
    frozen.gate.open()?;
    let before = frozen.ended("succeeded").await?;
    ensure!(frozen.records.job(&frozen.id).await?["attempt"] == 2, "nobody took over");
    frozen.thaw().await?;
    frozen.is_unchanged(&before).await
}

/// The takeover is still at work when the late worker comes back: it must end its attempt, not the other's.
#[tokio::test(flavor = "multi_thread")]
async fn edge_a_worker_that_comes_back_during_a_takeover_disturbs_nothing() -> Result<()> {
    let frozen = Frozen::start().await?;
    frozen.lose_lock()?;
    let second = async || {
        let record = frozen.records.job(&frozen.id).await.ok()?;
        (record["attempt"] == 2 && record["state"] == "executing").then_some(())
    };
    wait_until("the second attempt executes", PATIENCE, second).await?;
    signal(frozen.runner, Signal::SIGCONT)?;
    gone(frozen.runner, PATIENCE).await?;
    frozen.gate.open()?;
    frozen.ended("succeeded").await?;
    let record = frozen.records.job(&frozen.id).await?;
    ensure!(record["attempt"] == 2, "{record:#}");
    one_end(&frozen.records.events(&frozen.id).await?)?;
    log_is_whole(&frozen.api, &frozen.id, &record).await?;
    Ok(())
}

/// What the machine refuses leaves no trace: no event, no new version, no signal of it in the record.
#[tokio::test(flavor = "multi_thread")]
async fn edge_a_refused_event_is_not_stored() -> Result<()> {
    let scene = Scene::start().await?;
    let api = Api::login(&scene.server).await?;
    let id = scene.succeed("echo done > done.txt").await?;
    let records = Records::of(&scene.server);
    let before = records.stored(&id).await?;
    for _ in 0..3 {
        let refused = api.post(&format!("/v1/jobs/{id}/cancel"), &serde_json::json!({})).await;
        ensure!(refused.is_err(), "a job that has ended was cancelled: {refused:?}");
    }
    ensure!(records.stored(&id).await? == before, "a refused cancel was stored");
    Ok(())
}

/// Of three jobs one record is broken, one event and nothing else of another.
#[tokio::test(flavor = "multi_thread")]
async fn edge_an_unreadable_record_is_set_aside_and_named_and_the_rest_is_served() -> Result<()> {
    let mut scene = Scene::start().await?;
    let mut ids = Vec::new();
    for number in 0..3 {
        ids.push(scene.submit(&format!("echo {number} > {number}.txt")).await?);
    }
    for id in &ids {
        scene.ckrv(&["wait", id]).await?.ok()?;
    }
    scene.server.kill().await?;
    let records = Records::of(&scene.server);
    records.spoil(&ids[1], "{\"id\": 1, broken").await?;
    scene.server.start_again().await?;
    let listed: Value = serde_json::from_str(&scene.ckrv(&["list", "--json"]).await?.ok()?)?;
    for id in [&ids[0], &ids[2]] {
        ensure!(listed.to_string().contains(id.as_str()), "{id} is not listed: {listed}");
        scene.ckrv(&["diff", id]).await?.ok()?;
    }
    ensure!(!listed.to_string().contains(&ids[1]), "the broken one is listed: {listed}");
    let named = format!("job {}", ids[1]);
    ensure!(records.set_aside().await? == [named.clone()], "{:?}", records.set_aside().await?);
    ensure!(scene.server.log().contains(&named), "the server's log does not name it:\n{}", scene.server.log());
    // Its owner is not told that it never was.
    let asked = scene.ckrv(&["status", &ids[1]]).await?;
    ensure!(asked.code != 0 && asked.code != 4, "{asked:?}");
    // New work goes on, and after the next start the record is named again: at once, or when it is met.
    scene.succeed("echo more > more.txt").await?;
    scene.server.kill().await?;
    scene.server.start_again().await?;
    scene.ckrv(&["list"]).await?.ok()?;
    let log = async || scene.server.log().contains(&named).then_some(());
    wait_until("the next start names it", Duration::from_secs(10), log).await?;
    Ok(())
}

/// A running job's record, broken: the worst moment for it.
#[tokio::test(flavor = "multi_thread")]
async fn edge_an_unreadable_record_of_a_running_job_stops_nobody_else() -> Result<()> {
    let mut scene = Scene::start().await?;
    let gate = scene.gate();
    let broken = scene.submit(&gate.wait()).await?;
    gate.reached().await?;
    scene.server.kill().await?;
    let records = Records::of(&scene.server);
    records.spoil(&broken, "").await?;
    scene.server.start_again().await?;
    scene.succeed("echo more > more.txt").await?;
    let aside = async || (records.set_aside().await.ok()? == [format!("job {broken}")]).then_some(());
    wait_until("the broken one is set aside", PATIENCE, aside).await?;
    gate.open()
}
