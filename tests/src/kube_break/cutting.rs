//! Jobs under way while their connections are cut at random: watches, shims', job runners' to the gateway, and those of `ckrv logs --follow`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::unistd::Pid;
use rand::RngExt as _;
use serde_json::{Value, json};
use tokio::process::Child;

use super::Pod;
use super::bench::Bench;
use super::cut::{Line, cut};
use super::figures::note;
use crate::api::Api;
use crate::relay::Relay;
use crate::wait::PATIENCE;
use crate::witness::Witness;

/// A try that finds no connection isn't counted; one at the followers' finds all of theirs.
const TRIES: u32 = 10;
const KINDS: [&str; 4] = ["shim", "watch", "gateway", "follow"];

struct Followed {
    witness: Witness,
    follower: Child,
    pod: Option<Pod>,
}

struct Cutting {
    bench: Bench,
    relay: Relay,
    direct: Api,
    dispatchers: Vec<Pod>,
    open: Vec<Followed>,
    cuts: BTreeMap<&'static str, usize>,
    lost_attempts: u64,
    jobs: usize,
}

/// Until there were this many cuts, each job followed; then waits for them all. What a follower printed is what is stored, every job has
/// succeeded by its first attempt, and its log is whole.
pub async fn cuts(seed: u64, wanted: usize, at_once: usize, lines: usize) -> Result<()> {
    let mut cutting = Cutting::start(seed).await?;
    while cutting.goes_on(wanted) {
        while cutting.open.len() < at_once {
            cutting.submit(lines).await?;
        }
        let pause = cutting.bench.random.random_range(10..250);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        cutting.one().await?;
        cutting.settle(false).await?;
    }
    cutting.settle(true).await?;
    let Cutting { cuts, lost_attempts, jobs, .. } = cutting;
    note(&json!({ "cuts": cuts, "jobs": jobs, "lost_attempts": lost_attempts }))?;
    ensure!(lost_attempts == 0, "connections that were cut cost {lost_attempts} attempts, seed {seed}");
    Ok(())
}

impl Cutting {
    async fn start(seed: u64) -> Result<Self> {
        let mut bench = Bench::start(seed).await?;
        let token = bench.scene.server.login().await?.access;
        let server: SocketAddr = bench.scene.server.url().trim_start_matches("http://").parse()?;
        let relay = Relay::start(std::net::Ipv4Addr::LOCALHOST.into(), server).await?;
        let direct = Api::at(bench.scene.server.url(), &token)?;
        bench.scene.user.set("CKRV_URL", &format!("http://{}", relay.address));
        let dispatchers = bench.dispatchers().await?;
        Ok(Self { bench, relay, direct, dispatchers, open: Vec::new(), cuts: BTreeMap::new(), lost_attempts: 0, jobs: 0 })
    }

    /// Of each kind there is to be a tenth at least.
    fn goes_on(&self, wanted: usize) -> bool {
        let few = |kind: &&str| self.cuts.get(*kind).is_none_or(|count| *count < wanted / 10);
        self.cuts.values().sum::<usize>() < wanted || KINDS.iter().any(few)
    }

    async fn submit(&mut self, lines: usize) -> Result<()> {
        let witness = self.bench.submit(lines, None).await?;
        let scene = &self.bench.scene;
        let follower = scene.user.command(&scene.project, &["logs", "--json", "-f", &witness.id]).spawn()?;
        self.open.push(Followed { witness, follower, pod: None });
        self.jobs += 1;
        Ok(())
    }

    /// One cut, at random.
    async fn one(&mut self) -> Result<()> {
        let (kind, index) = (self.bench.random.random_range(0..TRIES), self.bench.random.random_range(0..self.open.len()));
        let (inside, line) = match kind {
            0 => (None, Line::Follow(self.relay.address.port())),
            1 => (self.dispatchers.first().and_then(Pod::dispatcher), Line::Watch),
            2..6 => (self.runner(index).await?, Line::Shim),
            6..8 => (self.runner(index).await?, Line::Watch),
            _ => (self.runner(index).await?, Line::Gateway),
        };
        if inside.is_none() && !matches!(line, Line::Follow(_)) {
            return Ok(());
        }
        let cut = cut(inside, line).await?;
        if cut > 0 {
            *self.cuts.entry(line.name()).or_default() += cut;
        }
        Ok(())
    }

    /// The job runner of an open job, if it runs.
    async fn runner(&mut self, index: usize) -> Result<Option<Pid>> {
        let job = &mut self.open[index];
        if let Some(runner) = job.pod.as_ref().and_then(Pod::job_runner) {
            return Ok(Some(runner));
        }
        job.pod = self.bench.job_pod(&job.witness).await.ok().flatten();
        Ok(job.pod.as_ref().and_then(Pod::job_runner))
    }

    async fn settle(&mut self, all: bool) -> Result<()> {
        for job in std::mem::take(&mut self.open) {
            let ended = if all {
                self.direct.ended(&job.witness.id, PATIENCE * 5).await.with_context(|| self.bench.scene.server.log())?;
                true
            } else {
                self.direct.job(&job.witness.id).await?["completed_at"].is_string()
            };
            if !ended {
                self.open.push(job);
                continue;
            }
            let told = job.witness.check(&self.direct, &self.bench.scene.server).await?;
            self.lost_attempts += told.attempts - 1;
            job.check_follower(&self.direct, &self.bench).await?;
        }
        Ok(())
    }
}

impl Followed {
    async fn check_follower(self, api: &Api, bench: &Bench) -> Result<()> {
        // It may have been cut off at the very end, and comes back.
        let output =
            tokio::time::timeout(PATIENCE, self.follower.wait_with_output()).await.context("a follower never ends")??;
        ensure!(output.status.success(), "a follower gave up: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout)?;
        let seen: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>().context("no JSON")?;
        let written = api.log(&self.witness.id).await?;
        ensure!(
            seen == written,
            "{} entries arrived of {}: seed {}\n{}",
            seen.len(),
            written.len(),
            crate::bench::seed(),
            bench.scene.server.log()
        );
        Ok(())
    }
}
