//! Service tokens, and the end of a login.

use std::time::Duration;

use ckrv_core::wire::{CreateServiceToken, CreatedServiceToken, ServiceTokenList};
use reqwest::Method;
use secrecy::{ExposeSecret as _, SecretString};

use super::Client;
use crate::error::CliError;

/// A logout on a train doesn't wait longer than this.
const REVOKE_TIMEOUT: Duration = Duration::from_secs(5);

impl Client {
    /// # Errors
    /// As every call here: see `client::error`.
    pub async fn service_tokens(&self) -> Result<ServiceTokenList, CliError> {
        self.json(|| self.request(Method::GET, "v1/tokens"), true).await
    }

    /// # Errors
    /// A name or a scope that is refused. Not repeated by itself: a second one would stay behind unknown.
    pub async fn create_service_token(&self, token: &CreateServiceToken) -> Result<CreatedServiceToken, CliError> {
        self.json(|| Ok(self.request(Method::POST, "v1/tokens")?.json(token)), false).await
    }

    /// # Errors
    /// 404 when there is none of that id.
    pub async fn revoke_service_token(&self, id: &str) -> Result<(), CliError> {
        self.remove("tokens", id).await
    }

    /// Ends the login that a refresh token belongs to, at the service (RFC 7009).
    ///
    /// # Errors
    /// The service can't be reached, or is too old to know how.
    pub async fn revoke(&self, refresh: &SecretString) -> Result<(), CliError> {
        let form = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("token", refresh.expose_secret())
            .append_pair("token_type_hint", "refresh_token")
            .finish();
        let request = || {
            let request = self.request(Method::POST, "v1/auth/revoke")?.timeout(REVOKE_TIMEOUT);
            Ok(request.header("Content-Type", "application/x-www-form-urlencoded").body(form.clone()))
        };
        self.send_anonymous(request, false).await.map(drop)
    }
}
