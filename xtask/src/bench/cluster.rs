//! Jobs in a cluster: a section of its own in docs/benchmarks.md, since its cluster needs root and ten minutes.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::{Row, aws, table};
use crate::cloud::{self, Cloud};
use crate::cluster::{self, Cluster};
use crate::packages;
use crate::steps::{self, Steps, say};
use crate::workspace::{self, Cache};

const TITLE: &str = "\n## In a cluster\n";
/// Each part by its name, and the goals of its lines: those of the issue that asked for it, or of the specification.
const PARTS: [(&str, &str, &[&str]); 3] = [
    ("starts", "the start of a step, and the API server's requests", &["2.5 pod starts", "-", "12", "-", "-"]),
    ("follow", "log lines and pulls", &["SC-003: 2 s", "SC-005: 30 s"]),
    (
        "scale",
        "a dispatcher with ten thousand jobs, on kwok's nodes",
        &["50 a second", "300 MB at 10,000, linear", "-", "-", "-"],
    ),
];

pub fn rows(ckrv: &Path, steps: &mut Steps) -> Result<Vec<Row>> {
    let cache = Cache::open()?;
    let _lock = cache.lock()?;
    let programs = steps
        .run("set-up: stand-ins for AWS, a cluster's programs", || Ok((cloud::install(&cache)?, cluster::install(&cache)?)))?;
    let agents = steps.run("set-up: Claude Code and Gemini CLI", || packages::agents(&cache))?;
    let cloud = steps.run("start the stand-ins", || Cloud::start(programs.0))?;
    let cluster = steps.run("start the cluster", || Cluster::start(programs.1, &cache, &agents))?;
    steps.run("put ckrv into its image", || cluster.import(ckrv, &cache))?;
    let mut rows = Vec::new();
    for (part, title, goals) in PARTS {
        let mut bench = Command::new(workspace::target_dir()?.join("release/examples/bench_cluster"));
        cloud.export(&mut bench);
        cluster.export(&mut bench);
        let printed = steps.run(title, || steps::text(bench.arg(part).env("CKRV_BIN", ckrv)))?;
        // So that they are not lost where a later part fails.
        say(&printed);
        for (line, goal) in printed.lines().zip(goals) {
            rows.push(aws::row(line, goal).with_context(|| format!("not a line of the benchmark: {line}"))?);
        }
    }
    Ok(rows)
}

/// The page with these rows in the section of the cluster; what was written by hand below its table stays.
pub fn page_with(page: &str, rows: &[Row], machine: &str) -> String {
    let (before, rest) = match page.split_once(TITLE) {
        Some((before, section)) => (before, after_table(section)),
        None => (page.trim_end_matches('\n'), ""),
    };
    let command = format!("\nWritten by `cargo xtask bench --only cluster` from a release build; measured on {machine}.\n\n");
    format!("{}\n{TITLE}{command}{}{rest}", before.trim_end_matches('\n'), table(rows))
}

/// What follows the first table of a text.
fn after_table(text: &str) -> &str {
    let mut at = 0;
    let mut in_table = false;
    for line in text.split_inclusive('\n') {
        if in_table && !line.starts_with('|') {
            return &text[at..];
        }
        in_table |= line.starts_with('|');
        at += line.len();
    }
    ""
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &'static str) -> Row {
        Row { name: name.into(), figure: "1".to_owned(), beside: "2".to_owned(), ratio: None, goal: "3" }
    }

    #[test]
    fn the_section_is_made_and_then_only_its_table_is_replaced() {
        let page = "# Benchmarks\n\n| a |\n|---|\n\n## Read with it\n\nNotes.\n";
        let first = page_with(page, &[row("old")], "2 cores");
        assert!(
            first.starts_with(page) && first.contains("## In a cluster") && first.contains("| old | 1 | 2 | - | 3 |"),
            "{first}"
        );
        let noted = format!("{first}\nBy hand.\n\n## Another\n");
        let second = page_with(&noted, &[row("new"), row("newer")], "4 cores");
        assert!(second.contains("| new |") && second.contains("4 cores") && !second.contains("| old |"), "{second}");
        assert!(second.starts_with(page) && second.ends_with("\nBy hand.\n\n## Another\n"), "{second}");
        assert_eq!(page_with(&second, &[row("new"), row("newer")], "4 cores"), second);
    }
}
