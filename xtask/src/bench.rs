//! `cargo xtask bench`: measures the release build and writes docs/benchmarks.md. A figure stands beside something else that was
//! run in the same minute; machines differ, ratios less so. Nothing here fails because it is slow.

mod aws;
mod cluster;
mod jobs;
mod service;

use std::borrow::Cow;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::machine::Home;
use crate::measure::{self, Sample};
use crate::steps::{self, Steps, say};
use crate::workspace;
use service::Service;

/// A line of the table.
#[derive(Clone, Debug)]
pub struct Row {
    pub name: Cow<'static, str>,
    pub figure: String,
    /// What was run beside it, with its figure.
    pub beside: String,
    pub ratio: Option<f64>,
    pub goal: &'static str,
}

impl Row {
    /// A row of two samples that were taken in turn.
    pub fn of_samples(name: &'static str, ours: &Sample, other: (&str, &Sample), goal: &'static str) -> Self {
        let ratio = ours.p50().as_secs_f64() / other.1.p50().as_secs_f64();
        let beside = format!("{}: {}", other.0, figures(other.1));
        Self { name: name.into(), figure: figures(ours), beside, ratio: ratio.is_finite().then_some(ratio), goal }
    }
}

/// One measurement: a name for the person who waits, and what takes it.
type Alone = (&'static str, fn(&Path) -> Result<Row>);
type Served = (&'static str, fn(&mut Service) -> Result<Row>);

/// All of them; a new one is a function and a line here.
const ALONE: [Alone; 3] =
    [("start of the command", version), ("memory of an idle service", idle_memory), ("making jobs", jobs::create)];
const SERVED: [Served; 7] = [
    ("from a spec to a job's id", |service| jobs::dispatch(service)),
    ("a trivial job", |service| jobs::trivial(service)),
    ("from a change to its status", |service| jobs::status(service)),
    ("from a line to the terminal", |service| jobs::log_line(service)),
    ("from a job's end to its pulled diff", |service| jobs::pulled(service)),
    ("a login", jobs::login),
    ("memory of a service that has worked", |service| jobs::memory_after_jobs(service)),
];

#[derive(clap::Args)]
pub struct Args {
    /// Measure this ckrv instead of the one that is built for release
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Only what runs in a cluster (which needs Linux and root), or only the rest
    #[arg(long)]
    only: Option<Part>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Cluster,
    Rest,
}

pub fn run(args: &Args) -> Result<()> {
    let mut steps = Steps::new();
    let built = steps.run("build for release: ckrv, and what stands beside it", release)?;
    let ckrv = match &args.binary {
        Some(binary) => binary.canonicalize().with_context(|| format!("no {}", binary.display()))?,
        None => built,
    };
    if args.only != Some(Part::Cluster) {
        rest(&ckrv, &mut steps)?;
    }
    if args.only != Some(Part::Rest) {
        let load = load();
        let rows: Vec<_> = cluster::rows(&ckrv, &mut steps)?.into_iter().map(shown).collect();
        write(|old| cluster::page_with(old, &rows, &machine(&load)))?;
    }
    steps.finish("docs/benchmarks.md is written");
    Ok(())
}

fn rest(ckrv: &Path, steps: &mut Steps) -> Result<()> {
    let load = load();
    let mut rows = Vec::new();
    let mut service = steps.run("a service, a user, a repository", || Service::start(ckrv, ""))?;
    for (title, measurement) in SERVED {
        rows.push(shown(steps.run(title, || measurement(&mut service))?));
    }
    drop(service);
    for (title, measurement) in ALONE {
        rows.push(shown(steps.run(title, || measurement(ckrv))?));
    }
    for row in aws::rows(steps)? {
        rows.push(shown(row));
    }
    write(|old| {
        // What was written by hand below the table stays, to be read against the new figures.
        let notes = old.find("\n## ").map_or("", |at| &old[at..]);
        page(&rows, &machine(&load)) + notes
    })
}

fn write(new: impl FnOnce(&str) -> String) -> Result<()> {
    let path = workspace::root().join("docs/benchmarks.md");
    let old = std::fs::read_to_string(&path).unwrap_or_default();
    std::fs::write(&path, new(&old)).with_context(|| format!("can't write {}", path.display()))
}

fn shown(row: Row) -> Row {
    say(&format!("    {}: {} ({}), goal {}", row.name, row.figure, row.beside, row.goal));
    row
}

/// In one build: another selection of packages would compile their dependencies again.
fn release() -> Result<PathBuf> {
    let examples = ["bench_aws", "bench_cluster", "raw_writes"].map(|name| ["--example", name]);
    let args = ["build", "--quiet", "--release", "--workspace", "--bin", "ckrv"];
    steps::run(workspace::cargo().args(args).args(examples.as_flattened()).args(workspace::FEATURES))?;
    Ok(workspace::target_dir()?.join("release/ckrv"))
}

fn version(ckrv: &Path) -> Result<Row> {
    let ours = || measure::process(Command::new(ckrv).arg("--version"));
    let (ours, other) = measure::beside(200, ours, || measure::process(&mut Command::new("true")))?;
    Ok(Row::of_samples("`ckrv --version`", &ours, ("`true`", &other), "10 ms"))
}

fn idle_memory(ckrv: &Path) -> Result<Row> {
    let home = Home::new(ckrv.to_owned())?;
    let mut server = home.start("ckrv", &["serve", "--listen", "127.0.0.1:0", "--unsandboxed"], &home.path(""))?;
    server.wait_for("its URL", |line| line.contains("http://").then_some(()))?;
    // The start itself is over once the memory has stopped to grow.
    let mut kib = (0, measure::resident_kib(server.id())?);
    while kib.0 != kib.1 {
        std::thread::sleep(Duration::from_millis(500));
        kib = (kib.1, measure::resident_kib(server.id())?);
    }
    let figure = format!("{:.1} MB", kib.1 as f64 * 1024.0 / 1e6);
    Ok(Row { name: "memory of `ckrv serve`, idle".into(), figure, beside: "-".to_owned(), ratio: None, goal: "40 MB" })
}

fn figures(sample: &Sample) -> String {
    format!("p50 {}, p99 {} (n = {})", short(sample.p50()), short(sample.p99()), sample.len())
}

fn short(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1000.0;
    if ms < 100.0 { format!("{ms:.2} ms") } else { format!("{ms:.0} ms") }
}

fn page(rows: &[Row], machine: &str) -> String {
    let head = format!(
        "# Benchmarks\n\nWritten by `cargo xtask bench` from a release build; measured on {machine}.\nA figure is the median and the 99th percentile of n runs. A ratio compares medians.\n\n"
    );
    head + &table(rows)
}

fn table(rows: &[Row]) -> String {
    let mut table = "| What | Figure | Beside it | Ratio | Goal |\n|---|---|---|---|---|\n".to_owned();
    for row in rows {
        let ratio = row.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        // Writing to a String can't fail.
        let _ = writeln!(table, "| {} | {} | {} | {ratio} | {} |", row.name, row.figure, row.beside, row.goal);
    }
    table
}

/// Cores, memory, system and what else the machine did: no name of it.
fn machine(load: &str) -> String {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    format!(
        "{cores} cores, {} {}; load average before and after: {load}, {}",
        std::env::consts::OS,
        std::env::consts::ARCH,
        self::load()
    )
}

fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().filter(|load| !load.is_empty()).unwrap_or("unknown").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_compares_medians() {
        let sample = |ms| Sample::new(vec![Duration::from_millis(ms); 3]);
        let row = Row::of_samples("x", &sample(30), ("y", &sample(20)), "1 s");
        let page = page(&[row], "2 cores");
        assert!(
            page.contains("| x | p50 30.00 ms, p99 30.00 ms (n = 3) | y: p50 20.00 ms, p99 20.00 ms (n = 3) | 1.50 | 1 s |"),
            "{page}"
        );
    }
}
