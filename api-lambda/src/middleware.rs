//! Around every request: its id, the check of its host, the form of its errors, one line in the log.

use std::time::Instant;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::error::ApiError;
use crate::extract::require_accept;
use crate::state::ApiState;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Marks an error answer that brings its own page.
#[derive(Clone, Copy)]
pub(crate) struct OwnBody;

/// Outermost: everything that leaves goes through here.
pub(crate) async fn frame(State(state): State<ApiState>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let id = request_id(request.headers());
    let method = request.method().clone();
    // The path as the router knows it: a real one may hold a code or a name.
    let route = request.extensions().get::<MatchedPath>().map_or("(none)".to_owned(), |path| path.as_str().to_owned());
    let response = match check_host(&state, &request) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    let response = with_problem_body(response, &id);
    tracing::debug!(request_id = %id, %method, %route, status = response.status().as_u16(), ms = began.elapsed().as_millis(), "answered a request");
    with_headers(&state, response, &id)
}

fn request_id(headers: &HeaderMap) -> String {
    let sane =
        |text: &&str| (8..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let given = headers.get(&REQUEST_ID).and_then(|value| value.to_str().ok()).filter(sane);
    given.map_or_else(|| uuid::Uuid::now_v7().to_string(), str::to_owned)
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

fn with_problem_body(response: Response, id: &str) -> Response {
    let status = response.status();
    if !(status.is_client_error() || status.is_server_error()) || response.extensions().get::<OwnBody>().is_some() {
        return response;
    }
    let error = response.extensions().get::<ApiError>().cloned().unwrap_or_else(|| ApiError::of_status(status));
    if let Some(cause) = &error.cause {
        let mut chain = vec![cause.to_string()];
        let mut next = cause.source();
        while let Some(inner) = next {
            chain.push(inner.to_string());
            next = inner.source();
        }
        tracing::error!(request_id = %id, status = status.as_u16(), cause = chain.join(": "), "a request failed: {}", error.detail());
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
