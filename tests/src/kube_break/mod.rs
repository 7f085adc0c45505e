//! Faults of the test cluster's processes, pods and node. All of its processes are seen from this machine, so that they can be signalled, and
//! their connections cut (Linux, root; a cluster of `cargo xtask cluster`).

pub mod bench;
pub mod cut;
pub mod cutting;
pub mod figures;
pub mod node;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;

use crate::processes::{all, command_line, contains, signal};
use crate::wait::{PATIENCE, wait_until};

/// One pod, by what its processes' cgroups are named after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub name: String,
    pub uid: String,
}

impl Pod {
    pub fn of(pod: &Value) -> Result<Self> {
        let text = |name: &str| pod["metadata"][name].as_str().map(str::to_owned).context("a pod without a name");
        Ok(Self { name: text("name")?, uid: text("uid")? })
    }

    /// Of all its containers.
    pub fn processes(&self) -> Vec<Pid> {
        let its = format!("pod{}", self.uid);
        let is_its = |pid: &Pid| std::fs::read(format!("/proc/{pid}/cgroup")).is_ok_and(|text| contains(&text, its.as_bytes()));
        all().filter(is_its).collect()
    }

    pub fn job_runner(&self) -> Option<Pid> {
        self.with(b"\0job-pod\0")
    }

    pub fn dispatcher(&self) -> Option<Pid> {
        self.with(b"\0serve\0")
    }

    pub fn shim(&self) -> Option<Pid> {
        self.with(b"/shim\0connect\0")
    }

    /// The agent and whatever it has started: all but the first processes of the pod's containers.
    pub fn agents(&self) -> Vec<Pid> {
        self.processes().into_iter().filter(|pid| !is_first(*pid)).collect()
    }

    fn with(&self, words: &[u8]) -> Option<Pid> {
        self.processes().into_iter().find(|pid| contains(&command_line(*pid), words))
    }

    /// Waits until none of it runs.
    pub async fn ended(&self) -> Result<()> {
        let none = async || self.processes().is_empty().then_some(());
        wait_until(&format!("nothing of pod {} runs", self.name), PATIENCE * 5, none).await
    }
}

/// Whether it is process 1 of its container.
fn is_first(pid: Pid) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let inner = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    inner.and_then(|pids| pids.split_whitespace().next_back()) == Some("1")
}

/// Sends a signal to all of them; none at all is an error: the fault would not have happened.
pub fn signal_all(pids: impl IntoIterator<Item = Pid>, what: Signal) -> Result<()> {
    let mut sent = 0;
    for pid in pids {
        signal(pid, what)?;
        sent += 1;
    }
    ensure!(sent > 0, "there was no process to send {what} to");
    Ok(())
}
