//! Blobs in an S3 bucket. `If-None-Match: *` makes a put the first or none; the content's SHA-256 goes along twice: as the checksum that S3
//! verifies, and as metadata, by which a repeated put is told from another one's and a read is verified.
//!
//! One put takes up to 5 GB; ours are at most some hundred megabytes, so there are no multipart uploads. Encryption at rest is the bucket's
//! default; no header of ours says otherwise.

use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{Config, RequestChecksumCalculation, ResponseChecksumValidation};
use aws_sdk_s3::error::SdkError;
use aws_sdk_s3::operation::get_object::GetObjectError;
use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{Delete, Object, ObjectIdentifier};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use secrecy::SecretString;
use sha2::{Digest, Sha256};

use super::failure::{code, failure, status};
use crate::blobs::{Blobs, PutBlobError, check_key};
use crate::error::{StoreError, chain};

/// The metadata that holds the content's SHA-256 in hexadecimal.
const SHA256: &str = "sha256";
/// A URL that was signed with a role's credentials dies with them; a role's last at least this long.
const LONGEST_URL: Duration = Duration::from_secs(15 * 60);
/// How often a put or get begins again where the SDK does not: another writer was in between, or the body broke off.
const TRIES: u32 = 4;
/// Larger contents are hashed on a thread where blocking is allowed.
const HASHED_HERE: usize = 1 << 20;

/// `Blobs` in one bucket.
#[derive(Clone, Debug)]
pub(super) struct S3Blobs {
    client: Client,
    /// Signs URLs. Without the SDK's own checksum headers, which whoever fetches the URL would have to send.
    signer: Client,
    bucket: String,
}

enum Put {
    Done,
    /// Something is stored under the key already.
    Exists,
    /// Another writer was under way at the same moment.
    Again(StoreError),
}

impl S3Blobs {
    pub(super) fn new(client: Client, bucket: String) -> Self {
        let plain = client
            .config()
            .to_builder()
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .build();
        Self { client, signer: Client::from_conf(plain), bucket }
    }

    async fn put_once(&self, key: &str, content: &Bytes, sha256: &[u8; 32]) -> Result<Put, StoreError> {
        let answer = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(key)
            .if_none_match("*")
            .checksum_sha256(BASE64.encode(sha256))
            .metadata(SHA256, hex::encode(sha256))
            .content_type("application/octet-stream")
            .body(ByteStream::from(content.clone()))
            .customize()
            .config_override(Config::builder().timeout_config(patience(content.len())))
            .send()
            .await;
        match answer {
            Ok(_) => Ok(Put::Done),
            Err(error) => match status(&error) {
                Some(412) => Ok(Put::Exists),
                Some(409) => Ok(Put::Again(failure(format!("storing the blob {key}"), &error))),
                _ => Err(failure(format!("storing the blob {key}"), &error)),
            },
        }
    }

    /// The SHA-256 of what is stored; `None`: nothing is.
    async fn stored_sha256(&self, key: &str) -> Result<Option<String>, StoreError> {
        match self.client.head_object().bucket(&self.bucket).key(key).send().await {
            Ok(found) => Ok(Some(found.metadata.and_then(|mut metadata| metadata.remove(SHA256)).unwrap_or_default())),
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(failure(format!("comparing the blob {key} with what is stored"), &error)),
        }
    }

    /// One read. `Err(Ok(_))`: the body broke off, which the SDK does not try again by itself.
    async fn get_once(&self, key: &str) -> Result<Option<Bytes>, Result<StoreError, StoreError>> {
        let found = match self.client.get_object().bucket(&self.bucket).key(key).send().await {
            Ok(found) => found,
            Err(error) if self.is_missing(key, &error).await => return Ok(None),
            Err(error) => return Err(Err(failure(format!("reading the blob {key}"), &error))),
        };
        let expected = found.metadata.and_then(|mut metadata| metadata.remove(SHA256)).unwrap_or_default();
        let broken = |error| Ok(StoreError::backend(format!("reading the blob {key}"), chain(&error)));
        let content = found.body.collect().await.map_err(broken)?.into_bytes();
        let sha256 = sha256(&content).await.map_err(Err)?;
        if hex::encode(sha256) != expected {
            let reason = "its SHA-256 is not the one that it was stored with".to_owned();
            return Err(Err(StoreError::Unreadable { name: format!("blob {key}"), reason }));
        }
        Ok(Some(content))
    }

    /// S3 answers 403 for a missing key to those who may not list the bucket, as the API: only for one who may, a 403 is a wrong permission.
    async fn is_missing(&self, key: &str, error: &SdkError<GetObjectError>) -> bool {
        match code(error) {
            Some("NoSuchKey") => true,
            Some("AccessDenied") => {
                let listed = self.client.list_objects_v2().bucket(&self.bucket).prefix(key).max_keys(1).send().await;
                let hidden = matches!(&listed, Err(error) if code(error) == Some("AccessDenied"));
                if hidden {
                    tracing::warn!(
                        key,
                        "S3 denied access to a blob, which is taken for missing: this role is not told which of them it is"
                    );
                }
                hidden
            }
            _ => false,
        }
    }

    async fn delete_objects(&self, objects: Vec<Object>) -> Result<(), StoreError> {
        let context = || "deleting blobs".to_owned();
        let named = objects.into_iter().filter_map(|object| object.key);
        let objects = named.map(|key| ObjectIdentifier::builder().key(key).build()).collect::<Result<Vec<_>, _>>();
        let objects = objects.map_err(|error| StoreError::backend(context(), error))?;
        if objects.is_empty() {
            return Ok(());
        }
        let batch = Delete::builder().set_objects(Some(objects)).quiet(true).build();
        let batch = batch.map_err(|error| StoreError::backend(context(), error))?;
        // A thousand deletions take S3 longer than it is given for the first byte of anything else.
        let patience = Config::builder().timeout_config(patience(0));
        let request = self.client.delete_objects().bucket(&self.bucket).delete(batch);
        let answer = request.customize().config_override(patience).send().await;
        let answer = answer.map_err(|error| failure(context(), &error))?;
        match answer.errors().first() {
            None => Ok(()),
            Some(error) => {
                let (key, code) = (error.key().unwrap_or("?"), error.code().unwrap_or("?"));
                Err(StoreError::backend(
                    context(),
                    format!("{} were not deleted, {key} because of {code}", answer.errors().len()),
                ))
            }
        }
    }
}

#[async_trait]
impl Blobs for S3Blobs {
    async fn put(&self, key: &str, content: Bytes) -> Result<(), PutBlobError> {
        check_key(key)?;
        let sha256 = sha256(&content).await?;
        let mut last = None;
        for attempt in 0..TRIES {
            pause(attempt).await;
            match self.put_once(key, &content, &sha256).await? {
                Put::Done => return Ok(()),
                Put::Again(error) => last = Some(error),
                // Our own write, where its answer was lost; or another attempt's.
                Put::Exists => match self.stored_sha256(key).await? {
                    Some(stored) if stored == hex::encode(sha256) => return Ok(()),
                    Some(_) => return Err(PutBlobError::Conflict(key.to_owned())),
                    // Deleted in between.
                    None => {}
                },
            }
        }
        let vanished = || StoreError::backend(format!("storing the blob {key}"), "it was there and gone again each time");
        Err(PutBlobError::Store(last.unwrap_or_else(vanished)))
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        check_key(key)?;
        for attempt in 1..TRIES {
            match self.get_once(key).await {
                Ok(content) => return Ok(content),
                Err(Err(error)) => return Err(error),
                Err(Ok(_)) => pause(attempt).await,
            }
        }
        self.get_once(key).await.map_err(|error| error.unwrap_or_else(|error| error))
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Option<Bytes>, StoreError> {
        check_key(key)?;
        if range.is_empty() {
            return Ok(Some(Bytes::new()));
        }
        let context = || format!("reading a part of the blob {key}");
        let mut last = None;
        for attempt in 0..TRIES {
            pause(attempt).await;
            let request = self.client.get_object().bucket(&self.bucket).key(key);
            match request.range(format!("bytes={}-{}", range.start, range.end - 1)).send().await {
                Ok(found) => match found.body.collect().await {
                    Ok(content) => return Ok(Some(content.into_bytes())),
                    Err(error) => last = Some(StoreError::backend(context(), chain(&error))),
                },
                Err(error) if self.is_missing(key, &error).await => return Ok(None),
                // Nothing is there from this byte on.
                Err(error) if code(&error) == Some("InvalidRange") => return Ok(Some(Bytes::new())),
                Err(error) => return Err(failure(context(), &error)),
            }
        }
        Err(last.unwrap_or_else(|| StoreError::backend(context(), "its body broke off each time")))
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        check_key(key)?;
        let answer = self.client.delete_object().bucket(&self.bucket).key(key).send().await;
        answer.map(drop).map_err(|error| failure(format!("deleting the blob {key}"), &error))
    }

    async fn delete_prefix(&self, prefix: &str) -> Result<(), StoreError> {
        let prefix = prefix.trim_end_matches('/');
        check_key(prefix)?;
        let list = self.client.list_objects_v2().bucket(&self.bucket).prefix(format!("{prefix}/"));
        let mut pages = list.into_paginator().send();
        // A page is at most what one deletion takes: 1000 keys.
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| failure(format!("listing the blobs under {prefix}/"), &error))?;
            self.delete_objects(page.contents.unwrap_or_default()).await?;
        }
        Ok(())
    }

    async fn presign(&self, key: &str, valid: Duration) -> Result<Option<SecretString>, StoreError> {
        check_key(key)?;
        let context = || format!("making a URL for the blob {key}");
        let valid = valid.clamp(Duration::from_secs(1), LONGEST_URL);
        let valid = PresigningConfig::expires_in(valid).map_err(|error| StoreError::backend(context(), error))?;
        // Downloaded, never shown: what an agent made must not run as a page of the bucket's origin. A key's characters need no escape.
        let disposition = format!("attachment; filename=\"{}\"", key.rsplit('/').next().unwrap_or(key));
        let request = self.signer.get_object().bucket(&self.bucket).key(key).response_content_disposition(disposition);
        let signed = request.presigned(valid).await.map_err(|error| failure(context(), &error))?;
        Ok(Some(SecretString::from(signed.uri())))
    }

    /// Reads a key that no blob has: that needs no permission beyond those for blobs.
    async fn ping(&self) -> Result<(), StoreError> {
        match self.client.get_object().bucket(&self.bucket).key("jobs/ping").send().await {
            Ok(_) => Ok(()),
            Err(error) if matches!(code(&error), Some("NoSuchKey" | "AccessDenied")) => Ok(()),
            Err(error) => Err(failure("asking the blob store whether it answers", &error)),
        }
    }
}

/// How long a put may take: a mebibyte a second, and some more. The SDK's read time-out runs from the request's first byte on, so it would
/// end a long upload; one that moves no byte at all is ended by the SDK's protection against stalled streams.
fn patience(length: usize) -> TimeoutConfig {
    let attempt = Duration::from_secs(10 + (length >> 20) as u64);
    TimeoutConfig::builder().disable_read_timeout().operation_attempt_timeout(attempt).operation_timeout(attempt * 3).build()
}

async fn pause(attempt: u32) {
    if attempt > 0 {
        let spread = rand::random_range(50..150);
        tokio::time::sleep(Duration::from_millis(spread << attempt)).await;
    }
}

async fn sha256(content: &Bytes) -> Result<[u8; 32], StoreError> {
    if content.len() <= HASHED_HERE {
        return Ok(Sha256::digest(content).into());
    }
    let content = content.clone();
    let hashed = tokio::task::spawn_blocking(move || Sha256::digest(&content).into()).await;
    hashed.map_err(|error| StoreError::backend("hashing a blob", error))
}
