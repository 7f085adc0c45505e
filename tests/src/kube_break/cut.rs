//! TCP connections of a pod or of this machine that are cut where they are: both ends get a reset, as from a network that broke.

use anyhow::{Context as _, Result, ensure};
use nix::unistd::Pid;
use tokio::process::Command;

/// Where a job runner takes its shims' connections.
const DOOR: u16 = 7443;
/// The API server's service.
const CLUSTER: u16 = 443;
/// The dispatchers' service, and the dispatchers themselves.
const GATEWAY: u16 = 8443;

/// Which connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Line {
    /// Shims', at their job runner.
    Shim,
    /// To the API server: its watch is one of them.
    Watch,
    /// A job runner's to the gateway: its log and its beats go there.
    Gateway,
    /// Followers' of a log, at the port of this machine that they were given.
    Follow(u16),
}

impl Line {
    pub fn name(self) -> &'static str {
        match self {
            Self::Shim => "shim",
            Self::Watch => "watch",
            Self::Gateway => "gateway",
            Self::Follow(_) => "follow",
        }
    }

    fn filter(self) -> String {
        match self {
            Self::Shim => format!("sport = :{DOOR}"),
            Self::Watch => format!("dport = :{CLUSTER}"),
            Self::Gateway => format!("dport = :{GATEWAY}"),
            Self::Follow(port) => format!("dport = :{port}"),
        }
    }
}

/// Cuts the connections of the network that this process has, or of this machine's; gives how many there were. A process that is no more has
/// none.
pub async fn cut(inside: Option<Pid>, line: Line) -> Result<usize> {
    let mut command = match inside {
        Some(pid) => {
            let mut nsenter = Command::new("nsenter");
            nsenter.args(["--target", &pid.to_string(), "--net", "ss"]);
            nsenter
        }
        None => Command::new("ss"),
    };
    command.args(["--kill", "--tcp", "--numeric", "--no-header", "state", "established"]).arg(line.filter());
    let output = command.kill_on_drop(true).output().await.context("can't start ss: install iproute2 and util-linux")?;
    let is_gone = inside.is_some_and(|pid| !crate::processes::runs(pid));
    ensure!(output.status.success() || is_gone, "{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter(|line| !line.trim().is_empty()).count())
}
