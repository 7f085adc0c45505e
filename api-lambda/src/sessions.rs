//! `/v1/sessions`: the caller's logins, and their end.

use axum::extract::State;
use axum::http::StatusCode;
use ckrv_core::wire::{Problem, SessionInfo, SessionList};

use crate::audit::{Who, audit};
use crate::error::ApiError;
use crate::extract::{Caller, Name};
use crate::state::ApiState;

/// The logins that are good now, oldest first.
#[utoipa::path(get, path = "/v1/sessions", tag = "tokens",
    responses((status = 200, body = SessionList), (status = 403, description = "With a service token", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn list_sessions(
    State(state): State<ApiState>,
    Caller(user): Caller,
    who: Who,
) -> Result<axum::Json<SessionList>, ApiError> {
    let now = state.now();
    let families = state.stores.accounts.families_of(user.id).await?;
    let sessions = families.into_iter().filter(|family| !family.revoked && now < family.expires_at).map(|family| SessionInfo {
        current: who.via.as_ref() == Some(&family.id),
        renewed_at: family.previous.map_or(family.created_at, |previous| previous.rotated_at),
        created_at: family.created_at,
        expires_at: family.expires_at,
        id: family.id,
    });
    Ok(axum::Json(SessionList { sessions: sessions.collect() }))
}

/// Ends a login: its tokens are worth nothing from then on.
#[utoipa::path(delete, path = "/v1/sessions/{id}", tag = "tokens", params(("id" = String, Path)),
    responses((status = 204), (status = 404, body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn delete_session(
    State(state): State<ApiState>,
    Caller(user): Caller,
    who: Who,
    Name(id): Name,
) -> Result<StatusCode, ApiError> {
    let family = state.stores.accounts.family(&id).await?.filter(|family| family.user == user.id && !family.revoked);
    if family.is_none() {
        return Err(ApiError::not_found("session_not_found", "There is no login of that id."));
    }
    state.stores.accounts.revoke_family(&id).await?;
    audit(&state, &who, "session.revoke", id).await;
    Ok(StatusCode::NO_CONTENT)
}
