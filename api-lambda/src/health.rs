//! `/healthz`, `/readyz`, the page `/status`, and the service's own description.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use ckrv_core::wire::Problem;
use ckrv_store::{StoreError, Stores};
use serde::Serialize;
use tokio::sync::Mutex;
use utoipa::ToSchema;

use crate::auth::page;
use crate::error::{ApiError, chain};
use crate::extract::require_accept;
use crate::middleware::OwnBody;
use crate::state::ApiState;

/// What a part of the service may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// For this long everybody gets the same answer: whoever asks often asks us, not the stores.
const REMEMBERED: Duration = Duration::from_secs(1);

#[derive(Serialize, ToSchema)]
pub(crate) struct Health {
    status: &'static str,
}

/// The parts that this service stands on; names and `ok` or `down`, since anybody may ask. Why one is down is in the log.
#[derive(Clone, Serialize, ToSchema)]
pub(crate) struct Readiness {
    /// `ready` or `down`.
    status: &'static str,
    checks: BTreeMap<String, String>,
}

impl Readiness {
    fn is_ready(&self) -> bool {
        self.down().next().is_none()
    }

    fn down(&self) -> impl Iterator<Item = &str> {
        self.checks.iter().filter(|(_, state)| *state != "ok").map(|(name, _)| name.as_str())
    }
}

/// The last look at the stores.
#[derive(Default)]
pub(crate) struct Probe(Mutex<Option<(Instant, Readiness)>>);

impl Probe {
    /// One look at a time: those who come meanwhile wait for it and share it.
    async fn look(&self, stores: &Stores) -> Readiness {
        let mut last = self.0.lock().await;
        if let Some((at, known)) = &*last
            && at.elapsed() < REMEMBERED
        {
            return known.clone();
        }
        let (jobs, blobs) = tokio::join!(answers("jobs", stores.jobs.ping()), answers("blobs", stores.blobs.ping()));
        let state = |is_up: bool| (if is_up { "ok" } else { "down" }).to_owned();
        let checks = BTreeMap::from([("jobs".to_owned(), state(jobs)), ("blobs".to_owned(), state(blobs))]);
        let found = Readiness { status: if jobs && blobs { "ready" } else { "down" }, checks };
        *last = Some((Instant::now(), found.clone()));
        found
    }
}

async fn answers(part: &'static str, ping: impl Future<Output = Result<(), StoreError>>) -> bool {
    match tokio::time::timeout(PATIENCE, ping).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::warn!(part, error = chain(&error), "a part of the service is down");
            false
        }
        Err(_) => {
            tracing::warn!(part, "a part of the service does not answer");
            false
        }
    }
}

/// The process is alive.
#[utoipa::path(get, path = "/healthz", tag = "service", security(()), responses((status = 200, body = Health)))]
pub(crate) async fn healthz() -> axum::Json<Health> {
    axum::Json(Health { status: "ok" })
}

/// Whether the stores answer; if not, which.
#[utoipa::path(get, path = "/readyz", tag = "service", security(()),
    responses((status = 200, body = Readiness), (status = 503, body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn readyz(State(state): State<ApiState>) -> Result<axum::Json<Readiness>, ApiError> {
    let found = state.probe.look(&state.stores).await;
    if found.is_ready() {
        return Ok(axum::Json(found));
    }
    let down = found.down().collect::<Vec<_>>().join(", ");
    let detail = format!("Down: {down}.");
    Err(ApiError::later(StatusCode::SERVICE_UNAVAILABLE, "not_ready", detail, 2).checks(found.checks))
}

/// The same for people: a page, or JSON for whoever prefers it.
#[utoipa::path(get, path = "/status", tag = "service", security(()),
    responses((status = 200, description = "A page, or JSON by `Accept`", content((String = "text/html"), (Readiness = "application/json"))),
        (status = 503, description = "The same, while a part is down", content((String = "text/html"), (Readiness = "application/json")))))]
pub(crate) async fn show_status(State(state): State<ApiState>, headers: HeaderMap) -> Result<Response, ApiError> {
    require_accept(&headers, &["text/html", "application/json"])?;
    let found = state.probe.look(&state.stores).await;
    let status = if found.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    // A browser names HTML; `*/*` alone is a program.
    let wants_page =
        headers.get_all(header::ACCEPT).iter().any(|value| value.to_str().is_ok_and(|text| text.contains("text/html")));
    let mut response = if wants_page {
        let checks: Vec<_> = found.checks.iter().map(|(name, state)| (name.as_str(), state.as_str())).collect();
        let kind = [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::REFRESH, "10")];
        let policy = [(header::CONTENT_SECURITY_POLICY, page::policy())];
        (status, kind, policy, page::status(found.is_ready(), &checks)).into_response()
    } else {
        (status, axum::Json(found)).into_response()
    };
    response.extensions_mut().insert(OwnBody);
    Ok(response)
}

/// This document.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "service", security(()), responses((status = 200, description = "OpenAPI 3.1", body = serde_json::Value)))]
pub(crate) async fn get_openapi() -> impl IntoResponse {
    static DOCUMENT: LazyLock<String> = LazyLock::new(|| serde_json::to_string(&crate::router::openapi()).unwrap_or_default());
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.as_str())
}
