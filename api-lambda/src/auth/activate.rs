//! `GET` and `POST /activate`: where a login is confirmed. Works without JavaScript.
//!
//! Without an identity provider the embedded default's owner confirms with a one-time code; with one, people sign in there ([`oidc`]).

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use ckrv_core::id::UserId;
use ckrv_store::{DeviceLogin, DeviceState};
use serde::Deserialize;
use url::Url;
use utoipa::ToSchema;

use crate::audit::{ANONYMOUS, Origin, Who, audit};
use crate::auth::owner_code::CodeError;
use crate::auth::{device, forms, keys, page};
use crate::error::ApiError;
use crate::extract::{FormBody, Query, require_accept};
use crate::state::ApiState;

const COOKIE: &str = "ckrv_csrf";
const CSRF_PURPOSE: &str = "csrf";
pub(crate) const UNKNOWN_CODE: &str =
    "No login waits under this code. Check it, or begin again in the program: codes are good for 10 minutes.";

#[derive(Deserialize)]
pub(crate) struct ShowParams {
    #[serde(default)]
    user_code: String,
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "tells the document what the page's form sends")]
struct ActivationForm {
    user_code: String,
    /// Needed to approve.
    owner_code: Option<String>,
    csrf: String,
    /// `approve` or `deny`.
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
    show(&state, &cookie, &short(&params.user_code), StatusCode::OK, None).await
}

/// What the page's buttons send.
#[utoipa::path(post, path = "/activate", tag = "auth", security(()), request_body(content = ActivationForm, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, description = "Approved or denied", body = String, content_type = "text/html"),
        (status = 403, description = "A wrong code, or the form is not ours", body = String, content_type = "text/html"),
        (status = 404, description = "No login waits under this code", body = String, content_type = "text/html"),
        (status = 429, description = "Locked after too many wrong codes", body = String, content_type = "text/html")))]
pub(crate) async fn submit_activation(
    State(state): State<ApiState>,
    origin: Origin,
    headers: HeaderMap,
    form: FormBody,
) -> Result<Response, ApiError> {
    require_accept(&headers, &["text/html"])?;
    if !is_own_form(&state, &headers, &form) {
        return Ok(forms::too_old());
    }
    if !state.oidc.is_empty() {
        let text = "Here you sign in at an identity provider. Go back, and choose one of the buttons.";
        return Ok(forms::html(StatusCode::FORBIDDEN, page::message("Sign in", text)));
    }
    decide(&state, &origin, &csrf_cookie(&headers).unwrap_or_default(), &form).await
}

/// Whether the first page's form is one that we gave to this browser.
pub(crate) fn is_own_form(state: &ApiState, headers: &HeaderMap, form: &FormBody) -> bool {
    forms::is_own(state, CSRF_PURPOSE, headers, csrf_cookie(headers).as_deref(), form.get("csrf").unwrap_or_default())
}

/// The owner's decision, with the one-time code.
async fn decide(state: &ApiState, origin: &Origin, cookie: &str, form: &FormBody) -> Result<Response, ApiError> {
    let now = state.now();
    let user_code = short(form.get("user_code").unwrap_or_default());
    let again = |status, error| show(state, cookie, &user_code, status, Some(error));
    if let Err(CodeError::Locked(seconds)) = state.owner_codes.check_lock(now) {
        return Ok(locked(seconds));
    }
    let hmac = device::user_code_hmac(state, &user_code);
    let found = state.stores.accounts.device_by_user_code(&hmac).await?;
    let Some(login) = found.filter(|login| login.state == DeviceState::Pending && now < login.expires_at) else {
        state.owner_codes.count_failure(now);
        return again(StatusCode::NOT_FOUND, UNKNOWN_CODE).await;
    };
    match form.get("action") {
        Some("deny") => deny(state, &origin.who(ANONYMOUS, None), login).await,
        Some("approve") => match state.owner_codes.redeem(&short(form.get("owner_code").unwrap_or_default()), now) {
            Ok(()) => {
                let owner = state.config.owner;
                approve(state, &origin.who(owner, Some(owner)), login, owner).await
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

/// Lets the program that waits act for this user.
pub(crate) async fn approve(state: &ApiState, who: &Who, login: DeviceLogin, user: UserId) -> Result<Response, ApiError> {
    let login = DeviceLogin { state: DeviceState::Approved, user: Some(user), ..login };
    let text = "The program is logged in. You can close this page and go back to it.";
    settle(state, who, login, "login.approve", ("Approved", text)).await
}

/// Sends the program that waits away.
pub(crate) async fn deny(state: &ApiState, who: &Who, login: DeviceLogin) -> Result<Response, ApiError> {
    let login = DeviceLogin { state: DeviceState::Denied, ..login };
    let text = "The program was told that it may not log in. You can close this page.";
    settle(state, who, login, "login.deny", ("Denied", text)).await
}

async fn settle(
    state: &ApiState,
    who: &Who,
    login: DeviceLogin,
    action: &str,
    (title, text): (&str, &str),
) -> Result<Response, ApiError> {
    if state.stores.accounts.update_device(&login, DeviceState::Pending).await? {
        audit(state, who, action, &login.client_id).await;
        return Ok(forms::html(StatusCode::OK, page::message(title, text)));
    }
    Ok(forms::html(StatusCode::CONFLICT, page::message("Already decided", "This login was approved or denied before.")))
}

async fn show(state: &ApiState, cookie: &str, code: &str, status: StatusCode, error: Option<&str>) -> Result<Response, ApiError> {
    let csrf = forms::csrf_token(state, CSRF_PURPOSE, cookie);
    let mut response = if state.oidc.is_empty() {
        let owner = state.stores.accounts.user(state.config.owner).await?;
        let owner = owner.as_ref().map_or("the owner", |user| &user.name);
        forms::html(status, page::form(&page::Form { user_code: code, csrf: &csrf, owner, error }))
    } else {
        let buttons = state.oidc.buttons();
        forms::html_with(status, page::sign_in(code, &csrf, &buttons), &page::policy_with(&form_targets(state)))
    };
    let secure = if state.config.is_https() { "; Secure" } else { "" };
    // A function's stage is part of the path.
    let path = Url::parse(&state.config.url("/activate")).map_or_else(|_| "/".to_owned(), |url| url.path().to_owned());
    let set = format!("{COOKIE}={cookie}; Path={path}; Max-Age=600; HttpOnly; SameSite=Strict{secure}");
    response.headers_mut().insert(header::SET_COOKIE, HeaderValue::from_str(&set).map_err(ApiError::internal)?);
    Ok(response)
}

/// Browsers hold `form-action` against every redirect after a form too, and a provider may send its users on to one that we don't know:
/// any https page, or a provider on this machine. The page has nothing of ours to give away.
fn form_targets(state: &ApiState) -> String {
    let local = state.config.oidc.iter().filter_map(|issuer| Url::parse(&issuer.config.issuer).ok());
    let local = local.filter(|url| url.scheme() == "http").map(|url| format!(" {}", url.origin().ascii_serialization()));
    format!("'self' https:{}", local.collect::<String>())
}

fn locked(seconds: u64) -> Response {
    let minutes = seconds.div_ceil(60);
    let text = format!("Too many wrong codes were tried. Try again in {minutes} minutes.");
    let mut response = forms::html(StatusCode::TOO_MANY_REQUESTS, page::message("Locked", &text));
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    response
}

fn csrf_cookie(headers: &HeaderMap) -> Option<String> {
    forms::cookie(headers, COOKIE).filter(|value| value.len() == 43)
}

fn short(text: &str) -> String {
    text.chars().take(100).collect()
}
