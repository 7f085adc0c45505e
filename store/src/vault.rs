//! Envelope encryption: a fresh data key for each value, AES-256-GCM, the owner and the name as context. Two traits, because the API may
//! encrypt only and the dispatcher decrypt only.

use async_trait::async_trait;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::error::StoreError;

/// An encrypted value: base64 of the wrapped data key, the nonce and the ciphertext.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    pub wrapped_key: String,
    pub nonce: String,
    pub ciphertext: String,
}

/// What a value is bound to: opened under another owner, kind or name, it fails.
#[derive(Clone, Copy, Debug)]
pub struct SealContext<'a> {
    pub owner: &'a str,
    /// `credential`, `secret`, `refresh`.
    pub kind: &'a str,
    pub name: &'a str,
}

#[async_trait]
pub trait Sealer: Send + Sync {
    async fn seal(&self, context: SealContext<'_>, value: &SecretString) -> Result<Sealed, StoreError>;
}

#[async_trait]
pub trait Opener: Send + Sync {
    async fn open(&self, context: SealContext<'_>, sealed: &Sealed) -> Result<SecretString, StoreError>;
}
