//! The cluster's one node, and how it goes away: its parts are killed, and stay away for as long as somebody holds them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::signal_all;
use crate::bench;
use crate::kube::kubectl;
use crate::processes::{all, command_line, contains};
use crate::wait::wait_until;

/// The control plane waits 50 seconds for a node that says nothing.
const NOTICED: Duration = Duration::from_secs(180);

/// A part of the cluster that is kept away; dropped, it is started again.
#[derive(Debug)]
pub struct Held(PathBuf);

impl Held {
    /// Kills it and keeps it away.
    pub fn kill(part: &str) -> Result<Self> {
        let folder = bench::kube_folder()?;
        let hold = folder.join("hold");
        std::fs::create_dir_all(&hold)?;
        std::fs::write(hold.join(part), "")?;
        let held = Self(hold.join(part));
        kill(part)?;
        Ok(held)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Kills a part of the cluster, which is started again at once.
pub fn kill(part: &str) -> Result<()> {
    let folder = bench::kube_folder()?;
    let found: Vec<Pid> = all().filter(|pid| is_part(*pid, part, &folder)).collect();
    ensure!(found.len() == 1, "{} processes are the {part} of {}", found.len(), folder.display());
    signal_all(found, Signal::SIGKILL)
}

fn is_part(pid: Pid, part: &str, folder: &Path) -> bool {
    let line = command_line(pid);
    let program = line.split(|byte| *byte == 0).next().unwrap_or_default();
    let names_folder = format!("{}/", folder.display());
    program.ends_with(format!("/{part}").as_bytes()) && contains(&line, names_folder.as_bytes())
}

/// Waits until the control plane takes the node for what it is.
pub async fn is_ready(ready: bool) -> Result<()> {
    let node = bench::variable("CKRV_TEST_KUBE_NODE")?;
    let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
    let asked = async || {
        let status = kubectl(&["get", "node", &node, "--output", path]).await.ok()?;
        ((status.trim() == "True") == ready).then_some(())
    };
    wait_until(if ready { "the node is ready" } else { "the node is taken for lost" }, NOTICED, asked).await
}
