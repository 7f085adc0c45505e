//! The part of envelope encryption that every vault shares: a value under its data key, AES-256-GCM, bound to its context.

use aes_gcm::aead::{Aead, Payload};
use aes_gcm::{Aes256Gcm, Key, KeyInit, Nonce};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use crate::error::StoreError;
use crate::vault::{SealContext, Sealed};

pub(crate) const KEY: usize = 32;
pub(crate) const NONCE: usize = 12;

pub(crate) type Bytes32 = Zeroizing<[u8; KEY]>;

/// What is encrypted, so that a wrapped key can't be taken for a value.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Layer {
    /// Only where the wrapping is ours, too.
    #[cfg(feature = "embedded")]
    DataKey,
    Value,
}

pub(crate) fn cipher(key: &Bytes32) -> Aes256Gcm {
    Aes256Gcm::new(<&Key<Aes256Gcm>>::from(&**key))
}

/// Layer, owner, kind and name, each with its length before it: no two contexts give the same bytes.
pub(crate) fn associated(context: SealContext<'_>, layer: Layer) -> Vec<u8> {
    let mut bytes = vec![match layer {
        #[cfg(feature = "embedded")]
        Layer::DataKey => 1,
        Layer::Value => 2,
    }];
    for part in [context.owner, context.kind, context.name] {
        bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
        bytes.extend_from_slice(part.as_bytes());
    }
    bytes
}

/// Encrypts a value under a fresh data key, which `wrapped_key` is, encrypted.
pub(crate) fn seal(
    data_key: &Bytes32,
    wrapped_key: &[u8],
    context: SealContext<'_>,
    value: &SecretString,
) -> Result<Sealed, StoreError> {
    let nonce: [u8; NONCE] = rand::random();
    let plain = Payload { msg: value.expose_secret().as_bytes(), aad: &associated(context, Layer::Value) };
    let ciphertext = cipher(data_key).encrypt(&Nonce::from(nonce), plain).map_err(|_| failed())?;
    Ok(Sealed { wrapped_key: BASE64.encode(wrapped_key), nonce: BASE64.encode(nonce), ciphertext: BASE64.encode(ciphertext) })
}

/// Decrypts a value under its data key.
pub(crate) fn open(data_key: &Bytes32, context: SealContext<'_>, sealed: &Sealed) -> Result<SecretString, StoreError> {
    let nonce: [u8; NONCE] = decoded(&sealed.nonce)?.try_into().map_err(|_| malformed())?;
    let encrypted = Payload { msg: &decoded(&sealed.ciphertext)?, aad: &associated(context, Layer::Value) };
    let plain = cipher(data_key).decrypt(&Nonce::from(nonce), encrypted).map(Zeroizing::new).map_err(|_| unfit(context))?;
    let text = std::str::from_utf8(&plain).map_err(|_| malformed())?;
    Ok(SecretString::new(text.into()))
}

pub(crate) fn decoded(text: &str) -> Result<Vec<u8>, StoreError> {
    BASE64.decode(text).map_err(|_| malformed())
}

pub(crate) fn failed() -> StoreError {
    StoreError::Sealed("encrypting failed".to_owned())
}

pub(crate) fn malformed() -> StoreError {
    StoreError::Sealed("it is damaged".to_owned())
}

pub(crate) fn unfit(context: SealContext<'_>) -> StoreError {
    let SealContext { kind, name, .. } = context;
    StoreError::Sealed(format!("the {kind} {name:?} was changed in the store, or belongs elsewhere; store it again"))
}
