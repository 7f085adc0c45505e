//! Around every request: its id and trace, the check of its host, the form of its errors, one line in the log, what is counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use ckrv_core::trace::TraceParent;
use ckrv_store::StoreError;
use tracing::field::{Empty, display};
use tracing::{Instrument as _, Span};

use crate::error::{ApiError, chain};
use crate::extract::require_accept;
use crate::state::ApiState;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Routes that clients ask again and again: one line of so many is enough.
const POLLED: [&str; 6] = ["/v1/jobs/{id}", "/v1/jobs/{id}/logs", "/v1/auth/token", "/healthz", "/readyz", "/status"];
const POLLS_FOR_A_LINE: u64 = 16;

tokio::task_local! {
    static TRACE: TraceParent;
}

/// The trace of the request under way, for what outlives it: `traceparent`.
pub(crate) fn current_trace() -> Option<String> {
    TRACE.try_with(ToString::to_string).ok()
}

/// Of the request under way, for what is recorded of it.
#[derive(Clone, Debug)]
pub(crate) struct RequestId(pub String);

/// Marks an error answer that brings its own page.
#[derive(Clone, Copy)]
pub(crate) struct OwnBody;

/// What is known of a request, for log, trace and metrics. Nothing of its query, its headers or its body, which may hold secrets.
struct About {
    id: String,
    method: Method,
    /// The path as the router knows it: a real one may hold a code or a name.
    route: String,
}

impl About {
    fn of(request: &Request) -> Self {
        let route = request.extensions().get::<MatchedPath>();
        Self {
            id: request_id(request.headers()),
            method: request.method().clone(),
            route: route.map_or("(none)".to_owned(), |path| path.as_str().to_owned()),
        }
    }

    fn is_polled(&self) -> bool {
        POLLED.contains(&self.route.as_str())
    }

    /// Everything that is logged on the way to the answer carries these fields.
    fn span(&self) -> Span {
        tracing::info_span!(
            "request",
            request_id = %self.id,
            trace_id = Empty,
            method = %self.method,
            route = %self.route,
            user = Empty,
            status = Empty,
            otel.name = Empty,
            otel.kind = Empty,
            otel.status_code = Empty,
        )
    }
}

/// Outermost: everything that leaves goes through here.
pub(crate) async fn frame(State(state): State<ApiState>, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let about = About::of(&request);
    request.extensions_mut().insert(RequestId(about.id.clone()));
    let span = about.span();
    let parent = trace_parent(request.headers()).unwrap_or_else(|| TraceParent::new(rand::random(), rand::random()));
    let trace = (state.link_span)(&span, &format!("{} {}", about.method, about.route), parent);
    span.record("trace_id", trace.id());
    let answer = async {
        match check_host(&state, &request) {
            Ok(()) => next.run(request).await,
            Err(error) => error.into_response(),
        }
    };
    let response = TRACE.scope(trace, answer).instrument(span.clone()).await;
    span.in_scope(|| {
        let response = with_problem_body(&state, response, &about.id);
        note(&state, &about, response.status(), began.elapsed());
        with_headers(&state, response, &about.id)
    })
}

fn note(state: &ApiState, about: &About, status: StatusCode, took: Duration) {
    static POLLS: AtomicU64 = AtomicU64::new(0);
    state.metrics.answered(&about.route, &about.method, status.as_u16(), took);
    let span = Span::current();
    span.record("status", status.as_u16());
    if status.is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
    let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    let is_polled = about.is_polled();
    if is_polled && !status.is_server_error() && !POLLS.fetch_add(1, Ordering::Relaxed).is_multiple_of(POLLS_FOR_A_LINE) {
        return;
    }
    // A login that nobody has confirmed yet answers 400 to each poll: no error of anybody's.
    let is_error = status.is_server_error() || (status.is_client_error() && !is_polled);
    if is_error { tracing::info!(ms, "answered a request") } else { tracing::debug!(ms, "answered a request") }
}

fn request_id(headers: &HeaderMap) -> String {
    let sane =
        |text: &&str| (8..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let given = headers.get(&REQUEST_ID).and_then(|value| value.to_str().ok()).filter(sane);
    given.map_or_else(|| uuid::Uuid::now_v7().to_string(), str::to_owned)
}

/// Several are as good as none, says the standard.
fn trace_parent(headers: &HeaderMap) -> Option<TraceParent> {
    let mut given = headers.get_all("traceparent").iter();
    let first = given.next()?.to_str().ok()?.parse().ok()?;
    given.next().is_none().then_some(first)
}

/// Tells the log who is calling: the id, never the address.
pub(crate) fn note_user(user: ckrv_core::id::UserId) {
    Span::current().record("user", display(user));
}

/// A page of another site whose name was pointed at us carries that name in `Host`. Probes are exempt: they tell nothing.
fn check_host(state: &ApiState, request: &Request) -> Result<(), ApiError> {
    if matches!(request.uri().path(), "/healthz" | "/readyz") {
        return Ok(());
    }
    let header = request.headers().get(header::HOST).and_then(|value| value.to_str().ok());
    let target = request.uri().authority().map(axum::http::uri::Authority::as_str);
    let allowed = |host: &str| {
        let name = host
            .rsplit_once(':')
            .filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()))
            .map_or(host, |(name, _)| name);
        state.config.allowed_hosts.iter().any(|entry| entry.eq_ignore_ascii_case(host) || entry.eq_ignore_ascii_case(name))
    };
    let named = header.or(target);
    if named.is_some_and(allowed) && target.is_none_or(allowed) {
        return Ok(());
    }
    Err(ApiError::new(StatusCode::MISDIRECTED_REQUEST, "host_not_allowed", "This service does not answer under that host name.")
        .hint("the operator adds names with `ckrv serve --allowed-host`"))
}

fn with_problem_body(state: &ApiState, response: Response, id: &str) -> Response {
    let status = response.status();
    if !(status.is_client_error() || status.is_server_error()) || response.extensions().get::<OwnBody>().is_some() {
        return response;
    }
    let error = response.extensions().get::<ApiError>().cloned().unwrap_or_else(|| ApiError::of_status(status));
    if let Some(cause) = &error.cause {
        if cause.is::<StoreError>() {
            state.metrics.store_failed();
        }
        tracing::error!(status = status.as_u16(), cause = chain(cause.as_ref()), "a request failed: {}", error.detail());
    }
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    Response::from_parts(parts, Body::from(error.body(id)))
}

fn with_headers(state: &ApiState, mut response: Response, id: &str) -> Response {
    let headers = response.headers_mut();
    let mut default = |name: HeaderName, value: &'static str| {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    };
    default(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    default(header::CACHE_CONTROL, "no-store");
    default(header::REFERRER_POLICY, "no-referrer");
    default(header::X_FRAME_OPTIONS, "DENY");
    default(header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'");
    if state.config.is_https() {
        default(header::STRICT_TRANSPORT_SECURITY, "max-age=31536000");
    }
    if let Ok(value) = HeaderValue::from_str(id) {
        headers.insert(REQUEST_ID, value);
    }
    response
}

/// Before a handler acts: the client must take JSON.
pub(crate) async fn json_only(request: Request, next: Next) -> Result<Response, ApiError> {
    require_accept(request.headers(), &["application/json", "application/problem+json"])?;
    Ok(next.run(request).await)
}

/// What a handler that panicked answers; the panic itself is in the log by its hook.
pub(crate) fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    ApiError::internal("a handler panicked").into_response()
}
