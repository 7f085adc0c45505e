//! Kills: of the server at random points, of a job runner, of a shim. Not tested here: a machine that loses its power; the store's own
//! tests say what it syncs.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ckrv_tests::api::Api;
use ckrv_tests::bench;
use ckrv_tests::processes::{gone, runner, shim, signal};
use ckrv_tests::records::Records;
use ckrv_tests::repo::Repo;
use ckrv_tests::scene::Scene;
use ckrv_tests::server::{Server, Setup};
use ckrv_tests::user::User;
use ckrv_tests::witness::{Witness, log_is_whole, one_end};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;

/// Long enough for four jobs and ten restarts on a busy machine.
const END: Duration = Duration::from_secs(120);

fn milliseconds(random: &mut StdRng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(random.random_range(range))
}

/// Kills a server this often at random points while jobs run, and looks at every job afterwards.
async fn killed_and_restarted(seed: u64, kills: u32) -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let repo = Repo::small(&[("README.md", "# A project\n")])?;
    let repository = repo.path().display().to_string();
    let mut server = Server::start(Setup::unsandboxed()).await?;
    let api = Api::login(&server).await?;
    let mut jobs: Vec<Witness> = Vec::new();
    let mut follower = None;
    let mut hit = 0;
    for kill in 0..kills {
        let running = unfinished(&api, &jobs).await?;
        for _ in running..2 {
            let (tag, lines) = (format!("s{seed}-{}", jobs.len()), random.random_range(10..60));
            jobs.push(Witness::submit(&api, &repository, &tag, lines, milliseconds(&mut random, 5..40)).await?);
        }
        if follower.is_none() {
            follower = Some(Follower::start(&server, &jobs[0].id).await?);
        }
        tokio::time::sleep(milliseconds(&mut random, 0..900)).await;
        hit += u32::from(unfinished(&api, &jobs).await? > 0);
        server.kill().await?;
        tokio::time::sleep(milliseconds(&mut random, 0..200)).await;
        server.start_again().await.with_context(|| format!("after kill {kill}"))?;
    }
    let mut attempts = 0;
    for job in &jobs {
        api.ended(&job.id, END).await.with_context(|| format!("seed {seed}; the server's log:\n{}", server.log()))?;
        attempts += job.check(&api, &server).await.with_context(|| format!("seed {seed}"))?.attempts;
    }
    let lines = follower.context("nobody followed")?.finish().await?;
    ensure!(lines == api.log(&jobs[0].id).await?, "what was followed live is not the log");
    ensure!(hit * 2 > kills, "only {hit} of {kills} kills came in the middle of a job");
    ensure!(attempts >= jobs.len() as u64, "{attempts} attempts for {} jobs", jobs.len());
    Ok(())
}

async fn unfinished(api: &Api, jobs: &[Witness]) -> Result<usize> {
    let mut count = 0;
    for job in jobs {
        count += usize::from(api.job(&job.id).await?["completed_at"].is_null());
    }
    Ok(count)
}

/// `ckrv logs -f --json`, through all of it.
struct Follower {
    child: tokio::process::Child,
    _user: User,
}

impl Follower {
    async fn start(server: &Server, id: &str) -> Result<Self> {
        let mut user = User::of(server)?;
        user.set("CKRV_TOKEN", &server.login().await?.access);
        let child = user.command(user.home(), &["logs", "--follow", "--json", id]).spawn()?;
        Ok(Self { child, _user: user })
    }

    async fn finish(self) -> Result<Vec<Value>> {
        let output = tokio::time::timeout(END, self.child.wait_with_output()).await.context("it follows for ever")??;
        let text = String::from_utf8(output.stdout)?;
        ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn edge_server_killed_at_random_points_of_jobs_first_ten() -> Result<()> {
    killed_and_restarted(bench::seed(), 10).await
}

#[tokio::test(flavor = "multi_thread")]
async fn edge_server_killed_at_random_points_of_jobs_second_ten() -> Result<()> {
    killed_and_restarted(bench::seed().wrapping_add(1_000_000), 10).await
}

/// A scene with one job whose agent stands before a gate in its first attempt only.
struct AtGate {
    scene: Scene,
    api: Api,
    records: Records,
    id: String,
    agent: Pid,
    gate: ckrv_tests::scene::Gate,
}

impl AtGate {
    async fn start() -> Result<Self> {
        let scene = Scene::start().await?;
        let api = Api::login(&scene.server).await?;
        let gate = scene.gate();
        let script = format!("echo before\n{}\necho after\necho done > done.txt", gate.wait());
        let id = scene.submit(&script).await?;
        let agent = Pid::from_raw(gate.reached().await?);
        let records = Records::of(&scene.server);
        Ok(Self { scene, api, records, id, agent, gate })
    }

    async fn runner(&self) -> Result<Pid> {
        let fence = self.records.job(&self.id).await?["fence"].as_u64().context("no fence")?;
        runner(&self.records.attempt(&self.id, fence)).await
    }

    /// Opens the gate and looks at the end: a second attempt that succeeded, and a log that says why there was one.
    async fn succeeds_in_a_second_attempt(&self, why: &str) -> Result<()> {
        self.gate.open()?;
        self.api.ended(&self.id, END).await?;
        let record = self.records.job(&self.id).await?;
        ensure!(record["state"] == "succeeded" && record["attempt"] == 2, "{record:#}\n{}", self.scene.server.log());
        one_end(&self.records.events(&self.id).await?)?;
        let log = log_is_whole(&self.api, &self.id, &record).await?;
        let said = log.iter().filter_map(|entry| entry["message"].as_str()).any(|message| message.contains(why));
        ensure!(said, "the log does not say {why:?}: {log:#?}");
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn edge_a_killed_job_runner_is_replaced_and_the_log_says_why() -> Result<()> {
    let job = AtGate::start().await?;
    signal(job.runner().await?, Signal::SIGKILL)?;
    gone(job.agent, END).await.context("its agent goes on without it")?;
    job.succeeds_in_a_second_attempt("its job runner ended without a report").await
}

#[tokio::test(flavor = "multi_thread")]
async fn edge_a_killed_shim_costs_an_attempt_and_leaves_no_agent_behind() -> Result<()> {
    let job = AtGate::start().await?;
    let shim = shim(job.runner().await?).await?;
    signal(shim, Signal::SIGKILL)?;
    gone(job.agent, END).await.context("its agent goes on without it")?;
    job.succeeds_in_a_second_attempt("for a reason that is not yours").await
}

#[tokio::test(flavor = "multi_thread")]
async fn edge_a_job_whose_runner_dies_each_time_is_given_up_after_four_attempts() -> Result<()> {
    let job = AtGate::start().await?;
    let mut fence = 0;
    for _ in 0..4 {
        fence = ckrv_tests::wait::wait_until("the next attempt", END, async || {
            let record = job.records.job(&job.id).await.ok()?;
            record["fence"].as_u64().filter(|next| *next > fence && record["lease"].is_object())
        })
        .await?;
        signal(runner(&job.records.attempt(&job.id, fence)).await?, Signal::SIGKILL)?;
    }
    let ended = job.api.ended(&job.id, END).await?;
    let record = job.records.job(&job.id).await?;
    ensure!(ended["state"] == "failed" && record["outcome"]["class"] == "infrastructure", "{record:#}");
    let message = ended["error_message"].as_str().unwrap_or_default();
    ensure!(message.contains("given up after 4 attempts") && message.contains("without a report"), "{message}");
    one_end(&job.records.events(&job.id).await?)?;
    log_is_whole(&job.api, &job.id, &record).await?;
    Ok(())
}
