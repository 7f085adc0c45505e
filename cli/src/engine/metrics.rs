//! `GET /metrics` for Prometheus, `/healthz` and `/readyz` for a cluster's probes, on an address of its own: never where clients of the API
//! come.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use ckrv_orchestrator::clock;
use ckrv_orchestrator::dispatch::JobPods;
use ckrv_orchestrator::metrics::Metrics;
use ckrv_store::Stores;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::Engine;
use crate::error::CliError;

/// What a scrape waits for the store; the other figures are given without it.
const PATIENCE: Duration = Duration::from_secs(2);
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the parts of an engine count.
pub(super) struct Counted {
    pub registry: Registry,
    /// Of the dispatcher, where this engine has one: it looks at the queue.
    pub jobs: Option<Metrics>,
}

impl Default for Counted {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("ckrv");
        registry.register("build", "The running version", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        Self { registry, jobs: None }
    }
}

struct Served {
    counted: Counted,
    stores: Stores,
    pods: Option<Arc<JobPods>>,
    draining: CancellationToken,
}

impl Engine {
    /// Serves what is counted; gives the address. Called once, when every part has been started.
    ///
    /// # Errors
    /// An address that can't be listened on.
    pub async fn serve_metrics(&mut self, listen: SocketAddr) -> Result<SocketAddr, CliError> {
        let failed = |error| CliError::io(format!("can't listen on {listen} for metrics"), error);
        let listener = tokio::net::TcpListener::bind(listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let served = Arc::new(Served {
            counted: std::mem::take(&mut self.counted),
            stores: self.stores.clone(),
            pods: self.pods.clone(),
            draining: self.drain.token.clone(),
        });
        let app = axum::Router::new()
            .route("/metrics", get(show))
            .route("/healthz", get(async || Json(json!({"status": "ok"}))))
            .route("/readyz", get(ready))
            .with_state(served);
        let shutdown = self.shutdown.clone();
        self.tasks.push(tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, app).with_graceful_shutdown(shutdown.cancelled_owned()).await {
                tracing::error!(%error, "metrics are no longer served");
            }
        }));
        Ok(address)
    }
}

/// What a dispatcher stands on, each by name: for the probes of a cluster, which then sends job pods to another replica.
async fn ready(State(served): State<Arc<Served>>) -> Response {
    let answers = async |answer: std::pin::Pin<&mut (dyn Future<Output = bool> + Send)>| {
        tokio::time::timeout(PATIENCE, answer).await.unwrap_or(false)
    };
    let stores = &served.stores;
    let jobs = answers(std::pin::pin!(async { stores.jobs.ping().await.is_ok() })).await;
    let blobs = answers(std::pin::pin!(async { stores.blobs.ping().await.is_ok() })).await;
    let mut checks = BTreeMap::from([("jobs", jobs), ("blobs", blobs)]);
    if let Some(pods) = &served.pods {
        checks.insert("pods", pods.is_listed());
        checks.insert("claims", !served.draining.is_cancelled());
    }
    let is_ready = checks.values().all(|is_up| *is_up);
    if let Some(pods) = &served.pods {
        // Told, but no reason to be passed over: job pods can report while the cluster's API is away, and another replica has no other.
        checks.insert("cluster", answers(std::pin::pin!(pods.ping())).await);
        checks.insert("watch", pods.is_current());
    }
    let word = |is_up: bool| if is_up { "ok" } else { "down" };
    let checks: BTreeMap<_, _> = checks.into_iter().map(|(name, is_up)| (name, word(is_up))).collect();
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({"status": if is_ready { "ready" } else { "down" }, "checks": checks}))).into_response()
}

async fn show(State(served): State<Arc<Served>>) -> Response {
    if let Some(jobs) = &served.counted.jobs {
        let sampled = jobs.sample(served.stores.jobs.as_ref(), clock::now());
        match tokio::time::timeout(PATIENCE, sampled).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = ckrv_store::chain(&error), "the queue could not be looked at for metrics");
            }
            Err(_) => tracing::warn!("the queue could not be looked at for metrics in time"),
        }
    }
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &served.counted.registry) {
        Ok(()) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
