//! `POST /v1/auth/device` and `POST /v1/auth/token`: the device flow (RFC 8628).

use axum::extract::State;
use axum::http::StatusCode;
use ckrv_core::wire::{DEVICE_GRANT, DeviceRequest, DeviceResponse, Problem, TokenRequest, TokenResponse};
use ckrv_store::{DeviceLogin, DeviceState};

use crate::audit::Origin;
use crate::auth::keys;
use crate::auth::tokens::{self, seconds};
use crate::error::ApiError;
use crate::extract::Json;
use crate::state::ApiState;

/// Begins a login on a device.
#[utoipa::path(post, path = "/v1/auth/device", tag = "auth", request_body = DeviceRequest, security(()),
    responses((status = 200, body = DeviceResponse), (status = 429, body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn start_device_login(
    State(state): State<ApiState>,
    Json(body): Json<DeviceRequest>,
) -> Result<axum::Json<DeviceResponse>, ApiError> {
    let now = state.now();
    let plain = (1..=100).contains(&body.client_id.len()) && body.client_id.bytes().all(|byte| byte.is_ascii_graphic());
    if !plain {
        return Err(ApiError::oauth("invalid_request", "`client_id` must be 1 to 100 visible characters."));
    }
    let too_many = |wait| ApiError::later(StatusCode::TOO_MANY_REQUESTS, "too_many_logins", "Too many logins were begun.", wait);
    state.device_window.enter(now).map_err(too_many)?;
    let device_code = keys::random_token();
    let user_code = keys::random_user_code();
    let login = DeviceLogin {
        device_sha256: keys::sha256_hex(device_code.as_bytes()),
        user_code_hmac: user_code_hmac(&state, &user_code),
        client_id: body.client_id,
        state: DeviceState::Pending,
        user: None,
        created_at: now,
        expires_at: now + seconds(state.config.device_ttl_seconds),
        interval_seconds: state.config.device_interval_seconds,
        last_poll: None,
    };
    state.stores.accounts.put_device(&login).await?;
    Ok(axum::Json(DeviceResponse {
        device_code,
        verification_uri: state.config.url("/activate"),
        verification_uri_complete: Some(state.config.url(&format!("/activate?user_code={user_code}"))),
        user_code,
        expires_in: state.config.device_ttl_seconds,
        interval: login.interval_seconds,
    }))
}

pub(crate) fn user_code_hmac(state: &ApiState, code: &str) -> String {
    hex::encode(keys::keyed(&state.config.hmac_key, "user-code", &keys::normal_code(code)))
}

/// Asks whether a login on a device was confirmed, and fetches its tokens, once.
#[utoipa::path(post, path = "/v1/auth/token", tag = "auth", request_body = TokenRequest, security(()),
    responses((status = 200, body = TokenResponse), (status = 400, description = "OAuth error: `authorization_pending`, `slow_down`, `access_denied`, `expired_token`", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn fetch_token(
    State(state): State<ApiState>,
    origin: Origin,
    Json(body): Json<TokenRequest>,
) -> Result<axum::Json<TokenResponse>, ApiError> {
    if body.grant_type != DEVICE_GRANT {
        return Err(ApiError::oauth("unsupported_grant_type", format!("`grant_type` must be `{DEVICE_GRANT}`.")));
    }
    let found = state.stores.accounts.device(&keys::sha256_hex(body.device_code.as_bytes())).await?;
    let unknown = || ApiError::oauth("invalid_grant", "The device code is not valid, or its tokens were fetched before.");
    let mut login = found.filter(|login| login.client_id == body.client_id).ok_or_else(unknown)?;
    let now = state.now();
    if login.state == DeviceState::Used {
        return Err(unknown());
    }
    if now >= login.expires_at {
        return Err(
            ApiError::oauth("expired_token", "The login was not confirmed in time.").hint("begin again with `ckrv cloud login`")
        );
    }
    match (login.state, login.user) {
        (DeviceState::Denied, _) => Err(ApiError::oauth("access_denied", "The login was denied.")),
        (DeviceState::Approved, Some(user)) => {
            if tokens::good_user(&state, user).await?.is_none() {
                return Err(ApiError::oauth("access_denied", "The login was denied."));
            }
            login.state = DeviceState::Used;
            // Only one of two polls at once wins this.
            if !state.stores.accounts.update_device(&login, DeviceState::Approved).await? {
                return Err(unknown());
            }
            Ok(axum::Json(tokens::issue(&state, user, &login.client_id, &origin).await?))
        }
        _ => Err(still_pending(&state, login).await?),
    }
}

async fn still_pending(state: &ApiState, mut login: DeviceLogin) -> Result<ApiError, ApiError> {
    let now = state.now();
    let too_fast = login.last_poll.is_some_and(|last| now.duration_since(last) < seconds(login.interval_seconds));
    login.last_poll = Some(now);
    // If it was confirmed in between, the next poll sees it.
    state.stores.accounts.update_device(&login, DeviceState::Pending).await?;
    Ok(if too_fast {
        ApiError::oauth("slow_down", format!("Wait {} seconds between two polls.", login.interval_seconds))
    } else {
        ApiError::oauth("authorization_pending", "The login is not confirmed yet.")
    })
}
