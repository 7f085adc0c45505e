//! Brings what the tests need onto the machine, and hands the tests its whereabouts as environment variables.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::agent_image::{self, AGENTS_IMAGE, TINY_IMAGE};
use crate::packages;
use crate::podman::{Podman, Service};
use crate::steps::{Steps, say};
use crate::workspace::Cache;

/// A bench that is ready; dropped, its Podman service stops.
#[derive(Debug)]
pub struct Bench {
    service: Service,
    claude: PathBuf,
    gemini: PathBuf,
}

impl Bench {
    /// What the tests find the bench by.
    pub fn export(&self, command: &mut Command) {
        command.env("CKRV_TEST_ENGINE", &self.service.url);
        command.env("CKRV_TEST_IMAGE", AGENTS_IMAGE).env("CKRV_TEST_TINY_IMAGE", TINY_IMAGE);
        command.env("CKRV_TEST_CLAUDE", &self.claude).env("CKRV_TEST_GEMINI", &self.gemini);
    }
}

/// `cargo xtask setup`
pub fn run() -> Result<()> {
    let mut steps = Steps::new();
    let bench = bring(&mut steps)?;
    steps.finish("the bench is ready");
    let mut shown = Command::new("env");
    bench.export(&mut shown);
    say("    `cargo xtask test` starts a Podman service and gives the tests these variables:");
    for (name, value) in shown.get_envs() {
        say(&format!("    {}={}", name.to_string_lossy(), value.unwrap_or_default().to_string_lossy()));
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
    let podman = Podman::new(&cache)?;
    let service = steps.run("set-up: podman", || podman.serve())?;
    steps.run("set-up: container images", || {
        podman.import(&agent_image::tiny()?, &cache)?;
        podman.import(&agent_image::agents(&agents)?, &cache)?;
        check(&podman)
    })?;
    Ok(Bench { service, claude: agents.claude.clone(), gemini: agents.gemini_entry() })
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
