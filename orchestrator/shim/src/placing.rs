//! The plan's files, in HOME and in the read-only context folder.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::path::BytePath;
use crate::protocol::{Place, PlacedFile, ShimPaths};

/// Makes a session's folders where they are missing, private to this user. Blocking.
pub fn make_folders(paths: &ShimPaths) -> io::Result<()> {
    for folder in [&paths.workspace, &paths.home, &paths.context, &paths.tmp] {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    Ok(())
}

/// Writes a run's files. HOME keeps what earlier runs left there (a session to continue); the context is made anew. Blocking.
pub fn place(files: &[PlacedFile], paths: &ShimPaths) -> io::Result<()> {
    let context = Path::new(&paths.context);
    empty(context)?;
    for file in files {
        let root = match file.place {
            Place::Home => Path::new(&paths.home),
            Place::Context => context,
        };
        write(root, file)
            .map_err(|error| io::Error::other(format!("the plan's file \"{}\": {error}", file.path.escape_debug())))?;
    }
    seal(context)
}

fn write(root: &Path, file: &PlacedFile) -> io::Result<()> {
    let relative = BytePath::from_entry(file.path.as_bytes()).filter(|path| !path.0.is_empty());
    let relative = relative.ok_or_else(|| io::Error::other("its path leaves the folder"))?;
    let path: PathBuf = root.join(relative.as_path());
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    // Never through a symlink that an earlier run left there.
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mode = if file.executable { 0o700 } else { 0o600 };
    let mut out = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path)?;
    out.write_all(file.content.as_bytes())
}

/// A file without a name: it's gone with the process. Blocking.
pub fn unlinked(folder: &Path) -> io::Result<File> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!(".ckrv-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let path = folder.join(name);
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// Takes everything out of a folder that may have been sealed.
fn empty(folder: &Path) -> io::Result<()> {
    open_up(folder)?;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if fs::symlink_metadata(&path)?.is_dir() {
            empty(&path)?;
            fs::remove_dir(&path)?;
        } else {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn open_up(folder: &Path) -> io::Result<()> {
    fs::set_permissions(folder, Permissions::from_mode(0o700))
}

fn seal(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.is_dir() {
            seal(&path)?;
        } else {
            fs::set_permissions(&path, Permissions::from_mode(metadata.permissions().mode() & 0o555))?;
        }
    }
    fs::set_permissions(folder, Permissions::from_mode(0o500))
}
