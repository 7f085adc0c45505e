//! What a job runner gets once: the job's git credential, and the secrets of its slots.

use axum::Json;
use axum::extract::{Path as UrlPath, State as AxumState};
use ckrv_core::id::{ClaimId, Fence, JobId};
use ckrv_store::{Reference, SealContext, SecretValue};

use super::denied::Denied;
use super::server::{Attempt, Shared};
use super::wire::{Denial, SecretAnswer, SecretRequest};
use crate::git::GitCredential;

pub(super) async fn credential(
    AxumState(gateway): Shared,
    UrlPath((job, fence, claim)): Attempt,
    Json(body): Json<SecretRequest>,
) -> Result<Json<Option<GitCredential>>, Denied> {
    let record = gateway.held(job, fence, claim).await?;
    let Some(name) = &record.request.git_credential_name else {
        return Ok(Json(None));
    };
    if !gateway.once().allow(job, fence, "git", &body.nonce) {
        return Err(Denied(Denial::HandedOut));
    }
    let missing = || Denied(Denial::Missing(format!("the credential `{name}`")));
    let credential = gateway.stores().accounts.credential(record.owner, name).await?.ok_or_else(missing)?;
    let owner = record.owner.to_string();
    let value = gateway.stores().opener.open(SealContext { owner: &owner, kind: "credential", name }, &credential.value).await?;
    gateway.stores().accounts.credential_used(record.owner, name, gateway.now()).await?;
    Ok(Json(Some(GitCredential {
        name: credential.name,
        provider: credential.provider,
        credential_type: credential.credential_type,
        hosts: credential.hosts,
        known_hosts: credential.known_hosts,
        value,
    })))
}

pub(super) async fn secret(
    AxumState(gateway): Shared,
    UrlPath((job, fence, claim, slot)): UrlPath<(JobId, Fence, ClaimId, String)>,
    Json(body): Json<SecretRequest>,
) -> Result<Json<SecretAnswer>, Denied> {
    let record = gateway.held(job, fence, claim).await?;
    if !gateway.once().allow(job, fence, &slot, &body.nonce) {
        return Err(Denied(Denial::HandedOut));
    }
    // Slot <- the name that the job gives it, else the owner's own secret of that name, else the operator's.
    let given = record.request.secrets.get(&slot);
    let name = given.unwrap_or(&slot);
    if let Some(secret) = gateway.stores().accounts.secret(record.owner, name).await? {
        let owner = record.owner.to_string();
        let value = match &secret.value {
            SecretValue::Sealed(sealed) => {
                gateway.stores().opener.open(SealContext { owner: &owner, kind: "secret", name }, sealed).await?
            }
            // Checked again: the record says what its owner once might name, the rule of today says what they may.
            SecretValue::Reference { reference } => {
                let reference = Reference::parse(record.owner, reference)?;
                gateway.stores().references.resolve(&reference).await?
            }
        };
        gateway.stores().accounts.secret_used(record.owner, name, gateway.now()).await?;
        return Ok(Json(SecretAnswer { value: Some(value) }));
    }
    if given.is_some() {
        return Err(Denied(Denial::Missing(format!("the secret `{name}`"))));
    }
    Ok(Json(SecretAnswer { value: gateway.settings().operator_secrets.get(&slot).cloned() }))
}
