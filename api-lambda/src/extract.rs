//! One extractor for each kind of input, so that every endpoint refuses bad input in the same way.

use std::str::FromStr;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use ckrv_core::id::JobId;
use ckrv_store::User;
use serde::de::DeserializeOwned;

use crate::access;
use crate::error::ApiError;
use crate::state::ApiState;

/// How long a client may take to send its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Who is calling; 401 without a good token, 403 where that token may not do this (see [`access`]).
pub(crate) struct Caller(pub User);

impl FromRequestParts<ApiState> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, ApiError> {
        Ok(Self(access::authorized(parts, state).await?.user))
    }
}

/// A JSON body. 415 for another type, 413 when too long, 400 when it is no JSON, 422 when it is not the JSON that was asked for.
pub(crate) struct Json<T>(pub T);

impl<T: DeserializeOwned> FromRequest<ApiState> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &ApiState) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            let detail = "The body must be JSON, with `Content-Type: application/json`.";
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail));
        }
        let bytes = read_body(request, state).await?;
        // A derived reader would take a list for a struct's fields in order.
        if bytes.trim_ascii_start().starts_with(b"[") {
            return Err(ApiError::invalid("invalid_body", "The body must be a JSON object."));
        }
        serde_json::from_slice(&bytes).map(Self).map_err(|error| json_error(&error))
    }
}

/// The whole body, within the route's limit and a time limit.
pub(crate) async fn read_body(request: Request, state: &ApiState) -> Result<Bytes, ApiError> {
    let read = tokio::time::timeout(BODY_TIMEOUT, Bytes::from_request(request, state)).await;
    let timed_out = |_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", "The body took too long to arrive.");
    read.map_err(timed_out)?.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::of_status(StatusCode::PAYLOAD_TOO_LARGE),
        _ => ApiError::new(StatusCode::BAD_REQUEST, "bad_body", "The body could not be read."),
    })
}

/// The fields of an HTML form, each short; 415 for another type.
pub(crate) struct FormBody(Vec<(String, String)>);

impl FormBody {
    /// The last of that name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }
}

impl FromRequest<ApiState> for FormBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &ApiState) -> Result<Self, ApiError> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let essence = kind.and_then(|kind| kind.split(';').next()).map(|kind| kind.trim().to_ascii_lowercase());
        if essence.as_deref() != Some("application/x-www-form-urlencoded") {
            let detail = "The body must be a form, with `Content-Type: application/x-www-form-urlencoded`.";
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail));
        }
        let bytes = read_body(request, state).await?;
        Ok(Self(url::form_urlencoded::parse(&bytes).map(|(name, value)| (name.into_owned(), value.into_owned())).collect()))
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()) else { return false };
    let essence = kind.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

fn json_error(error: &serde_json::Error) -> ApiError {
    let place = format!("line {}, column {}", error.line(), error.column());
    if !error.is_data() {
        return ApiError::new(StatusCode::BAD_REQUEST, "bad_json", format!("The body is not valid JSON at {place}."));
    }
    let text = error.to_string();
    let said = text.split(" at line ").next().unwrap_or_default();
    // Other messages quote the value, which may be a credential.
    if said.starts_with("unknown field") || said.starts_with("missing field") || said.starts_with("duplicate field") {
        return ApiError::invalid("invalid_body", format!("{said} ({place})"));
    }
    let expected = said.rsplit_once("expected ").map_or(String::new(), |(_, expected)| format!("; expected {expected}"));
    ApiError::invalid("invalid_body", format!("A value is not of the right kind at {place}{expected}."))
}

/// The query string; 422 for unknown or unreadable parameters.
pub(crate) struct Query<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<ApiState> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &ApiState) -> Result<Self, ApiError> {
        let found = axum::extract::Query::<T>::try_from_uri(&parts.uri);
        found.map(|query| Self(query.0)).map_err(|rejection| ApiError::invalid("invalid_query", rejection.body_text()))
    }
}

/// A job's id in the path; what is no id is no job either.
pub(crate) struct JobPath(pub JobId);

impl FromRequestParts<ApiState> for JobPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, ApiError> {
        let Name(text) = Name::from_request_parts(parts, state).await?;
        JobId::from_str(&text).map(Self).map_err(|_| crate::jobs::not_found())
    }
}

/// The path's one parameter as text.
pub(crate) struct Name(pub String);

impl FromRequestParts<ApiState> for Name {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, ApiError> {
        let found = axum::extract::Path::<String>::from_request_parts(parts, state).await;
        found.map(|path| Self(path.0)).map_err(|_| ApiError::of_status(StatusCode::NOT_FOUND))
    }
}

/// `Idempotency-Key`, 1 to 255 visible characters.
pub(crate) struct IdempotencyKey(pub Option<String>);

impl FromRequestParts<ApiState> for IdempotencyKey {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &ApiState) -> Result<Self, ApiError> {
        let Some(value) = parts.headers.get("idempotency-key") else { return Ok(Self(None)) };
        match value.to_str() {
            Ok(key) if (1..=255).contains(&key.len()) => Ok(Self(Some(key.to_owned()))),
            _ => {
                Err(ApiError::invalid("invalid_idempotency_key", "`Idempotency-Key` must be 1 to 255 visible ASCII characters."))
            }
        }
    }
}

/// 406 unless the client accepts one of `offered` (without parameters, for example `application/json`).
pub(crate) fn require_accept(headers: &HeaderMap, offered: &[&str]) -> Result<(), ApiError> {
    let mut wanted = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .peekable();
    if wanted.peek().is_none() {
        return Ok(());
    }
    let matches = |range: &str| {
        let mut parts = range.split(';').map(str::trim);
        let range = parts.next().unwrap_or_default().to_ascii_lowercase();
        let refused = parts.any(|part| matches!(part.strip_prefix("q="), Some("0" | "0.0" | "0.00" | "0.000")));
        !refused
            && offered.iter().any(|kind| {
                range == "*/*"
                    || range == *kind
                    || range.strip_suffix("/*").is_some_and(|main| kind.split('/').next() == Some(main))
            })
    };
    if wanted.any(matches) {
        return Ok(());
    }
    let detail = format!("This address answers with {}, which `Accept` rules out.", offered.join(" or "));
    Err(ApiError::new(StatusCode::NOT_ACCEPTABLE, "not_acceptable", detail))
}
