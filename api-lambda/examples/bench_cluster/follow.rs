//! What a user sees of a job in a cluster: how soon a line of its log, and how soon its result.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use ckrv_tests::bench;
use ckrv_tests::repo::Repo;
use ckrv_tests::scene::Scene;
use ckrv_tests::server::Setup;
use jiff::Timestamp;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::starts::{now, said};
use crate::{percentile, row};

const LINES: usize = 200;
const PULLS: usize = 15;

pub async fn run() -> Result<()> {
    bench::always_in_cluster();
    let scene = Scene::with(Setup::default(), Repo::small(&[("README.md", "# A project\n")])?).await?;
    let mut lines = [lines(&scene).await?, lines(&scene).await?].concat();
    show("SC-003: an agent's line until `ckrv logs -f` prints it", &mut lines);
    let mut pulls = Vec::new();
    for number in 0..PULLS {
        pulls.push(pull(&scene, number).await?);
    }
    show("SC-005: a job's end until `ckrv wait && ckrv pull` is done", &mut pulls);
    Ok(())
}

/// The seconds from the moment when the agent prints a line, which holds the time, until it has come to the terminal.
async fn lines(scene: &Scene) -> Result<Vec<f64>> {
    let script = format!(
        "sleep 2; i=0; while [ $i -lt {LINES} ]; do read up rest < /proc/uptime; echo at=$up=; i=$((i+1)); sleep 0.05; done; echo end"
    );
    let id = scene.submit(&script).await?;
    let mut follow = scene.user.command(&scene.project, &["logs", "--follow", &id]);
    let mut follow = follow.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut printed = BufReader::new(follow.stdout.take().context("no stdout")?).lines();
    let mut seconds = Vec::new();
    while let Some(line) = printed.next_line().await? {
        // The checkout's summary, commands and the like have no time in them.
        if line.contains("at=") && !line.contains("$up") {
            seconds.push(now()? - said(&line)?);
        }
    }
    ensure!(follow.wait().await?.success(), "ckrv logs failed: {}", scene.server.log());
    ensure!(seconds.len() >= LINES, "only {} of {LINES} lines came", seconds.len());
    Ok(seconds)
}

async fn pull(scene: &Scene, number: usize) -> Result<f64> {
    let id = scene.submit(&format!("echo {number} > n{number}.txt")).await?;
    scene.ckrv(&["wait", &id]).await?.ok().with_context(|| scene.server.log())?;
    scene.ckrv(&["pull", &id, "--branch", &format!("pulled{number}")]).await?.ok()?;
    let pulled = Timestamp::now();
    let job = scene.job(&id).await?;
    let ended: Timestamp = job["completed_at"].as_str().context("no completed_at")?.parse()?;
    Ok(pulled.duration_since(ended).as_secs_f64())
}

fn show(name: &str, seconds: &mut [f64]) {
    seconds.sort_by(f64::total_cmp);
    let figure = |percent| percentile(seconds, percent);
    row(name, &format!("p50 {:.2} s, p99 {:.2} s (n = {})", figure(50), figure(99), seconds.len()), "-", None);
}
