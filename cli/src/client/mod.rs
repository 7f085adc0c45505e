//! The service, as the commands see it: one method for each call of the HTTP contract.

mod billing;
mod error;
mod follow;
mod identity;
mod transport;

use std::collections::BTreeMap;

use ckrv_core::id::JobId;
use ckrv_core::log::Cursor;
use ckrv_core::wire::{
    AgentList, ArtifactList, CreateCredential, CreateJob, CreateSecret, CredentialInfo, CredentialList, DEVICE_GRANT,
    DeviceRequest, DeviceResponse, Job, JobList, LogPage, OauthError, Problem, SecretInfo, SecretList, TokenRequest,
    TokenResponse, UserInfo,
};
use reqwest::{Method, StatusCode};
use sha2::{Digest as _, Sha256};

pub use follow::Follow;
pub use transport::Client;

use crate::error::{CliError, Kind};

/// The name that we log in under.
pub const CLIENT_ID: &str = "ckrv-cli";
/// A diff larger than this is refused rather than held in memory.
const MAX_DIFF_BYTES: usize = 512 * 1024 * 1024;
/// Log entries asked for at once.
const LOG_PAGE: u32 = 1000;

/// One look at a device login that somebody may be confirming.
#[derive(Debug)]
pub enum DevicePoll {
    Granted(TokenResponse),
    Pending,
    SlowDown,
    Denied,
    Expired,
}

/// A job's diff, checked against the checksum that the service holds for it.
#[derive(Debug)]
pub struct Diff {
    pub bytes: Vec<u8>,
    pub sha256: String,
}

impl Client {
    /// # Errors
    /// As every call here: see `client::error`.
    pub async fn create_job(&self, job: &CreateJob, idempotency_key: &str) -> Result<Job, CliError> {
        // Safe to send twice: the key makes it the same job.
        let request = || Ok(self.request(Method::POST, "v1/jobs")?.header("Idempotency-Key", idempotency_key).json(job));
        self.json(request, true).await
    }

    /// # Errors
    /// `job_not_found` among others.
    pub async fn job(&self, id: JobId) -> Result<Job, CliError> {
        self.json(|| self.request(Method::GET, &format!("v1/jobs/{id}")), true).await
    }

    /// # Errors
    /// As [`Self::create_job`].
    pub async fn jobs(&self, status: Option<&str>, limit: u32, cursor: Option<&str>) -> Result<JobList, CliError> {
        let limit = limit.to_string();
        let mut query = vec![("limit", limit.as_str())];
        query.extend(status.map(|status| ("status", status)));
        query.extend(cursor.map(|cursor| ("cursor", cursor)));
        self.json(|| self.request_with(Method::GET, "v1/jobs", &query), true).await
    }

    /// # Errors
    /// As [`Self::job`].
    pub async fn cancel(&self, id: JobId) -> Result<Job, CliError> {
        self.json(|| self.request(Method::POST, &format!("v1/jobs/{id}/cancel")), true).await
    }

    /// # Errors
    /// As [`Self::job`].
    pub async fn retry(&self, id: JobId, idempotency_key: &str) -> Result<Job, CliError> {
        let request =
            || Ok(self.request(Method::POST, &format!("v1/jobs/{id}/retry"))?.header("Idempotency-Key", idempotency_key));
        self.json(request, true).await
    }

    /// # Errors
    /// As [`Self::job`].
    pub async fn log_page(&self, id: JobId, after: Option<Cursor>) -> Result<LogPage, CliError> {
        let (limit, after) = (LOG_PAGE.to_string(), after.map(|after| after.to_string()));
        let mut query = vec![("limit", limit.as_str())];
        query.extend(after.as_deref().map(|after| ("after", after)));
        self.json(|| self.request_with(Method::GET, &format!("v1/jobs/{id}/logs"), &query), true).await
    }

    /// # Errors
    /// `no_output` when the job has none; `damaged` when what came is not what the service vouches for.
    pub async fn diff(&self, id: JobId) -> Result<Diff, CliError> {
        let listed: ArtifactList = self.json(|| self.request(Method::GET, &format!("v1/jobs/{id}/artifacts")), true).await?;
        let listed = listed.artifacts.into_iter().find(|artifact| artifact.name == "diff").ok_or_else(|| {
            CliError::new(Kind::JobFailed, "no_output", "no successful output exists: the job published no diff")
        })?;
        let mut response = self.download(&format!("v1/jobs/{id}/artifacts/diff")).await?;
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.broken_off(error))? {
            if bytes.len() + chunk.len() > MAX_DIFF_BYTES {
                return Err(CliError::other("too_large", "the diff is larger than 512 MiB"));
            }
            bytes.extend_from_slice(&chunk);
        }
        let sha256: String = hex::encode(Sha256::digest(&bytes));
        if !sha256.eq_ignore_ascii_case(&listed.sha256) {
            return Err(CliError::other(
                "damaged",
                "the diff that came is not the one that the job published (its SHA-256 differs)",
            )
            .hint("try again; if it stays so, tell whoever runs the service")
            .retryable());
        }
        Ok(Diff { bytes, sha256 })
    }

    /// # Errors
    /// As [`Self::create_job`].
    pub async fn me(&self) -> Result<UserInfo, CliError> {
        self.json(|| self.request(Method::GET, "v1/users/me"), true).await
    }

    /// # Errors
    /// As [`Self::create_job`].
    pub async fn agents(&self) -> Result<AgentList, CliError> {
        self.json(|| self.request(Method::GET, "v1/agents"), true).await
    }

    /// # Errors
    /// As [`Self::create_job`].
    pub async fn credentials(&self) -> Result<CredentialList, CliError> {
        self.json(|| self.request(Method::GET, "v1/credentials"), true).await
    }

    /// # Errors
    /// 409 when the name is taken.
    pub async fn add_credential(&self, credential: &CreateCredential) -> Result<CredentialInfo, CliError> {
        self.json(|| Ok(self.request(Method::POST, "v1/credentials")?.json(credential)), false).await
    }

    /// # Errors
    /// 404 when there is none of that name.
    pub async fn remove_credential(&self, name: &str) -> Result<(), CliError> {
        self.remove("credentials", name).await
    }

    /// # Errors
    /// As [`Self::create_job`].
    pub async fn secrets(&self) -> Result<SecretList, CliError> {
        self.json(|| self.request(Method::GET, "v1/secrets"), true).await
    }

    /// # Errors
    /// 409 when the name is taken.
    pub async fn add_secret(&self, secret: &CreateSecret) -> Result<SecretInfo, CliError> {
        self.json(|| Ok(self.request(Method::POST, "v1/secrets")?.json(secret)), false).await
    }

    /// # Errors
    /// 404 when there is none of that name.
    pub async fn remove_secret(&self, name: &str) -> Result<(), CliError> {
        self.remove("secrets", name).await
    }

    async fn remove(&self, what: &str, name: &str) -> Result<(), CliError> {
        let valid = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if !valid || name.starts_with('.') {
            return Err(CliError::usage(format!("`{name}` is no name: a to z, 0 to 9 and `-`")));
        }
        self.send(|| self.request(Method::DELETE, &format!("v1/{what}/{name}")), true).await.map(drop)
    }

    /// # Errors
    /// The service can't be reached.
    pub async fn health(&self) -> Result<(), CliError> {
        self.send_anonymous(|| self.request(Method::GET, "healthz"), false).await.map(drop)
    }

    /// The parts of the service that are down.
    ///
    /// # Errors
    /// The service can't be reached.
    pub async fn down_parts(&self) -> Result<Vec<String>, CliError> {
        let response = self.send_raw(|| self.request(Method::GET, "readyz")).await?;
        if response.status() != StatusCode::SERVICE_UNAVAILABLE {
            return Ok(Vec::new());
        }
        let problem: Problem = self.decode(response).await?;
        let checks = problem.checks.unwrap_or_default();
        Ok(checks.into_iter().filter(|(_, state)| state != "ok").map(|(name, _)| name).collect())
    }

    /// # Errors
    /// As [`Self::create_job`].
    pub async fn start_device_login(&self) -> Result<DeviceResponse, CliError> {
        let body = DeviceRequest { client_id: CLIENT_ID.to_owned() };
        let response = self.send_anonymous(|| Ok(self.request(Method::POST, "v1/auth/device")?.json(&body)), true).await?;
        self.decode(response).await
    }

    /// # Errors
    /// The service can't be reached, or answers what OAuth doesn't know.
    pub async fn poll_device_login(&self, device_code: &str) -> Result<DevicePoll, CliError> {
        let body = TokenRequest {
            client_id: CLIENT_ID.to_owned(),
            device_code: device_code.to_owned(),
            grant_type: DEVICE_GRANT.to_owned(),
        };
        let response = self.send_raw(|| Ok(self.request(Method::POST, "v1/auth/token")?.json(&body))).await?;
        if response.status() != StatusCode::BAD_REQUEST {
            let response = self.checked(response).await?;
            return self.decode(response).await.map(DevicePoll::Granted);
        }
        let error: OauthError = self.decode(response).await?;
        match error.error.as_str() {
            "authorization_pending" => Ok(DevicePoll::Pending),
            "slow_down" => Ok(DevicePoll::SlowDown),
            "access_denied" => Ok(DevicePoll::Denied),
            "expired_token" => Ok(DevicePoll::Expired),
            _ => {
                let text = error.error_description.unwrap_or(error.error);
                Err(CliError::other("login_failed", format!("the service refuses the login: {text}")))
            }
        }
    }
}

/// `NAME=VALUE`s from the command line.
///
/// # Errors
/// An item without `=` or without a name, and a name that is given twice.
pub fn pairs(items: &[String], option: &str) -> Result<BTreeMap<String, String>, CliError> {
    let mut pairs = BTreeMap::new();
    for item in items {
        let (name, value) = item.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(|| {
            CliError::usage(format!("`{item}` is not of the form NAME=VALUE")).hint(format!("{option} takes NAME=VALUE"))
        })?;
        if pairs.insert(name.to_owned(), value.to_owned()).is_some() {
            return Err(CliError::usage(format!("{option} names `{name}` twice")));
        }
    }
    Ok(pairs)
}
