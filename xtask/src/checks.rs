//! Checks that are neither lints nor tests: dependency rules, and files that a program writes.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::packages::which;
use crate::steps::{self, say};
use crate::workspace::{self, Cache};

const CARGO_DENY: &str = "0.20.2";

/// A generated file: the hidden command of ckrv that prints it, and where it is committed.
const GENERATED: [(&str, &str); 3] =
    [("openapi", "docs/openapi.json"), ("cli-reference", "docs/cli.md"), ("agent-catalog", "agents-wasm/prebuilt/agents.json")];

/// What the code says now must be what is committed.
pub fn generated(ckrv: &Path) -> Result<()> {
    for (name, path) in GENERATED {
        let fresh = steps::output(Command::new(ckrv).args(["internal", name]))?;
        let committed = std::fs::read(workspace::root().join(path)).unwrap_or_default();
        if fresh != committed {
            bail!("{path} is out of date. Type: cargo run -q -p ckrv -- internal {name} > {path}");
        }
    }
    Ok(())
}

/// deny.toml, as far as it needs no internet.
pub fn deny() -> Result<()> {
    let deny = cargo_deny()?;
    let mut command = Command::new(deny);
    command.current_dir(workspace::root()).args([
        "--log-level",
        "error",
        "--all-features",
        "check",
        "bans",
        "licenses",
        "sources",
    ]);
    steps::run(&mut command)
}

/// The machine's cargo-deny, if it is the version that deny.toml is written for; else one in the cache.
fn cargo_deny() -> Result<PathBuf> {
    let right = |path: &Path| steps::text(Command::new(path).arg("--version")).is_ok_and(|version| version.ends_with(CARGO_DENY));
    if let Some(path) = which("cargo-deny").filter(|path| right(path)) {
        return Ok(path);
    }
    let cache = Cache::open()?;
    let _lock = cache.lock()?;
    let folder = cache.path("tools");
    let path = folder.join("bin/cargo-deny");
    if !right(&path) {
        say("    installing cargo-deny into the cache, once: some minutes");
        workspace::install("cargo-deny", CARGO_DENY, &folder)?;
    }
    Ok(path)
}
