//! `/v1/secrets`: an agent's API keys, write-only.

use axum::extract::State;
use axum::http::StatusCode;
use ckrv_core::wire::{CreateSecret, MAX_CREDENTIAL_BYTES, Problem, SecretInfo, SecretList};
use ckrv_store::{Put, Reference, SealContext, Secret, SecretValue, User};
use secrecy::SecretString;

use crate::audit::{Who, audit};
use crate::credentials::{MAX_STORED, check_name, name_taken};
use crate::error::ApiError;
use crate::extract::{Caller, Json, Name};
use crate::state::ApiState;

fn info(secret: Secret) -> SecretInfo {
    let reference = match secret.value {
        SecretValue::Reference { reference } => Some(reference),
        SecretValue::Sealed(_) => None,
    };
    SecretInfo { name: secret.name, created_at: secret.created_at, last_used_at: secret.last_used_at, reference }
}

/// The names of the stored secrets.
#[utoipa::path(get, path = "/v1/secrets", tag = "secrets", responses((status = 200, body = SecretList)))]
pub(crate) async fn list_secrets(
    State(state): State<ApiState>,
    Caller(user): Caller,
) -> Result<axum::Json<SecretList>, ApiError> {
    let secrets = state.stores.accounts.secrets(user.id).await?.into_iter().map(info).collect();
    Ok(axum::Json(SecretList { secrets }))
}

/// Stores a secret, whose value can't be read back, or a reference to one in the cloud's own secrets manager.
#[utoipa::path(post, path = "/v1/secrets", tag = "secrets", request_body = CreateSecret,
    responses((status = 201, body = SecretInfo), (status = 409, body = Problem, content_type = "application/problem+json"), (status = 422, body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn create_secret(
    State(state): State<ApiState>,
    Caller(user): Caller,
    who: Who,
    Json(body): Json<CreateSecret>,
) -> Result<(StatusCode, axum::Json<SecretInfo>), ApiError> {
    check_name(&body.name)?;
    let given = check_given(&state, &user, body.value, body.reference)?;
    if state.stores.accounts.secrets(user.id).await?.len() >= MAX_STORED {
        return Err(ApiError::invalid("too_many_secrets", format!("At most {MAX_STORED} secrets can be stored.")));
    }
    let value = match given {
        Given::Reference(reference) => SecretValue::Reference { reference },
        Given::Value(value) => {
            let owner = user.id.to_string();
            let context = SealContext { owner: &owner, kind: "secret", name: &body.name };
            SecretValue::Sealed(state.stores.sealer.seal(context, &value).await?)
        }
    };
    let secret = Secret { name: body.name, value, created_at: state.now(), last_used_at: None };
    match state.stores.accounts.put_secret(user.id, &secret).await? {
        Put::Done => {
            audit(&state, &who, "secret.create", &secret.name).await;
            Ok((StatusCode::CREATED, axum::Json(info(secret))))
        }
        Put::Exists => Err(name_taken(&secret.name)),
    }
}

enum Given {
    Value(SecretString),
    Reference(String),
}

/// Exactly one of both, and a reference only to what this user may name.
fn check_given(state: &ApiState, user: &User, value: Option<String>, reference: Option<String>) -> Result<Given, ApiError> {
    match (value, reference) {
        (Some(value), None) if value.trim().is_empty() || value.len() > MAX_CREDENTIAL_BYTES => {
            Err(ApiError::invalid("invalid_value", format!("`value` must be 1 to {MAX_CREDENTIAL_BYTES} bytes.")))
        }
        (Some(value), None) => Ok(Given::Value(SecretString::from(value))),
        (None, Some(_)) if !state.config.references => {
            Err(ApiError::invalid("no_references", "This service has no secrets manager.").hint("store the value itself"))
        }
        (None, Some(reference)) => match Reference::parse(user.id, &reference) {
            Ok(_) => Ok(Given::Reference(reference)),
            Err(error) => {
                Err(ApiError::invalid("invalid_reference", "This secret can't be referred to.").hint(error.to_string()))
            }
        },
        _ => Err(ApiError::invalid("invalid_body", "A secret has either a `value` or a `reference`.")),
    }
}

/// Deletes a secret.
#[utoipa::path(delete, path = "/v1/secrets/{name}", tag = "secrets", params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn delete_secret(
    State(state): State<ApiState>,
    Caller(user): Caller,
    who: Who,
    Name(name): Name,
) -> Result<StatusCode, ApiError> {
    if state.stores.accounts.delete_secret(user.id, &name).await? {
        audit(&state, &who, "secret.delete", name).await;
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(ApiError::not_found("secret_not_found", "There is no secret of that name."))
}
