//! `/v1/jobs/{id}/artifacts`: what a finished job left.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use ckrv_core::wire::{ArtifactInfo, ArtifactList, Problem};
use secrecy::ExposeSecret as _;

use crate::error::ApiError;
use crate::extract::{Caller, JobPath, require_accept};
use crate::jobs::{job_of, kept};
use crate::state::ApiState;

/// What doesn't fit into one answer everywhere is fetched where it lies: Lambda takes 6 MB, of which base64 leaves less.
const MAX_BODY_BYTES: u64 = 4 * 1024 * 1024;
/// For how long the address of a blob is good.
const ADDRESS_VALID: Duration = Duration::from_secs(300);

/// The names and sizes of a job's artifacts; where the service's store allows it, also an address to fetch each from, for five minutes.
#[utoipa::path(get, path = "/v1/jobs/{id}/artifacts", tag = "artifacts", params(("id" = String, Path)),
    responses((status = 200, body = ArtifactList), (status = 404, body = Problem, content_type = "application/problem+json"), (status = 410, body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn list_artifacts(
    State(state): State<ApiState>,
    Caller(user): Caller,
    JobPath(id): JobPath,
) -> Result<axum::Json<ArtifactList>, ApiError> {
    let job = kept(job_of(&state, &user, id).await?, state.now())?;
    let mut artifacts = Vec::with_capacity(job.artifacts.len());
    for artifact in job.artifacts {
        let url = state.stores.blobs.presign(&artifact.key, ADDRESS_VALID).await?;
        let url = url.map(|url| url.expose_secret().to_owned());
        artifacts.push(ArtifactInfo { name: artifact.name, bytes: artifact.bytes, sha256: artifact.sha256, url });
    }
    Ok(axum::Json(ArtifactList { artifacts }))
}

macro_rules! artifact {
    ($(#[$doc:meta])* $handler:ident, $name:literal, $kind:literal, $body:ty) => {
        $(#[$doc])*
        #[utoipa::path(get, path = concat!("/v1/jobs/{id}/artifacts/", $name), tag = "artifacts", params(("id" = String, Path)),
            responses((status = 200, body = $body, content_type = $kind),
                (status = 307, description = "Over 4 MB: `Location` is where it lies, for five minutes. To be fetched without the access token"),
                (status = 404, body = Problem, content_type = "application/problem+json"), (status = 410, body = Problem, content_type = "application/problem+json")))]
        pub(crate) async fn $handler(state: State<ApiState>, headers: HeaderMap, caller: Caller, path: JobPath) -> Result<Response, ApiError> {
            download(state, headers, caller, path, $name, $kind).await
        }
    };
}

artifact!(
    /// The diff of a job that succeeded, against its base commit.
    get_diff, "diff", "text/plain", String);
artifact!(
    /// What the agent said and did, one JSON object a line.
    get_transcript, "transcript", "application/x-ndjson", String);
artifact!(
    /// The whole log, one JSON object a line.
    get_log, "log", "application/x-ndjson", String);
artifact!(
    /// What was made of what: commits, image, adapter, hashes.
    get_manifest, "manifest", "application/json", serde_json::Value);

async fn download(
    State(state): State<ApiState>,
    headers: HeaderMap,
    Caller(user): Caller,
    JobPath(id): JobPath,
    name: &str,
    kind: &'static str,
) -> Result<Response, ApiError> {
    require_accept(&headers, &[kind, "text/plain"])?;
    let job = kept(job_of(&state, &user, id).await?, state.now())?;
    let missing = || {
        let why = if job.state.is_final() { "The job left none." } else { "The job has not ended yet." };
        ApiError::not_found("artifact_not_found", format!("There is no {name} of this job. {why}"))
    };
    let artifact = job.artifacts.iter().find(|artifact| artifact.name == name).ok_or_else(missing)?;
    if artifact.bytes > MAX_BODY_BYTES
        && let Some(url) = state.stores.blobs.presign(&artifact.key, ADDRESS_VALID).await?
    {
        let url = HeaderValue::from_str(url.expose_secret()).map_err(ApiError::internal)?;
        // With a body, for the sake of clients and front ends that wait for one.
        return Ok(
            (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, url)], "It lies elsewhere: see Location.\n").into_response()
        );
    }
    let stored = state.stores.blobs.get(&artifact.key).await?;
    let content: Bytes =
        stored.ok_or_else(|| ApiError::internal(format!("the blob {} of a finished job is missing", artifact.key)))?;
    let mut response = content.into_response();
    let charset = if kind == "text/plain" { "text/plain; charset=utf-8" } else { kind };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(charset));
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{}\"", artifact.sha256)) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    Ok(response)
}
