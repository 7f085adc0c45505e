//! Reaping and killing. The shim is process 1 of its container, or a subreaper, so that whatever a command leaves behind becomes
//! its child: in a session of its own or not, it is found and killed.

use std::collections::HashMap;
use std::io;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// How long killed processes get to disappear. A process in uninterruptible sleep can take longer; it is then left behind.
const GONE_WITHIN: Duration = Duration::from_secs(5);

/// How the main process of a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Code(i32),
    Signal(i32),
}

type Waiters = Mutex<HashMap<i32, oneshot::Sender<Ended>>>;

/// Owner of this process's children, all of them: it reaps whatever ends.
#[derive(Debug)]
pub struct Processes {
    waiters: Arc<Waiters>,
    reaper: JoinHandle<()>,
}

impl Processes {
    /// # Errors
    /// When SIGCHLD can't be listened to.
    pub fn take_over() -> io::Result<Self> {
        protect();
        let waiters: Arc<Waiters> = Arc::default();
        let mut children = signal(SignalKind::child())?;
        let shared = Arc::clone(&waiters);
        let reaper = tokio::spawn(async move {
            loop {
                reap(&mut lock(&shared));
                if children.recv().await.is_none() {
                    return;
                }
            }
        });
        Ok(Self { waiters, reaper })
    }

    /// Starts a command in a process group of its own. The receiver gives its end.
    pub fn spawn(&self, command: &mut Command) -> io::Result<(Child, oneshot::Receiver<Ended>)> {
        use std::os::unix::process::CommandExt as _;
        // Held over the start: the reaper must not see an end before it knows whom to tell.
        let mut waiters = lock(&self.waiters);
        let child = command.process_group(0).spawn()?;
        let (sender, ended) = oneshot::channel();
        waiters.insert(pid_of(&child).as_raw(), sender);
        drop(waiters);
        prefer_for_oom(&child);
        Ok((child, ended))
    }

    /// Kills every descendant and gives their number.
    pub async fn kill_everything(&self) -> u32 {
        let mut killed = HashMap::new();
        let deadline = tokio::time::Instant::now() + GONE_WITHIN;
        loop {
            let alive = descendants();
            if is_init() {
                // The whole container but this process, at one go: nothing forks its way out, and no process table is needed.
                let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
            }
            if alive.is_empty() || tokio::time::Instant::now() >= deadline {
                return u32::try_from(killed.len()).unwrap_or(u32::MAX);
            }
            for pid in alive {
                killed.insert(pid, ());
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            // Again, until none is left: a process may have forked between being listed and being killed.
            tokio::time::sleep(Duration::from_millis(2)).await;
            reap(&mut lock(&self.waiters));
        }
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.reaper.abort();
    }
}

pub fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

/// Signals a run's process group; a group that is gone is no error.
pub fn signal_group(group: Pid, signal: Signal) {
    let _ = killpg(group, signal);
}

fn lock(waiters: &Waiters) -> MutexGuard<'_, HashMap<i32, oneshot::Sender<Ended>>> {
    waiters.lock().unwrap_or_else(PoisonError::into_inner)
}

fn reap(waiters: &mut HashMap<i32, oneshot::Sender<Ended>>) {
    loop {
        let (pid, ended) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, Ended::Code(code)),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, Ended::Signal(signal as i32)),
            Ok(WaitStatus::StillAlive) => return,
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(_) => return,
        };
        if let Some(waiter) = waiters.remove(&pid.as_raw()) {
            let _ = waiter.send(ended);
        }
    }
}

/// Whether this is the first process of a container, so that what it sees of processes and memory is the container's.
pub fn is_init() -> bool {
    getpid().as_raw() == 1
}

/// Takes over orphans, and keeps others of the same user out of this process's memory, environment and open files.
#[cfg(target_os = "linux")]
pub fn protect() {
    use nix::sys::prctl;
    // Orphans come to us instead of to the machine's init.
    let _ = prctl::set_child_subreaper(true);
    // An agent of the same user must not write into our end of the stream through /proc/PID/fd, nor trace us.
    let _ = prctl::set_dumpable(false);
}

#[cfg(not(target_os = "linux"))]
pub fn protect() {}

/// Under memory pressure the kernel shall take the command, not the shim that reports it.
#[cfg(target_os = "linux")]
fn prefer_for_oom(child: &Child) {
    let _ = std::fs::write(format!("/proc/{}/oom_score_adj", child.id()), "500");
}

#[cfg(not(target_os = "linux"))]
fn prefer_for_oom(_child: &Child) {}

/// Living descendants of this process, from the process table. Zombies don't count.
#[cfg(target_os = "linux")]
fn descendants() -> Vec<i32> {
    let mut children: HashMap<i32, Vec<(i32, bool)>> = HashMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        if let Some((parent, alive)) = parse_stat(&stat) {
            children.entry(parent).or_default().push((pid, alive));
        }
    }
    let mut found = Vec::new();
    let mut open = vec![getpid().as_raw()];
    while let Some(parent) = open.pop() {
        for (pid, alive) in children.remove(&parent).unwrap_or_default() {
            open.push(pid);
            if alive {
                found.push(pid);
            }
        }
    }
    found
}

/// Parent and whether the process is alive. The name before them may hold anything, closing brackets too.
#[cfg(target_os = "linux")]
fn parse_stat(stat: &str) -> Option<(i32, bool)> {
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?;
    Some((fields.next()?.parse().ok()?, !matches!(state, "Z" | "X")))
}

/// Elsewhere only the process group is known, which is killed by its number.
#[cfg(not(target_os = "linux"))]
fn descendants() -> Vec<i32> {
    Vec::new()
}

/// How many processes the kernel has killed in this container for want of memory. `None` outside one, where the counter is shared.
pub fn oom_kills() -> Option<u64> {
    if !is_init() {
        return None;
    }
    let files = ["/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"];
    let text = files.iter().find_map(|file| std::fs::read_to_string(file).ok())?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// Largest resident set among the children reaped so far, in KiB.
pub fn max_rss_kib() -> u64 {
    use nix::sys::resource::{UsageWho, getrusage};
    let max = getrusage(UsageWho::RUSAGE_CHILDREN).map_or(0, |usage| usage.max_rss());
    let unit = if cfg!(target_os = "macos") { 1024 } else { 1 };
    u64::try_from(max).unwrap_or_default() / unit
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_brackets_and_spaces_is_read_past() {
        assert_eq!(parse_stat("7 (a) S 9 (x) R 42 7 7 0"), Some((42, true)));
        assert_eq!(parse_stat("7 (b) Z 1 7"), Some((1, false)));
    }
}
