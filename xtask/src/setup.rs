//! Brings what the tests need onto the machine, and hands the tests its whereabouts as environment variables.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::agent_image::{self, AGENTS_IMAGE, TINY_IMAGE};
use crate::cloud::{self, Cloud};
use crate::cluster::{self, Cluster};
use crate::packages;
use crate::podman::{Podman, Service};
use crate::steps::{Steps, joined, say};
use crate::workspace::Cache;

/// A bench that is ready; dropped, its Podman service, its servers and its cluster stop.
#[derive(Debug)]
pub struct Bench {
    service: Service,
    cloud: Cloud,
    cluster: Cluster,
    cache: Cache,
    claude: PathBuf,
    gemini: PathBuf,
}

impl Bench {
    /// What the tests find the bench by.
    pub fn export(&self, command: &mut Command) {
        command.env("CKRV_TEST_ENGINE", &self.service.url);
        command.env("CKRV_TEST_IMAGE", AGENTS_IMAGE).env("CKRV_TEST_TINY_IMAGE", TINY_IMAGE);
        command.env("CKRV_TEST_CLAUDE", &self.claude).env("CKRV_TEST_GEMINI", &self.gemini);
        self.cloud.export(command);
        self.cluster.export(command);
    }

    /// Hands the program under test to what runs it from an image.
    pub fn import(&self, ckrv: &Path) -> Result<()> {
        self.cluster.import(ckrv, &self.cache)
    }
}

/// `cargo xtask setup`
pub fn run() -> Result<()> {
    let mut steps = Steps::new();
    let bench = bring(&mut steps)?;
    steps.finish("the bench is ready");
    let mut shown = Command::new("env");
    bench.export(&mut shown);
    say("    `cargo xtask test` starts a Podman service, stand-ins for AWS and a cluster, and gives the tests these variables:");
    for (name, value) in shown.get_envs() {
        let name = name.to_string_lossy();
        let value =
            if name.ends_with("_SECRET") { "another one each time".into() } else { value.unwrap_or_default().to_string_lossy() };
        say(&format!("    {name}={value}"));
    }
    Ok(())
}

/// Everything, from an empty machine or from a cache that has it all.
pub fn bring(steps: &mut Steps) -> Result<Bench> {
    let cache = Cache::open()?;
    let _lock = cache.lock()?;
    steps.run("set-up: packages of the machine", packages::debian)?;
    steps.run("set-up: a compiler for the adapters", packages::wasm_toolchain)?;
    let agents = steps.run("set-up: Claude Code and Gemini CLI", || packages::agents(&cache))?;
    let what = "set-up: stand-ins for AWS, what checks our side of it, and a cluster's programs";
    let (programs, cluster) = steps.run(what, || {
        std::thread::scope(|scope| {
            let cluster = scope.spawn(|| cluster::install(&cache));
            Ok((cloud::install(&cache)?, joined(cluster.join())?))
        })
    })?;
    std::thread::scope(|scope| {
        let cluster = scope.spawn(|| Cluster::start(cluster, &cache, &agents));
        let podman = Podman::new(&cache)?;
        let service = steps.run("set-up: podman", || podman.serve())?;
        steps.run("set-up: container images", || {
            podman.import(&agent_image::tiny()?, &cache)?;
            podman.import(&agent_image::agents(&agents)?, &cache)?;
            check(&podman)
        })?;
        let cloud = steps.run("set-up: start the stand-ins for AWS", || Cloud::start(programs))?;
        let cluster = steps.run("set-up: the cluster is up", || joined(cluster.join()))?;
        let (claude, gemini) = (agents.claude.clone(), agents.gemini_entry());
        Ok(Bench { service, cloud, cluster, cache: cache.clone(), claude, gemini })
    })
}

/// Both agents start in a container as narrow as a job's.
fn check(podman: &Podman) -> Result<()> {
    let versions = podman.run_narrow(AGENTS_IMAGE, "claude --version && gemini --version")?;
    for pin in [packages::CLAUDE, packages::GEMINI] {
        let wanted = pin.rsplit('@').next().unwrap_or(pin);
        if !versions.contains(wanted) {
            bail!("{AGENTS_IMAGE} should have {pin}, and says: {versions}");
        }
    }
    Ok(())
}
