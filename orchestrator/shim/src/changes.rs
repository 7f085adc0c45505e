//! What differs from the checkout: found by walking the workspace and comparing, sent as a tar.

use std::collections::HashSet;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Seek as _, Write};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::archive::ArchiveWriter;
use crate::checkout::{Known, Snapshot, copy_hashed, is_top_git};
use crate::path::BytePath;
use crate::placing;
use crate::protocol::{ChangeKind, ChangeList, Changed, CollectLimits, Collected, Refused, Selection};

/// Folders nested deeper are refused: a limit that keeps the walk's own memory small.
const MAX_DEPTH: usize = 128;

/// Compares the workspace with its snapshot. Blocking.
///
/// # Errors
/// With more than `max_entries` differences, or when the workspace itself can't be read. A single path that can't be read is
/// reported as refused.
pub fn find(root: &Path, snapshot: &Snapshot, max_entries: u64) -> io::Result<ChangeList> {
    let mut walk = Walk { root, snapshot, list: ChangeList::default(), seen: HashSet::new(), max_entries };
    walk.folder(&BytePath::default(), 0)?;
    let refused: HashSet<&BytePath> = walk.list.refused.iter().map(|refused| &refused.path).collect();
    let gone = |path: &&BytePath| !walk.seen.contains(*path) && !is_below(path, &refused);
    walk.list.deleted = snapshot.keys().filter(gone).cloned().collect();
    walk.check()?;
    Ok(walk.list)
}

/// What stands below a folder that couldn't be looked into isn't known to be gone.
fn is_below(path: &BytePath, refused: &HashSet<&BytePath>) -> bool {
    let mut above = path.parent();
    while !above.0.is_empty() {
        if refused.contains(&above) {
            return true;
        }
        above = above.parent();
    }
    false
}

struct Walk<'a> {
    root: &'a Path,
    snapshot: &'a Snapshot,
    list: ChangeList,
    seen: HashSet<BytePath>,
    max_entries: u64,
}

impl Walk<'_> {
    fn folder(&mut self, folder: &BytePath, depth: usize) -> io::Result<()> {
        let entries = match fs::read_dir(self.root.join(folder.as_path())) {
            Ok(entries) => entries,
            Err(error) if folder.0.is_empty() => return Err(error),
            Err(_) => return self.refuse(folder, "unreadable"),
        };
        let mut names = Vec::new();
        for entry in entries {
            match entry {
                Ok(entry) => names.push(entry.file_name()),
                Err(_) => return self.refuse(folder, "unreadable"),
            }
        }
        names.sort();
        for name in names {
            let path = folder.join(name.as_bytes());
            if is_top_git(&path) {
                continue;
            }
            self.seen.insert(path.clone());
            self.entry(&path, depth)?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &BytePath, depth: usize) -> io::Result<()> {
        // The whole path is known to be clean above this part.
        if path.names_git_folder() {
            return self.refuse(path, "git folder");
        }
        let Ok(metadata) = fs::symlink_metadata(self.root.join(path.as_path())) else {
            return self.refuse(path, "unreadable");
        };
        let kind = metadata.file_type();
        if kind.is_dir() {
            // A folder where a file was: the file is gone.
            self.seen.remove(path);
            return if depth >= MAX_DEPTH { self.refuse(path, "too deep") } else { self.folder(path, depth + 1) };
        }
        if !kind.is_file() && !kind.is_symlink() {
            let reason = if kind.is_fifo() {
                "fifo"
            } else if kind.is_socket() {
                "socket"
            } else {
                "device"
            };
            return self.refuse(path, reason);
        }
        match look(self.root, path, &metadata) {
            Ok(now) => self.compare(path, &now),
            Err(_) => self.refuse(path, "unreadable"),
        }
    }

    fn compare(&mut self, path: &BytePath, now: &Known) -> io::Result<()> {
        let before = self.snapshot.get(path);
        if before == Some(now) {
            return Ok(());
        }
        self.list.changed.push(Changed { path: path.clone(), kind: now.kind(), size: now.size(), added: before.is_none() });
        self.check()
    }

    fn refuse(&mut self, path: &BytePath, reason: &str) -> io::Result<()> {
        self.list.refused.push(Refused { path: path.clone(), reason: reason.to_owned() });
        self.check()
    }

    fn check(&self) -> io::Result<()> {
        let entries = self.list.changed.len() + self.list.deleted.len() + self.list.refused.len();
        if entries as u64 > self.max_entries {
            return Err(io::Error::other(format!("more than {} paths have changed", self.max_entries)));
        }
        Ok(())
    }
}

fn look(root: &Path, path: &BytePath, metadata: &Metadata) -> io::Result<Known> {
    let full = root.join(path.as_path());
    if metadata.file_type().is_symlink() {
        return Ok(Known::Symlink { target: fs::read_link(full)?.as_os_str().as_bytes().to_vec() });
    }
    let mut hash = Sha256::new();
    let size = copy_hashed(&mut open(&full)?, &mut io::sink(), &mut hash)?;
    let executable = metadata.permissions().mode() & 0o100 != 0;
    Ok(Known::File { executable, size, sha256: hash.finalize().into() })
}

/// Without following a symlink or waiting for a fifo's writer, should one have taken the file's place.
fn open(path: &Path) -> io::Result<File> {
    let flags = nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK;
    OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)
}

/// Writes the selected changes as a tar into `out`, and gives the places in the list of those that `take` left out. Blocking.
///
/// # Errors
/// Beyond `max_bytes`, or when `take` fails.
pub fn send(
    list: &ChangeList,
    selection: &Selection,
    limits: CollectLimits,
    take: impl Fn(&Changed) -> io::Result<Option<Taken>>,
    out: impl Write,
) -> io::Result<(Collected, Vec<u32>)> {
    let skip: HashSet<u32> = selection.skip.iter().copied().collect();
    let selected = || (0_u32..).zip(&list.changed).filter(|(index, _)| !skip.contains(index));
    let total = selected().fold(0_u64, |sum, (_, changed)| sum.saturating_add(changed.size));
    if total > limits.max_bytes {
        return Err(io::Error::other(format!("the changes are {total} bytes long, the limit is {}", limits.max_bytes)));
    }
    let mut writer = ArchiveWriter::new(HashedWriter { out, hash: Sha256::new(), bytes: 0 });
    let (mut entries, mut left_out) = (0, Vec::new());
    for (index, changed) in selected() {
        let path = changed.path.as_bytes();
        match take(changed)? {
            None => left_out.push(index),
            Some(Taken::Symlink(target)) => writer.symlink(path, &target)?,
            Some(Taken::File { mode, content }) => writer.file(path, mode, changed.size, content)?,
        }
        entries += 1;
    }
    let mut hashed = writer.finish()?;
    hashed.flush()?;
    let entries = entries - left_out.len() as u64;
    Ok((Collected { entries, tar_bytes: hashed.bytes, tar_sha256: hex::encode(hashed.hash.finalize()) }, left_out))
}

/// One change's content.
pub enum Taken {
    Symlink(Vec<u8>),
    File { mode: u32, content: Box<dyn Read> },
}

/// # Errors
/// When it can't be read; while it's read, when it changes (no process of a run is alive at that time).
pub fn take(root: &Path, changed: &Changed) -> io::Result<Taken> {
    let full = root.join(changed.path.as_path());
    let metadata = fs::symlink_metadata(&full)?;
    if metadata.file_type().is_symlink() {
        return Ok(Taken::Symlink(fs::read_link(&full)?.as_os_str().as_bytes().to_vec()));
    }
    let content = Box::new(Exact { file: open(&full)?, left: changed.size });
    Ok(Taken::File { mode: mode_of(&metadata), content })
}

/// A copy of what something may be writing to. `None` where it isn't what the list says any more, or changes while it's copied.
pub fn take_living(root: &Path, changed: &Changed, tmp: &Path) -> Option<Taken> {
    let full = root.join(changed.path.as_path());
    if changed.kind == ChangeKind::Symlink {
        let target = fs::read_link(&full).ok()?.into_os_string().into_vec();
        return (target.len() as u64 == changed.size).then_some(Taken::Symlink(target));
    }
    let mut file = open(&full).ok()?;
    let before = file.metadata().ok()?;
    let listed = (changed.kind, changed.size);
    let kind = if mode_of(&before) == 0o755 { ChangeKind::Executable } else { ChangeKind::File };
    if !before.is_file() || (kind, before.len()) != listed {
        return None;
    }
    let mut copy = placing::unlinked(tmp).ok()?;
    io::copy(&mut (&mut file).take(changed.size + 1), &mut copy).ok()?;
    let after = file.metadata().ok()?;
    let is_whole = copy.metadata().ok()?.len() == changed.size && stamp(&before) == stamp(&after);
    copy.rewind().ok()?;
    is_whole.then(|| Taken::File { mode: mode_of(&before), content: Box::new(copy) })
}

fn mode_of(metadata: &Metadata) -> u32 {
    if metadata.permissions().mode() & 0o100 != 0 { 0o755 } else { 0o644 }
}

/// Any write moves one of these.
fn stamp(metadata: &Metadata) -> (u64, i64, i64, i64, i64) {
    (metadata.len(), metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec())
}

/// Ends in an error where a file turns out shorter than its header says.
struct Exact {
    file: File,
    left: u64,
}

impl Read for Exact {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buf)?;
        if n == 0 && self.left > 0 && !buf.is_empty() {
            return Err(io::Error::other("a file changed while it was collected"));
        }
        self.left = self.left.saturating_sub(n as u64);
        Ok(n)
    }
}

struct HashedWriter<W> {
    out: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: Write> Write for HashedWriter<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.out.write(buf)?;
        self.hash.update(&buf[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_living_file_is_taken_whole_or_not_at_all() {
        let (root, tmp) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(root.path().join("file"), "content").unwrap();
        std::os::unix::fs::symlink("file", root.path().join("link")).unwrap();
        let taken = |path: &str, kind, size| {
            let changed = Changed { path: BytePath::from(path), kind, size, added: true };
            take_living(root.path(), &changed, tmp.path())
        };
        let Some(Taken::File { mode: 0o644, mut content }) = taken("file", ChangeKind::File, 7) else { panic!() };
        let mut read = String::new();
        content.read_to_string(&mut read).unwrap();
        assert_eq!(read, "content");
        assert!(matches!(taken("link", ChangeKind::Symlink, 4), Some(Taken::Symlink(target)) if target == b"file"));
        // Longer and shorter than it was, gone, made executable, and a link where a file was.
        assert!(taken("file", ChangeKind::File, 6).is_none());
        assert!(taken("file", ChangeKind::File, 8).is_none());
        assert!(taken("gone", ChangeKind::File, 7).is_none());
        assert!(taken("file", ChangeKind::Executable, 7).is_none());
        assert!(taken("link", ChangeKind::File, 7).is_none());
        assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_lies_below_a_folder_that_was_not_looked_into_is_not_called_deleted() {
        let root = tempfile::tempdir().unwrap();
        let deep = BytePath([&b"d/".repeat(MAX_DEPTH + 2)[..], b"file"].concat());
        fs::create_dir_all(root.path().join(deep.parent().as_path())).unwrap();
        fs::write(root.path().join(deep.as_path()), "").unwrap();
        let known = Known::Symlink { target: Vec::new() };
        let snapshot = Snapshot::from([(deep, known.clone()), (BytePath::from("gone"), known)]);
        let list = find(root.path(), &snapshot, 10).unwrap();
        assert_eq!(list.deleted, [BytePath::from("gone")]);
        assert_eq!(list.refused.len(), 1);
    }
}
