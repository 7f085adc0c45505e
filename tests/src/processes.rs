//! The processes that a server starts, found by what they were started with (Linux): to kill and to stop them.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::{PATIENCE, wait_until};

/// The job runner of this attempt's folder, as soon as there is one.
pub async fn runner(folder: &Path) -> Result<Pid> {
    wait_until(&format!("a job runner in {}", folder.display()), PATIENCE, async || runner_now(folder)).await
}

pub fn runner_now(folder: &Path) -> Option<Pid> {
    all().find(|pid| {
        let line = command_line(*pid);
        contains(&line, b"job-runner") && line.split(|byte| *byte == 0).any(|word| word == folder.as_os_str().as_bytes())
    })
}

/// The shim that this job runner has started, as soon as there is one.
pub async fn shim(runner: Pid) -> Result<Pid> {
    wait_until(&format!("a shim of process {runner}"), PATIENCE, async || shim_now(runner)).await
}

pub fn shim_now(runner: Pid) -> Option<Pid> {
    all().find(|pid| parent(*pid) == Some(runner) && contains(&command_line(*pid), b"\0shim\0"))
}

pub fn signal(pid: Pid, signal: Signal) -> Result<()> {
    match kill(pid, signal) {
        // It ended by itself meanwhile.
        Err(Errno::ESRCH) => Ok(()),
        result => Ok(result?),
    }
}

/// Waits until a process is no more, or a zombie that only its parent can remove.
pub async fn gone(pid: Pid, limit: Duration) -> Result<()> {
    wait_until(&format!("process {pid} is gone"), limit, async || (!runs(pid)).then_some(())).await
}

pub fn runs(pid: Pid) -> bool {
    stat(pid).is_some_and(|stat| stat.first().is_some_and(|state| state != "Z"))
}

pub(crate) fn all() -> impl Iterator<Item = Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw))
}

pub(crate) fn command_line(pid: Pid) -> Vec<u8> {
    std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

fn parent(pid: Pid) -> Option<Pid> {
    stat(pid)?.get(1)?.parse().ok().map(Pid::from_raw)
}

/// State, parent, and what else stands behind the command's name.
fn stat(pid: Pid) -> Option<Vec<String>> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(") ")?.1.split(' ').map(str::to_owned).collect())
}

pub(crate) fn contains(line: &[u8], part: &[u8]) -> bool {
    line.windows(part.len()).any(|window| window == part)
}
