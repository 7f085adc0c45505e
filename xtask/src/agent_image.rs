//! Container images that come from no registry: a root file system of this machine's own files, as a tar for `podman import`.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::BufWriter;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use crate::packages::{Agents, CLAUDE, GEMINI, which};
use crate::steps;
use crate::workspace::Cache;

pub const AGENTS_IMAGE: &str = "localhost/ckrv-test-agents:1";
pub const TINY_IMAGE: &str = "localhost/ckrv-test-tiny:1";
pub const SCRATCH_IMAGE: &str = "localhost/ckrv-test-scratch:1";
const BASE_IMAGE: &str = "localhost/ckrv-test-ckrv-base:1";
/// Where Debian, and much else, keeps all of them in one file.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Raise it when the way an image is made changes.
const RECIPE: &str = "1";

/// A file of this machine, and where it goes.
struct Item {
    from: PathBuf,
    to: PathBuf,
}

/// What an image consists of; two equal recipes give equal files.
pub struct Recipe {
    pub image: &'static str,
    /// Further names: those by which the adapters ask for their images.
    pub names: Vec<String>,
    files: Vec<Item>,
    texts: Vec<(&'static str, &'static str)>,
    folders: Vec<Item>,
    links: Vec<(PathBuf, PathBuf)>,
    /// Without the folders and accounts that the others have.
    is_bare: bool,
    pub digest: String,
}

/// busybox and nothing else.
pub fn tiny() -> Result<Recipe> {
    let mut recipe = Recipe::new(TINY_IMAGE);
    recipe.busybox(&["sh"])?;
    recipe.finish("tiny")
}

/// One static program that copies files: no shell, no library, no account, no folder.
pub fn scratch() -> Result<Recipe> {
    let mut recipe = Recipe::new(SCRATCH_IMAGE);
    let from = static_busybox()?;
    // By this name it is nothing else.
    recipe.files.push(Item { from, to: "cp".into() });
    recipe.is_bare = true;
    recipe.finish("scratch")
}

/// node, git, bash, busybox for the rest, and both agents.
pub fn agents(agents: &Agents) -> Result<Recipe> {
    let mut recipe = Recipe::new(AGENTS_IMAGE);
    recipe.busybox(&[])?;
    recipe.program(&agents.claude, "usr/local/bin/claude")?;
    recipe.program(&agents.node, "usr/bin/node")?;
    // Claude's shell tool wants a bash by name.
    for (program, to) in [("bash", "bin/bash"), ("git", "usr/bin/git")] {
        let from = which(program).with_context(|| format!("{program} is missing"))?;
        recipe.program(&from, to)?;
    }
    recipe.link("bin/sh", "bash");
    recipe.folders.push(Item { from: agents.gemini.clone(), to: "usr/local/lib/gemini-cli".into() });
    recipe.link("usr/local/bin/gemini", "../lib/gemini-cli/bundle/gemini.js");
    let version = |pin: &'static str| pin.rsplit('@').next().unwrap_or(pin);
    recipe.names = [("claude", version(CLAUDE)), ("gemini", version(GEMINI)), ("script", "1")]
        .map(|(agent, version)| format!("localhost/ckrv/{agent}:{version}"))
        .into();
    recipe.finish(&format!("{CLAUDE} {GEMINI} node {}", agents.node_version))
}

/// What `ckrv` finds around it in its own image: git with its helpers, ssh, certificates, busybox.
pub fn base() -> Result<Recipe> {
    let mut recipe = Recipe::new(BASE_IMAGE);
    recipe.busybox(&["sh"])?;
    for program in ["git", "ssh", "ssh-add", "ssh-agent"] {
        let from = which(program).with_context(|| format!("{program} is missing"))?;
        recipe.program(&from, &format!("usr/bin/{program}"))?;
    }
    let helpers = PathBuf::from(steps::text(Command::new("git").arg("--exec-path"))?);
    recipe.libraries(&helpers.join("git-remote-https"))?;
    let to = helpers.strip_prefix("/").unwrap_or(&helpers).to_owned();
    recipe.folders.push(Item { from: helpers, to });
    recipe.files.push(Item { from: CERTIFICATES.into(), to: CERTIFICATES.trim_start_matches('/').into() });
    recipe.texts.push(("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"));
    let git = steps::text(Command::new("git").arg("--version"))?;
    recipe.finish(&format!("ckrv base, {git}"))
}

/// One program and its libraries, as a layer of its own.
pub fn layer(program: &Path, to: &str, tar: &Path) -> Result<()> {
    let mut recipe = Recipe::new("");
    recipe.program(program, to)?;
    let mut tar = Builder::new(BufWriter::new(File::create(tar)?));
    recipe.write_items(&mut tar).context("can't write the layer")?;
    tar.into_inner()?.into_inner()?;
    Ok(())
}

impl Recipe {
    fn new(image: &'static str) -> Self {
        Self {
            image,
            names: Vec::new(),
            files: Vec::new(),
            texts: Vec::new(),
            folders: Vec::new(),
            links: Vec::new(),
            is_bare: false,
            digest: String::new(),
        }
    }

    /// The static busybox, and every applet of it as a link.
    fn busybox(&mut self, always: &[&str]) -> Result<()> {
        let busybox = static_busybox()?;
        let applets = steps::text(Command::new(&busybox).arg("--list"))?;
        self.files.push(Item { from: busybox, to: "bin/busybox".into() });
        for applet in applets.lines().filter(|applet| always.contains(applet) || !["sh", "bash", "busybox"].contains(applet)) {
            self.link(&format!("bin/{applet}"), "busybox");
        }
        self.link("usr/bin/env", "../../bin/busybox");
        Ok(())
    }

    fn program(&mut self, from: &Path, to: &str) -> Result<()> {
        self.files.push(Item { from: from.to_owned(), to: to.into() });
        self.libraries(from)
    }

    fn libraries(&mut self, of: &Path) -> Result<()> {
        for library in libraries(of)? {
            let to = library.strip_prefix("/").unwrap_or(&library).to_owned();
            if !self.files.iter().any(|file| file.to == to) {
                self.files.push(Item { from: library, to });
            }
        }
        Ok(())
    }

    fn link(&mut self, at: &str, to: &str) {
        self.links.push((at.into(), to.into()));
    }

    /// Names and sizes are enough for the digest: an upgrade of the machine's packages changes them.
    fn finish(mut self, text: &str) -> Result<Self> {
        let mut hash = Sha256::new();
        hash.update(format!("{RECIPE}\n{text}\n"));
        for file in &self.files {
            let size = std::fs::metadata(&file.from).with_context(|| file.from.display().to_string())?.len();
            hash.update(format!("{} {size}\n", file.to.display()));
        }
        for (at, to) in &self.links {
            hash.update(format!("{} -> {}\n", at.display(), to.display()));
        }
        self.digest = hex::encode(&hash.finalize()[..8]);
        Ok(self)
    }

    /// The tar in the cache, written if it isn't there yet.
    pub fn tar(&self, cache: &Cache) -> Result<PathBuf> {
        let folder = cache.path("images");
        std::fs::create_dir_all(&folder)?;
        let path = folder.join(format!("{}.tar", self.digest));
        if !path.exists() {
            let unfinished = path.with_extension("unfinished");
            let mut tar = Builder::new(BufWriter::new(File::create(&unfinished)?));
            self.write(&mut tar).context("can't write the image")?;
            tar.into_inner()?.into_inner()?.sync_all()?;
            std::fs::rename(&unfinished, &path)?;
        }
        Ok(path)
    }

    fn write(&self, tar: &mut Builder<impl std::io::Write>) -> Result<()> {
        if self.is_bare {
            return self.write_items(tar);
        }
        for (folder, mode) in [("tmp", 0o1777), ("var/tmp", 0o1777), ("workspace", 0o777), ("root", 0o700), ("home/agent", 0o777)]
        {
            append(tar, EntryType::Directory, Path::new(folder), mode, &[])?;
        }
        for folder in ["proc", "sys", "dev", "etc"] {
            append(tar, EntryType::Directory, Path::new(folder), 0o755, &[])?;
        }
        append(
            tar,
            EntryType::Regular,
            Path::new("etc/passwd"),
            0o644,
            b"root:x:0:0::/root:/bin/sh\nagent:x:1000:1000::/home/agent:/bin/sh\n",
        )?;
        append(tar, EntryType::Regular, Path::new("etc/group"), 0o644, b"root:x:0:\nagent:x:1000:\n")?;
        for (path, text) in &self.texts {
            append(tar, EntryType::Regular, Path::new(path), 0o644, text.as_bytes())?;
        }
        self.write_items(tar)
    }

    fn write_items(&self, tar: &mut Builder<impl std::io::Write>) -> Result<()> {
        for file in &self.files {
            append_file(tar, &file.from, &file.to)?;
        }
        for folder in &self.folders {
            append_folder(tar, &folder.from, &folder.to)?;
        }
        for (at, to) in &self.links {
            append_link(tar, at, to)?;
        }
        Ok(())
    }
}

fn static_busybox() -> Result<PathBuf> {
    let busybox = which("busybox").context("busybox is missing")?;
    if !libraries(&busybox)?.is_empty() {
        bail!("{} is not static: install busybox-static", busybox.display());
    }
    Ok(busybox)
}

/// Shared libraries and loader of a program, as this machine's loader resolves them; empty for a static one.
fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>> {
    // `ldd` fails for a static program, which is a good answer.
    let Ok(listed) = steps::text(Command::new("ldd").arg(program).env("LC_ALL", "C")) else { return Ok(BTreeSet::new()) };
    if let Some(missing) = listed.lines().find(|line| line.contains("not found")) {
        bail!("{}: {}", program.display(), missing.trim());
    }
    Ok(listed.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

/// No times, no owners of this machine: the image is the same wherever the files are.
fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn append(tar: &mut Builder<impl std::io::Write>, kind: EntryType, path: &Path, mode: u32, data: &[u8]) -> Result<()> {
    Ok(tar.append_data(&mut header(kind, mode, data.len() as u64), path, data)?)
}

fn append_link(tar: &mut Builder<impl std::io::Write>, at: &Path, to: &Path) -> Result<()> {
    Ok(tar.append_link(&mut header(EntryType::Symlink, 0o777, 0), at, to)?)
}

fn append_file(tar: &mut Builder<impl std::io::Write>, from: &Path, to: &Path) -> Result<()> {
    let file = File::open(from).with_context(|| from.display().to_string())?;
    let metadata = file.metadata()?;
    let mode = if metadata.permissions().mode() & 0o111 == 0 { 0o644 } else { 0o755 };
    Ok(tar.append_data(&mut header(EntryType::Regular, mode, metadata.len()), to, file)?)
}

fn append_folder(tar: &mut Builder<impl std::io::Write>, from: &Path, to: &Path) -> Result<()> {
    append(tar, EntryType::Directory, to, 0o755, &[])?;
    let mut entries = std::fs::read_dir(from)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let to = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            append_folder(tar, &entry.path(), &to)?;
        } else if kind.is_symlink() {
            append_link(tar, &to, &std::fs::read_link(entry.path())?)?;
        } else if entry.path().extension() != Some(OsStr::new("map")) {
            append_file(tar, &entry.path(), &to)?;
        }
    }
    Ok(())
}
