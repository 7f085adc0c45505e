//! Envelope encryption under a KMS key. Sealing and opening are two types, because no role may do both: the API's may make data keys and the
//! dispatcher's may decrypt them.

use std::collections::HashMap;

use async_trait::async_trait;
use aws_sdk_kms::Client;
use aws_sdk_kms::error::ProvideErrorMetadata;
use aws_sdk_kms::operation::decrypt::DecryptError;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::DataKeySpec;
use secrecy::SecretString;
use zeroize::Zeroizing;

use super::failure::failure;
use crate::envelope::{self, Bytes32};
use crate::error::StoreError;
use crate::vault::{Opener, SealContext, Sealed, Sealer};

/// What KMS takes at most as an encrypted key.
const LONGEST_WRAPPED: usize = 6144;

/// Asks KMS for a fresh data key for each value.
#[derive(Clone, Debug)]
pub(super) struct KmsSealer {
    client: Client,
    key: String,
}

/// Has KMS decrypt data keys.
#[derive(Clone, Debug)]
pub(super) struct KmsOpener {
    client: Client,
    key: String,
}

impl KmsSealer {
    pub(super) fn new(client: Client, key: String) -> Self {
        Self { client, key }
    }
}

impl KmsOpener {
    pub(super) fn new(client: Client, key: String) -> Self {
        Self { client, key }
    }
}

#[async_trait]
impl Sealer for KmsSealer {
    async fn seal(&self, context: SealContext<'_>, value: &SecretString) -> Result<Sealed, StoreError> {
        let request = self.client.generate_data_key().key_id(&self.key).key_spec(DataKeySpec::Aes256);
        let answer = request.set_encryption_context(Some(encryption_context(context))).send().await;
        let answer = answer.map_err(|error| failure("asking KMS for a data key", &error))?;
        let incomplete = || StoreError::backend("asking KMS for a data key", "the answer holds none");
        let data_key = data_key(answer.plaintext).ok_or_else(incomplete)?;
        let wrapped = answer.ciphertext_blob.ok_or_else(incomplete)?;
        envelope::seal(&data_key, wrapped.as_ref(), context, value)
    }
}

#[async_trait]
impl Opener for KmsOpener {
    async fn open(&self, context: SealContext<'_>, sealed: &Sealed) -> Result<SecretString, StoreError> {
        let wrapped = envelope::decoded(&sealed.wrapped_key)?;
        if wrapped.is_empty() || wrapped.len() > LONGEST_WRAPPED {
            return Err(envelope::malformed());
        }
        // With the key's name, so that a key of another account can't be slipped in.
        let request = self.client.decrypt().key_id(&self.key).ciphertext_blob(Blob::new(wrapped));
        let answer = request.set_encryption_context(Some(encryption_context(context))).send().await;
        let answer = answer.map_err(|error| match error.as_service_error() {
            Some(refused) if is_unfit(refused) => envelope::unfit(context),
            _ => failure("asking KMS to open a value", &error),
        })?;
        let data_key = data_key(answer.plaintext).ok_or_else(envelope::malformed)?;
        envelope::open(&data_key, context, sealed)
    }
}

/// What KMS binds a data key to. A role's permission can be restricted to `app`.
fn encryption_context(context: SealContext<'_>) -> HashMap<String, String> {
    let SealContext { owner, kind, name } = context;
    let parts = [("app", "ckrv"), ("owner", owner), ("kind", kind), ("name", name)];
    parts.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn data_key(plaintext: Option<Blob>) -> Option<Bytes32> {
    let plaintext = Zeroizing::new(plaintext?.into_inner());
    plaintext.as_slice().try_into().ok().map(Zeroizing::new)
}

/// Whether the wrapped key or its context is at fault, and not the service, the key's state or this role's permissions.
fn is_unfit(error: &DecryptError) -> bool {
    // "Access denied" is also what KMS says of a wrapped key that names a KMS key which this account can't see; of a missing permission it
    // says that this role "is not authorized".
    let foreign =
        || error.code() == Some("AccessDeniedException") && !error.message().is_some_and(|text| text.contains("not authorized"));
    error.is_invalid_ciphertext_exception() || error.is_incorrect_key_exception() || foreign()
}
