//! One dispatcher with up to ten thousand running jobs: how fast it makes their pods, and what it takes to keep them.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ckrv_tests::kwok::{Direct, Kwok};

use crate::dispatcher::{Dispatcher, Used};
use crate::row;
use crate::runners::Runners;

const NODES: u32 = 6;
/// For how long what it uses is looked at: three whole turns of the dispatcher.
const WINDOW: Duration = Duration::from_secs(32);
const PATIENCE: Duration = Duration::from_secs(900);
const CREATED: &str = "ckrv_job_pods_created_total";

/// What a window showed.
#[derive(Clone, Copy, Debug)]
struct Seen {
    jobs: usize,
    /// The highest of the window.
    resident_mb: f64,
    /// Of one processor.
    cpu: f64,
    files: usize,
}

pub async fn run() -> Result<()> {
    let kwok = Kwok::start(NODES).await?;
    let dispatcher = Dispatcher::start().await?;
    measure(&dispatcher).await.with_context(|| format!("{}\n{}", tail(&dispatcher.server.log()), tail(&kwok.log())))
}

async fn measure(dispatcher: &Dispatcher) -> Result<()> {
    // Where time is short: `CKRV_BENCH_LEVELS=1000,2500`, and of those jobs, how many have stand-ins for their runners.
    let levels = list("CKRV_BENCH_LEVELS", &[1_000, 2_500, 5_000, 10_000])?;
    let attended = list("CKRV_BENCH_ATTENDED", &[1_000, 2_500])?;
    let idle = window(dispatcher, 0).await?;
    let mut seen = Vec::new();
    let mut rate = None;
    for &level in &levels {
        let made = grow(dispatcher, level).await?;
        eprintln!("  {level} jobs: {made:.0} pods a second");
        rate = rate.or(Some(made));
        seen.push(window(dispatcher, level).await?);
    }
    let mut runners = Runners::default();
    let jobs = dispatcher.hold().await?;
    let mut with_runners = Vec::new();
    let mut begun = 0;
    for &level in attended.iter().filter(|level| **level <= jobs.len()) {
        runners.start(dispatcher, &jobs[begun..level]).await?;
        begun = level;
        // Their first beats, for which their tokens are reviewed.
        tokio::time::sleep(WINDOW).await;
        let (beats, failures) = (runners.beats.load(Ordering::Relaxed), runners.failures.load(Ordering::Relaxed));
        let window = window(dispatcher, level).await?;
        let (beats, failures) =
            (runners.beats.load(Ordering::Relaxed) - beats, runners.failures.load(Ordering::Relaxed) - failures);
        eprintln!("  {beats} beats, {failures} failures");
        ensure!(failures * 20 < beats, "the gateway refused {failures} beats of {}", beats + failures);
        with_runners.push(window);
    }
    print(idle, &seen, &with_runners, rate);
    Ok(())
}

/// Fills the queue up to so many jobs, and waits until all of them run; gives how many pods a second were made.
async fn grow(dispatcher: &Dispatcher, level: usize) -> Result<f64> {
    let direct = Direct::new(&dispatcher.namespace).await?;
    let before = dispatcher.counted(CREATED).await?;
    dispatcher.fill(level - before as usize).await?;
    let until = Instant::now() + PATIENCE;
    let mut first = None;
    loop {
        let made = dispatcher.counted(CREATED).await?;
        if made > before && first.is_none() {
            first = Some((Instant::now(), made));
        }
        if made >= level as f64 {
            break;
        }
        ensure!(Instant::now() < until, "only {made} pods were made");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let (began, at_first) = first.context("they came too fast to be seen")?;
    let rate = (level as f64 - at_first) / began.elapsed().as_secs_f64();
    loop {
        let held = dispatcher.hold().await?;
        let (all, running) = direct.pods().await?;
        if held.len() >= level && running >= level {
            break;
        }
        ensure!(Instant::now() < until, "of {level} jobs {} are held, of {all} pods {running} run", held.len());
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    dispatcher.hold().await?;
    Ok(rate)
}

async fn window(dispatcher: &Dispatcher, jobs: usize) -> Result<Seen> {
    // What came of the growth is over.
    tokio::time::sleep(Duration::from_secs(12)).await;
    let (before, began) = (dispatcher.used()?, Instant::now());
    let mut highest: f64 = 0.0;
    let mut last: Used = before;
    while began.elapsed() < WINDOW {
        last = dispatcher.used()?;
        highest = highest.max(last.resident_mb);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let cpu = (last.cpu_seconds - before.cpu_seconds) / began.elapsed().as_secs_f64();
    let seen = Seen { jobs, resident_mb: highest, cpu, files: last.files };
    eprintln!("  {seen:?}, highest of all time {:.0} MB", last.highest_mb);
    Ok(seen)
}

fn print(idle: Seen, seen: &[Seen], with_runners: &[Seen], rate: Option<f64>) {
    if let Some(rate) = rate {
        row(
            "claim to create: pods that one dispatcher makes of a full queue",
            &format!("{rate:.0} a second"),
            "its bound by default: 50",
            None,
        );
    }
    let shown = |all: &[Seen], what: &dyn Fn(&Seen) -> String| {
        let mut text = String::new();
        for one in all {
            let comma = if text.is_empty() { "" } else { "; " };
            // Writing to a String can't fail.
            let _ = write!(text, "{comma}{}: {}", one.jobs, what(one));
        }
        text
    };
    let memory = |one: &Seen| format!("{:.0} MB", one.resident_mb);
    let cpu = |one: &Seen| format!("{:.1} %", one.cpu * 100.0);
    let per_job = |all: &[Seen]| {
        let last = all.last()?;
        Some(format!("{:.1} kB a job", (last.resident_mb - idle.resident_mb) * 1e3 / last.jobs.max(1) as f64))
    };
    let beside = |all: &[Seen]| format!("without jobs: {:.0} MB; {}", idle.resident_mb, per_job(all).unwrap_or_default());
    row("memory of a dispatcher, by running jobs (kwok)", &shown(seen, &memory), &beside(seen), None);
    let rest = format!("without jobs: {:.1} %", idle.cpu * 100.0);
    row("its processor time, of one processor", &shown(seen, &cpu), &rest, None);
    if !with_runners.is_empty() {
        row("its memory with so many job runners that beat and listen", &shown(with_runners, &memory), "-", None);
        let files = |one: &Seen| format!("{:.1} %, {} open files", one.cpu * 100.0, one.files);
        row("its processor time then", &shown(with_runners, &files), "-", None);
    }
}

#[expect(clippy::disallowed_methods, reason = "a benchmark's own knobs")]
fn list(name: &str, default: &[usize]) -> Result<Vec<usize>> {
    match std::env::var(name) {
        Ok(text) => text
            .split(',')
            .filter(|part| !part.is_empty())
            .map(|part| part.parse().with_context(|| format!("{name}={text}")))
            .collect(),
        Err(_) => Ok(default.to_vec()),
    }
}

fn tail(text: &str) -> &str {
    text.char_indices().rev().nth(4_000).map_or(text, |(at, _)| &text[at..])
}
