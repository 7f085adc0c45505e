//! Sign-in at an operator's identity provider: OpenID Connect, authorization code flow with PKCE, for the activation page.
//!
//! Between its requests nothing is kept in this process: what a sign-in must remember is in the browser, in a cookie that only we can read
//! ([`cookie`]). So any replica, or any sandbox of a function, may answer the next request.

mod account;
mod claims;
mod config;
mod cookie;
mod http;
pub(crate) mod pages;
mod provider;

use std::fmt;

pub use config::{OidcConfig, OidcIssuer, oidc_issuers};
pub(crate) use provider::Provider;

/// The operator's identity providers, in the order of the configuration.
pub(crate) struct Providers(Vec<Provider>);

impl Providers {
    pub(crate) fn new(issuers: &[OidcIssuer]) -> Self {
        Self(issuers.iter().cloned().map(Provider::new).collect())
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Provider> {
        self.0.iter().find(|provider| provider.name() == name)
    }

    /// Names and labels for the page's buttons.
    pub(crate) fn buttons(&self) -> Vec<(&str, &str)> {
        self.0.iter().map(|provider| (provider.name(), provider.label())).collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Providers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(Provider::name)).finish()
    }
}
