//! Where things are: the checkout, the cache of test parts, the binaries that cargo builds.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::steps;

/// The root of the checkout that this xtask was built from.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_owned)
}

/// The cargo that runs us, in the root.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// What every debug build of xtask selects, by `--workspace` and these: cargo gives dependencies the features that the selection wants, and
/// would compile most of them once more for another one. The Lambda function is a binary behind a feature.
pub const FEATURES: [&str; 2] = ["--features", "ckrv-api/lambda"];

/// Builds one of our debug binaries, and returns its path.
pub fn build(binary: &str) -> Result<PathBuf> {
    steps::run(cargo().args(["build", "--quiet", "--workspace", "--bin", binary]).args(FEATURES))?;
    Ok(target_dir()?.join("debug").join(binary))
}

/// Installs a program of crates.io into `folder/bin`. These run for seconds, so compiling them fast counts for more than their own speed.
pub fn install(package: &str, version: &str, folder: &Path) -> Result<()> {
    // Its own: ours may be given by CARGO_TARGET_DIR.
    let target = folder.join("target");
    let mut install = cargo();
    install.args(["install", "--quiet", package, "--version", version, "--locked", "--force", "--root"]).arg(folder);
    install.env("CARGO_TARGET_DIR", &target).env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1").env("CARGO_PROFILE_RELEASE_LTO", "off");
    install.env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16").env("CARGO_PROFILE_RELEASE_DEBUG", "false");
    steps::output(&mut install)?;
    std::fs::remove_dir_all(target).context("can't remove what the build left")
}

/// Cargo's target folder, wherever the environment or a configuration has put it.
pub fn target_dir() -> Result<PathBuf> {
    let metadata = metadata()?;
    let folder = metadata["target_directory"].as_str().context("cargo metadata gives no target_directory")?;
    Ok(folder.into())
}

/// `cargo metadata` of our own packages.
pub fn metadata() -> Result<serde_json::Value> {
    let json = steps::output(cargo().args(["metadata", "--format-version", "1", "--no-deps"]))?;
    serde_json::from_slice(&json).context("cargo metadata is not JSON")
}

/// Test parts that were downloaded or built once. Outside target/, so that `cargo clean` keeps them.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    pub fn open() -> Result<Self> {
        let root = cache_root().context("set CKRV_CACHE: there is no home folder to keep test parts in")?;
        std::fs::create_dir_all(&root).with_context(|| format!("can't make the cache folder {}", root.display()))?;
        Ok(Self { root })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Held while the cache is changed: two checkouts may be tested at once.
    pub fn lock(&self) -> Result<File> {
        let file = File::create(self.path("setup.lock"))?;
        file.lock().context("can't lock the cache folder")?;
        Ok(file)
    }
}

fn cache_root() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    folder("CKRV_CACHE").or_else(|| {
        let home = folder("HOME");
        let user = if cfg!(target_os = "macos") {
            home.map(|home| home.join("Library/Caches"))
        } else {
            folder("XDG_CACHE_HOME").or_else(|| home.map(|home| home.join(".cache")))
        };
        user.map(|user| user.join("ckrv-test"))
    })
}
