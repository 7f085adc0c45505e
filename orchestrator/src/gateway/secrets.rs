//! What a job runner gets once: the job's git credential, and the secrets of its slots.

use axum::Json;
use axum::extract::{Path as UrlPath, State as AxumState};
use ckrv_core::id::{ClaimId, Fence, JobId};
use ckrv_core::machine::{Refusal, Verb};
use ckrv_store::{Reference, SealContext, SecretValue, VerbError};
use sha2::{Digest as _, Sha256};

use super::denied::Denied;
use super::server::{Attempt, GatewayServer, Shared};
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
    let missing = || Denied(Denial::Missing(format!("the credential `{name}`")));
    let credential = gateway.stores().accounts.credential(record.owner, name).await?.ok_or_else(missing)?;
    hand_out(&gateway, (job, fence, claim), "git", &body.nonce).await?;
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
    let given_out = format!("slot/{slot}");
    let hand_out = || hand_out(&gateway, (job, fence, claim), &given_out, &body.nonce);
    // Slot <- the name that the job gives it, else the owner's own secret of that name, else the operator's.
    let given = record.request.secrets.get(&slot);
    let name = given.unwrap_or(&slot);
    if let Some(secret) = gateway.stores().accounts.secret(record.owner, name).await? {
        hand_out().await?;
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
    let value = gateway.settings().operator_secrets.get(&slot).cloned();
    if value.is_some() {
        hand_out().await?;
    }
    Ok(Json(SecretAnswer { value }))
}

/// Once in an attempt, whichever replica is asked: the store decides. The same question may be repeated for a while, because an answer can be
/// lost on its way.
async fn hand_out(
    gateway: &GatewayServer,
    (job, fence, claim): (JobId, Fence, ClaimId),
    name: &str,
    nonce: &str,
) -> Result<(), Denied> {
    // Records are for more eyes than the nonce is.
    let to = hex::encode(&Sha256::digest(nonce)[..8]);
    let verb = Verb::HandOut { claim, fence, name: name.to_owned(), to };
    match gateway.stores().jobs.apply(job, &verb, gateway.now()).await {
        Err(VerbError::Refused { refusal: Refusal::HandedOut, .. }) => Err(Denied(Denial::HandedOut)),
        answer => Ok(answer.map(drop)?),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::Timestamp;
    use secrecy::{ExposeSecret as _, SecretString};

    use super::*;
    use crate::fixture;
    use crate::settings::Settings;

    async fn ask(gateway: &Arc<GatewayServer>, attempt: (JobId, Fence, ClaimId), nonce: &str) -> Result<String, Denial> {
        let (job, fence, claim) = attempt;
        let path = UrlPath((job, fence, claim, "api-key".to_owned()));
        let answer = secret(AxumState(Arc::clone(gateway)), path, Json(SecretRequest { nonce: nonce.to_owned() })).await;
        answer.map(|answer| answer.0.value.unwrap().expose_secret().to_owned()).map_err(|denied| denied.0)
    }

    #[tokio::test]
    async fn two_replicas_give_a_secret_once_and_so_does_one_that_was_started_again() {
        let (stores, _folder) = fixture::stores().await;
        let operator_secrets = [("api-key".to_owned(), SecretString::from("a key"))].into();
        let settings = Arc::new(Settings { operator_secrets, ..fixture::settings() });
        let gateway = || GatewayServer::new(stores.clone(), Arc::clone(&settings), SecretString::from("k"), Timestamp::now);
        let new = fixture::new_job(ckrv_core::id::UserId(uuid::Uuid::now_v7()), Timestamp::now());
        let id = new.job.id;
        stores.jobs.create_job(new, Timestamp::now()).await.unwrap();
        let job = fixture::claim(&stores, id, Timestamp::now()).await;
        let attempt = (id, job.fence, job.lease.unwrap().claim);
        let (one, other) = (gateway(), gateway());
        assert_eq!(ask(&one, attempt, "a").await, Ok("a key".to_owned()));
        assert_eq!(ask(&other, attempt, "a").await, Ok("a key".to_owned()), "the first answer may have been lost");
        assert_eq!(ask(&other, attempt, "b").await, Err(Denial::HandedOut));
        assert_eq!(ask(&gateway(), attempt, "b").await, Err(Denial::HandedOut), "after a restart");
    }
}
