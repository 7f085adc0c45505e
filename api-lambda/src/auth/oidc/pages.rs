//! The activation page's way over an identity provider: off, back, and the question whether that program may act for this user.

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use ckrv_store::{DeviceLogin, DeviceState, User};
use serde::Deserialize;
use utoipa::ToSchema;

use super::account::sign_in;
use super::cookie::{self, SignIn, Stage};
use super::provider::{Failure, Provider, Return};
use crate::audit::{ANONYMOUS, Origin, audit};
use crate::auth::{activate, device, forms, keys, page, tokens};
use crate::error::ApiError;
use crate::extract::{FormBody, Query, require_accept};
use crate::state::ApiState;

const CONFIRM_PURPOSE: &str = "csrf-confirm";

/// What comes back from the provider. Unknown parameters are ignored, as OAuth says.
#[derive(Deserialize)]
pub(crate) struct CallbackParams {
    code: Option<String>,
    state: Option<String>,
    iss: Option<String>,
    error: Option<String>,
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "tells the document what the page's form sends")]
struct StartForm {
    user_code: String,
    /// A provider's name.
    issuer: String,
    csrf: String,
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "tells the document what the page's form sends")]
struct ConfirmForm {
    csrf: String,
    /// `approve` or `deny`.
    action: String,
}

/// Sends the browser to an identity provider.
#[utoipa::path(post, path = "/activate/oidc/start", tag = "auth", security(()), request_body(content = StartForm, content_type = "application/x-www-form-urlencoded"),
    responses((status = 303, description = "To the identity provider"),
        (status = 403, description = "The form is not ours", body = String, content_type = "text/html"),
        (status = 404, description = "No such provider, or no login waits under this code", body = String, content_type = "text/html"),
        (status = 502, description = "The provider does not answer", body = String, content_type = "text/html")))]
pub(crate) async fn start_sign_in(
    State(state): State<ApiState>,
    headers: HeaderMap,
    form: FormBody,
) -> Result<Response, ApiError> {
    require_accept(&headers, &["text/html"])?;
    if !activate::is_own_form(&state, &headers, &form) {
        return Ok(forms::too_old());
    }
    let Some(provider) = state.oidc.get(form.get("issuer").unwrap_or_default()) else {
        return Ok(failed(StatusCode::NOT_FOUND, "There is no such identity provider. Go back and choose one of the buttons."));
    };
    let code = keys::normal_code(form.get("user_code").unwrap_or_default());
    // No lock as for the owner's one-time code: who guesses a code here signs in as themselves and can give away nothing but their own
    // account. A guess hits with 1 in 650 million for each login that waits, and `device_logins_per_minute` bounds how many do.
    if waiting(&state, &code).await?.is_none() {
        return Ok(failed(StatusCode::NOT_FOUND, activate::UNKNOWN_CODE));
    }
    let departure = match provider.depart(&redirect_url(&state), state.now()).await {
        Ok(departure) => departure,
        Err(error) => return Ok(unreachable(provider, &error)),
    };
    let stage = Stage::SigningIn {
        provider: provider.name().to_owned(),
        state: departure.state,
        nonce: departure.nonce,
        verifier: departure.verifier,
    };
    let value = cookie::seal(&state, stage, &code)?;
    redirect(departure.url.as_str(), cookie::set_for_its_life(&state, &value)?)
}

/// Where the identity provider sends the browser back to.
#[utoipa::path(get, path = "/activate/callback", tag = "auth", security(()),
    params(("code" = Option<String>, Query), ("state" = Option<String>, Query), ("iss" = Option<String>, Query), ("error" = Option<String>, Query)),
    responses((status = 303, description = "Signed in; to the question"),
        (status = 400, description = "Not an answer to a sign-in that began in this browser", body = String, content_type = "text/html"),
        (status = 403, description = "Refused", body = String, content_type = "text/html")))]
pub(crate) async fn finish_sign_in(
    State(state): State<ApiState>,
    origin: Origin,
    headers: HeaderMap,
    Query(params): Query<CallbackParams>,
) -> Result<Response, ApiError> {
    require_accept(&headers, &["text/html"])?;
    let remembered = cookie::open(&state, &headers);
    let Some(SignIn { stage: Stage::SigningIn { provider, state: expected, nonce, verifier }, user_code, .. }) = remembered
    else {
        return Ok(begin_again(&state));
    };
    let answers = params.state.as_deref().is_some_and(|given| keys::same(given.as_bytes(), expected.as_bytes()));
    let Some(provider) = state.oidc.get(&provider).filter(|_| answers) else { return Ok(begin_again(&state)) };
    let Some(code) = params.code.as_deref().filter(|_| params.error.is_none()) else {
        // The provider's own text is anybody's who can write a link.
        let text = match params.error.as_deref() {
            Some("access_denied") => "The sign-in was cancelled. Go back to the program's link to try again.",
            _ => "The identity provider refused the sign-in. Go back to the program's link to try again.",
        };
        return forgetting(&state, failed(StatusCode::FORBIDDEN, text));
    };
    let redirect_to = redirect_url(&state);
    let back = Return { code, iss: params.iss.as_deref(), nonce: &nonce, verifier: &verifier, redirect: &redirect_to };
    let identity = match provider.arrive(&back, state.now()).await {
        Ok(identity) => identity,
        Err(error) => {
            tracing::warn!(provider = provider.name(), %error, "a sign-in could not be verified");
            let text = "What the identity provider sent could not be verified. Go back to the program's link to try again.";
            return forgetting(&state, failed(StatusCode::FORBIDDEN, text));
        }
    };
    let subject = identity.subject.clone();
    match sign_in(&state, &origin, provider, identity).await? {
        Ok(user) => {
            let stage = Stage::Confirming { user: user.id, provider: provider.name().to_owned() };
            let value = cookie::seal(&state, stage, &user_code)?;
            // To a page of its own: the address of this one has the provider's code, and can't be loaded again. Relative, for stages.
            redirect("oidc/confirm", cookie::set_for_its_life(&state, &value)?)
        }
        Err(refusal) => {
            let target = format!("{} at {}: {refusal:?}", subject, provider.name());
            audit(&state, &origin.who(ANONYMOUS, None), "login.refuse", target).await;
            forgetting(&state, failed(StatusCode::FORBIDDEN, refusal.text()))
        }
    }
}

/// Asks whether the program may act for the user who signed in.
#[utoipa::path(get, path = "/activate/oidc/confirm", tag = "auth", security(()),
    responses((status = 200, description = "The question", body = String, content_type = "text/html"),
        (status = 400, description = "Nobody signed in in this browser", body = String, content_type = "text/html"),
        (status = 404, description = "The login does not wait any more", body = String, content_type = "text/html")))]
pub(crate) async fn show_confirmation(State(state): State<ApiState>, headers: HeaderMap) -> Result<Response, ApiError> {
    require_accept(&headers, &["text/html"])?;
    let Some(signed) = signed_in(&state, &headers).await? else { return Ok(begin_again(&state)) };
    let Some(login) = waiting(&state, &signed.user_code).await? else {
        return forgetting(&state, failed(StatusCode::NOT_FOUND, activate::UNKNOWN_CODE));
    };
    let cookie = cookie::value(&state, &headers).unwrap_or_default();
    let (code, csrf) = (shown(&signed.user_code), forms::csrf_token(&state, CONFIRM_PURPOSE, &cookie));
    let question = page::Question {
        client: &login.client_id,
        code: &code,
        name: &signed.user.name,
        email: &signed.user.email,
        provider: &signed.provider,
        csrf: &csrf,
    };
    Ok(forms::html(StatusCode::OK, page::confirm(&question)))
}

/// The answer to the question.
#[utoipa::path(post, path = "/activate/oidc/confirm", tag = "auth", security(()), request_body(content = ConfirmForm, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, description = "Approved or denied", body = String, content_type = "text/html"),
        (status = 400, description = "Nobody signed in in this browser", body = String, content_type = "text/html"),
        (status = 403, description = "The form is not ours", body = String, content_type = "text/html"),
        (status = 404, description = "The login does not wait any more", body = String, content_type = "text/html")))]
pub(crate) async fn submit_confirmation(
    State(state): State<ApiState>,
    origin: Origin,
    headers: HeaderMap,
    form: FormBody,
) -> Result<Response, ApiError> {
    require_accept(&headers, &["text/html"])?;
    let Some(signed) = signed_in(&state, &headers).await? else { return Ok(begin_again(&state)) };
    let cookie = cookie::value(&state, &headers);
    if !forms::is_own(&state, CONFIRM_PURPOSE, &headers, cookie.as_deref(), form.get("csrf").unwrap_or_default()) {
        return Ok(forms::too_old());
    }
    let Some(login) = waiting(&state, &signed.user_code).await? else {
        return forgetting(&state, failed(StatusCode::NOT_FOUND, activate::UNKNOWN_CODE));
    };
    let who = origin.who(signed.user.id, Some(signed.user.id));
    let answer = match form.get("action") {
        Some("approve") => activate::approve(&state, &who, login, signed.user.id).await?,
        Some("deny") => activate::deny(&state, &who, login).await?,
        _ => return Ok(failed(StatusCode::BAD_REQUEST, "Press one of the two buttons.")),
    };
    forgetting(&state, answer)
}

struct Signed {
    user: User,
    provider: String,
    user_code: String,
}

/// Who signed in in this browser, if they still may.
async fn signed_in(state: &ApiState, headers: &HeaderMap) -> Result<Option<Signed>, ApiError> {
    let Some(SignIn { stage: Stage::Confirming { user, provider }, user_code, .. }) = cookie::open(state, headers) else {
        return Ok(None);
    };
    let label = state.oidc.get(&provider).map_or(provider.clone(), |provider| provider.label().to_owned());
    let user = tokens::good_user(state, user).await?;
    Ok(user.map(|user| Signed { user, provider: label, user_code }))
}

async fn waiting(state: &ApiState, code: &str) -> Result<Option<DeviceLogin>, ApiError> {
    let found = state.stores.accounts.device_by_user_code(&device::user_code_hmac(state, code)).await?;
    Ok(found.filter(|login| login.state == DeviceState::Pending && state.now() < login.expires_at))
}

/// `ABCD-1234`, as the program shows it.
fn shown(code: &str) -> String {
    code.split_at_checked(4).map_or_else(|| code.to_owned(), |(letters, digits)| format!("{letters}-{digits}"))
}

fn redirect_url(state: &ApiState) -> String {
    state.config.url("/activate/callback")
}

fn redirect(to: &str, set_cookie: HeaderValue) -> Result<Response, ApiError> {
    let location = HeaderValue::from_str(to).map_err(ApiError::internal)?;
    Ok((StatusCode::SEE_OTHER, [(header::LOCATION, location), (header::SET_COOKIE, set_cookie)]).into_response())
}

fn failed(status: StatusCode, text: &str) -> Response {
    forms::html(status, page::message("You are not signed in", text))
}

fn begin_again(state: &ApiState) -> Response {
    let text = format!(
        "This is no answer to a sign-in that began in this browser within the last ten minutes. Begin again at {}, with cookies on.",
        state.config.url("/activate")
    );
    failed(StatusCode::BAD_REQUEST, &text)
}

fn unreachable(provider: &Provider, error: &Failure) -> Response {
    tracing::error!(provider = provider.name(), %error, "an identity provider can't be used");
    failed(
        StatusCode::BAD_GATEWAY,
        "The identity provider does not answer as it should. Try again in a while; its operator finds why in the log.",
    )
}

/// A sign-in that has come to its end, in one way or the other.
fn forgetting(state: &ApiState, mut response: Response) -> Result<Response, ApiError> {
    response.headers_mut().append(header::SET_COOKIE, cookie::forget(state)?);
    Ok(response)
}
