//! Usage, the ledger, the key of webhooks.

use ckrv_core::wire::{Ledger, UsageReport, WebhookSecret};
use reqwest::Method;

use super::Client;
use crate::error::CliError;

/// A ledger larger than this is refused rather than held in memory.
const MAX_LEDGER_BYTES: usize = 256 * 1024 * 1024;

impl Client {
    /// A month `yyyy-mm`, or the running one.
    ///
    /// # Errors
    /// What is no month; the service can't be reached.
    pub async fn usage(&self, month: Option<&str>) -> Result<UsageReport, CliError> {
        self.json(|| self.request_with(Method::GET, "v1/usage", &query(month)), true).await
    }

    /// # Errors
    /// The caller is no admin; as [`Self::usage`].
    pub async fn ledger(&self, month: Option<&str>) -> Result<Ledger, CliError> {
        self.json(|| self.request_with(Method::GET, "v1/admin/ledger", &query(month)), true).await
    }

    /// The same as CSV.
    ///
    /// # Errors
    /// As [`Self::ledger`].
    pub async fn ledger_csv(&self, month: Option<&str>) -> Result<Vec<u8>, CliError> {
        let mut query = query(month);
        query.push(("format", "csv"));
        let mut response = self.send(|| self.request_with(Method::GET, "v1/admin/ledger", &query), true).await?;
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.broken_off(error))? {
            if bytes.len() + chunk.len() > MAX_LEDGER_BYTES {
                return Err(CliError::other("too_large", "the ledger is larger than 256 MiB"));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// # Errors
    /// The service can't be reached.
    pub async fn webhook_secret(&self) -> Result<WebhookSecret, CliError> {
        self.json(|| self.request(Method::GET, "v1/webhooks/secret"), true).await
    }
}

fn query(month: Option<&str>) -> Vec<(&str, &str)> {
    month.map(|month| ("month", month)).into_iter().collect()
}
