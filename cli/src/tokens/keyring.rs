//! The system's keyring: Secret Service over D-Bus on Linux (in Rust throughout, no C library), Keychain on macOS.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use keyring_core::{CredentialStore, Error};
use zeroize::Zeroizing;

/// A locked keyring may ask the user for a password; a broken one may never answer.
const PATIENCE: Duration = Duration::from_secs(30);
const NAME: &str = "ckrv";

#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    #[cfg(not(any(target_os = "linux", target_os = "macos")))]
    #[error("this system has no keyring that can be used")]
    None,
    #[error("the keyring did not answer within {} seconds", PATIENCE.as_secs())]
    Silent,
    #[error(transparent)]
    Keyring(#[from] Error),
}

/// # Errors
/// No keyring, or one that refuses.
pub fn get(service: &str) -> Result<Option<Zeroizing<String>>, KeyringError> {
    with_entry(service, |entry| match entry.get_password() {
        Ok(text) => Ok(Some(Zeroizing::new(text))),
        Err(Error::NoEntry) => Ok(None),
        Err(error) => Err(error),
    })
}

/// # Errors
/// As [`get`].
pub fn set(service: &str, text: &str) -> Result<(), KeyringError> {
    let text = Zeroizing::new(text.to_owned());
    with_entry(service, move |entry| entry.set_password(&text))
}

/// # Errors
/// As [`get`]; that there is no entry is none.
pub fn delete(service: &str) -> Result<(), KeyringError> {
    with_entry(service, |entry| match entry.delete_credential() {
        Ok(()) | Err(Error::NoEntry) => Ok(()),
        Err(error) => Err(error),
    })
}

/// In a thread of its own: the calls block, and must not block us for ever.
fn with_entry<T: Send + 'static>(
    service: &str,
    act: impl FnOnce(&keyring_core::Entry) -> Result<T, Error> + Send + 'static,
) -> Result<T, KeyringError> {
    let service = service.to_owned();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let result = store().and_then(|store| {
            let entry = store.build(NAME, &service, None)?;
            Ok(act(&entry)?)
        });
        let _ = sender.send(result);
    });
    receiver.recv_timeout(PATIENCE).map_err(|_| KeyringError::Silent)?
}

#[cfg(target_os = "linux")]
fn store() -> Result<Arc<CredentialStore>, KeyringError> {
    Ok(zbus_secret_service_keyring_store::Store::new()?)
}

#[cfg(target_os = "macos")]
fn store() -> Result<Arc<CredentialStore>, KeyringError> {
    Ok(apple_native_keyring_store::keychain::Store::new()?)
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
fn store() -> Result<Arc<CredentialStore>, KeyringError> {
    Err(KeyringError::None)
}
