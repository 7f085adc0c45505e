//! `POST /v1/auth/refresh`

use axum::extract::State;
use ckrv_core::wire::{Problem, REFRESH_GRANT, RefreshRequest, TokenResponse};

use crate::audit::Origin;
use crate::auth::tokens;
use crate::error::ApiError;
use crate::extract::Json;
use crate::state::ApiState;

/// Exchanges a refresh token for a new pair.
#[utoipa::path(post, path = "/v1/auth/refresh", tag = "auth", request_body = RefreshRequest, security(()),
    responses((status = 200, body = TokenResponse), (status = 400, description = "OAuth error", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn refresh_token(
    State(state): State<ApiState>,
    origin: Origin,
    Json(body): Json<RefreshRequest>,
) -> Result<axum::Json<TokenResponse>, ApiError> {
    if body.grant_type != REFRESH_GRANT {
        return Err(ApiError::oauth("unsupported_grant_type", format!("`grant_type` must be `{REFRESH_GRANT}`.")));
    }
    Ok(axum::Json(tokens::rotate(&state, &body.refresh_token, &origin).await?))
}
