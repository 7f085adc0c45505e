//! The parts that `cargo xtask test` has set up, found by the environment. A missing one fails the test that wants it.

#![expect(clippy::disallowed_methods, reason = "this is the one place where the tests read their environment")]

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};

static ALWAYS_IN_CLUSTER: AtomicBool = AtomicBool::new(false);

/// `unix://…` of a Docker-compatible container engine.
pub fn engine() -> Result<String> {
    variable("CKRV_TEST_ENGINE")
}

/// An image with node, git, Claude Code and Gemini CLI.
pub fn image() -> Result<String> {
    variable("CKRV_TEST_IMAGE")
}

/// An image with busybox and nothing else.
pub fn tiny_image() -> Result<String> {
    variable("CKRV_TEST_TINY_IMAGE")
}

/// Claude Code's native binary.
pub fn claude() -> Result<PathBuf> {
    variable("CKRV_TEST_CLAUDE").map(PathBuf::from)
}

/// Gemini CLI's program, for node.
pub fn gemini() -> Result<PathBuf> {
    variable("CKRV_TEST_GEMINI").map(PathBuf::from)
}

/// A Kubernetes cluster, as its administrator.
pub fn kubeconfig() -> Result<PathBuf> {
    variable("CKRV_TEST_KUBECONFIG").map(PathBuf::from)
}

/// Our own image, which the cluster's nodes have: `ckrv` under test, git, ssh, certificates, busybox.
pub fn kube_image() -> Result<String> {
    variable("CKRV_TEST_KUBE_IMAGE")
}

/// What [`image`] is, on the cluster's nodes.
pub fn kube_agents() -> Result<String> {
    variable("CKRV_TEST_KUBE_AGENTS")
}

/// What [`tiny_image`] is, on the cluster's nodes.
pub fn kube_tiny() -> Result<String> {
    variable("CKRV_TEST_KUBE_TINY")
}

/// One static program, `/cp`, and nothing else; on the cluster's nodes.
pub fn kube_scratch() -> Result<String> {
    variable("CKRV_TEST_KUBE_SCRATCH")
}

/// The network namespace of the bench's cluster: not there for somebody else's.
pub fn kube_netns() -> Result<String> {
    variable("CKRV_TEST_KUBE_NETNS")
}

/// An address of this machine that pods reach.
pub fn kube_host() -> Result<std::net::IpAddr> {
    variable("CKRV_TEST_KUBE_HOST_IP")?.parse().context("CKRV_TEST_KUBE_HOST_IP is no address")
}

/// Where the cluster of the bench has everything that is its own: not there for somebody else's cluster.
pub fn kube_folder() -> Result<PathBuf> {
    variable("CKRV_TEST_KUBE_FOLDER").map(PathBuf::from)
}

/// The programs `kubectl`, `helm` and `kwok`.
pub fn kubectl() -> Result<PathBuf> {
    variable("CKRV_TEST_KUBECTL").map(PathBuf::from)
}

pub fn helm() -> Result<PathBuf> {
    variable("CKRV_TEST_HELM").map(PathBuf::from)
}

pub fn kwok() -> Result<PathBuf> {
    variable("CKRV_TEST_KWOK").map(PathBuf::from)
}

/// The seed of a soak, else the fixed one of the ordinary tests.
pub fn seed() -> u64 {
    std::env::var("CKRV_SOAK_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1)
}

/// Where a soak wants its figures, a line of JSON for each.
pub fn soak_figures() -> Option<PathBuf> {
    std::env::var("CKRV_SOAK_FIGURES").ok().map(PathBuf::from)
}

/// The `ckrv` under test: `CKRV_BIN`, else the one that cargo built beside the tests.
pub fn ckrv() -> Result<PathBuf> {
    built("ckrv", "CKRV_BIN").context("no ckrv to test: `cargo build -p ckrv`, or set CKRV_BIN")
}

/// The API's function for Lambda: `CKRV_BOOTSTRAP_BIN`, else the one that cargo built beside the tests.
pub fn bootstrap() -> Result<PathBuf> {
    built("bootstrap", "CKRV_BOOTSTRAP_BIN")
        .context("no function to test: `cargo build -p ckrv-api --features lambda`, or set CKRV_BOOTSTRAP_BIN")
}

/// The packaged function for this machine's processors.
pub fn package() -> Result<PathBuf> {
    variable("CKRV_TEST_PACKAGE").map(PathBuf::from)
}

fn built(name: &str, variable: &str) -> Option<PathBuf> {
    let named = std::env::var(variable).ok().map(PathBuf::from);
    named.or_else(|| Some(std::env::current_exe().ok()?.ancestors().nth(2)?.join(name)).filter(|path| path.exists()))
}

/// Whether the scenarios run their jobs in the test cluster, with their stand-ins for AWS.
pub fn in_cluster() -> bool {
    ALWAYS_IN_CLUSTER.load(Ordering::Relaxed) || std::env::var("CKRV_TEST_BACKEND").is_ok_and(|backend| backend == "kube")
}

/// Says so for all tests of this process: a file whose subject is the cluster.
pub fn always_in_cluster() {
    ALWAYS_IN_CLUSTER.store(true, Ordering::Relaxed);
}

/// Where the servers of the tests listen: loopback, or where pods reach this machine.
pub fn host() -> Result<std::net::IpAddr> {
    if in_cluster() { kube_host() } else { Ok(std::net::Ipv4Addr::LOCALHOST.into()) }
}

/// Whether the scenarios run on the AWS backend.
pub fn on_aws() -> bool {
    through_lambda() || in_cluster() || std::env::var("CKRV_TEST_BACKEND").is_ok_and(|backend| backend == "aws")
}

/// Whether the scenarios also use the API as a Lambda function.
pub fn through_lambda() -> bool {
    std::env::var("CKRV_TEST_BACKEND").is_ok_and(|backend| backend == "lambda")
}

/// What `cargo xtask test` exports under this name.
pub fn variable(name: &str) -> Result<String> {
    std::env::var(name)
        .with_context(|| format!("{name} is not set: run `cargo xtask test`, or `cargo xtask test --fast` without the bench"))
}
