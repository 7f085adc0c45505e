//! `cargo xtask test`: everything that must hold, from nothing.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::steps::{self, Steps, say};
use crate::workspace::FEATURES;
use crate::{checks, package, setup, wasm, workspace};

#[derive(clap::Args)]
pub struct Args {
    /// Only what needs Rust, git and a C linker: no containers, no npm, no sshd
    #[arg(long)]
    fast: bool,
    /// Only one of the passes, without the checks
    #[arg(long, conflicts_with = "fast")]
    pass: Option<Pass>,
    /// Only tests whose name contains this; leaves the checks out
    filter: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Pass {
    /// Every test, on the embedded default where it doesn't say otherwise
    First,
    /// The scenarios on AWS, through the packaged function
    Aws,
    /// The scenarios whose jobs are pods
    Cluster,
}

/// Test files that need the bench. `cargo xtask test --fast` leaves them out and says so.
const NEEDS_BENCH: [&str; 3] = ["full_", "aws_", "launch_container"];

/// The end-to-end scenarios. Left out are the harness's own tests (`*_fixtures`, `fast_fault_proxy`), the soak, and those that bring their
/// own AWS backend.
const ON_AWS: [&str; 18] = [
    "fast_adapters",
    "fast_bad_input",
    "fast_edges",
    "fast_follow",
    "fast_fr010",
    "fast_jobs",
    "fast_kill",
    "fast_notify",
    "fast_observe",
    "fast_pull",
    "fast_records",
    "fast_refresh",
    "fast_server",
    "fast_stories",
    "fast_usage",
    "full_agents",
    "full_git",
    "full_hostile",
];

/// Those that also run in the cluster: real agents and real git, in pods. What only holds of a cluster is in `full_kube_*`.
const ON_CLUSTER: [&str; 2] = ["full_agents", "full_git"];
/// Of the scenarios, those whose agents are processes of this machine have no place there.
const NOT_ON_CLUSTER: [&str; 1] = ["as_a_process"];

pub fn run(args: &Args) -> Result<()> {
    let mut steps = Steps::new();
    let filter = args.filter.as_deref();
    let whole = filter.is_none() && args.pass.is_none();
    let runs = |pass| args.pass.map_or(whole || pass == Pass::First, |only| only == pass);
    if whole {
        lints(&mut steps, args.fast)?;
    }
    let bench = if args.fast { None } else { Some(setup::bring(&mut steps)?) };
    let built = steps.run("build ckrv and the function", || {
        steps::run(
            workspace::cargo().args(["build", "--quiet", "--workspace", "--bin", "ckrv", "--bin", "bootstrap"]).args(FEATURES),
        )?;
        Ok(workspace::target_dir()?.join("debug"))
    })?;
    let ckrv = built.join("ckrv");
    if whole {
        steps.run("generated files are up to date", || checks::generated(&ckrv))?;
        if !args.fast {
            steps.run("the prebuilt adapters are what the sources give", || wasm::check(&workspace::root()))?;
        }
    }
    let mut command = workspace::cargo();
    command.env("CKRV_BIN", &ckrv).env("CKRV_BOOTSTRAP_BIN", built.join("bootstrap"));
    match &bench {
        Some(bench) => {
            steps.run("put ckrv into its image", || bench.import(&ckrv))?;
            let package = package::for_this_machine(&mut steps)?;
            command.env("CKRV_TEST_PACKAGE", &package);
            bench.export(&mut command);
            if runs(Pass::First) {
                steps.run("tests", || full(&command, filter))?;
            }
            if runs(Pass::Aws) {
                steps.run("the scenarios on AWS, through the function", || on_aws(&command, &package, filter))?;
            }
            if runs(Pass::Cluster) {
                steps.run("the scenarios in the cluster", || on_cluster(&command, filter))?;
            }
        }
        None => steps.run("tests that need no bench", || fast(&mut command, filter))?,
    }
    if args.fast {
        left_out()?;
    }
    steps.finish(if args.fast { "green, as far as --fast goes" } else { "green" });
    Ok(())
}

fn lints(steps: &mut Steps, fast: bool) -> Result<()> {
    steps.run("format", || steps::run(workspace::cargo().args(["fmt", "--all", "--check"])))?;
    steps.run("clippy", || {
        let lint = ["clippy", "--quiet", "--workspace", "--all-targets"];
        steps::run(workspace::cargo().args(lint).args(FEATURES).args(["--", "--deny", "warnings"]))
    })?;
    if !fast {
        steps.run(
            "dependencies: bans, licences, sources (advisories need the internet: `cargo deny check advisories`)",
            checks::deny,
        )?;
    }
    Ok(())
}

fn full(command: &Command, filter: Option<&str>) -> Result<()> {
    let mut first = again(command);
    first.args(["test", "--workspace", "--no-fail-fast"]).args(FEATURES);
    steps::run(first.args(filter))
}

/// A cargo with the environment of this command.
fn again(command: &Command) -> Command {
    let mut again = workspace::cargo();
    again.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    again
}

/// The same scenarios once more: API as the packaged function, dispatcher as a process of its own, DynamoDB and S3 between them.
fn on_aws(command: &Command, package: &Path, filter: Option<&str>) -> Result<()> {
    let mut again = again(command);
    let unpacked = tempfile::tempdir()?;
    again.env("CKRV_BOOTSTRAP_BIN", package::unpack(package, unpacked.path())?);
    again.env("CKRV_TEST_BACKEND", "lambda").args(["test", "--workspace", "--no-fail-fast"]).args(FEATURES);
    for target in ON_AWS {
        again.args(["--test", target]);
    }
    steps::run(again.args(filter))
}

/// Once more with their jobs in pods: the chart's dispatchers, the API beside the cluster.
fn on_cluster(command: &Command, filter: Option<&str>) -> Result<()> {
    let mut again = again(command);
    again.env("CKRV_TEST_BACKEND", "kube").args(["test", "--workspace", "--no-fail-fast"]).args(FEATURES);
    for target in ON_CLUSTER {
        again.args(["--test", target]);
    }
    // Each test has a dispatcher in the one node that there is.
    again.args(filter).args(["--", "--test-threads", "3"]);
    for name in NOT_ON_CLUSTER {
        again.args(["--skip", name]);
    }
    steps::run(&mut again)
}

fn fast(command: &mut Command, filter: Option<&str>) -> Result<()> {
    command.args(["test", "--workspace", "--no-fail-fast", "--lib", "--bins"]).args(FEATURES);
    for target in test_files()?.iter().filter(|target| !needs_bench(target)) {
        command.args(["--test", target]);
    }
    steps::run(command.args(filter))
}

fn left_out() -> Result<()> {
    say("\n    left out by --fast: dependency rules (cargo deny), the adapters built from source, documentation tests, and");
    for target in test_files()?.iter().filter(|target| needs_bench(target)) {
        say(&format!("      tests/{target}.rs"));
    }
    Ok(())
}

fn needs_bench(target: &str) -> bool {
    NEEDS_BENCH.iter().any(|prefix| target.starts_with(prefix))
}

/// The names of all test files of our packages.
fn test_files() -> Result<Vec<String>> {
    let metadata = workspace::metadata()?;
    let packages = metadata["packages"].as_array().context("cargo metadata gives no packages")?;
    let targets = packages.iter().filter_map(|package| package["targets"].as_array()).flatten();
    let tests = targets.filter(|target| target["kind"][0] == "test").filter_map(|target| target["name"].as_str());
    let mut names: Vec<_> = tests.map(str::to_owned).collect();
    names.sort();
    names.dedup();
    Ok(names)
}
