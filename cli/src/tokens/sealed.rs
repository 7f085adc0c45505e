//! Where one session is kept. A file per service in the configuration folder says where: in the system's keyring, or in that very
//! file, encrypted with a key that stands apart in the state folder. So a copied or committed configuration folder gives nothing away.
//! Reading that file first also spares a machine without a keyring from being asked for one at every command.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rand::Rng as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::keyring;
use crate::error::CliError;

/// Where a session lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    Keyring,
    EncryptedFile,
}

#[derive(Debug, Serialize, Deserialize)]
struct Slip {
    version: u32,
    service: String,
    place: Place,
    /// Nonce and ciphertext, base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sealed: Option<String>,
}

/// The place for one service's session.
#[derive(Clone, Debug)]
pub struct Cabinet {
    service: String,
    slip: PathBuf,
    key: PathBuf,
    pub lock: PathBuf,
    keyring: bool,
}

impl Cabinet {
    #[must_use]
    pub fn new(config_dir: &Path, state_dir: &Path, service: &str, keyring: bool) -> Self {
        let name: String = hex::encode(&Sha256::digest(service.as_bytes())[..12]);
        Self {
            service: service.to_owned(),
            slip: config_dir.join("sessions").join(format!("{name}.json")),
            key: state_dir.join("session.key"),
            lock: state_dir.join("locks").join(format!("{name}.lock")),
            keyring,
        }
    }

    /// # Errors
    /// Files or a keyring that can't be read; a file that was tampered with or whose key is gone.
    pub fn load(&self) -> Result<Option<Zeroizing<String>>, CliError> {
        let Some(slip) = self.slip()? else { return Ok(None) };
        match (slip.place, slip.sealed) {
            (Place::Keyring, _) => keyring::get(&self.service).map_err(|error| {
                CliError::other("keyring", "the session lies in the system's keyring, which can't be read")
                    .hint("unlock the keyring, or run `ckrv cloud login` again")
                    .source(error)
            }),
            (Place::EncryptedFile, Some(sealed)) => self.open(&sealed).map(Some),
            (Place::EncryptedFile, None) => Ok(None),
        }
    }

    /// Keeps the session where it was, or for a new one in the keyring if there is one. Says where that is.
    ///
    /// # Errors
    /// Files that can't be written.
    pub fn save(&self, session: &str) -> Result<Place, CliError> {
        let before = self.slip().ok().flatten().map(|slip| slip.place);
        let mut slip = Slip { version: 1, service: self.service.clone(), place: Place::Keyring, sealed: None };
        let try_keyring = self.keyring && before != Some(Place::EncryptedFile);
        let kept = try_keyring
            && keyring::set(&self.service, session)
                .inspect_err(|error| tracing::debug!(%error, "The keyring can't be used"))
                .is_ok();
        if !kept {
            slip.place = Place::EncryptedFile;
            slip.sealed = Some(self.seal(session)?);
        }
        let json = serde_json::to_vec_pretty(&slip).map_err(|error| CliError::io("can't write the session", error))?;
        write_private(&self.slip, &json)?;
        Ok(slip.place)
    }

    /// # Errors
    /// A keyring that refuses, or a file that can't be removed.
    pub fn delete(&self) -> Result<bool, CliError> {
        let slip = self.slip().ok().flatten();
        if slip.as_ref().is_some_and(|slip| slip.place == Place::Keyring) {
            keyring::delete(&self.service)
                .map_err(|error| CliError::other("keyring", "the keyring doesn't give up the session").source(error))?;
        }
        match fs::remove_file(&self.slip) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(CliError::io(format!("can't remove {}", self.slip.display()), error)),
        }
    }

    fn slip(&self) -> Result<Option<Slip>, CliError> {
        let bytes = match fs::read(&self.slip) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(CliError::io(format!("can't read {}", self.slip.display()), error)),
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| self.broken().source(error))
    }

    fn broken(&self) -> CliError {
        CliError::new(
            crate::error::Kind::NotLoggedIn,
            "broken_session",
            format!("the session in {} can't be read", self.slip.display()),
        )
        .hint("run `ckrv cloud login`")
    }

    fn seal(&self, session: &str) -> Result<String, CliError> {
        let cipher = self.cipher(true)?;
        let mut nonce = [0_u8; 12];
        rand::rng().fill_bytes(&mut nonce);
        let payload = Payload { msg: session.as_bytes(), aad: self.service.as_bytes() };
        let sealed = cipher
            .encrypt(&Nonce::from(nonce), payload)
            .map_err(|_| CliError::other("session", "the session can't be encrypted"))?;
        Ok(BASE64.encode([&nonce[..], &sealed].concat()))
    }

    fn open(&self, sealed: &str) -> Result<Zeroizing<String>, CliError> {
        let bytes = BASE64.decode(sealed).map_err(|error| self.broken().source(error))?;
        let (nonce, sealed) = bytes.split_first_chunk::<12>().ok_or_else(|| self.broken())?;
        let payload = Payload { msg: sealed, aad: self.service.as_bytes() };
        let plain = self.cipher(false)?.decrypt(&Nonce::from(*nonce), payload).map_err(|_| self.broken())?;
        String::from_utf8(plain).map(Zeroizing::new).map_err(|_| self.broken())
    }

    fn cipher(&self, create: bool) -> Result<Aes256Gcm, CliError> {
        let key = match fs::read(&self.key) {
            Ok(key) => Zeroizing::new(key),
            Err(error) if error.kind() == ErrorKind::NotFound && create => new_key(&self.key)?,
            Err(error) => return Err(self.broken().source(error)),
        };
        Aes256Gcm::new_from_slice(&key).map_err(|_| self.broken())
    }
}

/// Two processes may both find no key: the first one's file stays, and both use it.
fn new_key(path: &Path) -> Result<Zeroizing<Vec<u8>>, CliError> {
    let failed = |error: std::io::Error| CliError::io(format!("can't write {}", path.display()), error);
    let mut key = Zeroizing::new(vec![0_u8; 32]);
    rand::rng().fill_bytes(&mut key);
    let mut file = private_file(path).map_err(failed)?;
    file.write_all(&key).map_err(failed)?;
    match file.persist_noclobber(path) {
        Ok(_) => Ok(key),
        Err(error) if error.error.kind() == ErrorKind::AlreadyExists => fs::read(path).map(Zeroizing::new).map_err(failed),
        Err(error) => Err(failed(error.error)),
    }
}

/// Writes a file that only its owner can read, whole or not at all.
///
/// # Errors
/// As the file system says.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), CliError> {
    let failed = |error: std::io::Error| CliError::io(format!("can't write {}", path.display()), error);
    let mut file = private_file(path).map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

fn private_file(path: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    let folder = path.parent().unwrap_or(Path::new("."));
    private_folder(folder)?;
    // Mode 0600 is tempfile's own.
    tempfile::NamedTempFile::new_in(folder)
}

/// # Errors
/// As the file system says.
pub fn private_folder(folder: &Path) -> std::io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cabinet(folder: &Path) -> Cabinet {
        Cabinet::new(&folder.join("config"), &folder.join("state"), "https://ckrv.example/", false)
    }

    #[test]
    fn a_session_comes_back_and_its_file_gives_nothing_away() {
        let folder = tempfile::tempdir().unwrap();
        let cabinet = cabinet(folder.path());
        assert_eq!(cabinet.save("the-token").unwrap(), Place::EncryptedFile);
        assert_eq!(cabinet.load().unwrap().unwrap().as_str(), "the-token");
        let file = fs::read_to_string(&cabinet.slip).unwrap();
        assert!(!file.contains("the-token"));
        for private in [&cabinet.slip, &cabinet.key] {
            assert_eq!(fs::metadata(private).unwrap().permissions().mode() & 0o777, 0o600, "{}", private.display());
        }
        assert!(cabinet.delete().unwrap());
        assert!(cabinet.load().unwrap().is_none());
    }

    #[test]
    fn a_session_is_useless_without_its_key_or_for_another_service() {
        let folder = tempfile::tempdir().unwrap();
        let first = cabinet(folder.path());
        first.save("the-token").unwrap();
        let other = Cabinet { service: "https://evil.example/".into(), ..first.clone() };
        assert_eq!(other.load().unwrap_err().code, "broken_session");
        fs::write(&first.key, [0; 32]).unwrap();
        assert_eq!(first.load().unwrap_err().code, "broken_session");
        fs::remove_file(&first.key).unwrap();
        assert_eq!(first.load().unwrap_err().kind, crate::error::Kind::NotLoggedIn);
    }
}
