//! `GET` and `POST /activate`: where the embedded default's owner confirms a login. Works without JavaScript.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use ckrv_store::{DeviceLogin, DeviceState};
use serde::Deserialize;

use crate::auth::owner_code::CodeError;
use crate::auth::{device, keys, page};
use crate::error::ApiError;
use crate::extract::{Query, read_body, require_accept};
use crate::middleware::OwnBody;
use crate::state::ApiState;

const COOKIE: &str = "ckrv_csrf";

#[derive(Deserialize)]
pub(crate) struct ShowParams {
    #[serde(default)]
    user_code: String,
}

#[derive(Default)]
struct Submitted {
    user_code: String,
    owner_code: String,
    csrf: String,
    action: String,
}

/// The page on which a login is confirmed.
#[utoipa::path(get, path = "/activate", tag = "auth", security(()), params(("user_code" = Option<String>, Query)),
    responses((status = 200, description = "The page", body = String, content_type = "text/html")))]
pub(crate) async fn show_activation(
    State(state): State<ApiState>,
    headers: HeaderMap,
    Query(params): Query<ShowParams>,
) -> Result<Response, ApiError> {
    require_accept(&headers, &["text/html"])?;
    let cookie = csrf_cookie(&headers).unwrap_or_else(keys::random_token);
    let code: String = params.user_code.chars().take(20).collect();
    show(&state, &cookie, &code, StatusCode::OK, None).await
}

/// What the page's buttons send.
#[utoipa::path(post, path = "/activate", tag = "auth", security(()),
    responses((status = 200, description = "Approved or denied", body = String, content_type = "text/html"),
        (status = 403, description = "A wrong code, or the form is not ours", body = String, content_type = "text/html"),
        (status = 429, description = "Locked after too many wrong codes", body = String, content_type = "text/html")))]
pub(crate) async fn submit_activation(State(state): State<ApiState>, request: Request) -> Result<Response, ApiError> {
    let headers = request.headers().clone();
    require_accept(&headers, &["text/html"])?;
    let form_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if form_type.and_then(|kind| kind.split(';').next()).map(str::trim) != Some("application/x-www-form-urlencoded") {
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "This takes the form of the activation page.",
        ));
    }
    let body = read_body(request, &state).await?;
    let Some(form) = read_form(&body) else {
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "bad_body", "The form can't be read."));
    };
    let cookie = csrf_cookie(&headers);
    if !is_own_form(&state, &headers, cookie.as_deref(), &form.csrf) {
        let text = "The form was too old, or cookies are off. Go back, reload the page and try again.";
        return Ok(html(StatusCode::FORBIDDEN, page::message("Please try again", text)));
    }
    decide(&state, cookie.as_deref().unwrap_or_default(), &form).await
}

async fn decide(state: &ApiState, cookie: &str, form: &Submitted) -> Result<Response, ApiError> {
    let now = state.now();
    let again = |status, error| show(state, cookie, &form.user_code, status, Some(error));
    if let Err(CodeError::Locked(seconds)) = state.owner_codes.check_lock(now) {
        return Ok(locked(seconds));
    }
    let hmac = device::user_code_hmac(state, &form.user_code);
    let found = state.stores.accounts.device_by_user_code(&hmac).await?;
    let Some(mut login) = found.filter(|login| login.state == DeviceState::Pending && now < login.expires_at) else {
        state.owner_codes.count_failure(now);
        return again(
            StatusCode::NOT_FOUND,
            "No login waits under this code. Check it, or begin again in the program: codes are good for 10 minutes.",
        )
        .await;
    };
    match form.action.as_str() {
        "deny" => {
            login.state = DeviceState::Denied;
            settle(state, login, "Denied", "The program was told that it may not log in. You can close this page.").await
        }
        "approve" => match state.owner_codes.redeem(&form.owner_code, now) {
            Ok(()) => {
                login.state = DeviceState::Approved;
                login.user = Some(state.config.owner);
                settle(state, login, "Approved", "The program is logged in. You can close this page and go back to it.").await
            }
            Err(CodeError::Locked(seconds)) => Ok(locked(seconds)),
            Err(CodeError::Wrong) => {
                again(
                    StatusCode::FORBIDDEN,
                    "The one-time code is wrong or was used before. The good one is the last that `ckrv serve` printed.",
                )
                .await
            }
        },
        _ => again(StatusCode::BAD_REQUEST, "Press one of the two buttons.").await,
    }
}

async fn settle(state: &ApiState, login: DeviceLogin, title: &str, text: &str) -> Result<Response, ApiError> {
    if state.stores.accounts.update_device(&login, DeviceState::Pending).await? {
        return Ok(html(StatusCode::OK, page::message(title, text)));
    }
    Ok(html(StatusCode::CONFLICT, page::message("Already decided", "This login was approved or denied before.")))
}

async fn show(state: &ApiState, cookie: &str, code: &str, status: StatusCode, error: Option<&str>) -> Result<Response, ApiError> {
    let owner = state.stores.accounts.user(state.config.owner).await?;
    let csrf = csrf_token(state, cookie);
    let form = page::Form { user_code: code, csrf: &csrf, owner: owner.as_ref().map_or("the owner", |user| &user.name), error };
    let mut response = html(status, page::form(&form));
    let secure = if state.config.is_https() { "; Secure" } else { "" };
    let set = format!("{COOKIE}={cookie}; Path=/activate; Max-Age=600; HttpOnly; SameSite=Strict{secure}");
    response.headers_mut().insert(header::SET_COOKIE, HeaderValue::from_str(&set).map_err(ApiError::internal)?);
    Ok(response)
}

fn locked(seconds: u64) -> Response {
    let minutes = seconds.div_ceil(60);
    let text = format!("Too many wrong codes were tried. Try again in {minutes} minutes.");
    let mut response = html(StatusCode::TOO_MANY_REQUESTS, page::message("Locked", &text));
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    response
}

fn html(status: StatusCode, page: String) -> Response {
    let mut response = (status, [(header::CONTENT_TYPE, "text/html; charset=utf-8")], page).into_response();
    if let Ok(policy) = HeaderValue::from_str(&page::policy()) {
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    // With `no-referrer` a browser would send `Origin: null` with the form.
    response.headers_mut().insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    response.extensions_mut().insert(OwnBody);
    response
}

/// Only a page that we gave to this browser knows the token that belongs to its cookie.
fn is_own_form(state: &ApiState, headers: &HeaderMap, cookie: Option<&str>, csrf: &str) -> bool {
    let same_site = match headers.get("sec-fetch-site").and_then(|value| value.to_str().ok()) {
        Some(site) => site == "same-origin",
        None => true,
    };
    let origin_ok = match (headers.get(header::ORIGIN).and_then(|value| value.to_str().ok()), headers.get(header::HOST)) {
        (Some(origin), Some(host)) => origin.split_once("://").is_some_and(|(_, name)| name.as_bytes() == host.as_bytes()),
        _ => true,
    };
    let token_ok = cookie.is_some_and(|cookie| keys::same(csrf_token(state, cookie).as_bytes(), csrf.as_bytes()));
    same_site && origin_ok && token_ok
}

fn csrf_token(state: &ApiState, cookie: &str) -> String {
    keys::token_text(&keys::keyed(&state.config.hmac_key, "csrf", cookie))
}

fn csrf_cookie(headers: &HeaderMap) -> Option<String> {
    let cookies =
        headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(';'));
    let plain = |value: &&str| {
        value.len() == 43 && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    cookies.filter_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('=')).find(plain).map(str::to_owned)
}

fn read_form(body: &[u8]) -> Option<Submitted> {
    let mut form = Submitted::default();
    for (name, value) in url::form_urlencoded::parse(body) {
        let field = match name.as_ref() {
            "user_code" => &mut form.user_code,
            "owner_code" => &mut form.owner_code,
            "csrf" => &mut form.csrf,
            "action" => &mut form.action,
            _ => return None,
        };
        *field = value.chars().take(100).collect();
    }
    Some(form)
}
