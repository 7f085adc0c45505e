//! What the activation page's forms have in common: their headers, their cookies, and the proof that a form is our own.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::auth::{keys, page};
use crate::middleware::OwnBody;
use crate::state::ApiState;

pub(crate) fn html(status: StatusCode, page: String) -> Response {
    html_with(status, page, &page::policy())
}

pub(crate) fn html_with(status: StatusCode, page: String, policy: &str) -> Response {
    let mut response = (status, [(header::CONTENT_TYPE, "text/html; charset=utf-8")], page).into_response();
    if let Ok(policy) = HeaderValue::from_str(policy) {
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    // With `no-referrer` a browser would send `Origin: null` with the form.
    response.headers_mut().insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    response.extensions_mut().insert(OwnBody);
    response
}

pub(crate) fn too_old() -> Response {
    let text = "The form was too old, or cookies are off. Go back, reload the page and try again.";
    html(StatusCode::FORBIDDEN, page::message("Please try again", text))
}

/// Only a page that we gave to this browser knows the token that belongs to its cookie.
pub(crate) fn is_own(state: &ApiState, purpose: &str, headers: &HeaderMap, cookie: Option<&str>, csrf: &str) -> bool {
    let same_site = match headers.get("sec-fetch-site").and_then(|value| value.to_str().ok()) {
        Some(site) => site == "same-origin",
        None => true,
    };
    let origin_ok = match (headers.get(header::ORIGIN).and_then(|value| value.to_str().ok()), headers.get(header::HOST)) {
        (Some(origin), Some(host)) => origin.split_once("://").is_some_and(|(_, name)| name.as_bytes() == host.as_bytes()),
        _ => true,
    };
    let token_ok = cookie.is_some_and(|cookie| keys::same(csrf_token(state, purpose, cookie).as_bytes(), csrf.as_bytes()));
    same_site && origin_ok && token_ok
}

pub(crate) fn csrf_token(state: &ApiState, purpose: &str, cookie: &str) -> String {
    keys::token_text(&keys::keyed(&state.config.hmac_key, purpose, cookie))
}

/// A cookie's value in base64url.
pub(crate) fn cookie(headers: &HeaderMap, name: &str) -> Option<String> {
    let cookies =
        headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(';'));
    let plain = |value: &&str| {
        !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    cookies.filter_map(|pair| pair.trim().strip_prefix(name)?.strip_prefix('=')).find(plain).map(str::to_owned)
}
