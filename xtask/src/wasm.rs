//! The adapters' prebuilt files: built from `agents-wasm`, and checked against it.
//!
//! A native build needs no wasm toolchain, because the files are committed. The same compiler gives the same bytes on any machine; a
//! distribution's compiler moves on, so its version stands beside the files, and bytes are compared only where it is the same.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::steps;

const TARGET: &str = "wasm32-unknown-unknown";
/// Where each adapter's file goes beneath the output folder. The hostile one is for tests of the host, and is never built in.
const ADAPTERS: [(&str, &str); 4] =
    [("claude", "claude.wasm"), ("gemini", "gemini.wasm"), ("script", "script.wasm"), ("hostile", "testing/hostile.wasm")];

/// Builds every adapter, and writes the prebuilt files and the record of the compiler.
pub fn build(root: &Path) -> Result<()> {
    let toolchain = Toolchain::find()?;
    steps::say(&format!("adapters are built by {}", toolchain.version));
    let out = prebuilt(root);
    compile(root, &toolchain, &out)?;
    let record = Record { compiler: toolchain.version, sums: sums(&out)? };
    std::fs::write(out.join("TOOLCHAIN"), record.to_text())?;
    Ok(())
}

/// Builds every adapter again, beside the prebuilt files; compares bytes where the compiler is the recorded one, and runs the golden
/// cases on what was just built.
pub fn check(root: &Path) -> Result<()> {
    let recorded = Record::read(&prebuilt(root).join("TOOLCHAIN"))?;
    if sums(&prebuilt(root))? != recorded.sums {
        bail!("agents-wasm/prebuilt is not what its TOOLCHAIN file says; run `cargo xtask wasm build`");
    }
    let toolchain = Toolchain::find()?;
    let fresh = tempfile::tempdir()?;
    compile(root, &toolchain, fresh.path())?;
    if toolchain.version == recorded.compiler {
        let built = sums(fresh.path())?;
        let changed: Vec<&str> =
            built.iter().filter(|(name, sum)| recorded.sums.get(*name) != Some(sum)).map(|(name, _)| name.as_str()).collect();
        if !changed.is_empty() {
            bail!("the sources give other bytes for {}; run `cargo xtask wasm build` and commit", changed.join(", "));
        }
        steps::say("the prebuilt adapters are byte for byte what the sources give");
    } else {
        steps::say(&format!(
            "bytes are not compared: the prebuilt adapters come from {}, this machine has {}",
            recorded.compiler, toolchain.version
        ));
    }
    let mut golden = crate::workspace::cargo();
    golden
        .args(["test", "--quiet", "--workspace", "--test", "golden"])
        .args(crate::workspace::FEATURES)
        .env("CKRV_ADAPTERS_DIR", fresh.path());
    steps::run(&mut golden)
}

fn prebuilt(root: &Path) -> PathBuf {
    root.join("agents-wasm/prebuilt")
}

/// A compiler that can make wasm.
struct Toolchain {
    /// What `rustc --version` says.
    version: String,
    sysroot: PathBuf,
    /// The name of the rustup toolchain whose standard library has to be built too; none where rustup has it.
    build_std: Option<&'static str>,
}

impl Toolchain {
    /// The compiler of this checkout with rustup's target; else the toolchain that CONTRIBUTING.md tells how to link as `web`.
    fn find() -> Result<Self> {
        let own = Self::ask(Command::new("rustc"), None)?;
        if own.has_target() {
            return Ok(own);
        }
        // May fail where rustup has no such component; what counts is whether the target is there afterwards.
        let _ = Command::new("rustup").args(["target", "add", TARGET]).stderr(Stdio::null()).stdout(Stdio::null()).status();
        if own.has_target() {
            return Ok(own);
        }
        let mut rustc = Command::new("rustup");
        rustc.args(["run", "web", "rustc"]);
        Self::ask(rustc, Some("web")).with_context(|| {
            format!(
                "no compiler here makes {TARGET}: run `rustup target add {TARGET}`; where rustup has no such component, install \
                 Debian's rustc-web, cargo-web, rust-web-src and lld-19, then run `rustup toolchain link web /usr`"
            )
        })
    }

    fn ask(mut rustc: Command, build_std: Option<&'static str>) -> Result<Self> {
        let (program, args) = (rustc.get_program().to_owned(), rustc.get_args().map(OsString::from).collect::<Vec<_>>());
        let version = steps::text(rustc.arg("--version"))?;
        let sysroot = steps::text(Command::new(program).args(args).args(["--print", "sysroot"]))?;
        Ok(Self { version, sysroot: sysroot.into(), build_std })
    }

    fn has_target(&self) -> bool {
        self.sysroot.join("lib/rustlib").join(TARGET).join("lib").is_dir()
    }

    /// Cargo in `agents-wasm`, without what the cargo that runs us has put into the environment.
    fn cargo(&self, root: &Path) -> Command {
        let mut command = match self.build_std {
            None => Command::new("cargo"),
            Some(name) => {
                let mut command = Command::new("rustup");
                command.args(["run", name, "cargo"]);
                command
            }
        };
        let inherited =
            |name: &str| (name.starts_with("CARGO") && name != "CARGO_HOME") || name.starts_with("RUSTC") || name == "RUSTFLAGS";
        for (name, _) in std::env::vars_os().filter(|(name, _)| inherited(&name.to_string_lossy())) {
            command.env_remove(name);
        }
        command.current_dir(root.join("agents-wasm"));
        command
    }
}

/// No path of this machine may be in what is built, or it would differ from machine to machine.
pub fn remaps(root: &Path, sysroot: &Path) -> Vec<OsString> {
    let mut from = vec![(root.to_owned(), "ckrv"), (sysroot.to_owned(), "rust")];
    let sources = sysroot.join("lib/rustlib/src/rust");
    from.extend(sources.canonicalize().ok().map(|path| (path, "rust-src")));
    let registries = cargo_home().map(|home| home.join("registry/src"));
    // The folder of a registry is named after the registry, which may be a mirror.
    let folders = registries.and_then(|path| std::fs::read_dir(path).ok()).into_iter().flatten().flatten();
    from.extend(folders.map(|folder| (folder.path(), "cargo")));
    from.into_iter()
        .map(|(path, name)| {
            let mut flag = OsString::from("--remap-path-prefix=");
            flag.push(path);
            flag.push(format!("=/{name}"));
            flag
        })
        .collect()
}

fn cargo_home() -> Option<PathBuf> {
    let set = std::env::var_os("CARGO_HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
    set.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")))
}

fn compile(root: &Path, toolchain: &Toolchain, out: &Path) -> Result<()> {
    let target_dir = root.join("agents-wasm/target");
    let mut cargo = toolchain.cargo(root);
    cargo.args(["build", "--quiet", "--locked", "--release", "--target", TARGET, "--target-dir"]).arg(&target_dir);
    for (name, _) in ADAPTERS {
        cargo.arg("--package").arg(format!("ckrv-adapter-{name}"));
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", remaps(root, &toolchain.sysroot).join(std::ffi::OsStr::new("\u{1f}")));
    if toolchain.build_std.is_some() {
        cargo.arg("-Zbuild-std=std,panic_abort").env("RUSTC_BOOTSTRAP", "1");
        cargo.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", "wasm-ld-19");
    }
    steps::run(&mut cargo)?;

    std::fs::create_dir_all(out.join("testing"))?;
    for (name, file) in ADAPTERS {
        let module = target_dir.join(TARGET).join("release").join(format!("ckrv_adapter_{name}.wasm"));
        let mut encode = toolchain.cargo(root);
        encode.args(["run", "--quiet", "--locked", "--package", "ckrv-adapter-encode", "--target-dir"]).arg(&target_dir);
        steps::run(encode.arg("--").arg(module).arg(out.join(file)))?;
    }
    Ok(())
}

fn sums(folder: &Path) -> Result<BTreeMap<String, String>> {
    ADAPTERS
        .iter()
        .map(|(_, file)| {
            let bytes = std::fs::read(folder.join(file)).with_context(|| format!("can't read {file} in {}", folder.display()))?;
            Ok(((*file).to_owned(), hex::encode(Sha256::digest(bytes))))
        })
        .collect()
}

/// The file TOOLCHAIN: a line `compiler VERSION`, then a line `SHA-256  FILE` for each adapter.
struct Record {
    compiler: String,
    sums: BTreeMap<String, String>,
}

impl Record {
    fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("can't read {}; run `cargo xtask wasm build`", path.display()))?;
        let mut lines = text.lines();
        let compiler =
            lines.next().and_then(|line| line.strip_prefix("compiler ")).context("TOOLCHAIN names no compiler")?.to_owned();
        let sums = lines.filter_map(|line| line.split_once("  ")).map(|(sum, name)| (name.to_owned(), sum.to_owned())).collect();
        Ok(Self { compiler, sums })
    }

    fn to_text(&self) -> String {
        let sums = self.sums.iter().map(|(name, sum)| format!("{sum}  {name}\n")).collect::<String>();
        format!("compiler {}\n{sums}", self.compiler)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_reads_back_what_it_wrote() {
        let folder = tempfile::tempdir().unwrap();
        let record = Record { compiler: "rustc 1.95.0 (x)".into(), sums: [("a.wasm".into(), "00ff".into())].into() };
        std::fs::write(folder.path().join("TOOLCHAIN"), record.to_text()).unwrap();
        let read = Record::read(&folder.path().join("TOOLCHAIN")).unwrap();
        assert_eq!((read.compiler, read.sums), (record.compiler, record.sums));
    }
}
