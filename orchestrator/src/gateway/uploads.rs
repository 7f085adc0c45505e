//! What a job runner puts into the blob store and takes out of it: artifacts of its attempt, and the job's one checkpoint.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path as UrlPath, State as AxumState};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use ckrv_core::id::{ClaimId, Fence, JobId};
use ckrv_core::job::Checkpoint;
use ckrv_core::machine::Verb;
use ckrv_store::{StoreError, VerbError};
use sha2::{Digest as _, Sha256};

use super::denied::Denied;
use super::intake::{answer, whole};
use super::server::{Attempt, GatewayServer, Shared};
use super::wire::{Denial, Stored};

pub(super) async fn artifact(
    AxumState(gateway): Shared,
    UrlPath((job, fence, claim, name)): UrlPath<(JobId, Fence, ClaimId, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Stored>, Denied> {
    if !["diff", "transcript", "log", "manifest"].contains(&name.as_str()) {
        return Err(Denied(Denial::Invalid(format!("`{name}` is not the name of an artifact"))));
    }
    gateway.held(job, fence, claim).await?;
    let body = whole(&headers, body).await?;
    let key = format!("jobs/{job}/{fence}/{name}");
    let stored = Stored { key: key.clone(), sha256: hex::encode(Sha256::digest(&body)), bytes: body.len() as u64 };
    gateway.stores().blobs.put(&key, body).await?;
    Ok(Json(stored))
}

/// Stores a checkpoint, names it in the job's record under the attempt's fence, and deletes the one that it replaces.
pub(super) async fn put_checkpoint(
    AxumState(gateway): Shared,
    UrlPath((job, fence, claim, number)): UrlPath<(JobId, Fence, ClaimId, u32)>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Denied> {
    let before = gateway.held(job, fence, claim).await?;
    let most = gateway.settings().checkpoints.max_mib;
    let body = whole(&headers, body).await?;
    if body.len() as u64 > u64::from(most) << 20 {
        return Err(Denied(Denial::TooLarge(most.into())));
    }
    let (bytes, sha256) = (body.len() as u64, hex::encode(Sha256::digest(&body)));
    let checkpoint = Checkpoint { fence, attempt: before.attempt, number, at: gateway.now(), bytes, sha256 };
    let key = checkpoint.key(job);
    gateway.stores().blobs.put(&key, body).await?;
    let named = gateway.stores().jobs.apply(job, &Verb::Checkpoint { claim, fence, checkpoint }, gateway.now()).await;
    match &named {
        Ok(record) => {
            let newest = record.checkpoint.as_ref().map(|checkpoint| checkpoint.key(job));
            for old in [before.checkpoint.map(|checkpoint| checkpoint.key(job)), Some(key)].into_iter().flatten() {
                if Some(&old) != newest.as_ref() {
                    remove(&gateway, &old).await;
                }
            }
        }
        // Nobody will ever ask for it.
        Err(VerbError::Refused { .. } | VerbError::NotFound) => remove(&gateway, &key).await,
        // Perhaps it is named; the job runner asks again.
        Err(VerbError::Store(_)) => {}
    }
    named?;
    Ok(StatusCode::NO_CONTENT)
}

/// The newest checkpoint of any attempt.
pub(super) async fn newest_checkpoint(
    AxumState(gateway): Shared,
    UrlPath((job, fence, claim)): Attempt,
) -> Result<Response, Denied> {
    let missing = || Denied(Denial::Missing("the checkpoint".to_owned()));
    let record = gateway.held(job, fence, claim).await?;
    let checkpoint = record.checkpoint.ok_or_else(missing)?;
    let room = gateway.intake().room(checkpoint.bytes).await?;
    let content = match gateway.stores().blobs.get(&checkpoint.key(job)).await {
        // It will not be better the next time.
        Err(StoreError::Unreadable { reason, .. }) => {
            tracing::warn!(reason, "a checkpoint is damaged");
            None
        }
        found => found?,
    };
    Ok(answer(content.ok_or_else(missing)?, room))
}

/// What stays for now goes with the job's other blobs.
async fn remove(gateway: &GatewayServer, key: &str) {
    if let Err(error) = gateway.stores().blobs.delete(key).await {
        tracing::warn!(error = ckrv_store::chain(&error), "a checkpoint that has been replaced could not be deleted");
    }
}
