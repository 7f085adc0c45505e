//! Faults of the cluster's processes, pods and node, each singly, on real jobs. `cargo xtask soak --only cluster` runs them; `cargo test` leaves
//! them out, but for the slice in `full_kube_faultlist`.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ckrv_tests::bench::seed;
use ckrv_tests::kube::{kubectl, kubectl_with};
use ckrv_tests::kube_break::bench::{Bench, End, Target};
use ckrv_tests::kube_break::cutting::cuts;
use ckrv_tests::kube_break::{Pod, node, signal_all};
use jiff::Timestamp;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::json;
use tokio::sync::RwLock;

/// Jobs that meet each fault.
const JOBS: usize = 3;
const LINES: usize = 60;
/// The whole node is broken by one at a time, with no other beside it.
static NODE: RwLock<()> = RwLock::const_new(());

/// Jobs whose agents run meet the fault; all must come to this end.
async fn singly(fault: &'static str, end: End, strike: impl AsyncFn(&Bench, &[Target]) -> Result<()>) -> Result<()> {
    let _others = NODE.read().await;
    struck(fault, end, strike).await
}

/// The same, alone.
async fn alone(fault: &'static str, end: End, strike: impl AsyncFn(&Bench, &[Target]) -> Result<()>) -> Result<()> {
    let _nobody = NODE.write().await;
    struck(fault, end, strike).await
}

async fn struck(fault: &'static str, end: End, strike: impl AsyncFn(&Bench, &[Target]) -> Result<()>) -> Result<()> {
    let mut bench = Bench::start(seed()).await?;
    let targets = bench.targets(JOBS, LINES, None).await?;
    let at = Timestamp::now();
    strike(&bench, &targets).await.with_context(|| format!("{fault}: {}", bench.scene.server.log()))?;
    bench.settle_each(&targets, fault, at, end).await?;
    bench.keeps_no_secret(&targets, true).await
}

/// Of each job the processes that `which` finds: a signal.
fn send(targets: &[Target], signal: Signal, which: impl Fn(&Target) -> Vec<Pid>) -> Result<()> {
    targets.iter().try_for_each(|target| signal_all(which(target), signal))
}

fn runner(target: &Target) -> Vec<Pid> {
    target.job.job_runner().into_iter().collect()
}

fn shim(target: &Target) -> Vec<Pid> {
    target.agent.shim().into_iter().collect()
}

fn agent(target: &Target) -> Vec<Pid> {
    target.agent.agents()
}

/// Stopped for a while, and then let go on, as far as they still are there.
async fn stop(targets: &[Target], seconds: u64, which: impl Fn(&Target) -> Vec<Pid>) -> Result<()> {
    send(targets, Signal::SIGSTOP, &which)?;
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    for pid in targets.iter().flat_map(which) {
        ckrv_tests::processes::signal(pid, Signal::SIGCONT)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: cargo xtask soak --only cluster"]
async fn soak_cluster_kill_job_runner() -> Result<()> {
    singly("kill -9 of the job runner", End::Success, async |_, targets| send(targets, Signal::SIGKILL, runner)).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: cargo xtask soak --only cluster"]
async fn soak_cluster_kill_shim() -> Result<()> {
    singly("kill -9 of the shim", End::Success, async |_, targets| send(targets, Signal::SIGKILL, shim)).await
}

/// Only the agent's own end is the job's: it is not tried again.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: cargo xtask soak --only cluster"]
async fn soak_cluster_kill_agent() -> Result<()> {
    singly("kill -9 of the agent", End::State("failed"), async |_, targets| send(targets, Signal::SIGKILL, agent)).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: cargo xtask soak --only cluster"]
async fn soak_cluster_stop_job_runner_30() -> Result<()> {
    singly("SIGSTOP of the job runner, 30 s", End::Success, async |_, targets| stop(targets, 30, runner).await).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: cargo xtask soak --only cluster"]
async fn soak_cluster_stop_job_runner_90() -> Result<()> {
    singly("SIGSTOP of the job runner, 90 s", End::Success, async |_, targets| stop(targets, 90, runner).await).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: cargo xtask soak --only cluster"]
async fn soak_cluster_stop_shim_30() -> Result<()> {
    singly("SIGSTOP of the shim, 30 s", End::Success, async |_, targets| stop(targets, 30, shim).await).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: cargo xtask soak --only cluster"]
async fn soak_cluster_stop_shim_90() -> Result<()> {
    singly("SIGSTOP of the shim, 90 s", End::Success, async |_, targets| stop(targets, 90, shim).await).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: cargo xtask soak --only cluster"]
async fn soak_cluster_stop_agent_30() -> Result<()> {
    singly("SIGSTOP of the agent, 30 s", End::Success, async |_, targets| stop(targets, 30, agent).await).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: cargo xtask soak --only cluster"]
async fn soak_cluster_stop_agent_90() -> Result<()> {
    singly("SIGSTOP of the agent, 90 s", End::Success, async |_, targets| stop(targets, 90, agent).await).await
}

async fn delete(bench: &Bench, pod: &Pod) -> Result<()> {
    let namespace = &bench.cluster()?.jobs;
    kubectl(&["delete", "pod", &pod.name, "--namespace", namespace, "--grace-period=0", "--force", "--wait=false"])
        .await
        .map(drop)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: cargo xtask soak --only cluster"]
async fn soak_cluster_delete_job_pod() -> Result<()> {
    let each = async |bench: &Bench, targets: &[Target]| {
        for target in targets {
            delete(bench, &target.job).await?;
        }
        Ok(())
    };
    singly("job pod deleted with grace 0", End::Success, each).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: cargo xtask soak --only cluster"]
async fn soak_cluster_delete_agent_pod() -> Result<()> {
    let each = async |bench: &Bench, targets: &[Target]| {
        for target in targets {
            delete(bench, &target.agent).await?;
        }
        Ok(())
    };
    singly("agent pod deleted with grace 0", End::Success, each).await
}

/// As `kubectl drain` does.
async fn evict(bench: &Bench, pod: &Pod) -> Result<()> {
    let namespace = &bench.cluster()?.jobs;
    let metadata = json!({ "name": pod.name, "namespace": namespace });
    let eviction = json!({ "apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata });
    let path = format!("/api/v1/namespaces/{namespace}/pods/{}/eviction", pod.name);
    kubectl_with(&["create", "--raw", &path, "--filename", "-"], Some(&eviction.to_string())).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: cargo xtask soak --only cluster"]
async fn soak_cluster_evict_job_pod() -> Result<()> {
    let each = async |bench: &Bench, targets: &[Target]| {
        for target in targets {
            evict(bench, &target.job).await?;
        }
        Ok(())
    };
    singly("job pod evicted", End::Success, each).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: cargo xtask soak --only cluster"]
async fn soak_cluster_evict_agent_pod() -> Result<()> {
    let each = async |bench: &Bench, targets: &[Target]| {
        for target in targets {
            evict(bench, &target.agent).await?;
        }
        Ok(())
    };
    singly("agent pod evicted", End::Success, each).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: cargo xtask soak --only cluster"]
async fn soak_cluster_kill_dispatcher_of_two() -> Result<()> {
    let _others = NODE.read().await;
    let mut bench = Bench::start(seed()).await?;
    let cluster = bench.cluster()?;
    kubectl(&["scale", "deployment/ckrv", "--namespace", &cluster.namespace, "--replicas=2"]).await?;
    cluster.ready().await?;
    let targets = bench.targets(JOBS, LINES, None).await?;
    let (dispatchers, at) = (bench.dispatchers().await?, Timestamp::now());
    ensure!(dispatchers.len() == 2, "{dispatchers:?}");
    signal_all(dispatchers[0].dispatcher(), Signal::SIGKILL)?;
    bench.settle_each(&targets, "kill -9 of a dispatcher, of two", at, End::Success).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: cargo xtask soak --only cluster"]
async fn soak_cluster_kill_kubelet() -> Result<()> {
    alone("kill -9 of the kubelet", End::Success, async |_, _| node::kill("kubelet")).await
}

/// Node and all it runs for jobs are gone, and come back. The dispatcher, which has no other node to go to, goes on.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: cargo xtask soak --only cluster"]
async fn soak_cluster_node_gone() -> Result<()> {
    let gone = async |_: &Bench, targets: &[Target]| {
        let node = take_away(targets)?;
        node::is_ready(false).await?;
        tokio::time::sleep(Duration::from_secs(30)).await;
        drop(node);
        node::is_ready(true).await
    };
    alone("node gone, and back half a minute after that was noticed", End::Success, gone).await
}

/// It stays away until after the deadlines: nothing that runs there can say so, and no pod is to be left all the same.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: cargo xtask soak --only cluster"]
async fn soak_cluster_node_lost() -> Result<()> {
    let _nobody = NODE.write().await;
    let mut bench = Bench::start(seed()).await?;
    // As if it ran elsewhere: the control plane is not to take it away with the node.
    let stays =
        json!({ "spec": { "template": { "spec": { "tolerations": [{ "effect": "NoExecute", "operator": "Exists" }] } } } });
    let cluster = bench.cluster()?;
    kubectl(&["patch", "deployment/ckrv", "--namespace", &cluster.namespace, "--patch", &stays.to_string()]).await?;
    cluster.ready().await?;
    let targets = bench.targets(JOBS, LINES, Some(120)).await?;
    let (node, at) = (take_away(&targets)?, Timestamp::now());
    bench.settle_each(&targets, "node gone for good", at, End::State("timeout")).await?;
    bench.keeps_no_secret(&targets, false).await?;
    drop(node);
    node::is_ready(true).await
}

fn take_away(targets: &[Target]) -> Result<[node::Held; 2]> {
    // Without the kubelet nobody notices what happens to the others.
    let held = [node::Held::kill("kubelet")?, node::Held::kill("containerd")?];
    for target in targets {
        signal_all(target.job.processes().into_iter().chain(target.agent.processes()), Signal::SIGKILL)?;
    }
    Ok(held)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: cargo xtask soak --only cluster"]
async fn soak_cluster_a_thousand_cuts() -> Result<()> {
    let _others = NODE.read().await;
    cuts(seed(), 1000, 4, 120).await
}
