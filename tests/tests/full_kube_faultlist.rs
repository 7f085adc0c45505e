//! A slice of the fault list of `full_kube_soak`, on one scene, and some cuts.

use std::time::Duration;

use anyhow::Result;
use ckrv_tests::bench::seed;
use ckrv_tests::kube_break::bench::{Bench, End, Target};
use ckrv_tests::kube_break::cutting::cuts;
use ckrv_tests::kube_break::signal_all;
use jiff::Timestamp;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

/// A part of a job whose agent runs, what happens to it, and how the job is to end.
const FAULTS: [(&str, Signal, End); 4] = [
    ("kill -9 of the job runner", Signal::SIGKILL, End::Success),
    ("kill -9 of the shim", Signal::SIGKILL, End::Success),
    ("kill -9 of the agent", Signal::SIGKILL, End::State("failed")),
    ("SIGSTOP of the job runner, some seconds", Signal::SIGSTOP, End::Success),
];

fn victims(fault: &str, target: &Target) -> Vec<Pid> {
    match fault {
        "kill -9 of the shim" => target.agent.shim().into_iter().collect(),
        "kill -9 of the agent" => target.agent.agents(),
        _ => target.job.job_runner().into_iter().collect(),
    }
}

/// Each fault has a job of its own, all at once.
#[tokio::test(flavor = "multi_thread")]
async fn edge_cluster_each_killed_or_stopped_process_of_a_job_ends_it_once_and_leaves_nothing() -> Result<()> {
    let mut bench = Bench::start(seed()).await?;
    let targets = bench.targets(FAULTS.len(), 40, None).await?;
    let struck = Timestamp::now();
    for ((fault, signal, _), target) in FAULTS.iter().zip(&targets) {
        signal_all(victims(fault, target), *signal)?;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    signal_all(victims(FAULTS[3].0, &targets[3]), Signal::SIGCONT)?;
    for ((fault, _, end), target) in FAULTS.iter().zip(&targets) {
        let figure = bench.settle(target, fault, struck, *end).await?;
        let lost = u64::from(fault.ends_with("runner") || fault.ends_with("shim"));
        assert_eq!(figure.attempts, 1 + lost, "{figure:?}");
    }
    bench.keeps_no_secret(&targets, true).await
}

#[tokio::test(flavor = "multi_thread")]
async fn edge_cluster_jobs_whose_connections_are_cut_lose_no_line() -> Result<()> {
    cuts(seed(), 50, 2, 40).await
}
