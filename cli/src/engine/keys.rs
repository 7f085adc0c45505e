//! The server's own keys: one random key in a file, from which each use derives its own.

use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use rand::Rng as _;
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};

use crate::error::CliError;

/// Reads the key, or makes it.
///
/// # Errors
/// A file that can't be read or written, or that others may read.
pub fn load(path: &Path) -> Result<SecretString, CliError> {
    let failed = |error| CliError::io(format!("can't use {}", path.display()), error);
    match std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(mut file) => {
            let mut bytes = zeroize::Zeroizing::new([0_u8; 32]);
            rand::rng().fill_bytes(bytes.as_mut_slice());
            file.write_all(hex::encode(bytes.as_slice()).as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
    }
    if std::fs::metadata(path).map_err(failed)?.mode() & 0o077 != 0 {
        return Err(CliError::other("key_exposed", format!("others may read {}", path.display()))
            .hint("chmod 600 it; if somebody may have read it, remove it: logins then have to be made anew"));
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    if text.trim().len() != 64 {
        return Err(CliError::other("key_broken", format!("{} holds no key", path.display()))
            .hint("remove it: logins then have to be made anew"));
    }
    Ok(SecretString::from(text.trim().to_owned()))
}

/// The key for one use.
#[must_use]
pub fn derive(key: &SecretString, purpose: &str) -> SecretString {
    let mut hash = Sha256::new();
    hash.update(b"ckrv key v1|");
    hash.update(purpose.as_bytes());
    hash.update(b"|");
    hash.update(key.expose_secret().as_bytes());
    SecretString::from(hex::encode(hash.finalize()))
}
