//! `[[oidc]]` of the configuration.

use std::path::PathBuf;

use ckrv_store::{Manager, Reference, References};
use secrecy::SecretString;
use serde::Deserialize;
use url::{Host, Url};

/// One identity provider, as the operator writes it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OidcConfig {
    /// a to z, 0 to 9 and `-`: for links and logs.
    pub name: String,
    /// On the button; the name by default.
    #[serde(default)]
    pub label: Option<String>,
    /// Exactly as the provider writes it in `iss`.
    pub issuer: String,
    pub client_id: String,
    /// A file that holds the client's secret. Neither file nor reference: a public client, which PKCE protects.
    #[serde(default)]
    pub client_secret_file: Option<PathBuf>,
    /// Where a secrets manager has it: `aws-secrets-manager:NAME` or `aws-ssm:/NAME`. Never the secret itself.
    #[serde(default)]
    pub client_secret: Option<String>,
    #[serde(default = "default_scopes")]
    pub scopes: Vec<String>,
    /// Of e-mail addresses. Without it everybody whom the provider knows may sign in; with it nobody else.
    #[serde(default)]
    pub allowed_domains: Option<Vec<String>>,
    /// Who is in this group is an admin, and who isn't is none. Without it a sign-in leaves roles alone.
    #[serde(default)]
    pub admin_group: Option<String>,
    #[serde(default = "default_group_claim")]
    pub group_claim: String,
    /// The address that the account has. `email_verified` must be true whichever claim this is.
    #[serde(default = "default_email_claim")]
    pub email_claim: String,
}

fn default_scopes() -> Vec<String> {
    ["openid", "profile", "email"].map(str::to_owned).into()
}

fn default_group_claim() -> String {
    "groups".to_owned()
}

fn default_email_claim() -> String {
    "email".to_owned()
}

/// An identity provider with our secret for it.
#[derive(Clone, Debug)]
pub struct OidcIssuer {
    pub config: OidcConfig,
    pub secret: Option<SecretString>,
}

impl OidcConfig {
    /// # Errors
    /// What is wrong, naming the key.
    pub fn check(&self) -> Result<(), String> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if self.name.is_empty() || self.name.len() > 40 || !self.name.bytes().all(plain) {
            return Err("oidc: `name` must be 1 to 40 of a to z, 0 to 9 and `-`".to_owned());
        }
        let bad = |text: &str| Err(format!("oidc `{}`: {text}", self.name));
        let Ok(issuer) = Url::parse(&self.issuer) else { return bad("`issuer` is no URL") };
        let is_loopback = match issuer.host() {
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            Some(Host::Domain(name)) => name == "localhost",
            None => false,
        };
        if !(issuer.scheme() == "https" || (issuer.scheme() == "http" && is_loopback)) {
            return bad("`issuer` must be https (http only on this machine)");
        }
        if self.client_id.is_empty() {
            return bad("`client_id` is empty");
        }
        if self.client_secret.is_some() && self.client_secret_file.is_some() {
            return bad("give one of `client_secret_file` and `client_secret`");
        }
        if !self.scopes.iter().any(|scope| scope == "openid") {
            return bad("`scopes` must have `openid`");
        }
        Ok(())
    }

    async fn secret(&self, references: &dyn References) -> Result<Option<SecretString>, String> {
        let bad = |text: String| format!("oidc `{}`: {text}", self.name);
        if let Some(path) = &self.client_secret_file {
            let text = tokio::fs::read_to_string(path).await;
            let text = text.map_err(|error| bad(format!("can't read {}: {error}", path.display())))?;
            let value = text.trim_end_matches(['\r', '\n']);
            return match value {
                "" => Err(bad(format!("{} is empty", path.display()))),
                value => Ok(Some(SecretString::from(value.to_owned()))),
            };
        }
        let Some(text) = &self.client_secret else { return Ok(None) };
        // The operator's own, so not bound to where users' secrets are.
        let reference = match text.split_once(':') {
            Some(("aws-secrets-manager", name)) => Reference { manager: Manager::SecretsManager, name: name.to_owned() },
            Some(("aws-ssm", name)) => Reference { manager: Manager::ParameterStore, name: name.to_owned() },
            // Not shown: somebody may have written the secret itself here.
            _ => {
                return Err(bad("`client_secret` must be a reference, `aws-secrets-manager:NAME` or `aws-ssm:/NAME`".to_owned()));
            }
        };
        references.resolve(&reference).await.map(Some).map_err(|error| bad(error.to_string()))
    }
}

/// Checks the configuration and fetches the secrets.
///
/// # Errors
/// What is wrong with which one.
pub async fn oidc_issuers(configs: &[OidcConfig], references: &dyn References) -> Result<Vec<OidcIssuer>, String> {
    let mut issuers: Vec<OidcIssuer> = Vec::new();
    for config in configs {
        config.check()?;
        if issuers.iter().any(|other| other.config.name == config.name) {
            return Err(format!("oidc: two are named `{}`", config.name));
        }
        issuers.push(OidcIssuer { secret: config.secret(references).await?, config: config.clone() });
    }
    Ok(issuers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(more: &str) -> OidcConfig {
        toml::from_str(&format!("name = 'corp'\nclient_id = 'c'\n{more}")).unwrap()
    }

    #[test]
    fn an_issuer_beyond_this_machine_must_be_https() {
        for good in ["https://id.example.org", "https://id.example.org/realms/x", "http://127.0.0.1:1", "http://localhost:1"] {
            assert_eq!(config(&format!("issuer = '{good}'")).check(), Ok(()), "{good}");
        }
        for bad in ["http://id.example.org", "ftp://x", "x", "http://127.0.0.1.example.org"] {
            assert!(config(&format!("issuer = '{bad}'")).check().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_secret_in_place_of_a_reference_is_refused_and_not_shown() {
        let configs = [config("issuer = 'https://id.example.org'\nclient_secret = 'hunter2'")];
        let error = oidc_issuers(&configs, &ckrv_store::NoReferences).await.unwrap_err();
        assert!(error.contains("must be a reference") && !error.contains("hunter2"), "{error}");
    }
}
