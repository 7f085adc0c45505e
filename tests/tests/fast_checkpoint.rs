//! Checkpoints: what an attempt had changed is there for the next one. In a cluster: `full_kube_checkpoint`.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ckrv_tests::api::Api;
use ckrv_tests::git::git;
use ckrv_tests::processes::{runner, signal};
use ckrv_tests::records::Records;
use ckrv_tests::repo::Repo;
use ckrv_tests::scene::{Gate, Scene};
use ckrv_tests::server::{Server, Setup, files_below};
use ckrv_tests::wait::wait_until;
use ckrv_tests::witness::{log_is_whole, one_end};
use nix::sys::signal::Signal;
use serde_json::Value;

const END: Duration = Duration::from_secs(120);

fn setup() -> Result<Setup> {
    let mut setup = Setup::unsandboxed();
    setup.config = "[checkpoints]\nevery_seconds = 5".parse()?;
    Ok(setup)
}

fn repo() -> Result<Repo> {
    Repo::small(&[("README.md", "# A project\n"), ("old.txt", "old\n"), ("changed.txt", "1\n"), (".gitignore", "built\n")])
}

/// What the first attempt changes before the gate; one that finds it says what it finds.
fn script(gate: &Gate) -> String {
    format!(
        "if [ -e made.txt ]; then git status --porcelain > found.txt; test ! -e built; echo end >> made.txt; exit; fi
echo begun > made.txt; echo 2 > changed.txt; rm old.txt; mkdir -p deep; echo run > deep/run; chmod +x deep/run; ln -s deep/run link; echo b > built
{}
echo again > again.txt",
        gate.wait()
    )
}

/// One more commit on the base branch; gives the one that it was at.
fn go_on(scene: &Scene) -> Result<String> {
    let base = scene.repo.head()?;
    let clone = scene.folder().join("another");
    scene.repo.clone_to(&clone, None)?;
    std::fs::write(clone.join("changed.txt"), "upstream\n")?;
    git(&clone, &["commit", "--quiet", "--all", "--message", "Go on"])?;
    git(&clone, &["push", "--quiet", "origin", "HEAD:main"])?;
    Ok(base)
}

struct Job {
    scene: Scene,
    records: Records,
    id: String,
}

impl Job {
    async fn submit(scene: Scene, script: &str) -> Result<Self> {
        let id = scene.submit(script).await?;
        Ok(Self { records: Records::of(&scene.server), scene, id })
    }

    /// Waits for the first attempt's checkpoint.
    async fn kept(&self) -> Result<Value> {
        let kept = async || {
            let record = self.records.job(&self.id).await.ok()?;
            record["checkpoint"].is_object().then(|| record["checkpoint"].clone())
        };
        wait_until("a checkpoint is kept", END, kept).await.with_context(|| self.scene.server.log())
    }

    async fn kill_runner(&self) -> Result<()> {
        let fence = self.records.job(&self.id).await?["fence"].as_u64().context("no fence")?;
        signal(runner(&self.records.attempt(&self.id, fence)).await?, Signal::SIGKILL)
    }

    /// What its log says, once it has succeeded in its second attempt.
    async fn succeeds(&self) -> Result<String> {
        let api = Api::login(&self.scene.server).await?;
        api.ended(&self.id, END).await?;
        let record = self.records.job(&self.id).await?;
        ensure!(record["state"] == "succeeded" && record["attempt"] == 2, "{record:#}\n{}", self.scene.server.log());
        one_end(&self.records.events(&self.id).await?)?;
        let log = log_is_whole(&api, &self.id, &record).await?;
        self.scene.ckrv(&["pull", &self.id]).await?.ok()?;
        Ok(log.iter().filter_map(|entry| entry["message"].as_str()).collect::<Vec<_>>().join("\n"))
    }

    fn content(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.scene.project.join(name)).ok()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn edge_an_attempt_goes_on_from_the_checkpoint_of_the_one_before() -> Result<()> {
    let scene = Scene::with(setup()?, repo()?).await?;
    let gate = scene.gate();
    let job = Job::submit(scene, &script(&gate)).await?;
    let kept = job.kept().await?;
    ensure!(kept["attempt"] == 1 && kept["number"] == 1, "{kept}");
    // The branch goes on meanwhile: the job still starts from the commit that it began at.
    let base = go_on(&job.scene)?;
    job.kill_runner().await?;
    gate.open()?;
    let log = job.succeeds().await?;
    ensure!(log.contains("goes on from the checkpoint of attempt 1, made at 20"), "{log}");
    ensure!(job.content("made.txt").as_deref() == Some("begun\nend\n") && job.content("again.txt").is_none(), "{log}");
    ensure!(job.content("changed.txt").as_deref() == Some("2\n") && job.content("old.txt").is_none(), "{log}");
    let link = std::fs::read_link(job.scene.project.join("link"))?;
    ensure!(link == std::path::Path::new("deep/run"), "{link:?}");
    let found = job.content("found.txt").context("the second attempt has not looked")?;
    let mut found: Vec<&str> = found.lines().collect();
    found.sort_unstable();
    ensure!(found == [" D old.txt", " M changed.txt", "?? deep/", "?? found.txt", "?? link", "?? made.txt"], "{found:?}");
    let record = job.records.job(&job.id).await?;
    ensure!(record["facts"]["base_sha"] == base, "the base is the first attempt's: {record:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn edge_a_checkpoint_that_was_tampered_with_is_not_used_and_none_outlives_its_job() -> Result<()> {
    let scene = Scene::of(Server::start_embedded(setup()?).await?, repo()?).await?;
    let gate = scene.gate();
    let job = Job::submit(scene, &script(&gate)).await?;
    job.kept().await?;
    let folder = job.scene.server.data().join("blobs/jobs").join(&job.id).join("checkpoints");
    let files = files_below(&folder)?;
    ensure!(files.len() == 1, "{files:?}");
    // As long as before, and still a tar, but for a path that leads out.
    let content = std::fs::read(&files[0])?;
    let name = content.windows(8).position(|name| name == b"made.txt").context("no such entry")?;
    let mut tampered = content.clone();
    tampered[name..name + 8].copy_from_slice(b"../a.txt");
    std::fs::write(&files[0], tampered)?;
    job.kill_runner().await?;
    gate.open()?;
    let log = job.succeeds().await?;
    ensure!(
        log.contains(
            "the checkpoint of attempt 1 is not used: its content is not what was stored; this attempt begins at the base"
        ),
        "{log}"
    );
    ensure!(job.content("made.txt").as_deref() == Some("begun\n") && job.content("again.txt").is_some(), "{log}");
    wait_until("its checkpoint is deleted", END, async || files_below(&folder).is_ok_and(|left| left.is_empty()).then_some(()))
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn edge_what_can_not_be_kept_is_said_and_does_the_job_no_harm() -> Result<()> {
    let mut setup = setup()?;
    setup.config = "[checkpoints]\nevery_seconds = 5\nmax_mib = 1".parse()?;
    let scene = Scene::with(setup, repo()?).await?;
    let gate = scene.gate();
    let id = scene.submit(&format!("head -c 3000000 /dev/urandom > big; {}", gate.wait())).await?;
    gate.reached().await?;
    let said = async || {
        let log = scene.ckrv(&["logs", &id]).await.ok()?.ok().ok()?;
        log.contains("no checkpoint was kept: ").then_some(log)
    };
    wait_until("the log says that there is none", END, said).await?;
    gate.open()?;
    scene.ckrv(&["wait", &id]).await?.ok()?;
    let record = Records::of(&scene.server).job(&id).await?;
    ensure!(record["checkpoint"].is_null(), "{record:#}");
    Ok(())
}
