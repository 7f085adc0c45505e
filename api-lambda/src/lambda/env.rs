//! What a function is told: environment variables, and in one of them the API's configuration as TOML.

use ckrv_store::{AwsConfig, Endpoints};
use url::Url;

use crate::settings::ApiSettings;

/// How Lambda takes answers; must be what the function URL was made with (an HTTP API knows only the first).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Invoke {
    Buffered,
    Stream,
}

#[derive(Debug)]
pub(super) struct Environment {
    pub store: AwsConfig,
    /// Name or ARN of the Secrets Manager secret that keys user codes, CSRF tokens and the like.
    pub server_key_secret: String,
    pub settings: ApiSettings,
    pub invoke: Invoke,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum EnvError {
    #[error("the environment variable {0} is missing")]
    Missing(&'static str),
    #[error("the environment variable {name} can't be used: {why}")]
    Bad { name: &'static str, why: String },
}

impl Environment {
    /// `get` gives a variable; an empty one counts as absent, since a template can't leave one out.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self, EnvError> {
        let optional = |name: &str| get(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let needed = |name| optional(name).ok_or(EnvError::Missing(name));
        let url = |name| {
            let bad = |error: url::ParseError| EnvError::Bad { name, why: error.to_string() };
            optional(name).map(|text| Url::parse(&text).map_err(bad)).transpose()
        };
        let bad_config = |why: String| EnvError::Bad { name: "CKRV_CONFIG", why };
        let mut settings = match optional("CKRV_CONFIG") {
            None => ApiSettings::default(),
            Some(text) => toml::from_str(&text).map_err(|error| bad_config(error.message().to_owned()))?,
        };
        settings.policy.check().map_err(|error| bad_config(error.to_string()))?;
        settings.public_url = url("CKRV_PUBLIC_URL")?.or(settings.public_url);
        let endpoints = Endpoints {
            dynamodb: url("CKRV_ENDPOINT_DYNAMODB")?,
            s3: url("CKRV_ENDPOINT_S3")?,
            kms: url("CKRV_ENDPOINT_KMS")?,
            secrets_manager: url("CKRV_ENDPOINT_SECRETS_MANAGER")?,
            ssm: url("CKRV_ENDPOINT_SSM")?,
        };
        let store = AwsConfig {
            table: needed("CKRV_TABLE")?,
            bucket: needed("CKRV_BUCKET")?,
            kms_key: needed("CKRV_KMS_KEY")?,
            region: None,
            // An endpoint of one's own has no host name for each bucket.
            force_path_style: endpoints.s3.is_some(),
            endpoints,
        };
        let invoke = match optional("CKRV_INVOKE_MODE").as_deref() {
            None | Some("BUFFERED") => Invoke::Buffered,
            Some("RESPONSE_STREAM") => Invoke::Stream,
            Some(_) => {
                return Err(EnvError::Bad { name: "CKRV_INVOKE_MODE", why: "it is BUFFERED or RESPONSE_STREAM".to_owned() });
            }
        };
        Ok(Self { store, server_key_secret: needed("CKRV_SERVER_KEY_SECRET")?, settings, invoke })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEEDED: [(&str, &str); 4] =
        [("CKRV_TABLE", "t"), ("CKRV_BUCKET", "b"), ("CKRV_KMS_KEY", "k"), ("CKRV_SERVER_KEY_SECRET", "s")];

    fn read(more: &[(&str, &str)]) -> Result<Environment, EnvError> {
        let all = [NEEDED.as_slice(), more].concat();
        Environment::read(|name| all.iter().rev().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn an_empty_variable_is_an_absent_one() {
        let environment =
            read(&[("CKRV_CONFIG", ""), ("CKRV_PUBLIC_URL", ""), ("CKRV_ENDPOINT_S3", ""), ("CKRV_INVOKE_MODE", "")]).unwrap();
        assert_eq!(environment.settings.public_url, None);
        assert_eq!(environment.invoke, Invoke::Buffered);
        assert!(!environment.store.force_path_style);
        assert_eq!(read(&[("CKRV_TABLE", " ")]).unwrap_err(), EnvError::Missing("CKRV_TABLE"));
    }

    #[test]
    fn configuration_is_toml_and_an_unknown_key_is_named() {
        let config = "public_url = \"https://a.example/\"\nallowed_hosts = [\"b.example\"]\n[tiers.free]\nincluded = 1\noverage = \"blocked\"\n[policy.time]\nmax_seconds = 60\ndefault_seconds = 30";
        let environment = read(&[("CKRV_CONFIG", config), ("CKRV_INVOKE_MODE", "RESPONSE_STREAM")]).unwrap();
        assert_eq!(environment.settings.public_url.unwrap().as_str(), "https://a.example/");
        assert_eq!(environment.settings.tiers.free.included, 1);
        assert_eq!(environment.invoke, Invoke::Stream);
        let error = read(&[("CKRV_CONFIG", "colour = 1")]).unwrap_err().to_string();
        assert!(error.contains("CKRV_CONFIG") && error.contains("colour"), "{error}");
    }

    #[test]
    fn the_variable_wins_over_the_configuration() {
        let own = read(&[("CKRV_CONFIG", "public_url = \"https://a.example/\""), ("CKRV_PUBLIC_URL", "https://c.example/")]);
        assert_eq!(own.unwrap().settings.public_url.unwrap().as_str(), "https://c.example/");
    }
}
