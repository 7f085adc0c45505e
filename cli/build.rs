//! Builds the static shim that this binary carries and copies into containers.
//!
//! It's a build of its own, by a cargo inside this one, since it differs in everything from the crate's normal build: a static C
//! library, optimised for size, always release. Its target folder is in `OUT_DIR`, so nothing is built twice and no lock is shared.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What would make the inner build another one, or send its output elsewhere.
const NOT_INHERITED: [&str; 9] = [
    "CARGO_ENCODED_RUSTFLAGS",
    "RUSTFLAGS",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_TARGET_DIR",
    "CARGO_BUILD_BUILD_DIR",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "CARGO_INCREMENTAL",
];

#[expect(clippy::disallowed_methods, reason = "a build script is told everything by environment variables")]
fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(&env::var("CARGO_MANIFEST_DIR")?).parent().ok_or("the crate is not in its workspace")?.to_owned();
    for input in ["orchestrator/shim/src", "orchestrator/shim/Cargo.toml", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={}", root.join(input).display());
    }
    println!("cargo:rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let shim = if env::var("CARGO_CFG_TARGET_OS")? == "linux" {
        build(&root, &out.join("shim"), &env::var("TARGET")?, &env::var("CARGO")?)?
    } else {
        // Containers run Linux: elsewhere there is no shim to carry, and the container launcher says so.
        let empty = out.join("no-shim");
        fs::write(&empty, [])?;
        empty
    };
    println!("cargo:rustc-env=CKRV_SHIM_PATH={}", shim.display());
    Ok(())
}

fn build(root: &Path, target_dir: &Path, target: &str, cargo: &str) -> Result<PathBuf, Box<dyn Error>> {
    let mut command = Command::new(cargo);
    for name in NOT_INHERITED {
        command.env_remove(name);
    }
    // No path of this machine in what is handed out.
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned(), format!("--remap-path-prefix={}=/ckrv", root.display())];
    flags.extend(cargo_home().map(|home| format!("--remap-path-prefix={}=/cargo", home.display())));
    let status = command
        .current_dir(root)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "z")
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        // `--locked` also keeps it off the network: the outer build has fetched these very crates already.
        .args(["build", "--quiet", "--locked", "--release", "--package", "ckrv-shim", "--bin", "ckrv-shim", "--target", target])
        .arg("--target-dir")
        .arg(target_dir)
        .status()?;
    if !status.success() {
        return Err(format!("building the shim for {target} failed ({status})").into());
    }
    Ok(target_dir.join(target).join("release/ckrv-shim"))
}

#[expect(clippy::disallowed_methods, reason = "a build script is told everything by environment variables")]
fn cargo_home() -> Option<PathBuf> {
    let given = env::var("CARGO_HOME").ok().map(PathBuf::from);
    given.or_else(|| Some(env::home_dir()?.join(".cargo")))
}
