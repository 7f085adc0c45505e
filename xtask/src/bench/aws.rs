//! The AWS backend, measured on its stand-ins, and the packaged function.

use std::process::Command;

use anyhow::{Context as _, Result};

use super::Row;
use crate::cloud::{self, Cloud};
use crate::package;
use crate::steps::{self, Steps};
use crate::workspace::{self, Cache};

/// Goals are of the issue that asked for the backend.
const GOALS: [&str; 4] = ["at least 0.8", "-", "60 ms", "40 MB"];

pub fn rows(steps: &mut Steps) -> Result<Vec<Row>> {
    let zip = package::for_this_machine(steps)?;
    let bytes = std::fs::metadata(&zip)?.len();
    let figure = format!("{:.2} MB", bytes as f64 / 1e6);
    let mut rows =
        vec![Row { name: "the function's package, zipped".into(), figure, beside: "-".to_owned(), ratio: None, goal: "12 MB" }];
    let cache = Cache::open()?;
    let _lock = cache.lock()?;
    let programs = steps.run("set-up: stand-ins for AWS", || cloud::install(&cache))?;
    let cloud = steps.run("start them", || Cloud::start(programs))?;
    let mut bench = Command::new(workspace::target_dir()?.join("release/examples/bench_aws"));
    cloud.export(&mut bench);
    bench.env("CKRV_BOOTSTRAP_BIN", package::program()?);
    let printed = steps.run("the AWS backend beside bare calls", || steps::text(&mut bench))?;
    for (line, goal) in printed.lines().zip(GOALS) {
        rows.push(row(line, goal).with_context(|| format!("not a line of the benchmark: {line}"))?);
    }
    Ok(rows)
}

/// `NAME|OURS|BESIDE|RATIO`
pub fn row(line: &str, goal: &'static str) -> Option<Row> {
    let mut fields = line.split('|');
    let mut next = || fields.next().map(str::to_owned);
    let (name, figure, beside, ratio) = (next()?, next()?, next()?, next()?);
    Some(Row { name: name.into(), figure, beside, ratio: ratio.parse().ok(), goal })
}
