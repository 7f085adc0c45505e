//! `cargo xtask soak`: the fault tests, seeded, for as long as one likes. A failure prints the seed that gives it again.

mod figures;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::steps::{self, Steps, say};
use crate::{setup, workspace};

#[derive(clap::Args)]
pub struct Args {
    /// The first round's seed; each round after it adds one
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Start no new round after this long. The embedded soak takes as long in each round; the cluster's faults take as long as they take
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Only the soak tests whose name contains this: `under_random_faults` is the embedded one, `cluster` are faults of the cluster's processes,
    /// pods and node, `sc004` and `api_server` are those of its API
    #[arg(long)]
    only: Option<String>,
}

/// Their tests are `#[ignore]`d for `cargo test`; here they are all that runs, so each has `soak` in its name.
const FILES: [&str; 3] = ["fast_soak", "full_kube_soak", "full_kube_sc004"];
/// A fault is mostly waited for, but the test cluster's node has two processors.
const AT_ONCE: &str = "--test-threads=3";

pub fn run(args: &Args) -> Result<()> {
    let mut steps = Steps::new();
    let bench = setup::bring(&mut steps)?;
    let ckrv = steps.run("build ckrv", || workspace::build("ckrv"))?;
    steps.run("put ckrv into its image", || bench.import(&ckrv))?;
    let filter = args.only.as_deref().unwrap_or("soak");
    steps.run("find the soak tests", || some_tests(filter))?;
    let figures = tempfile::NamedTempFile::new()?;
    let deadline = Instant::now() + Duration::from_secs(args.minutes.saturating_mul(60));
    let mut seed = args.seed;
    while Instant::now() < deadline {
        let mut command = tests(filter);
        bench.export(&mut command);
        command.env("CKRV_BIN", &ckrv).env("CKRV_SOAK_SEED", seed.to_string()).env("CKRV_SOAK_MINUTES", args.minutes.to_string());
        command.env("CKRV_SOAK_FIGURES", figures.path());
        let round = steps.run(&format!("soak, seed {seed}"), || {
            steps::run(&mut command).with_context(|| format!("again: cargo xtask soak --seed {seed} --minutes 1 --only {filter}"))
        });
        // What the others came to is of use where one has failed, too.
        say(&figures::table(&std::fs::read_to_string(figures.path())?)?);
        round?;
        seed = seed.wrapping_add(1);
    }
    say(&format!("    seeds {} to {} held", args.seed, seed.wrapping_sub(1)));
    steps.finish("soaked");
    Ok(())
}

fn tests(filter: &str) -> std::process::Command {
    let mut command = workspace::cargo();
    command.args(["test", "--quiet", "--workspace", "--no-fail-fast"]).args(workspace::FEATURES);
    command.args(FILES.iter().flat_map(|file| ["--test", file]));
    command.args(["--", filter, "--include-ignored", "--nocapture", AT_ONCE]);
    command
}

/// A filter that finds nothing is green for cargo, and would be for us.
fn some_tests(filter: &str) -> Result<()> {
    let listed = steps::text(tests(filter).arg("--list"))?;
    anyhow::ensure!(listed.lines().any(|line| line.ends_with(": test")), "no soak test has `{filter}` in its name");
    Ok(())
}
