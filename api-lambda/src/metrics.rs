//! What the API counts. Whoever runs it registers these and serves them: see `docs/observability.md`, which lists each.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Up to the first byte of the answer: followed logs stay open for hours and would say nothing here.
const DURATIONS: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

type Labels<const N: usize> = [(&'static str, String); N];

/// Shared by its clones. No label holds an id or a text of a client's: each set of values is bounded by the code.
#[derive(Clone, Debug)]
pub struct ApiMetrics {
    requests: Family<Labels<3>, Counter>,
    durations: Family<Labels<2>, Histogram>,
    store_errors: Counter,
    audit_failures: Counter,
    cancelled_while_queued: Counter,
}

impl Default for ApiMetrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(DURATIONS)),
            store_errors: Counter::default(),
            audit_failures: Counter::default(),
            cancelled_while_queued: Counter::default(),
        }
    }
}

impl ApiMetrics {
    /// `registry` puts `ckrv_` before each name.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("http_requests", "Requests that were answered", self.requests.clone());
        registry.register_with_unit(
            "http_request_duration",
            "Time from a request to its answer's first byte",
            Unit::Seconds,
            self.durations.clone(),
        );
        registry.register("http_store_errors", "Requests that failed because a store did", self.store_errors.clone());
        registry.register("audit_failures", "Changes that could not be written to the audit record", self.audit_failures.clone());
        registry.register(
            "jobs_cancelled_while_queued",
            "Jobs that their owner cancelled before a worker had them",
            self.cancelled_while_queued.clone(),
        );
    }

    pub(crate) fn answered(&self, route: &str, method: &axum::http::Method, status: u16, took: Duration) {
        let (route, method) = (("route", route.to_owned()), ("method", method_label(method).to_owned()));
        self.requests.get_or_create(&[route.clone(), method.clone(), ("status", status.to_string())]).inc();
        self.durations.get_or_create(&[route, method]).observe(took.as_secs_f64());
    }

    pub(crate) fn store_failed(&self) {
        self.store_errors.inc();
    }

    /// A change was made, but its audit record could not be written.
    pub fn audit_failed(&self) {
        self.audit_failures.inc();
    }

    pub(crate) fn cancelled_while_queued(&self) {
        self.cancelled_while_queued.inc();
    }
}

/// A client may send any word as its method.
fn method_label(method: &axum::http::Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}
