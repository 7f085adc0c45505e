//! `GET /v1/webhooks/secret`

use axum::extract::State;
use ckrv_core::webhook::{signing_secret, webhook_key};
use ckrv_core::wire::WebhookSecret;
use secrecy::ExposeSecret as _;

use crate::extract::Caller;
use crate::state::ApiState;

/// What the caller's webhook deliveries are signed with.
#[utoipa::path(get, path = "/v1/webhooks/secret", tag = "webhooks", responses((status = 200, body = WebhookSecret)))]
pub(crate) async fn get_webhook_secret(State(state): State<ApiState>, Caller(user): Caller) -> axum::Json<WebhookSecret> {
    let key = webhook_key(state.config.hmac_key.expose_secret().as_bytes());
    axum::Json(WebhookSecret { secret: signing_secret(key.as_bytes(), user.id) })
}
