//! `cargo xtask test`: everything that must hold, from nothing.

mod lanes;

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
const ON_AWS: [&str; 19] = [
    "fast_adapters",
    "fast_bad_input",
    "fast_checkpoint",
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
            // The function's last step, its linking, keeps one processor busy for minutes.
            let package = std::thread::scope(|scope| {
                let tests = scope.spawn(|| steps::run(tests(&command).arg("--no-run").arg("--quiet")));
                let package = package::for_this_machine(&mut steps)?;
                steps.run("build the tests", || steps::joined(tests.join()))?;
                anyhow::Ok(package)
            })?;
            command.env("CKRV_TEST_PACKAGE", &package);
            bench.export(&mut command);
            let unpacked = tempfile::tempdir()?;
            let (mut front, mut beside) = (Vec::new(), Vec::new());
            if runs(Pass::First) {
                beside.push(lanes::Part::new(
                    "tests of the cluster, and of what takes its time",
                    files(&command, &waits)?,
                    filter,
                ));
                front.push(lanes::Part::new("tests", rest(&command)?, filter));
                front.push(lanes::Part::new("documentation tests", documentation(&command), filter));
            }
            if runs(Pass::Aws) {
                let function = package::unpack(&package, unpacked.path())?;
                front.push(lanes::Part::new("the scenarios on AWS, through the function", on_aws(&command, &function), filter));
            }
            if runs(Pass::Cluster) {
                beside.push(lanes::Part::new("the scenarios in the cluster", on_cluster(&command), filter));
            }
            lanes::run(&mut steps, front, beside)?;
        }
        None => steps.run("tests that need no bench", || fast(&command, filter))?,
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

/// `cargo test` with the environment of this command, so far for all there is.
fn tests(command: &Command) -> Command {
    let mut tests = workspace::cargo();
    tests.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    tests.args(["test", "--workspace", "--no-fail-fast"]).args(FEATURES);
    tests
}

/// Test files only.
fn files(command: &Command, wanted: &dyn Fn(&str) -> bool) -> Result<Command> {
    let mut files = tests(command);
    for target in test_files()?.iter().filter(|target| wanted(target)) {
        files.args(["--test", target]);
    }
    Ok(files)
}

/// The first pass but for those that wait and the documentation.
fn rest(command: &Command) -> Result<Command> {
    let mut rest = files(command, &|target| !waits(target))?;
    rest.args(["--lib", "--bins"]);
    Ok(rest)
}

fn documentation(command: &Command) -> Command {
    let mut documentation = tests(command);
    documentation.arg("--doc");
    documentation
}

/// The same scenarios once more: API as the packaged function, dispatcher as a process of its own, DynamoDB and S3 between them.
fn on_aws(command: &Command, function: &Path) -> Command {
    let mut on_aws = tests(command);
    on_aws.env("CKRV_BOOTSTRAP_BIN", function).env("CKRV_TEST_BACKEND", "lambda");
    for target in ON_AWS {
        on_aws.args(["--test", target]);
    }
    on_aws
}

/// Once more with their jobs in pods: the chart's dispatchers, the API beside the cluster.
fn on_cluster(command: &Command) -> Command {
    let mut on_cluster = tests(command);
    on_cluster.env("CKRV_TEST_BACKEND", "kube");
    for target in ON_CLUSTER {
        on_cluster.args(["--test", target]);
    }
    // Each test has a dispatcher in the one node that there is.
    on_cluster.args(["--", "--test-threads", "3"]);
    for name in NOT_ON_CLUSTER {
        on_cluster.args(["--skip", name]);
    }
    on_cluster
}

fn fast(command: &Command, filter: Option<&str>) -> Result<()> {
    let mut fast = files(command, &|target| !needs_bench(target))?;
    steps::run(fast.args(["--lib", "--bins"]).args(filter))
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

/// Those that wait most of the time, for pods or for a lease to lapse.
fn waits(target: &str) -> bool {
    target.starts_with("full_kube_") || target == "aws_takeover"
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
