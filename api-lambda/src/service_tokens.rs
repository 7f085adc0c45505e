//! `/v1/tokens`: tokens for automation, each with the scopes it was given.

use axum::extract::State;
use axum::http::StatusCode;
use ckrv_core::wire::{CreateServiceToken, CreatedServiceToken, Problem, Scope, ServiceTokenInfo, ServiceTokenList};
use ckrv_store::{Put, Role, ServiceToken};
use jiff::SignedDuration;

use crate::audit::{Who, audit};
use crate::auth::keys;
use crate::auth::tokens::SERVICE_PREFIX;
use crate::credentials::MAX_STORED;
use crate::error::ApiError;
use crate::extract::{Caller, Json, Name};
use crate::state::ApiState;

const MAX_DAYS: u32 = 3650;

fn info(token: ServiceToken) -> ServiceTokenInfo {
    ServiceTokenInfo {
        id: token.id,
        name: token.name,
        scopes: token.scopes,
        created_at: token.created_at,
        expires_at: token.expires_at,
        last_used_at: token.last_used_at,
    }
}

/// The caller's service tokens, without the tokens themselves.
#[utoipa::path(get, path = "/v1/tokens", tag = "tokens",
    responses((status = 200, body = ServiceTokenList), (status = 403, description = "With a service token", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn list_tokens(
    State(state): State<ApiState>,
    Caller(user): Caller,
) -> Result<axum::Json<ServiceTokenList>, ApiError> {
    let tokens = state.stores.accounts.service_tokens(user.id).await?.into_iter().map(info).collect();
    Ok(axum::Json(ServiceTokenList { tokens }))
}

/// Makes a service token. The answer is the only one that holds it.
#[utoipa::path(post, path = "/v1/tokens", tag = "tokens", request_body = CreateServiceToken,
    responses((status = 201, body = CreatedServiceToken),
        (status = 403, description = "With a service token, or the scope `admin` without being one", body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn create_token(
    State(state): State<ApiState>,
    Caller(user): Caller,
    who: Who,
    Json(body): Json<CreateServiceToken>,
) -> Result<(StatusCode, axum::Json<CreatedServiceToken>), ApiError> {
    let (name, scopes) = (name(&body)?, scopes(&body)?);
    if scopes.contains(&Scope::Admin) && user.role != Role::Admin {
        return Err(ApiError::new(StatusCode::FORBIDDEN, "admin_only", "Only an admin can give the scope `admin`."));
    }
    if state.stores.accounts.service_tokens(user.id).await?.len() >= MAX_STORED {
        return Err(ApiError::invalid("too_many_tokens", format!("At most {MAX_STORED} service tokens can be kept."))
            .hint("revoke one that is not used any more"));
    }
    let now = state.now();
    let token = format!("{SERVICE_PREFIX}{}", keys::random_token());
    let record = ServiceToken {
        id: uuid::Uuid::now_v7().to_string(),
        sha256: keys::sha256_hex(token.as_bytes()),
        owner: user.id,
        name,
        scopes: scopes.iter().map(ToString::to_string).collect(),
        created_at: now,
        expires_at: body.expires_in_days.map(|days| now + SignedDuration::from_hours(24 * i64::from(days))),
        last_used_at: None,
    };
    if state.stores.accounts.put_service_token(&record).await? == Put::Exists {
        return Err(ApiError::internal("two service tokens have the same id or the same 256 random bits"));
    }
    audit(&state, &who, "service_token.create", format!("{} {} [{}]", record.id, record.name, record.scopes.join(" "))).await;
    Ok((StatusCode::CREATED, axum::Json(CreatedServiceToken { info: info(record), token })))
}

fn name(body: &CreateServiceToken) -> Result<String, ApiError> {
    let name = body.name.trim();
    if name.is_empty() || name.chars().count() > 100 || name.chars().any(char::is_control) {
        return Err(ApiError::invalid("invalid_name", "`name` must be one line of 1 to 100 characters."));
    }
    Ok(name.to_owned())
}

fn scopes(body: &CreateServiceToken) -> Result<Vec<Scope>, ApiError> {
    let mut scopes = body.scopes.clone();
    scopes.sort_unstable();
    scopes.dedup();
    if scopes.is_empty() {
        return Err(ApiError::invalid("invalid_scope", "A service token needs at least one scope."));
    }
    if body.expires_in_days.is_some_and(|days| !(1..=MAX_DAYS).contains(&days)) {
        return Err(ApiError::invalid("invalid_expiry", format!("`expires_in_days` must be 1 to {MAX_DAYS}.")));
    }
    Ok(scopes)
}

/// Revokes a service token.
#[utoipa::path(delete, path = "/v1/tokens/{id}", tag = "tokens", params(("id" = String, Path)),
    responses((status = 204), (status = 404, body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn delete_token(
    State(state): State<ApiState>,
    Caller(user): Caller,
    who: Who,
    Name(id): Name,
) -> Result<StatusCode, ApiError> {
    if state.stores.accounts.delete_service_token(user.id, &id).await? {
        audit(&state, &who, "service_token.delete", id).await;
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(ApiError::not_found("token_not_found", "There is no service token of that id."))
}
