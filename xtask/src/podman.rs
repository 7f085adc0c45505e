//! A Podman of our own: its storage lies in the cache and its socket in a temporary folder, so that the user's containers and
//! images are neither seen nor touched.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::agent_image::Recipe;
use crate::steps::{self, say};
use crate::workspace::Cache;

/// runc and the small limits: crun refuses hybrid cgroups, and both refuse to raise limits above the ones that we have.
const CONTAINERS_CONF: &str = r#"[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
"#;

/// Podman with our storage and configuration.
#[derive(Debug)]
pub struct Podman {
    folder: PathBuf,
    conf: PathBuf,
}

impl Podman {
    pub fn new(cache: &Cache) -> Result<Self> {
        let folder = cache.path("podman");
        std::fs::create_dir_all(&folder)?;
        let conf = folder.join("containers.conf");
        std::fs::write(&conf, CONTAINERS_CONF)?;
        Ok(Self { folder, conf })
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new("podman");
        for (option, name) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            command.arg(option).arg(self.folder.join(name));
        }
        command.env("CONTAINERS_CONF", &self.conf);
        command
    }

    /// Imports an image unless one of the same recipe is there.
    pub fn import(&self, recipe: &Recipe, cache: &Cache) -> Result<()> {
        let mut inspect = self.command();
        inspect.args(["image", "inspect", "--format", "{{index .Labels \"ckrv.recipe\"}}", recipe.image]);
        if steps::text(&mut inspect).is_ok_and(|digest| digest == recipe.digest) {
            return self.tag(recipe);
        }
        say(&format!("    making the image {}", recipe.image));
        let tar = recipe.tar(cache)?;
        let mut import = self.command();
        import.args(["import", "--quiet", "--change", "ENV PATH=/usr/local/bin:/usr/bin:/bin", "--change"]);
        import.arg(format!("LABEL ckrv.recipe={}", recipe.digest)).arg(tar).arg(recipe.image).stdout(Stdio::null());
        steps::run(&mut import)?;
        self.tag(recipe)
    }

    fn tag(&self, recipe: &Recipe) -> Result<()> {
        if recipe.names.is_empty() {
            return Ok(());
        }
        let mut tag = self.command();
        steps::run(tag.arg("tag").arg(recipe.image).args(&recipe.names))
    }

    /// Runs a command in a container as narrow as a job's, and returns what it printed.
    pub fn run_narrow(&self, image: &str, script: &str) -> Result<String> {
        let mut run = self.command();
        run.args(["run", "--rm", "--network", "none", "--user", "1000:1000", "--cap-drop", "all", "--memory", "1g"]);
        run.args(["--pids-limit", "512", "--env", "HOME=/tmp", image, "sh", "-c", script]);
        steps::text(&mut run)
    }

    /// Starts the Docker-compatible service on a socket of its own.
    pub fn serve(&self) -> Result<Service> {
        let in_use = self.claim()?;
        let sockets = tempfile::Builder::new().prefix("ckrv-podman-").tempdir()?;
        let socket = sockets.path().join("podman.sock");
        let url = format!("unix://{}", socket.display());
        let log = File::create(self.folder.join("service.log"))?;
        let mut command = self.command();
        // A container that runs out of memory leaves a file `oom` in the service's working folder.
        command.current_dir(&self.folder);
        command.args(["system", "service", "--time", "0", &url]).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().context("can't start podman")?;
        let mut service = Service { child, url, _sockets: sockets, _in_use: in_use };
        service.wait(&socket).with_context(|| format!("its log: {}", self.folder.join("service.log").display()))?;
        Ok(service)
    }

    /// Whoever is alone clears away what a killed run has left.
    fn claim(&self) -> Result<File> {
        let in_use = File::create(self.folder.join("in-use.lock"))?;
        if in_use.try_lock().is_ok() {
            steps::output(self.command().args(["rm", "--all", "--force", "--time", "0"]))?;
            in_use.unlock()?;
        }
        in_use.lock_shared().context("can't lock the storage of podman")?;
        Ok(in_use)
    }
}

/// The running service; dropped, it is stopped by its process id.
#[derive(Debug)]
pub struct Service {
    child: Child,
    pub url: String,
    _sockets: tempfile::TempDir,
    _in_use: File,
}

impl Service {
    fn wait(&mut self, socket: &Path) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        while UnixStream::connect(socket).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("podman's service ended with {status}");
            }
            if Instant::now() > deadline {
                bail!("podman's service did not answer within a minute");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        stop(&mut self.child);
    }
}

/// SIGTERM, ten seconds, SIGKILL.
pub fn stop(child: &mut Child) {
    let Ok(pid) = i32::try_from(child.id()) else { return };
    // Errors mean that it is gone already.
    let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let _ = child.wait();
}
