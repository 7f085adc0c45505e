//! `cargo xtask package`: the API as a zip for Lambda's runtime provided.al2023. The same sources and compiler give the same bytes.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};
use zip::write::SimpleFileOptions;

use crate::packages::which;
use crate::steps::{self, Steps, say};
use crate::{wasm, workspace};

#[derive(clap::Args)]
pub struct Args {
    /// Only for this one; otherwise for each that this machine can build for
    #[arg(long)]
    arch: Option<Arch>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Arch {
    #[value(name = "x86_64")]
    X86,
    #[value(name = "arm64")]
    Arm,
}

const ARCHES: [Arch; 2] = [Arch::X86, Arch::Arm];
/// Of Amazon Linux 2023. A machine with a newer one may build what doesn't start there.
const GLIBC: (u32, u32) = (2, 34);
/// What Lambda calls the program, and we the binary.
const PROGRAM: &str = "bootstrap";

impl Arch {
    /// As Lambda calls it.
    fn name(self) -> &'static str {
        match self {
            Self::X86 => "x86_64",
            Self::Arm => "arm64",
        }
    }

    fn target(self) -> &'static str {
        match self {
            Self::X86 => "x86_64-unknown-linux-gnu",
            Self::Arm => "aarch64-unknown-linux-gnu",
        }
    }

    /// The linker, where it isn't the machine's own.
    fn cross_linker(self) -> Option<&'static str> {
        match (self, cfg!(target_arch = "x86_64"), cfg!(target_arch = "aarch64")) {
            (Self::X86, false, _) => Some("x86_64-linux-gnu-gcc"),
            (Self::Arm, _, false) => Some("aarch64-linux-gnu-gcc"),
            _ => None,
        }
    }

    /// What this machine lacks to build for it.
    fn missing(self, sysroot: &Path) -> Option<String> {
        if let Some(linker) = self.cross_linker().filter(|linker| which(linker).is_none()) {
            return Some(format!("the linker {linker} (Debian: apt-get install gcc-aarch64-linux-gnu or gcc-x86-64-linux-gnu)"));
        }
        let has = || sysroot.join("lib/rustlib").join(self.target()).join("lib").is_dir();
        if !has() {
            // May fail where rustup has no such component; what counts is whether it is there afterwards.
            let mut add = Command::new("rustup");
            let _ = add.args(["target", "add", self.target()]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
        (!has()).then(|| format!("the Rust target {0}, which `rustup target add {0}` did not bring", self.target()))
    }
}

/// Builds every package that can be built, and says plainly which can't.
pub fn run(args: &Args) -> Result<()> {
    let mut steps = Steps::new();
    let sysroot = sysroot()?;
    let wanted = ARCHES.into_iter().filter(|arch| args.arch.is_none_or(|only| only == *arch));
    let mut built = 0;
    for arch in wanted {
        if let Some(missing) = arch.missing(&sysroot) {
            if args.arch.is_some() {
                bail!("no package for {}: this machine lacks {missing}", arch.name());
            }
            say(&format!("\n    no package for {}: this machine lacks {missing}", arch.name()));
            continue;
        }
        make(&mut steps, arch, &sysroot)?;
        built += 1;
    }
    if built == 0 {
        bail!("this machine can build no package");
    }
    steps.finish("packaged");
    Ok(())
}

/// The one that this machine itself can run; its zip.
pub fn for_this_machine(steps: &mut Steps) -> Result<PathBuf> {
    make(steps, this_machine(), &sysroot()?)
}

/// Takes a package apart as Lambda does; the program.
pub fn unpack(package: &Path, folder: &Path) -> Result<PathBuf> {
    zip::ZipArchive::new(File::open(package)?)?.extract(folder).context("can't unpack the package")?;
    Ok(folder.join(PROGRAM))
}

/// The program that is in it.
pub fn program() -> Result<PathBuf> {
    Ok(workspace::target_dir()?.join(this_machine().target()).join("lambda").join(PROGRAM))
}

fn this_machine() -> Arch {
    if cfg!(target_arch = "aarch64") { Arch::Arm } else { Arch::X86 }
}

fn sysroot() -> Result<PathBuf> {
    Ok(steps::text(Command::new("rustc").args(["--print", "sysroot"]))?.into())
}

fn make(steps: &mut Steps, arch: Arch, sysroot: &Path) -> Result<PathBuf> {
    let program = steps.run(&format!("build the function's package for {}", arch.name()), || build(arch, sysroot))?;
    steps.run("zip it", || package(arch, &program))
}

fn build(arch: Arch, sysroot: &Path) -> Result<PathBuf> {
    let mut cargo = workspace::cargo();
    // Only this package: with the whole workspace the dependencies would get features that the function doesn't need.
    cargo.args(["build", "--quiet", "--locked", "--profile", "lambda", "--package", "ckrv-api", "--features", "lambda"]);
    cargo.args(["--bin", PROGRAM, "--target", arch.target()]);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", wasm::remaps(&workspace::root(), sysroot).join(OsStr::new("\u{1f}")));
    if let Some(linker) = arch.cross_linker() {
        let variable = arch.target().to_uppercase().replace('-', "_");
        cargo.env(format!("CARGO_TARGET_{variable}_LINKER"), linker);
        cargo.env(format!("CC_{}", arch.target().replace('-', "_")), linker);
    }
    steps::run(&mut cargo)?;
    let program = workspace::target_dir()?.join(arch.target()).join("lambda").join(PROGRAM);
    check_glibc(&program)?;
    Ok(program)
}

/// A program names the versions of the symbols that it needs as text, `GLIBC_2.34`.
fn check_glibc(program: &Path) -> Result<()> {
    let bytes = std::fs::read(program).with_context(|| format!("can't read {}", program.display()))?;
    let newest = glibc_versions(&bytes).max().unwrap_or_default();
    if newest > GLIBC {
        let ((major, minor), (has_major, has_minor)) = (newest, GLIBC);
        bail!("it needs glibc {major}.{minor}, and provided.al2023 has {has_major}.{has_minor}: build on an older distribution");
    }
    Ok(())
}

fn glibc_versions(bytes: &[u8]) -> impl Iterator<Item = (u32, u32)> {
    const MARK: &[u8] = b"GLIBC_";
    bytes.windows(MARK.len()).enumerate().filter(|(_, window)| *window == MARK).filter_map(|(at, _)| {
        let rest = &bytes[at + MARK.len()..];
        let end = rest.iter().position(|byte| !byte.is_ascii_digit() && *byte != b'.')?;
        let (major, minor) = std::str::from_utf8(&rest[..end]).ok()?.split_once('.')?;
        Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
    })
}

fn package(arch: Arch, program: &Path) -> Result<PathBuf> {
    let folder = workspace::target_dir()?.join("package");
    std::fs::create_dir_all(&folder)?;
    let name = format!("ckrv-api-{}.zip", arch.name());
    let path = folder.join(&name);
    write_zip(&path, &std::fs::read(program)?)?;
    let bytes = std::fs::read(&path)?;
    let sum = hex::encode(Sha256::digest(&bytes));
    std::fs::write(folder.join(format!("{name}.sha256")), format!("{sum}  {name}\n"))?;
    let mega = |bytes: u64| format!("{}.{:02} MB", bytes / 1_000_000, bytes % 1_000_000 / 10_000);
    let (zipped, plain) = (bytes.len() as u64, std::fs::metadata(program)?.len());
    say(&format!("    {}: {} zipped, {} unpacked", path.display(), mega(zipped), mega(plain)));
    say(&format!("    sha256 {sum}"));
    Ok(path)
}

/// One file, with nothing in it that differs from machine to machine: no time, no owner.
fn write_zip(path: &Path, program: &[u8]) -> Result<()> {
    let options = SimpleFileOptions::default()
        .compression_method(zip::CompressionMethod::Deflated)
        .compression_level(Some(9))
        .last_modified_time(zip::DateTime::default())
        .unix_permissions(0o755);
    let file = File::create(path).with_context(|| format!("can't write {}", path.display()))?;
    let mut archive = zip::ZipWriter::new(file);
    archive.start_file(PROGRAM, options)?;
    archive.write_all(program)?;
    archive.finish()?.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_program_gives_the_same_zip_with_an_executable_bootstrap() {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["a.zip", "b.zip"].map(|name| folder.path().join(name));
        for path in &paths {
            write_zip(path, b"a program").unwrap();
        }
        let [one, other] = paths.map(|path| std::fs::read(path).unwrap());
        assert_eq!(one, other);
        let mut archive = zip::ZipArchive::new(std::io::Cursor::new(one)).unwrap();
        let entry = archive.by_name("bootstrap").unwrap();
        assert_eq!(entry.unix_mode().unwrap() & 0o777, 0o755);
        assert_eq!((entry.size(), entry.last_modified().unwrap().year()), (9, 1980));
        let program = unpack(&folder.path().join("a.zip"), &folder.path().join("unpacked")).unwrap();
        assert_eq!(std::fs::read(program).unwrap(), b"a program");
    }

    #[test]
    fn the_newest_glibc_that_a_program_names_is_found() {
        let found: Vec<_> = glibc_versions(b"\0GLIBC_2.2.5\0xGLIBC_2.36\0GLIBC_PRIVATE\0GLIBC_2.34\0").collect();
        assert_eq!(found, [(2, 2), (2, 36), (2, 34)]);
    }
}
