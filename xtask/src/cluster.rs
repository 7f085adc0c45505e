//! A Kubernetes cluster of one real node on this machine: etcd, the control plane, containerd and runc, in namespaces of their own. Its
//! pods reach each other, its services and this machine's end of its cable, and nothing else.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use self::image::{CKRV_IMAGE, Images};
use self::install::Programs;
use self::layout::Layout;
use crate::agent_image::{AGENTS_IMAGE, SCRATCH_IMAGE, TINY_IMAGE};
use crate::packages::{self, Agents};
use crate::steps::{self, Steps, say};
use crate::workspace::{self, Cache};

pub mod guard;
mod image;
mod install;
mod layout;
mod parts;
mod pki;

/// A busy machine takes its time; a cluster that takes longer is broken.
const PATIENCE: Duration = Duration::from_secs(180);
/// A cluster of the user's own. What is in its node's containerd is the user's to say.
const OWN: &str = "CKRV_TEST_KUBECONFIG";
const OWN_TOO: [&str; 5] =
    ["CKRV_TEST_KUBE_IMAGE", "CKRV_TEST_KUBE_AGENTS", "CKRV_TEST_KUBE_TINY", "CKRV_TEST_KUBE_SCRATCH", "CKRV_TEST_KUBE_HOST_IP"];

/// The cluster that the tests use.
#[derive(Debug)]
pub enum Cluster {
    Ours(Box<Running>),
    /// Found by the variables that the user has set; tests inherit them.
    Theirs(Programs),
}

/// Installs what is missing, and says early what can't work.
pub fn install(cache: &Cache) -> Result<Programs> {
    let programs = Programs::new(cache);
    if std::env::var_os(OWN).is_some() {
        let missing: Vec<_> = OWN_TOO.into_iter().filter(|name| std::env::var_os(name).is_none()).collect();
        if !missing.is_empty() {
            bail!(
                "{OWN} names a cluster of yours: set {} too, for images that its nodes have and an address that its pods reach",
                { missing.join(", ") }
            );
        }
    } else if !cfg!(target_os = "linux") || !nix::unistd::Uid::effective().is_root() {
        bail!(
            "the test cluster needs Linux and root (namespaces, containerd): run as root, set {OWN} to a cluster of yours, or `cargo xtask test --fast`"
        );
    } else {
        packages::cluster()?;
        programs.install_servers()?;
    }
    programs.install_clients()?;
    Ok(programs)
}

impl Cluster {
    /// One of our own, unless the user has one.
    pub fn start(programs: Programs, cache: &Cache, agents: &Agents) -> Result<Self> {
        if std::env::var_os(OWN).is_some() {
            return Ok(Self::Theirs(programs));
        }
        let mut cluster = Running::launch(programs, cache)?;
        cluster.bring_up(agents).with_context(|| cluster.logs())?;
        Ok(Self::Ours(Box::new(cluster)))
    }

    /// Puts the `ckrv` under test into its image.
    pub fn import(&self, ckrv: &Path, cache: &Cache) -> Result<()> {
        match self {
            Self::Ours(cluster) => cluster.images.import_ckrv(ckrv, CKRV_IMAGE),
            Self::Theirs(_) => import_into_theirs(ckrv, cache),
        }
    }

    pub fn export(&self, command: &mut Command) {
        let programs = match self {
            Self::Ours(cluster) => {
                let layout = &cluster.layout;
                command.env(OWN, layout.kubeconfig("admin")).env("CKRV_TEST_KUBE_HOST_IP", layout.host());
                command.env("CKRV_TEST_KUBE_IMAGE", CKRV_IMAGE).env("CKRV_TEST_KUBE_AGENTS", AGENTS_IMAGE);
                command.env("CKRV_TEST_KUBE_TINY", TINY_IMAGE).env("CKRV_TEST_KUBE_SCRATCH", SCRATCH_IMAGE);
                command.env("CKRV_TEST_KUBE_NODE", layout.node_name());
                command.env("CKRV_TEST_KUBE_FOLDER", layout.folder()).env("CKRV_TEST_KUBE_NETNS", layout.name());
                &layout.programs
            }
            Self::Theirs(programs) => programs,
        };
        command.env("CKRV_TEST_KUBECTL", programs.kubectl()).env("CKRV_TEST_HELM", programs.helm());
        command.env("CKRV_TEST_KWOK", programs.kwok());
    }
}

/// A cluster of the user's has the images that it has, unless it is one that `cargo xtask cluster` started.
fn import_into_theirs(ckrv: &Path, cache: &Cache) -> Result<()> {
    let (Some(socket), Some(image)) = (socket()?, std::env::var_os(OWN_TOO[0])) else { return Ok(()) };
    Images::new(socket, cache).import_ckrv(ckrv, &image.to_string_lossy())
}

/// The containerd of the cluster that the user has set, where it is one of ours.
fn socket() -> Result<Option<PathBuf>> {
    let config = std::env::var_os(OWN).map(PathBuf::from).with_context(|| format!("{OWN} is not set"))?;
    Ok(Some(config.with_file_name(layout::SOCKET)).filter(|socket| socket.exists()))
}

/// A running cluster; dropped, nothing of it is left.
#[derive(Debug)]
pub struct Running {
    layout: Layout,
    images: Images,
    guard: Child,
    /// The guard ends the cluster when this closes.
    pipe: Option<ChildStdin>,
}

impl Running {
    fn launch(programs: Programs, cache: &Cache) -> Result<Self> {
        let (layout, lock) = Layout::claim(programs)?;
        layout.sweep();
        for folder in parts::FOLDERS {
            std::fs::create_dir_all(layout.path(folder))?;
        }
        pki::write(&layout)?;
        parts::configure(&layout)?;
        let mut guard = Command::new(std::env::current_exe()?);
        guard.args(["cluster-guard", "--slot", &layout.slot.to_string()]);
        // As long as one of the cluster's own processes lives, its stdout is open, and so the slot is taken.
        guard.stdin(Stdio::piped()).stdout(lock).stderr(File::create(layout.log())?);
        // Out of the terminal's group: Ctrl-C ends xtask, and then the guard has its turn.
        let mut guard = guard.process_group(0).spawn().context("can't start the guard of the cluster")?;
        let pipe = guard.stdin.take();
        let images = Images::new(layout.socket(), cache);
        Ok(Self { layout, images, guard, pipe })
    }

    /// Images go into containerd while the control plane comes up.
    fn bring_up(&mut self, agents: &Agents) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let socket = self.layout.socket();
        self.wait(deadline, "containerd", || socket.exists())?;
        let images = self.images.clone();
        std::thread::scope(|scope| {
            let imported = scope.spawn(move || images.import_all(agents));
            let kubectl = self.kubectl();
            let asks = |args: &[&str]| steps::output(kubectl().args(args)).is_ok();
            self.wait(deadline, "the API server", || asks(&["get", "--raw", "/readyz"]))?;
            let node = format!("node/{}", self.layout.node_name());
            self.wait(deadline, "the node", || asks(&["wait", "--for=condition=Ready", "--timeout=2s", &node]))?;
            self.wait(deadline, "the controllers", || asks(&["get", "serviceaccount", "default"]))?;
            steps::joined(imported.join())
        })
    }

    fn kubectl(&self) -> impl Fn() -> Command + use<> {
        let (program, config) = (self.layout.programs.kubectl(), self.layout.kubeconfig("admin"));
        move || {
            let mut command = Command::new(&program);
            command.arg("--kubeconfig").arg(&config);
            command
        }
    }

    fn wait(&mut self, deadline: Instant, what: &str, ready: impl Fn() -> bool) -> Result<()> {
        while !ready() {
            if let Some(status) = self.guard.try_wait()? {
                bail!("the cluster ended with {status}");
            }
            if Instant::now() > deadline {
                bail!("{what} of the cluster did not come up within {} s", PATIENCE.as_secs());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The end of each log.
    fn logs(&self) -> String {
        let parts = std::fs::read_dir(self.layout.path("logs")).into_iter().flatten().flatten().map(|entry| entry.path());
        let logs = std::iter::once(self.layout.log()).chain(parts).map(|path| {
            let log = std::fs::read(&path).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let lines: Vec<_> = log.lines().collect();
            format!("{}:\n{}\n", path.display(), lines[lines.len().saturating_sub(8)..].join("\n"))
        });
        logs.collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.pipe.take());
        let _ = self.guard.wait();
        let _ = std::fs::remove_file(self.layout.log());
    }
}

#[derive(clap::Args)]
pub struct Args {
    /// Only put a new `ckrv`, and images that were lost, into the cluster that CKRV_TEST_KUBECONFIG names: CKRV_BIN, else what `cargo build` gives
    #[arg(long)]
    import: bool,
    /// The image that --import makes
    #[arg(long, default_value = CKRV_IMAGE)]
    image: String,
    /// Also write the variables to this file, for a shell
    #[arg(long)]
    env: Option<PathBuf>,
}

/// `cargo xtask cluster`
pub fn run(args: &Args) -> Result<()> {
    let cache = Cache::open()?;
    let ckrv = || std::env::var_os("CKRV_BIN").map_or_else(|| workspace::build("ckrv"), |path| Ok(path.into()));
    if args.import {
        let socket = socket()?.with_context(|| format!("{OWN} names no cluster that `cargo xtask cluster` runs here"))?;
        let images = Images::new(socket, &cache);
        images.import_all(&packages::agents(&cache)?)?;
        return images.import_ckrv(&ckrv()?, &args.image);
    }
    let mut steps = Steps::new();
    let lock = cache.lock()?;
    let programs = steps.run("the cluster's programs", || install(&cache))?;
    let agents = steps.run("Claude Code and Gemini CLI", || packages::agents(&cache))?;
    drop(lock);
    let cluster = steps.run("start the cluster", || Cluster::start(programs, &cache, &agents))?;
    steps.run("the image of ckrv", || cluster.import(&ckrv()?, &cache))?;
    steps.finish("the cluster runs until Ctrl-C");
    let mut shown = Command::new("env");
    cluster.export(&mut shown);
    let lines = shown
        .get_envs()
        .map(|(name, value)| format!("export {}={}\n", name.to_string_lossy(), value.unwrap_or_default().to_string_lossy()));
    let text: String = lines.collect();
    say(text.trim_end());
    if let Some(path) = &args.env {
        std::fs::write(path, text)?;
    }
    // Ctrl-C ends us where we stand; the guard does the rest.
    loop {
        std::thread::park();
    }
}
