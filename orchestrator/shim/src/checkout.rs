//! Unpacks the checkout and remembers what it was, so that changes can be told without git.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use tar::EntryType;

use crate::path::BytePath;
use crate::protocol::ChangeKind;

/// One path as it was unpacked or is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    File { executable: bool, size: u64, sha256: [u8; 32] },
    Symlink { target: Vec<u8> },
}

impl Known {
    pub fn kind(&self) -> ChangeKind {
        match self {
            Self::File { executable: false, .. } => ChangeKind::File,
            Self::File { executable: true, .. } => ChangeKind::Executable,
            Self::Symlink { .. } => ChangeKind::Symlink,
        }
    }

    pub fn size(&self) -> u64 {
        match self {
            Self::File { size, .. } => *size,
            Self::Symlink { target } => target.len() as u64,
        }
    }
}

/// What was unpacked, without the top `.git`. Folders aren't remembered: git doesn't know them either.
pub type Snapshot = BTreeMap<BytePath, Known>;

/// The checkout after unpacking.
#[derive(Debug)]
pub struct Unpacked {
    pub snapshot: Snapshot,
    pub entries: u64,
    pub bytes: u64,
}

/// Unpacks a tar into `root`, which must be an empty folder. Blocking.
///
/// # Errors
/// On an entry that leaves the root, goes through a symlink, or is neither file, folder nor symlink; beyond the limits; and when
/// writing fails. What was unpacked by then stays.
pub fn unpack(tar: impl Read, root: &Path, max_entries: u64, max_bytes: u64) -> io::Result<Unpacked> {
    if fs::read_dir(root)?.next().is_some() {
        return Err(io::Error::other("the workspace is not empty"));
    }
    let mut unpacker = Unpacker { root, folders: BTreeSet::from([BytePath::default()]), late_modes: Vec::new() };
    let mut unpacked = Unpacked { snapshot: Snapshot::new(), entries: 0, bytes: 0 };
    let mut archive = tar::Archive::new(tar);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let raw = entry.path_bytes().into_owned();
        let path = BytePath::from_entry(&raw).ok_or_else(|| refused(&raw, "leaves the workspace"))?;
        unpacked.entries += 1;
        unpacked.bytes = unpacked.bytes.saturating_add(entry.size());
        if unpacked.entries > max_entries || unpacked.bytes > max_bytes {
            return Err(io::Error::other(format!("the checkout is larger than {max_entries} entries or {max_bytes} bytes")));
        }
        let mode = entry.header().mode()?;
        let known = match entry.header().entry_type() {
            EntryType::Directory => {
                unpacker.folder(&path)?;
                unpacker.late_modes.push((path.clone(), mode));
                None
            }
            EntryType::Regular => Some(unpacker.file(&path, mode, &mut entry)?),
            EntryType::Symlink => {
                let target = entry.link_name_bytes().ok_or_else(|| refused(&raw, "has no target"))?.into_owned();
                Some(unpacker.symlink(&path, target)?)
            }
            _ => return Err(refused(&raw, "is neither file, folder nor symlink")),
        };
        if let Some(known) = known
            && !is_top_git(&path)
        {
            unpacked.snapshot.insert(path, known);
        }
    }
    unpacker.finish()?;
    Ok(unpacked)
}

/// The repository's own folder at the top, which is never sent back.
pub fn is_top_git(path: &BytePath) -> bool {
    path.0 == b".git" || path.0.starts_with(b".git/")
}

fn refused(path: &[u8], why: &str) -> io::Error {
    io::Error::other(format!("the entry \"{}\" of the checkout {why}", path.escape_ascii()))
}

struct Unpacker<'a> {
    root: &'a Path,
    /// Folders made here: whatever else stands at a path is no folder, so nothing is ever written through a symlink.
    folders: BTreeSet<BytePath>,
    late_modes: Vec<(BytePath, u32)>,
}

impl Unpacker<'_> {
    fn at(&self, path: &BytePath) -> PathBuf {
        self.root.join(path.as_path())
    }

    fn folder(&mut self, path: &BytePath) -> io::Result<()> {
        if self.folders.contains(path) {
            return Ok(());
        }
        self.folder(&path.parent())?;
        DirBuilder::new().mode(0o755).create(self.at(path))?;
        self.folders.insert(path.clone());
        Ok(())
    }

    fn file(&mut self, path: &BytePath, mode: u32, content: &mut impl Read) -> io::Result<Known> {
        self.folder(&path.parent())?;
        let executable = mode & 0o100 != 0;
        let permissions = if executable { 0o755 } else { 0o644 };
        let mut file = OpenOptions::new().write(true).create_new(true).mode(permissions).open(self.at(path))?;
        let mut hash = Sha256::new();
        let size = copy_hashed(content, &mut file, &mut hash)?;
        // The mode given to open is subject to the umask.
        file.set_permissions(Permissions::from_mode(permissions))?;
        Ok(Known::File { executable, size, sha256: hash.finalize().into() })
    }

    fn symlink(&mut self, path: &BytePath, target: Vec<u8>) -> io::Result<Known> {
        self.folder(&path.parent())?;
        symlink(std::ffi::OsStr::from_bytes(&target), self.at(path))?;
        Ok(Known::Symlink { target })
    }

    /// Folder modes last: a read-only folder could not be filled. The owner keeps every right.
    fn finish(self) -> io::Result<()> {
        for (path, mode) in self.late_modes.iter().filter(|(path, _)| !path.0.is_empty()) {
            fs::set_permissions(self.at(path), Permissions::from_mode(mode & 0o777 | 0o700))?;
        }
        Ok(())
    }
}

/// Copies to the end, hashing, and gives the number of bytes.
pub fn copy_hashed(from: &mut impl Read, to: &mut impl Write, hash: &mut Sha256) -> io::Result<u64> {
    let mut buffer = vec![0; 64 * 1024];
    let mut total = 0;
    loop {
        let n = from.read(&mut buffer)?;
        if n == 0 {
            return Ok(total);
        }
        hash.update(&buffer[..n]);
        to.write_all(&buffer[..n])?;
        total += n as u64;
    }
}
