//! Where a cluster lies: a slot of this machine, which gives it a folder, a network namespace, addresses and cgroups of its own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::install::Programs;
use crate::steps;

/// As many clusters as one machine has addresses for here, and more than it can carry.
const SLOTS: u8 = 32;
/// In RAM: a lock that outlived a restart of the machine would say nothing.
const LOCKS: &str = "/run/lock";
pub const PORT: u16 = 6443;
/// Containerd's, in the folder.
pub const SOCKET: &str = "containerd.sock";

#[derive(Clone, Debug)]
pub struct Layout {
    pub slot: u8,
    pub programs: Programs,
}

impl Layout {
    /// A slot that nobody holds. The lock is held for as long as a process has the file open: it is given on as stdout.
    pub fn claim(programs: Programs) -> Result<(Self, File)> {
        let (slot, lock) = free_slot(Path::new(LOCKS))?;
        Ok((Self { slot, programs }, lock))
    }

    /// The name of the network namespace, the cgroup and the node.
    pub fn name(&self) -> String {
        format!("ckrv-cluster-{}", self.slot)
    }

    pub fn node_name(&self) -> String {
        format!("ckrv-node-{}", self.slot)
    }

    pub fn folder(&self) -> PathBuf {
        std::env::temp_dir().join(self.name())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    pub fn kubeconfig(&self, client: &str) -> PathBuf {
        self.path(&format!("{client}.kubeconfig"))
    }

    pub fn socket(&self) -> PathBuf {
        self.path(SOCKET)
    }

    /// Beside the folder, so that it outlives it.
    pub fn log(&self) -> PathBuf {
        self.folder().with_extension("log")
    }

    /// The end of the cable that is ours.
    pub fn host(&self) -> String {
        format!("10.215.{}.1", self.slot)
    }

    pub fn node(&self) -> String {
        format!("10.215.{}.2", self.slot)
    }

    pub fn server(&self) -> String {
        format!("https://{}:{PORT}", self.node())
    }

    pub fn pods(&self) -> String {
        format!("10.213.{}.0/24", self.slot)
    }

    pub fn services(&self) -> String {
        format!("10.214.{}.0/24", self.slot)
    }

    pub fn service(&self, number: u8) -> String {
        format!("10.214.{}.{number}", self.slot)
    }

    fn link(&self) -> String {
        format!("ckrvkube{}", self.slot)
    }

    /// A namespace with one cable to the host and no other way out: whatever a pod sends stays on this machine.
    pub fn plug(&self) -> Result<()> {
        let (name, link) = (&self.name(), &self.link());
        ip(&["netns", "add", name])?;
        ip(&["link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name])?;
        ip(&["address", "add", &format!("{}/30", self.host()), "dev", link])?;
        ip(&["link", "set", link, "up"])?;
        ip(&["-netns", name, "address", "add", &format!("{}/30", self.node()), "dev", "eth0"])?;
        ip(&["-netns", name, "link", "set", "eth0", "up"])?;
        ip(&["-netns", name, "link", "set", "lo", "up"])?;
        for network in [self.pods(), self.services()] {
            ip(&["route", "add", &network, "via", &self.node(), "dev", link])?;
        }
        Ok(())
    }

    /// Takes away what a cluster of this slot has left, of whatever there is: its processes are gone already, and with them its mounts.
    pub fn sweep(&self) {
        // The cable goes with the namespace, but only once the last socket in it is closed.
        let _ = ip(&["link", "delete", &self.link()]);
        let _ = ip(&["netns", "delete", &self.name()]);
        for cgroup in self.cgroups() {
            remove_cgroup(&cgroup);
        }
        let _ = std::fs::remove_dir_all(self.folder());
    }

    /// Makes the cgroup that the kubelet hangs its own under.
    pub fn make_cgroups(&self) -> Result<()> {
        for cgroup in self.cgroups() {
            std::fs::create_dir_all(&cgroup).with_context(|| format!("can't make the cgroup {}", cgroup.display()))?;
        }
        Ok(())
    }

    /// One in each hierarchy; the unified hierarchy alone is one itself.
    fn cgroups(&self) -> Vec<PathBuf> {
        let root = Path::new("/sys/fs/cgroup");
        if root.join("cgroup.controllers").exists() {
            return vec![root.join(self.name())];
        }
        let hierarchies = std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
        hierarchies.filter(|path| path.join("cgroup.procs").exists()).map(|path| path.join(self.name())).collect()
    }
}

fn free_slot(locks: &Path) -> Result<(u8, File)> {
    for slot in 0..SLOTS {
        let path = locks.join(format!("ckrv-cluster-{slot}.lock"));
        let lock = File::create(&path).with_context(|| format!("can't make {}", path.display()))?;
        if lock.try_lock().is_ok() {
            return Ok((slot, lock));
        }
    }
    bail!("{SLOTS} clusters are running on this machine already");
}

/// From the leaves up. What still has a process stays, for the next sweep.
fn remove_cgroup(cgroup: &Path) {
    for entry in std::fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(cgroup);
}

fn ip(args: &[&str]) -> Result<()> {
    steps::output(Command::new("ip").args(args).stdout(Stdio::null())).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_free_again_when_the_last_process_that_holds_it_has_ended() {
        let locks = tempfile::tempdir().unwrap();
        let free = || free_slot(locks.path()).unwrap();
        let (first, lock) = free();
        let mut holder = Command::new("cat").stdin(Stdio::piped()).stdout(lock).spawn().unwrap();
        let (second, _lock) = free();
        assert_eq!((first, second), (0, 1));
        drop(holder.stdin.take());
        holder.wait().unwrap();
        assert_eq!(free().0, 0);
    }
}
