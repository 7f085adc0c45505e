//! What the machine itself must have: Debian packages, and the agents' CLIs from npm in exact versions.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::steps::{self, say};
use crate::workspace::Cache;

/// The agents as the tests run them. Golden transcripts belong to these versions: change both together.
pub const CLAUDE: &str = "@anthropic-ai/claude-code@2.1.330";
pub const GEMINI: &str = "@google/gemini-cli@0.61.0";
/// Gemini CLI runs on nothing older.
const NODE_MAJOR: u32 = 20;

/// A program, and the Debian package that brings it.
const NEEDED: [(&str, &str); 5] =
    [("podman", "podman"), ("netavark", "netavark"), ("runc", "runc"), ("sshd", "openssh-server"), ("busybox", "busybox-static")];

/// A program, from wherever the machine has it, else the Debian package that brings it.
const ANY_WILL_DO: [(&str, &str); 5] = [
    ("java", "default-jre-headless"),
    ("mvn", "maven"),
    ("python3", "python3"),
    ("chromium", "chromium"),
    ("chromedriver", "chromium-driver"),
];

/// For the adapters, where rustup has no `wasm32-unknown-unknown`.
const WASM: [(&str, &str); 4] =
    [("rustc-web", "rustc-web"), ("cargo-web", "cargo-web"), ("rust-web-src", "rust-web-src"), ("wasm-ld-19", "lld-19")];

/// For the Kubernetes cluster. Some of them have their programs where no PATH leads.
const CLUSTER: [(&str, &str); 7] = [
    ("etcd", "etcd-server"),
    ("containerd", "containerd"),
    ("ptp", "containernetworking-plugins"),
    ("iptables", "iptables"),
    ("conntrack", "conntrack"),
    ("ip", "iproute2"),
    ("strip", "binutils"),
];

/// What [`debian`] installs, for a cluster.
pub fn cluster() -> Result<()> {
    if which("dpkg-query").is_some() {
        return install(&CLUSTER);
    }
    let missing: Vec<_> = CLUSTER.iter().filter(|(program, _)| which(program).is_none()).map(|(program, _)| *program).collect();
    if !missing.is_empty() {
        bail!("install these programs first (or test without them: `cargo xtask test --fast`): {}", missing.join(", "));
    }
    Ok(())
}

/// Installs what is missing when we are root; else says what to type.
pub fn debian() -> Result<()> {
    let is_missing = |(program, _): &&(&str, &str)| which(program).is_none();
    if which("dpkg-query").is_none() {
        let programs = NEEDED.iter().chain(&ANY_WILL_DO);
        let missing: Vec<_> = programs.filter(is_missing).map(|(program, _)| *program).collect();
        if missing.is_empty() {
            return Ok(());
        }
        bail!("install these programs first (or test without them: `cargo xtask test --fast`): {}", missing.join(", "));
    }
    let mut wanted = NEEDED.to_vec();
    wanted.extend(ANY_WILL_DO.iter().filter(is_missing));
    // Debian's Python makes no environments without this package.
    if steps::text(Command::new("python3").args(["-c", "import ensurepip"])).is_err() {
        wanted.push(("python3", "python3-venv"));
    }
    install(&wanted)
}

/// A compiler for the adapters: rustup's, else Debian's.
pub fn wasm_toolchain() -> Result<()> {
    let has_target = || {
        let listed = steps::text(Command::new("rustup").args(["target", "list", "--installed"]));
        listed.is_ok_and(|targets| targets.lines().any(|target| target == "wasm32-unknown-unknown"))
    };
    if has_target() {
        return Ok(());
    }
    let added = Command::new("rustup")
        .args(["target", "add", "wasm32-unknown-unknown"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if added.is_ok_and(|status| status.success()) && has_target() {
        return Ok(());
    }
    if which("dpkg-query").is_none() {
        bail!("`rustup target add wasm32-unknown-unknown` failed, and there is no Debian to take another compiler from");
    }
    install(&WASM)
}

fn install(wanted: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<_> = wanted.iter().map(|(_, package)| *package).filter(|package| !installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let install = format!("apt-get install --yes --no-install-recommends {}", missing.join(" "));
    if !nix::unistd::Uid::effective().is_root() {
        bail!("packages are missing. Type: sudo {install}\n(or test without them: `cargo xtask test --fast`)");
    }
    say(&format!("    {install}"));
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(["-qq", "-o", "Dpkg::Use-Pty=0"]).args(args).env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null());
        steps::run(&mut command)
    };
    apt(&["update"])?;
    let mut args = vec!["install", "--yes", "--no-install-recommends"];
    args.extend(missing);
    apt(&args)
}

fn installed(package: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat", "${db:Status-Status}", package]);
    steps::text(&mut query).is_ok_and(|status| status == "installed")
}

/// The agents' CLIs, as npm left them.
#[derive(Debug)]
pub struct Agents {
    pub node: PathBuf,
    pub node_version: String,
    /// The native binary: needs no node.
    pub claude: PathBuf,
    /// The package's folder; `bundle/gemini.js` in it is the program.
    pub gemini: PathBuf,
}

impl Agents {
    pub fn gemini_entry(&self) -> PathBuf {
        self.gemini.join("bundle/gemini.js")
    }
}

/// Installs both CLIs into the cache, once for each pair of versions.
pub fn agents(cache: &Cache) -> Result<Agents> {
    let node = which("node").context("install Node.js 20 or newer with npm: Gemini CLI needs it")?;
    let node_version = steps::text(Command::new(&node).arg("--version"))?;
    let major: u32 = node_version.trim_start_matches('v').split('.').next().and_then(|word| word.parse().ok()).unwrap_or(0);
    if major < NODE_MAJOR {
        bail!("{} is {node_version}: Gemini CLI needs Node.js {NODE_MAJOR} or newer", node.display());
    }
    let folder = cache.path("npm").join(format!("{CLAUDE} {GEMINI}").replace(['/', ' '], "_"));
    if !folder.exists() {
        npm_install(&folder)?;
    }
    let modules = folder.join("node_modules");
    let claude = modules.join("@anthropic-ai").join(format!("claude-code-{}", platform())).join("claude");
    let agents = Agents { node, node_version, claude, gemini: modules.join("@google/gemini-cli") };
    for path in [&agents.claude, &agents.gemini_entry()] {
        if !path.exists() {
            bail!("npm did not bring {}: remove {} and try again", path.display(), folder.display());
        }
    }
    Ok(agents)
}

/// Into a folder beside it, then renamed: a half-done install is never taken for a whole one.
fn npm_install(folder: &Path) -> Result<()> {
    let parent = folder.parent().context("the npm cache has no parent")?;
    std::fs::create_dir_all(parent)?;
    let fresh = tempfile::Builder::new().prefix("new-").tempdir_in(parent)?;
    // Neither CLI needs its install scripts: claude's links a binary that we run by its path, gemini's compile optional parts.
    let mut npm = Command::new("npm");
    npm.args(["install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"]).arg(fresh.path());
    steps::run(npm.args([CLAUDE, GEMINI]))?;
    std::fs::rename(fresh.keep(), folder).with_context(|| format!("can't rename to {}", folder.display()))
}

fn platform() -> &'static str {
    match (std::env::consts::OS, std::env::consts::ARCH) {
        ("macos", "aarch64") => "darwin-arm64",
        ("macos", _) => "darwin-x64",
        (_, "aarch64") => "linux-arm64",
        _ => "linux-x64",
    }
}

/// Finds a program on the PATH or where Debian puts what only root or another program starts.
pub fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/sbin", "/usr/lib/podman", "/usr/libexec/podman", "/usr/lib/cni"].map(PathBuf::from);
    std::env::split_paths(&path).chain(more).map(|folder| folder.join(program)).find(|candidate| candidate.is_file())
}
