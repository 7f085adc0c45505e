//! `POST /v1/auth/revoke` (RFC 7009): who holds a token may end it.

use axum::extract::State;
use axum::http::StatusCode;
use ckrv_core::wire::{Problem, RevokeRequest};
use ckrv_store::ServiceToken;

use crate::audit::{Origin, audit};
use crate::auth::tokens::{self, Revocable};
use crate::error::ApiError;
use crate::extract::FormBody;
use crate::state::ApiState;

/// Ends a token: with a refresh or access token the whole login, with a service token that token. The answer is the same for a token
/// that is not good, so that it tells nothing.
#[utoipa::path(post, path = "/v1/auth/revoke", tag = "auth", security(()),
    request_body(content = RevokeRequest, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, description = "It is worth nothing now"), (status = 400, description = "OAuth error", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn revoke_token(State(state): State<ApiState>, origin: Origin, form: FormBody) -> Result<StatusCode, ApiError> {
    let Some(token) = form.get("token").filter(|token| !token.is_empty()) else {
        return Err(ApiError::oauth("invalid_request", "`token` is missing."));
    };
    match tokens::revocable(&state, token).await? {
        Some(Revocable::Family(family)) => {
            state.stores.accounts.revoke_family(&family.id).await?;
            audit(&state, &origin.who(family.user, Some(family.user)).via(&family.id), "session.revoke", &family.id).await;
        }
        Some(Revocable::Service(service)) => end_service_token(&state, &origin, &service).await?,
        None => {}
    }
    Ok(StatusCode::OK)
}

async fn end_service_token(state: &ApiState, origin: &Origin, token: &ServiceToken) -> Result<(), ApiError> {
    if state.stores.accounts.delete_service_token(token.owner, &token.id).await? {
        let who = origin.who(token.owner, Some(token.owner)).via(&token.id);
        audit(state, &who, "service_token.delete", &token.id).await;
    }
    Ok(())
}
