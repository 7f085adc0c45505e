//! References to values in Secrets Manager and in Systems Manager's Parameter Store.

use async_trait::async_trait;
use aws_sdk_secretsmanager::primitives::Blob;
use secrecy::SecretString;
use zeroize::Zeroizing;

use super::failure::{code, failure};
use crate::references::{Manager, Reference, ReferenceError, References};

/// What a secret may be at most, here and at Secrets Manager itself.
const LONGEST: usize = 64 * 1024;

/// Reads what a reference names. What may be named is decided by [`Reference::parse`] and, once more, by the role's policy.
#[derive(Clone, Debug)]
pub(super) struct AwsReferences {
    secrets_manager: aws_sdk_secretsmanager::Client,
    parameters: aws_sdk_ssm::Client,
}

impl AwsReferences {
    pub(super) fn new(secrets_manager: aws_sdk_secretsmanager::Client, parameters: aws_sdk_ssm::Client) -> Self {
        Self { secrets_manager, parameters }
    }

    async fn secret(&self, name: &str) -> Result<Zeroizing<Vec<u8>>, ReferenceError> {
        let answer =
            self.secrets_manager.get_secret_value().secret_id(name).send().await.map_err(|error| match code(&error) {
                // "Invalid request" is how a secret that waits for its deletion is refused.
                Some("ResourceNotFoundException" | "AccessDeniedException" | "InvalidRequestException") => not_found(name),
                _ => failure(format!("reading {name} from Secrets Manager"), &error).into(),
            })?;
        let text = answer.secret_string.map(String::into_bytes);
        let value = text.or_else(|| answer.secret_binary.map(Blob::into_inner));
        value.map(Zeroizing::new).ok_or_else(|| not_found(name))
    }

    async fn parameter(&self, name: &str) -> Result<Zeroizing<Vec<u8>>, ReferenceError> {
        let answer =
            self.parameters.get_parameter().name(name).with_decryption(true).send().await.map_err(|error| {
                match code(&error) {
                    Some("ParameterNotFound" | "AccessDeniedException") => not_found(name),
                    _ => failure(format!("reading {name} from Parameter Store"), &error).into(),
                }
            })?;
        let value = answer.parameter.and_then(|parameter| parameter.value);
        value.map(|value| Zeroizing::new(value.into_bytes())).ok_or_else(|| not_found(name))
    }
}

#[async_trait]
impl References for AwsReferences {
    async fn resolve(&self, reference: &Reference) -> Result<SecretString, ReferenceError> {
        let name = &reference.name;
        let value = match reference.manager {
            Manager::SecretsManager => self.secret(name).await?,
            Manager::ParameterStore => self.parameter(name).await?,
        };
        if value.len() > LONGEST {
            return Err(ReferenceError::Refused(format!("the value of `{name}` is longer than {} KiB", LONGEST / 1024)));
        }
        let not_text = |_| ReferenceError::Refused(format!("the value of `{name}` is not text (UTF-8)"));
        let text = std::str::from_utf8(&value).map_err(not_text)?;
        // As `$(…)` in a shell does it: files end with a line end, keys do not.
        let text = text.strip_suffix('\n').map_or(text, |line| line.strip_suffix('\r').unwrap_or(line));
        Ok(SecretString::from(text))
    }
}

fn not_found(name: &str) -> ReferenceError {
    ReferenceError::NotFound(name.to_owned())
}
