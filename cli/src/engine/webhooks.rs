//! The notifier of a server that runs jobs.

use std::time::Duration;

use ckrv_core::webhook::webhook_key;
use ckrv_orchestrator::clock;
use ckrv_orchestrator::notify::{Notifier, NotifierSettings};
use ckrv_store::{StoreConfig, Stores};
use secrecy::{ExposeSecret as _, SecretString};
use url::Url;

use super::server_config::ServerConfig;
use crate::error::CliError;

/// `key` is the API's: it shows the users what deliveries are signed with.
///
/// # Errors
/// A `ca_file` that can't be used.
pub fn notifier(
    stores: Stores,
    config: &ServerConfig,
    public_url: Option<Url>,
    key: &SecretString,
) -> Result<Notifier, CliError> {
    let settings = NotifierSettings {
        policy: config.policy.notify,
        ca_file: config.ca_file.clone(),
        public_url,
        key: SecretString::from(webhook_key(key.expose_secret().as_bytes())),
        pace: match config.store {
            StoreConfig::Embedded { .. } => Duration::from_secs(1),
            // Each look is paid for.
            StoreConfig::Aws(_) => Duration::from_secs(5),
        },
    };
    Notifier::new(stores, settings, clock::now)
        .map_err(|error| CliError::other("webhooks", "webhooks can't be delivered").source(error))
}
