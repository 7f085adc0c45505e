//! `/v1/credentials`: git tokens and deploy keys, write-only.

mod check;

use axum::extract::State;
use axum::http::StatusCode;
use ckrv_core::wire::{CreateCredential, CredentialInfo, CredentialList, Problem};
use ckrv_store::{Credential, Put, SealContext};
use secrecy::SecretString;

pub(crate) use check::check_name;

use crate::audit::{Who, audit};
use crate::error::ApiError;
use crate::extract::{Caller, Json, Name};
use crate::state::ApiState;

/// Most credentials, and most secrets, of one user.
pub(crate) const MAX_STORED: usize = 100;

fn info(credential: Credential) -> CredentialInfo {
    CredentialInfo {
        name: credential.name,
        provider: credential.provider,
        credential_type: credential.credential_type,
        created_at: credential.created_at,
        last_used_at: credential.last_used_at,
        hosts: credential.hosts,
    }
}

/// The stored credentials, without their values.
#[utoipa::path(get, path = "/v1/credentials", tag = "credentials", responses((status = 200, body = CredentialList)))]
pub(crate) async fn list_credentials(
    State(state): State<ApiState>,
    Caller(user): Caller,
) -> Result<axum::Json<CredentialList>, ApiError> {
    let credentials = state.stores.accounts.credentials(user.id).await?.into_iter().map(info).collect();
    Ok(axum::Json(CredentialList { credentials }))
}

/// Stores a credential. Its value can't be read back.
#[utoipa::path(post, path = "/v1/credentials", tag = "credentials", request_body = CreateCredential,
    responses((status = 201, body = CredentialInfo), (status = 409, body = Problem, content_type = "application/problem+json"), (status = 422, body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn create_credential(
    State(state): State<ApiState>,
    Caller(user): Caller,
    who: Who,
    Json(body): Json<CreateCredential>,
) -> Result<(StatusCode, axum::Json<CredentialInfo>), ApiError> {
    let checked = check::check(body)?;
    if state.stores.accounts.credentials(user.id).await?.len() >= MAX_STORED {
        return Err(ApiError::invalid("too_many_credentials", format!("At most {MAX_STORED} credentials can be stored.")));
    }
    let owner = user.id.to_string();
    let context = SealContext { owner: &owner, kind: "credential", name: &checked.name };
    let value = state.stores.sealer.seal(context, &SecretString::from(checked.value)).await?;
    let credential = Credential {
        name: checked.name,
        provider: checked.provider,
        credential_type: checked.credential_type,
        hosts: checked.hosts.unwrap_or_default(),
        known_hosts: checked.known_hosts,
        value,
        created_at: state.now(),
        last_used_at: None,
    };
    match state.stores.accounts.put_credential(user.id, &credential).await? {
        Put::Done => {
            audit(&state, &who, "credential.create", &credential.name).await;
            Ok((StatusCode::CREATED, axum::Json(info(credential))))
        }
        Put::Exists => Err(name_taken(&credential.name)),
    }
}

/// Deletes a credential.
#[utoipa::path(delete, path = "/v1/credentials/{name}", tag = "credentials", params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn delete_credential(
    State(state): State<ApiState>,
    Caller(user): Caller,
    who: Who,
    Name(name): Name,
) -> Result<StatusCode, ApiError> {
    if state.stores.accounts.delete_credential(user.id, &name).await? {
        audit(&state, &who, "credential.delete", name).await;
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(ApiError::not_found("credential_not_found", "There is no credential of that name."))
}

pub(crate) fn name_taken(name: &str) -> ApiError {
    ApiError::new(StatusCode::CONFLICT, "name_taken", format!("The name `{name}` is taken."))
        .hint("delete it first, or choose another name")
}
