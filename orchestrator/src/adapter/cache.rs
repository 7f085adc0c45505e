//! Compiled code on disk.
//!
//! Compiled code that somebody else wrote is code that runs unchecked. So each file is authenticated under a key that only this user
//! can read, and anything that does not fit is compiled again.

use std::fs::{self, File, OpenOptions};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;
use zeroize::Zeroizing;

const KEY_FILE: &str = "cache.key";
const KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 32;

/// A folder of compiled adapters.
pub struct Cache {
    folder: PathBuf,
    key: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Cache {
    /// Opens the folder, and makes its key where there is none.
    pub fn open(folder: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let path = folder.join(KEY_FILE);
        let key = match read_key(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => make_key(folder, &path)?,
            found => found?,
        };
        Ok(Self { folder: folder.to_owned(), key })
    }

    /// The compiled adapter, if this very engine compiled it under this key.
    pub fn get(&self, engine: &Engine, digest: &[u8; 32]) -> Option<Component> {
        let name = name(engine, digest);
        let bytes = fs::read(self.folder.join(&name)).ok()?;
        let (tag, code) = bytes.split_at_checked(TAG_BYTES)?;
        if self.mac(&name, code)?.verify_slice(tag).is_err() {
            tracing::warn!(file = name, "a compiled adapter is not what was written, and is compiled again");
            return None;
        }
        deserialize(engine, code)
    }

    /// Keeps a compiled adapter. Renamed into place, so that nobody reads half of it.
    pub fn put(&self, engine: &Engine, digest: &[u8; 32], component: &Component) -> io::Result<()> {
        let name = name(engine, digest);
        let code = component.serialize().map_err(io::Error::other)?;
        let tag = self.mac(&name, &code).ok_or_else(|| io::Error::other("no key"))?.finalize().into_bytes();
        let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
        file.write_all(&tag)?;
        file.write_all(&code)?;
        file.persist(self.folder.join(name)).map(drop).map_err(|error| error.error)
    }

    fn mac(&self, name: &str, code: &[u8]) -> Option<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).ok()?;
        mac.update(name.as_bytes());
        mac.update(&[0]);
        mac.update(code);
        Some(mac)
    }
}

/// From the adapter, and from all of the engine's settings and its version.
fn name(engine: &Engine, digest: &[u8; 32]) -> String {
    let mut settings = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut settings);
    let mut hash = Sha256::new();
    hash.update(digest);
    hash.update(settings.finish().to_le_bytes());
    let hex: String = hex::encode(hash.finalize());
    format!("{hex}.compiled")
}

#[expect(unsafe_code, reason = "the code was authenticated: this user's own engine compiled it")]
fn deserialize(engine: &Engine, code: &[u8]) -> Option<Component> {
    // SAFETY: `code` carries a tag under a key that only this user can read, over bytes that `Component::serialize` gave. wasmtime
    // checks by itself that version and settings fit.
    unsafe { Component::deserialize(engine, code) }.ok()
}

fn read_key(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(path)?;
    let meta = file.metadata()?;
    if meta.mode() & 0o077 != 0 || meta.uid() != nix::unistd::geteuid().as_raw() {
        return Err(io::Error::other(format!("{} can be read by others", path.display())));
    }
    let mut key = Zeroizing::new(Vec::with_capacity(KEY_BYTES + 1));
    file.take(KEY_BYTES as u64 + 1).read_to_end(&mut key)?;
    if key.len() == KEY_BYTES { Ok(key) } else { Err(io::Error::other(format!("{} is not a key", path.display()))) }
}

/// Two processes may do this at once: the first link wins, and both read what is there then.
fn make_key(folder: &Path, path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut key = Zeroizing::new(vec![0; KEY_BYTES]);
    rand::fill(key.as_mut_slice());
    // A temporary file has mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(&key)?;
    File::sync_all(file.as_file())?;
    match file.persist_noclobber(path) {
        Ok(_) => Ok(key),
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => read_key(path),
        Err(error) => Err(error.error),
    }
}
