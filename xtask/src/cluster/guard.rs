//! The processes that a cluster runs under. `xtask cluster-guard`, on the host, makes the namespaces, and clears away when they are
//! done. `xtask cluster-init` is process 1 in them: it starts the parts, and starts again what ends. When it ends itself, the
//! kernel kills every process in the namespaces, pods included, and their mounts and network go with them.

use std::collections::HashMap;
use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::Pid;

use super::install::Programs;
use super::layout::{Layout, PORT};
use super::parts::{self, Part};
use crate::steps::{self, say};
use crate::workspace::Cache;

/// A part that ends at once should not keep the machine busy.
const PAUSE: Duration = Duration::from_millis(500);

#[derive(clap::Args)]
pub struct Args {
    #[arg(long)]
    slot: u8,
}

impl Args {
    fn layout(&self) -> Result<Layout> {
        Ok(Layout { slot: self.slot, programs: Programs::new(&Cache::open()?) })
    }
}

/// Until stdin ends, or the cluster does.
pub fn guard(args: &Args) -> Result<()> {
    let layout = args.layout()?;
    layout.plug()?;
    layout.make_cgroups()?;
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{}", layout.name())).arg("unshare");
    command.args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]);
    command.arg(std::env::current_exe()?).args(["cluster-init", "--slot", &args.slot.to_string()]);
    // Our end of this pipe closes whichever way we end.
    let mut child = command.stdin(Stdio::piped()).spawn().context("can't start unshare: install util-linux")?;
    let pipe = child.stdin.take();
    std::thread::spawn(move || {
        wait_for_end_of_stdin();
        drop(pipe);
    });
    let status = child.wait()?;
    layout.sweep();
    bail!("the cluster ended with {status}")
}

/// Process 1 of the cluster.
pub fn init(args: &Args) -> Result<()> {
    let layout = Arc::new(args.layout()?);
    std::thread::spawn(end_with_stdin);
    mounts(&layout)?;
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    let running = Arc::new(Running { layout, parts: Mutex::default() });
    for part in parts::first(&running.layout)? {
        running.start(part)?;
    }
    let later = Arc::clone(&running);
    std::thread::spawn(move || later.start_second());
    running.reap()
}

#[expect(clippy::disallowed_methods, reason = "the other threads never end, and the kernel kills whatever process is left")]
fn end_with_stdin() {
    wait_for_end_of_stdin();
    std::process::exit(0);
}

fn wait_for_end_of_stdin() {
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
}

/// Folders that the parts know by fixed names become the cluster's own. Nobody outside sees it.
fn mounts(layout: &Layout) -> Result<()> {
    // The kubelet hands its mounts on to containers.
    steps::run(Command::new("mount").args(["--make-rshared", "/"]))?;
    steps::run(Command::new("mount").args(["-t", "tmpfs", "-o", "mode=755", "cluster", "/run"]))?;
    for (at, name) in [("/var/log", "var-log"), ("/var/lib/cni", "var-lib-cni")] {
        let own = layout.path(name);
        std::fs::create_dir_all(&own)?;
        std::fs::create_dir_all(at)?;
        steps::run(Command::new("mount").arg("--bind").arg(own).arg(at))?;
    }
    Ok(())
}

/// The parts that run, by process.
struct Running {
    layout: Arc<Layout>,
    parts: Mutex<HashMap<Pid, Part>>,
}

impl Running {
    fn start(&self, part: Part) -> Result<()> {
        let log = self.layout.path("logs").join(format!("{}.log", part.name));
        let log = File::options().create(true).append(true).open(log)?;
        let mut command = part.command(&self.layout);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // The lock is held meanwhile: a part that ends at once is not to be reaped before it is known.
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let child = command.spawn().with_context(|| format!("can't start {}", part.name))?;
        parts.insert(Pid::from_raw(i32::try_from(child.id())?), part);
        Ok(())
    }

    fn start_second(&self) {
        let address = SocketAddr::from(([127, 0, 0, 1], PORT));
        while TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err() {
            std::thread::sleep(Duration::from_millis(50));
        }
        for part in parts::second(&self.layout) {
            self.start_or_say(part);
        }
    }

    fn start_or_say(&self, part: Part) {
        if let Err(error) = self.start(part) {
            say(&format!("{error:#}"));
        }
    }

    /// Everything without a parent is our child: shims and what pods leave. Of the parts, those that ended start again.
    fn reap(self: Arc<Self>) -> Result<()> {
        loop {
            let status = match wait() {
                Ok(status) => status,
                Err(Errno::ECHILD | Errno::EINTR) => {
                    std::thread::sleep(PAUSE);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let (WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)) = status else { continue };
            let part = self.parts.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid);
            let Some(part) = part else { continue };
            say(&format!("{} ended: {status:?}", part.name));
            let again = Arc::clone(&self);
            std::thread::spawn(move || {
                std::thread::sleep(PAUSE);
                // A test that wants a part to stay away for a while puts a file here.
                while again.layout.path("hold").join(part.name).exists() {
                    std::thread::sleep(Duration::from_millis(100));
                }
                again.start_or_say(part);
            });
        }
    }
}
