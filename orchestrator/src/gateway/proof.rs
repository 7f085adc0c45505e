//! Who asks: before a request is looked at, its token must be that of the attempt in its path.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{Path as UrlPath, Request, State as AxumState};
use axum::http::StatusCode;
use axum::http::header::RETRY_AFTER;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use ckrv_core::id::{ClaimId, Fence, JobId};
use tracing::Instrument as _;

use super::TRACEPARENT;
use super::denied::Denied;
use super::pod_identity::PodIdentity;
use super::server::{GatewayServer, attempt_routes};
use super::wire::Denial;
use crate::metrics::Part;
use crate::trace;

/// What a token is.
#[derive(Clone)]
pub(super) enum Proof {
    /// Made by this gateway for one attempt.
    Own,
    /// A pod's, made by the cluster; the pod says which attempt it is.
    Pod(Arc<PodIdentity>),
}

#[derive(Clone)]
struct Checked {
    gateway: Arc<GatewayServer>,
    proof: Proof,
}

pub(super) fn router(gateway: Arc<GatewayServer>, proof: Proof) -> axum::Router {
    let checked = Checked { gateway: Arc::clone(&gateway), proof };
    let attempt = attempt_routes(&gateway).layer(axum::middleware::from_fn_with_state(checked, authenticate));
    axum::Router::new().nest("/attempts/{job}/{fence}/{claim}", attempt).with_state(gateway)
}

async fn authenticate(
    AxumState(Checked { gateway, proof }): AxumState<Checked>,
    UrlPath(path): UrlPath<HashMap<String, String>>,
    request: Request,
    next: Next,
) -> Response {
    let attempt = || -> Option<(JobId, Fence, ClaimId)> {
        Some((path.get("job")?.parse().ok()?, Fence(path.get("fence")?.parse().ok()?), path.get("claim")?.parse().ok()?))
    };
    let token = request
        .headers()
        .get("authorization")
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    let (Some((job, fence, claim)), Some(token)) = (attempt(), token) else {
        return Denied(Denial::Unauthorized).into_response();
    };
    let allowed = match &proof {
        Proof::Own => gateway.has_token(token, job, fence, claim),
        Proof::Pod(pods) => match pods.attempt_of(token).await {
            Ok(found) => found == Some((job, fence, claim)),
            Err(error) => {
                tracing::warn!(error = ckrv_store::chain(&error), "the cluster could not say whose token it is");
                return Denied(Denial::Fault).into_response();
            }
        },
    };
    if !allowed {
        return Denied(Denial::Unauthorized).into_response();
    }
    let given = request.headers().get(TRACEPARENT).and_then(|value| value.to_str().ok());
    let span = trace::request_span(gateway.settings().link_span, request.uri().path(), job, fence, given);
    let response = next.run(request).instrument(span).await;
    // One that was asked to come again found no room, which is no fault of the store's.
    if response.status() == StatusCode::SERVICE_UNAVAILABLE && !response.headers().contains_key(RETRY_AFTER) {
        gateway.metrics().store_failed(Part::Gateway);
    }
    response
}
