//! `cargo xtask soak`: the kill tests, seeded, for as long as one likes. A failure prints the seed that gives it again.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::steps::{self, Steps, say};
use crate::{setup, workspace};

#[derive(clap::Args)]
pub struct Args {
    /// The first round's seed; each round after it adds one
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Start no new round after this long
    #[arg(long, default_value_t = 10)]
    minutes: u64,
}

/// The soak tests are `#[ignore]`d for `cargo test`; here they are all that runs. They print their figures.
const TESTS: [&str; 11] = [
    "test",
    "--quiet",
    "--workspace",
    "--features",
    "ckrv-api/lambda",
    "--test",
    "fast_soak",
    "--",
    "soak",
    "--include-ignored",
    "--nocapture",
];

pub fn run(args: &Args) -> Result<()> {
    let mut steps = Steps::new();
    let bench = setup::bring(&mut steps)?;
    let ckrv = steps.run("build ckrv", || workspace::build("ckrv"))?;
    steps.run("put ckrv into its image", || bench.import(&ckrv))?;
    steps.run("find the kill tests", some_tests)?;
    let deadline = Instant::now() + Duration::from_secs(args.minutes.saturating_mul(60));
    let mut seed = args.seed;
    while Instant::now() < deadline {
        let mut command = workspace::cargo();
        bench.export(&mut command);
        command.env("CKRV_BIN", &ckrv).env("CKRV_SOAK_SEED", seed.to_string()).env("CKRV_SOAK_MINUTES", args.minutes.to_string());
        command.args(TESTS);
        steps.run(&format!("kill tests, seed {seed}"), || {
            steps::run(&mut command).with_context(|| format!("again: cargo xtask soak --seed {seed} --minutes 1"))
        })?;
        seed = seed.wrapping_add(1);
    }
    say(&format!("    seeds {} to {} held", args.seed, seed.wrapping_sub(1)));
    steps.finish("soaked");
    Ok(())
}

/// A filter that finds nothing is green for cargo, and would be for us.
fn some_tests() -> Result<()> {
    let listed = steps::text(workspace::cargo().args(TESTS).arg("--list"))?;
    anyhow::ensure!(listed.lines().any(|line| line.ends_with(": test")), "no test of ckrv-tests has `soak` in its name");
    Ok(())
}
