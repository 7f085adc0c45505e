//! The soak: jobs without end, and random faults among them. `cargo xtask soak --seed N --minutes N` runs it; `cargo test` leaves it out.

#![expect(clippy::disallowed_methods, reason = "the soak's length comes by its environment")]

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ckrv_tests::api::Api;
use ckrv_tests::bench;
use ckrv_tests::processes::{runner_now, shim_now, signal};
use ckrv_tests::records::Records;
use ckrv_tests::repo::Repo;
use ckrv_tests::server::{Server, Setup};
use ckrv_tests::witness::{Witness, log_is_whole, one_end};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::io::Write as _;

/// Jobs under way at once.
const JOBS: usize = 4;
/// Faults that one job may meet: with a fourth attempt lost it would be given up, and rightly so.
const FAULTS: u32 = 3;
const END: Duration = Duration::from_secs(180);

#[derive(Debug, Default)]
struct Figures {
    jobs: u32,
    server_kills: u32,
    runner_kills: u32,
    shim_kills: u32,
    runner_stops: u32,
    cancels: u32,
    lost: u32,
    duplicate_ends: u32,
    attempts: u64,
    log_entries: usize,
}

struct Job {
    witness: Witness,
    faults: u32,
    cancelled: bool,
}

struct Soak {
    random: StdRng,
    seed: u64,
    server: Server,
    api: Api,
    records: Records,
    repository: String,
    open: Vec<Job>,
    figures: Figures,
    _repo: Repo,
}

impl Soak {
    async fn start(seed: u64) -> Result<Self> {
        let repo = Repo::small(&[("README.md", "# A project\n")])?;
        let server = Server::start(Setup::unsandboxed()).await?;
        let (api, records) = (Api::login(&server).await?, Records::of(&server));
        let repository = repo.path().display().to_string();
        let random = StdRng::seed_from_u64(seed);
        Ok(Self { random, seed, server, api, records, repository, open: Vec::new(), figures: Figures::default(), _repo: repo })
    }

    async fn fill(&mut self) -> Result<()> {
        while self.open.len() < JOBS {
            self.figures.jobs += 1;
            let tag = format!("s{}-{}", self.seed, self.figures.jobs);
            let (lines, pause) = (self.random.random_range(5..120), Duration::from_millis(self.random.random_range(1..40)));
            let witness = Witness::submit(&self.api, &self.repository, &tag, lines, pause).await?;
            self.open.push(Job { witness, faults: 0, cancelled: false });
        }
        Ok(())
    }

    async fn fault(&mut self) -> Result<()> {
        match self.random.random_range(0..10) {
            0..4 => self.kill_server().await,
            4..6 => self.kill_worker(false).await,
            6..8 => self.kill_worker(true).await,
            8 => self.stop_runner().await,
            _ => self.cancel().await,
        }
    }

    async fn kill_server(&mut self) -> Result<()> {
        self.figures.server_kills += 1;
        self.server.kill().await?;
        tokio::time::sleep(Duration::from_millis(self.random.random_range(0..500))).await;
        self.server.start_again().await
    }

    /// One of the open jobs that may still meet a fault, with its job runner.
    async fn victim(&mut self) -> Option<(usize, Pid)> {
        let index = self.random.random_range(0..self.open.len().max(1));
        let job = self.open.get(index).filter(|job| job.faults < FAULTS)?;
        let fence = self.records.job(&job.witness.id).await.ok()?["fence"].as_u64()?;
        Some((index, runner_now(&self.records.attempt(&job.witness.id, fence))?))
    }

    async fn kill_worker(&mut self, only_shim: bool) -> Result<()> {
        let Some((index, runner)) = self.victim().await else { return Ok(()) };
        if !only_shim {
            self.figures.runner_kills += 1;
            self.open[index].faults += 1;
            return signal(runner, Signal::SIGKILL);
        }
        let Some(shim) = shim_now(runner) else { return Ok(()) };
        self.figures.shim_kills += 1;
        self.open[index].faults += 1;
        signal(shim, Signal::SIGKILL)
    }

    /// Stands still for a while and goes on: nobody may take over, since it still holds its lock.
    async fn stop_runner(&mut self) -> Result<()> {
        let Some((_, runner)) = self.victim().await else { return Ok(()) };
        self.figures.runner_stops += 1;
        signal(runner, Signal::SIGSTOP)?;
        tokio::time::sleep(Duration::from_millis(self.random.random_range(100..2000))).await;
        signal(runner, Signal::SIGCONT)
    }

    async fn cancel(&mut self) -> Result<()> {
        let index = self.random.random_range(0..self.open.len().max(1));
        let Some(job) = self.open.get_mut(index).filter(|job| !job.cancelled) else { return Ok(()) };
        // It may have ended meanwhile: then the service refuses, and the job counts as any other.
        if self.api.post(&format!("/v1/jobs/{}/cancel", job.witness.id), &serde_json::json!({})).await.is_ok() {
            job.cancelled = true;
            self.figures.cancels += 1;
        }
        Ok(())
    }

    /// Looks at the jobs that have ended; with `all`, waits for every one.
    async fn settle(&mut self, all: bool) -> Result<()> {
        for job in std::mem::take(&mut self.open) {
            let ended = if all {
                self.api.ended(&job.witness.id, END).await.is_ok()
            } else {
                self.api.job(&job.witness.id).await?["completed_at"].is_string()
            };
            match (ended, all) {
                (true, _) => self.check(&job).await?,
                (false, true) => self.figures.lost += 1,
                (false, false) => self.open.push(job),
            }
        }
        Ok(())
    }

    async fn check(&mut self, job: &Job) -> Result<()> {
        let (id, record) = (&job.witness.id, self.records.job(&job.witness.id).await?);
        if one_end(&self.records.events(id).await?).is_err() {
            self.figures.duplicate_ends += 1;
        }
        self.figures.attempts += record["attempt"].as_u64().context("no attempt")?;
        if job.cancelled && record["state"] == "cancelled" {
            self.figures.log_entries += log_is_whole(&self.api, id, &record).await?.len();
        } else {
            self.figures.log_entries += job.witness.check(&self.api, &self.server).await?.entries;
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: cargo xtask soak --seed N --minutes N"]
async fn soak_jobs_under_random_faults_end_once_and_lose_nothing() -> Result<()> {
    let minutes: u64 = std::env::var("CKRV_SOAK_MINUTES").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut soak = Soak::start(bench::seed()).await?;
    let deadline = Instant::now() + Duration::from_secs(60 * minutes);
    while Instant::now() < deadline {
        soak.fill().await?;
        tokio::time::sleep(Duration::from_millis(soak.random.random_range(0..700))).await;
        soak.fault().await?;
        soak.settle(false).await?;
    }
    soak.settle(true).await?;
    writeln!(std::io::stdout(), "seed {}, {minutes} min: {:?}", soak.seed, soak.figures)?;
    ensure!(soak.figures.lost == 0 && soak.figures.duplicate_ends == 0, "{:?}", soak.figures);
    Ok(())
}
