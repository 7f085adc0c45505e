//! Secrets that stay in the cloud's own secrets manager: a job's record names them, and they are read when the job needs them.

use async_trait::async_trait;
use ckrv_core::id::UserId;
use secrecy::SecretString;

use crate::error::StoreError;

/// A reference as its owner wrote it, checked: `aws-secrets-manager:NAME` or `aws-ssm:/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    pub manager: Manager,
    pub name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manager {
    SecretsManager,
    ParameterStore,
}

#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// The text is no reference, or one to what this owner may not read. The message says what may be named.
    #[error("{0}")]
    Refused(String),
    #[error("`{0}` does not exist in the secrets manager, or this service may not read it")]
    NotFound(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Reference {
    /// Reads a reference. An owner may name what lies under `ckrv/users/OWNER/` and `ckrv/shared/`, and nothing else: the service can read
    /// more than one user may.
    ///
    /// # Errors
    /// [`ReferenceError::Refused`] with what may be named.
    pub fn parse(owner: UserId, text: &str) -> Result<Self, ReferenceError> {
        let refused = || {
            ReferenceError::Refused(format!(
                "a reference is `aws-secrets-manager:ckrv/users/{owner}/NAME`, `aws-secrets-manager:ckrv/shared/NAME`, or the same with `aws-ssm:/`"
            ))
        };
        let (manager, name) = text.split_once(':').ok_or_else(refused)?;
        let (manager, path) = match manager {
            "aws-secrets-manager" => (Manager::SecretsManager, name),
            "aws-ssm" => (Manager::ParameterStore, name.strip_prefix('/').ok_or_else(refused)?),
            _ => return Err(refused()),
        };
        let own = format!("ckrv/users/{owner}/");
        let rest = path.strip_prefix(&own).or_else(|| path.strip_prefix("ckrv/shared/")).ok_or_else(refused)?;
        let plain = |segment: &str| {
            !segment.is_empty()
                && segment != "."
                && segment != ".."
                && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        };
        if rest.len() > 200 || !rest.split('/').all(plain) {
            return Err(refused());
        }
        Ok(Self { manager, name: name.to_owned() })
    }
}

/// Reads what a reference names. Held by the dispatcher only.
#[async_trait]
pub trait References: Send + Sync {
    async fn resolve(&self, reference: &Reference) -> Result<SecretString, ReferenceError>;
}

/// The embedded default: there is no secrets manager.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoReferences;

#[async_trait]
impl References for NoReferences {
    async fn resolve(&self, _: &Reference) -> Result<SecretString, ReferenceError> {
        Err(ReferenceError::Refused("this service has no secrets manager: store the value itself".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_may_name_only_their_own_and_the_shared() {
        let owner: UserId = "0190c3f0-0000-7000-8000-000000000001".parse().unwrap();
        let own = format!("aws-secrets-manager:ckrv/users/{owner}/model-key");
        assert_eq!(Reference::parse(owner, &own).unwrap().name, format!("ckrv/users/{owner}/model-key"));
        let shared = Reference::parse(owner, "aws-ssm:/ckrv/shared/team/key").unwrap();
        assert_eq!((shared.manager, shared.name.as_str()), (Manager::ParameterStore, "/ckrv/shared/team/key"));
        for refused in [
            "aws-secrets-manager:ckrv/users/0190c3f0-0000-7000-8000-000000000002/model-key",
            "aws-secrets-manager:prod/database",
            "aws-secrets-manager:ckrv/shared/../users/x",
            "aws-secrets-manager:ckrv/shared/",
            "aws-ssm:ckrv/shared/key",
            "vault:ckrv/shared/key",
            "arn:aws:secretsmanager:us-east-1:1:secret:ckrv/shared/x",
            "",
        ] {
            assert!(matches!(Reference::parse(owner, refused), Err(ReferenceError::Refused(_))), "{refused}");
        }
    }
}
