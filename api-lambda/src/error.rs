//! One error for all handlers: what the client is told, and beside it what only the log is told.

use std::error::Error;
use std::sync::Arc;

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use ckrv_core::Timestamp;
use ckrv_core::wire::Problem;
use ckrv_store::StoreError;
pub(crate) use ckrv_store::chain;

/// An answer that is not the one asked for. Becomes `application/problem+json` in the middleware.
#[derive(Clone, Debug)]
pub struct ApiError {
    pub(crate) status: StatusCode,
    problem: Box<Problem>,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// For the log only.
    pub(crate) cause: Option<Arc<dyn Error + Send + Sync>>,
}

impl ApiError {
    #[must_use]
    pub fn new(status: StatusCode, code: &str, detail: impl Into<String>) -> Self {
        let problem = Problem {
            kind: "about:blank".to_owned(),
            title: status.canonical_reason().unwrap_or("Error").to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            code: code.to_owned(),
            hint: None,
            request_id: String::new(),
            error: None,
            error_description: None,
            message: None,
            quota_resets_at: None,
            upgrade_url: None,
            checks: None,
        };
        Self { status, problem: Box::new(problem), headers: Vec::new(), cause: None }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.problem.hint = Some(hint.into());
        self
    }

    /// 422: well-formed, but not acceptable.
    #[must_use]
    pub fn invalid(code: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail)
    }

    /// 404: it does not exist, or it is somebody else's; which of the two is not told.
    #[must_use]
    pub fn not_found(code: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, detail)
    }

    #[must_use]
    pub fn internal(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        let mut error = Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "Something went wrong on our side.")
            .hint("tell the service's operator the request id");
        error.cause = Some(Arc::from(cause.into()));
        error
    }

    /// 401. `presented`: a token came, but it is not good.
    #[must_use]
    pub fn unauthorized(presented: bool) -> Self {
        let (challenge, detail) = if presented {
            ("Bearer realm=\"ckrv\", error=\"invalid_token\"", "The access token is not valid or has expired.")
        } else {
            ("Bearer realm=\"ckrv\"", "This needs an access token.")
        };
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
            .hint("log in with `ckrv cloud login`")
            .header(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge))
    }

    /// 429, or 503 where `status` says so: come back in `seconds`.
    #[must_use]
    pub fn later(status: StatusCode, code: &str, detail: impl Into<String>, seconds: u64) -> Self {
        Self::new(status, code, detail).header(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)))
    }

    /// An OAuth error (RFC 6749): 400 with `error`, and the problem's fields beside it.
    #[must_use]
    pub fn oauth(error: &str, description: impl Into<String>) -> Self {
        let description = description.into();
        let mut answer = Self::new(StatusCode::BAD_REQUEST, error, description.clone());
        answer.problem.error = Some(error.to_owned());
        answer.problem.error_description = Some(description);
        answer
    }

    /// 402, with version 1's body.
    #[must_use]
    pub fn quota_exceeded(cap: u32, resets_at: Timestamp, upgrade_url: &str) -> Self {
        let message = format!("This month's {cap} jobs are used up. The quota resets at {resets_at}.");
        let mut answer = Self::new(StatusCode::PAYMENT_REQUIRED, "quota_exceeded", message.clone());
        answer.problem.error = Some("quota_exceeded".to_owned());
        answer.problem.message = Some(message);
        answer.problem.quota_resets_at = Some(resets_at);
        answer.problem.upgrade_url = Some(upgrade_url.to_owned());
        answer.problem.hint = Some(format!("upgrade at {upgrade_url}"));
        answer
    }

    /// Which part of the service is down.
    #[must_use]
    pub(crate) fn checks(mut self, checks: std::collections::BTreeMap<String, String>) -> Self {
        self.problem.checks = Some(checks);
        self
    }

    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    #[must_use]
    pub(crate) fn body(&self, request_id: &str) -> Vec<u8> {
        let problem = Problem { request_id: request_id.to_owned(), ..(*self.problem).clone() };
        serde_json::to_vec(&problem).unwrap_or_default()
    }

    pub(crate) fn detail(&self) -> &str {
        &self.problem.detail
    }

    /// What an error status without a body of ours means: axum's own 404, 405 and the like.
    pub(crate) fn of_status(status: StatusCode) -> Self {
        let (code, detail) = match status {
            StatusCode::NOT_FOUND => ("no_such_route", "There is nothing at this address."),
            StatusCode::METHOD_NOT_ALLOWED => ("method_not_allowed", "This address does not take that method."),
            StatusCode::PAYLOAD_TOO_LARGE => ("body_too_large", "The body is too large."),
            status if status.is_server_error() => ("internal", "Something went wrong on our side."),
            _ => ("bad_request", "The request can't be understood."),
        };
        Self::new(status, code, detail)
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::BadCursor => Self::invalid("bad_cursor", "The cursor is not one of this list."),
            StoreError::Backend { .. } => {
                let mut answer =
                    Self::later(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "The service's store does not answer.", 2);
                answer.cause = Some(Arc::new(error));
                answer
            }
            other => Self::internal(other),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(mut self) -> Response {
        let mut response = self.status.into_response();
        for (name, value) in self.headers.drain(..) {
            response.headers_mut().append(name, value);
        }
        response.extensions_mut().insert(self);
        response
    }
}
