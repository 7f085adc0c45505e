//! Artifacts: specs, diffs, transcripts, logs, manifests.

use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use secrecy::SecretString;

use crate::error::StoreError;

/// Longer keys fit no file system everywhere.
const MAX_KEY: usize = 512;
const MAX_SEGMENT: usize = 200;

#[derive(Debug, thiserror::Error)]
pub enum PutBlobError {
    /// Other content is stored under this key. The same content again is success.
    #[error("the key {0} holds other content already")]
    Conflict(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Keys are relative paths of `[a-zA-Z0-9._-]` segments, for example `jobs/ID/3/diff`. A blob is written once and never changed.
#[async_trait]
pub trait Blobs: Send + Sync {
    /// Durable when it returns.
    async fn put(&self, key: &str, content: Bytes) -> Result<(), PutBlobError>;
    async fn get(&self, key: &str) -> Result<Option<Bytes>, StoreError>;
    /// A part of a blob, by bytes. What is read has no checksum of its own: the content has to bring one.
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Option<Bytes>, StoreError>;
    /// Deletes one blob; nothing there is success.
    async fn delete(&self, key: &str) -> Result<(), StoreError>;
    /// Deletes everything under `prefix/`; nothing there is success.
    async fn delete_prefix(&self, prefix: &str) -> Result<(), StoreError>;
    /// A URL that anybody may read this blob by for `valid`, at most 15 minutes; `None` where the backend has no such thing.
    async fn presign(&self, key: &str, valid: Duration) -> Result<Option<SecretString>, StoreError>;
    async fn ping(&self) -> Result<(), StoreError>;
}

/// Refuses what is no key: the same for every backend, so that a job can move from one to another.
pub(crate) fn check_key(key: &str) -> Result<(), StoreError> {
    let good = key.len() <= MAX_KEY && key.split('/').all(is_segment);
    if good { Ok(()) } else { Err(StoreError::backend("finding a blob", format!("{key:?} is no blob key"))) }
}

fn is_segment(segment: &str) -> bool {
    let chars = segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    chars && !segment.is_empty() && segment.len() <= MAX_SEGMENT && segment != "." && segment != ".."
}
