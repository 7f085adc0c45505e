//! The embedded vault: a master key in a file that only its owner may read, and under it a fresh data key for each value.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use aes_gcm::aead::{Aead, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use secrecy::SecretString;
use sha2::Sha256;
use zeroize::{Zeroize, Zeroizing};

use crate::envelope::{self, Bytes32, KEY, Layer, NONCE};
use crate::error::StoreError;
use crate::vault::{Opener, SealContext, Sealed, Sealer};

/// Length of the master key's mark in a wrapped key, by which a value of another master key is recognised.
const MARK: usize = 8;

/// `Sealer` and `Opener` under one master key.
pub struct LocalVault {
    cipher: Aes256Gcm,
    mark: [u8; MARK],
    /// The path of the key file, for messages.
    file: String,
}

impl std::fmt::Debug for LocalVault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalVault").field("file", &self.file).finish_non_exhaustive()
    }
}

impl LocalVault {
    /// Reads the master key, or makes one where there is no file.
    ///
    /// # Errors
    /// [`StoreError::Backend`] where the file belongs to somebody else, others may read it, or it holds no key.
    pub fn open(file: &Path) -> Result<Self, StoreError> {
        let key = match read_key(file)? {
            Some(key) => key,
            None => {
                make_key(file)?;
                read_key(file)?.ok_or_else(|| StoreError::backend(about(file), "it vanished while it was read"))?
            }
        };
        let mut mac = Hmac::<Sha256>::new_from_slice(key.as_slice()).map_err(|error| StoreError::backend(about(file), error))?;
        mac.update(b"ckrv master key mark");
        let mut mark = [0; MARK];
        mark.copy_from_slice(&mac.finalize().into_bytes()[..MARK]);
        Ok(Self { cipher: envelope::cipher(&key), mark, file: file.display().to_string() })
    }

    fn seal_value(&self, context: SealContext<'_>, value: &SecretString) -> Result<Sealed, StoreError> {
        let data_key: Bytes32 = Zeroizing::new(rand::random());
        let nonce: [u8; NONCE] = rand::random();
        let plain = Payload { msg: data_key.as_slice(), aad: &envelope::associated(context, Layer::DataKey) };
        let wrapped = self.cipher.encrypt(&Nonce::from(nonce), plain).map_err(|_| envelope::failed())?;
        envelope::seal(&data_key, &[self.mark.as_slice(), &nonce, &wrapped].concat(), context, value)
    }

    fn open_value(&self, context: SealContext<'_>, sealed: &Sealed) -> Result<SecretString, StoreError> {
        let wrapped = envelope::decoded(&sealed.wrapped_key)?;
        let (mark, rest) = wrapped.split_at_checked(MARK).ok_or_else(envelope::malformed)?;
        let (nonce, wrapped) = rest.split_first_chunk::<NONCE>().ok_or_else(envelope::malformed)?;
        if mark != self.mark {
            return Err(StoreError::Sealed(format!(
                "it was encrypted under another master key than the one in {}; restore that file, or store the value again",
                self.file
            )));
        }
        let encrypted = Payload { msg: wrapped, aad: &envelope::associated(context, Layer::DataKey) };
        let data_key = self.cipher.decrypt(&Nonce::from(*nonce), encrypted).map(Zeroizing::new);
        let data_key = data_key.map_err(|_| envelope::unfit(context))?;
        let data_key: Bytes32 = Zeroizing::new(data_key.as_slice().try_into().map_err(|_| envelope::malformed())?);
        envelope::open(&data_key, context, sealed)
    }
}

#[async_trait]
impl Sealer for LocalVault {
    async fn seal(&self, context: SealContext<'_>, value: &SecretString) -> Result<Sealed, StoreError> {
        self.seal_value(context, value)
    }
}

#[async_trait]
impl Opener for LocalVault {
    async fn open(&self, context: SealContext<'_>, sealed: &Sealed) -> Result<SecretString, StoreError> {
        self.open_value(context, sealed)
    }
}

fn about(file: &Path) -> String {
    format!("the master key {} can't be used", file.display())
}

fn read_key(path: &Path) -> Result<Option<Bytes32>, StoreError> {
    let failed = |error: std::io::Error| StoreError::backend(about(path), error);
    let no_link = nix::fcntl::OFlag::O_NOFOLLOW.bits();
    let mut file = match OpenOptions::new().read(true).custom_flags(no_link).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    refuse_shared(path, &file)?;
    let mut text = Zeroizing::new([0_u8; 64]);
    let mut length = 0;
    while length < text.len() {
        match file.read(&mut text[length..]).map_err(failed)? {
            0 => break,
            more => length += more,
        }
    }
    let damaged = || StoreError::backend(about(path), "it holds no key: 44 characters of base64 were expected");
    let line = text[..length].trim_ascii();
    let mut key: Bytes32 = Zeroizing::new([0; KEY]);
    let mut decoded = Zeroizing::new([0_u8; KEY + 3]);
    let found = BASE64.decode_slice(line, decoded.as_mut_slice()).map_err(|_| damaged())?;
    if found != KEY {
        return Err(damaged());
    }
    key.copy_from_slice(&decoded[..KEY]);
    Ok(Some(key))
}

/// A key that others could read is no secret any more, and one that others own can be changed under us.
fn refuse_shared(path: &Path, file: &File) -> Result<(), StoreError> {
    let metadata = file.metadata().map_err(|error| StoreError::backend(about(path), error))?;
    let mode = metadata.permissions().mode() & 0o777;
    let refusal = if !metadata.is_file() {
        "it is not a regular file".to_owned()
    } else if metadata.uid() != nix::unistd::geteuid().as_raw() {
        format!("it belongs to user {}, not to the user that runs this program", metadata.uid())
    } else if mode & 0o077 != 0 {
        format!("others may read or change it (mode {mode:04o}); run `chmod 600` on it, and replace the secrets if it was read")
    } else {
        return Ok(());
    };
    Err(StoreError::backend(format!("{}: {refusal}", about(path)), std::io::Error::from(ErrorKind::PermissionDenied)))
}

/// Writes a new key; if somebody else was faster, theirs stays.
fn make_key(path: &Path) -> Result<(), StoreError> {
    let failed = |error: std::io::Error| StoreError::backend(format!("making the master key {}", path.display()), error);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let key: Bytes32 = Zeroizing::new(rand::random());
    let mut text = BASE64.encode(key.as_slice());
    text.push('\n');
    // Mode 0600 from the start.
    let written = tempfile::NamedTempFile::new_in(folder).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        Ok(file)
    });
    text.zeroize();
    match written.map_err(failed)?.persist_noclobber(path) {
        Ok(_) => {}
        Err(error) if error.error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error.error)),
    }
    File::open(folder).and_then(|opened| opened.sync_all()).map_err(failed)
}
