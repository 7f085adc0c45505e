//! Spans over OTLP (HTTP, protobuf) to the collector that `OTEL_EXPORTER_OTLP_ENDPOINT` names. The SDK reads most `OTEL_*` variables
//! itself; the connection is ours, so that there is one HTTP client and one TLS stack in the program.
//!
//! Invariant: an exporter that fails costs spans and nothing else: it sends from a thread of its own, out of a queue with an end.

use std::error::Error;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use ckrv_core::trace::TraceParent;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::{Level, Metadata, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use crate::config::OtelEnv;

/// How long the end of the process may wait for a collector.
const END: Duration = Duration::from_secs(2);
/// A collector answers a few bytes.
const MAX_ANSWER: usize = 64 * 1024;

static ON: AtomicBool = AtomicBool::new(false);

#[derive(Debug)]
pub(super) struct Exporter(SdkTracerProvider);

impl Exporter {
    pub(super) async fn end(self) {
        // It waits in its thread for its own; ours goes on serving the connection.
        let ended = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(END)).await;
        if !matches!(ended, Ok(Ok(()))) {
            tracing::debug!("the last spans were not exported");
        }
    }
}

pub(super) fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

type Started<S> = (Box<dyn Layer<S> + Send + Sync>, Exporter);

/// `None`: nobody asked for it. Needs a runtime of several threads to be entered.
pub(super) fn start<S>(env: &OtelEnv) -> Result<Option<Started<S>>, Box<dyn Error + Send + Sync>>
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    let Some(endpoint) = &env.endpoint else { return Ok(None) };
    let sender = Sender { http: http_client(env, endpoint)?, runtime: tokio::runtime::Handle::try_current()? };
    // Another protocol than this one may be named for other programs in the same environment.
    let exporter = SpanExporter::builder().with_http().with_protocol(Protocol::HttpBinary).with_http_client(sender).build()?;
    let mut resource = Resource::builder().with_attributes([
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("process.pid", i64::from(std::process::id())),
    ]);
    if !env.names_service {
        resource = resource.with_service_name("ckrv");
    }
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build();
    let layer = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("ckrv"))
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        .with_filter(filter_fn(is_exported));
    ON.store(true, Ordering::Relaxed);
    Ok(Some((layer.boxed(), Exporter(provider))))
}

fn is_exported(about: &Metadata<'_>) -> bool {
    let target = about.target();
    target.starts_with("ckrv") && target != ckrv_orchestrator::trace::QUIET && *about.level() <= Level::INFO
}

/// Puts a span under its parent; gives its own place.
pub(super) fn link(span: &Span, name: &str, parent: TraceParent) -> TraceParent {
    span.record("otel.name", name);
    let is_request = span.metadata().is_some_and(|about| about.name() == "request");
    span.record("otel.kind", if is_request { "server" } else { "internal" });
    let remote = SpanContext::new(
        TraceId::from_bytes(parent.trace_id.to_be_bytes()),
        SpanId::from_bytes(parent.span_id.to_be_bytes()),
        TraceFlags::new(parent.flags),
        true,
        TraceState::default(),
    );
    if span.set_parent(Context::new().with_remote_span_context(remote)).is_err() {
        return parent;
    }
    let context = span.context();
    let own = context.span().span_context().clone();
    if !own.is_valid() {
        return parent;
    }
    TraceParent {
        trace_id: u128::from_be_bytes(own.trace_id().to_bytes()),
        span_id: u64::from_be_bytes(own.span_id().to_bytes()),
        flags: own.trace_flags().to_u8() & 1,
    }
}

fn http_client(env: &OtelEnv, endpoint: &str) -> Result<reqwest::Client, Box<dyn Error + Send + Sync>> {
    // Someone else may have installed it before us: the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("ckrv/", env!("CARGO_PKG_VERSION")))
        .timeout(env.timeout)
        .redirect(reqwest::redirect::Policy::none());
    if endpoint.starts_with("http://") {
        // No time spent on loading the system's certificates.
        builder = builder.tls_certs_only(std::iter::empty());
    } else if let Some(path) = &env.certificate {
        builder = builder.tls_certs_merge(certificates(path)?);
    }
    Ok(builder.build()?)
}

fn certificates(path: &Path) -> Result<Vec<reqwest::Certificate>, Box<dyn Error + Send + Sync>> {
    let pem =
        std::fs::read(path).map_err(|error| format!("can't read the collector's certificate {}: {error}", path.display()))?;
    Ok(reqwest::Certificate::from_pem_bundle(&pem)?)
}

/// The exporter's thread knows no runtime: requests run on ours.
#[derive(Debug)]
struct Sender {
    http: reqwest::Client,
    runtime: tokio::runtime::Handle,
}

#[async_trait]
impl HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let request = reqwest::Request::try_from(request)?;
        let http = self.http.clone();
        let sent = self.runtime.spawn(async move {
            // Its URL is the operator's own, but may hold a key.
            let mut answer = http.execute(request).await.map_err(reqwest::Error::without_url)?;
            let mut response = Response::builder().status(answer.status());
            if let Some(headers) = response.headers_mut() {
                *headers = answer.headers().clone();
            }
            let mut body = Vec::new();
            while let Some(chunk) = answer.chunk().await.map_err(reqwest::Error::without_url)? {
                if body.len() + chunk.len() > MAX_ANSWER {
                    return Err(HttpError::from("the collector's answer is too long"));
                }
                body.extend_from_slice(&chunk);
            }
            Ok(response.body(Bytes::from(body))?)
        });
        sent.await?
    }
}
