//! The job runner's side of the gateway. A server that is away is waited for: the fence decides, not this client's patience.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use ckrv_core::job::{Artifact, Facts, State};
use ckrv_core::log::LogEntry;
use ckrv_core::machine::Finish;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::TRACEPARENT;
use super::bearer::{Bearer, OnToken};
use super::wire::*;
use crate::git::GitCredential;

/// For each of the connections that are open to a replica whose pod is gone: no packet says so, and a request on one of them would wait.
const SILENCE: Duration = Duration::from_secs(10);
/// A few of these fit into a lease.
const BEAT_TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The gateway answered no; trying again changes nothing.
    #[error(transparent)]
    Denied(#[from] Denial),
    /// No answer, or a passing fault.
    #[error("the gateway can't be reached")]
    Away(#[source] reqwest::Error),
    #[error("the gateway has a fault")]
    Fault,
}

impl GatewayError {
    fn is_passing(&self) -> bool {
        matches!(self, Self::Away(_) | Self::Fault)
    }

    /// Whether this attempt has nothing more to say: the job ended elsewhere or somebody else took over.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        use ckrv_core::machine::Refusal;
        matches!(
            self,
            Self::Denied(Denial::Refused(Refusal::Ended | Refusal::LostLease) | Denial::LogClosed | Denial::Unauthorized)
        )
    }
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("the HTTP client can't be built")]
    Http(#[source] reqwest::Error),
    #[error("can't read {path}, by which the gateway's certificate is checked")]
    Ca {
        path: String,
        #[source]
        source: std::io::Error,
    },
}

#[derive(Clone)]
pub struct Gateway {
    client: reqwest::Client,
    base: String,
    bearer: Bearer,
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").finish_non_exhaustive()
    }
}

impl Gateway {
    /// `on_token` is told each token before it is used: whoever writes a log hides it there.
    ///
    /// # Errors
    /// When the HTTP client can't be built.
    pub fn new(task: &Task, on_token: OnToken) -> Result<Self, ClientError> {
        let trace = task.trace.as_deref().and_then(|trace| reqwest::header::HeaderValue::from_str(trace).ok());
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(60))
            .default_headers(trace.into_iter().map(|trace| (TRACEPARENT, trace)).collect());
        let (client, origin, bearer) = match &task.gateway {
            GatewayAddress::Socket { path, token } => {
                // The host's name is never looked up: the socket is where this goes.
                (client.unix_socket(path.clone()), "http://gateway".to_owned(), Bearer::fixed(token.clone(), &on_token))
            }
            GatewayAddress::Tls { url, ca_file, token_file } => {
                let pem =
                    std::fs::read(ca_file).map_err(|source| ClientError::Ca { path: ca_file.display().to_string(), source })?;
                let roots = reqwest::Certificate::from_pem_bundle(&pem).map_err(ClientError::Http)?;
                // Nobody else's authority may vouch for the gateway, and no answer may send a token elsewhere.
                let client = client.tls_certs_only(roots).https_only(true).redirect(reqwest::redirect::Policy::none());
                let client = client.connect_timeout(Duration::from_secs(10));
                (gives_up_soon(client), url.as_str().trim_end_matches('/').to_owned(), Bearer::file(token_file.clone(), on_token))
            }
        };
        let client = client.build().map_err(ClientError::Http)?;
        let base = format!("{origin}/attempts/{}/{}/{}", task.job, task.fence, task.claim);
        Ok(Self { client, base, bearer })
    }

    pub async fn job(&self) -> Result<JobView, GatewayError> {
        self.again(|| self.get("job")).await
    }

    /// Not retried: the caller beats again anyway.
    pub async fn beat(&self) -> Result<BeatAnswer, GatewayError> {
        let request = self.client.post(format!("{}/beat", self.base)).bearer_auth(self.bearer.token().expose_secret());
        decode(request.json(&()).timeout(BEAT_TIMEOUT).send().await).await
    }

    /// Long poll; not retried. `watched` is what this side believes: the answer comes at once where it is otherwise.
    pub async fn attention(&self, watched: bool) -> Result<Attention, GatewayError> {
        self.get(&format!("attention?watched={watched}")).await
    }

    pub async fn advance(&self, to: State, facts: &Facts) -> Result<(), GatewayError> {
        let body = AdvanceRequest { to, facts: facts.clone() };
        self.again(|| self.post_empty("advance", &body)).await
    }

    /// Not retried: the log keeps what was not taken.
    pub async fn log(&self, entries: &[LogEntry]) -> Result<(), GatewayError> {
        #[derive(Serialize)]
        struct Body<'a> {
            entries: &'a [LogEntry],
        }
        self.post_empty("log", &Body { entries }).await
    }

    pub async fn artifact(&self, name: &str, content: bytes::Bytes) -> Result<Artifact, GatewayError> {
        let path = format!("artifacts/{name}");
        let stored: Stored = self.again(|| async { decode(self.put(&path, &content)?.send().await).await }).await?;
        Ok(Artifact { name: name.to_owned(), key: stored.key, bytes: stored.bytes, sha256: stored.sha256 })
    }

    /// Keeps what the agent has changed so far: the `number`th of this attempt.
    pub async fn checkpoint(&self, number: u32, content: bytes::Bytes) -> Result<(), GatewayError> {
        let path = format!("checkpoints/{number}");
        self.again(|| async { checked(self.put(&path, &content)?.send().await).await.map(drop) }).await
    }

    /// The newest checkpoint of any attempt; `None`: there is none any more.
    pub async fn newest_checkpoint(&self) -> Result<Option<bytes::Bytes>, GatewayError> {
        let fetched = self.again(|| async {
            let request = self.client.get(format!("{}/checkpoint", self.base)).bearer_auth(self.bearer.token().expose_secret());
            checked(request.send().await).await?.bytes().await.map_err(GatewayError::Away)
        });
        match fetched.await {
            Ok(content) => Ok(Some(content)),
            Err(GatewayError::Denied(Denial::Missing(_))) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub async fn credential(&self) -> Result<Option<GitCredential>, GatewayError> {
        let body = SecretRequest { nonce: nonce() };
        self.again(|| self.post("credential", &body)).await
    }

    pub async fn secret(&self, slot: &str) -> Result<Option<SecretString>, GatewayError> {
        let body = SecretRequest { nonce: nonce() };
        let path = format!("secrets/{slot}");
        let answer: SecretAnswer = self.again(|| self.post(&path, &body)).await?;
        Ok(answer.value)
    }

    pub async fn release(&self, not_before_seconds: u32, note: &str) -> Result<(), GatewayError> {
        let body = ReleaseRequest { not_before_seconds, note: note.to_owned() };
        self.again(|| self.post_empty("release", &body)).await
    }

    pub async fn finish(&self, finish: &Finish) -> Result<(), GatewayError> {
        self.again(|| self.post_empty("finish", finish)).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, GatewayError> {
        decode(self.client.get(format!("{}/{path}", self.base)).bearer_auth(self.bearer.token().expose_secret()).send().await)
            .await
    }

    /// What is too large is not sent: whoever is refused in the middle of sending may never hear why.
    fn put(&self, path: &str, content: &bytes::Bytes) -> Result<reqwest::RequestBuilder, GatewayError> {
        if content.len() as u64 > LARGEST_ARTIFACT {
            return Err(GatewayError::Denied(Denial::TooLarge(LARGEST_ARTIFACT >> 20)));
        }
        let request = self.client.put(format!("{}/{path}", self.base)).bearer_auth(self.bearer.token().expose_secret());
        Ok(request.body(content.clone()))
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, GatewayError> {
        decode(self.send(path, body).await).await
    }

    async fn post_empty(&self, path: &str, body: &impl Serialize) -> Result<(), GatewayError> {
        checked(self.send(path, body).await).await.map(drop)
    }

    async fn send(&self, path: &str, body: &impl Serialize) -> Result<reqwest::Response, reqwest::Error> {
        self.client.post(format!("{}/{path}", self.base)).bearer_auth(self.bearer.token().expose_secret()).json(body).send().await
    }

    /// Tries for as long as the job may run; the job's deadline ends the caller.
    async fn again<T, F: Future<Output = Result<T, GatewayError>>>(&self, call: impl FnMut() -> F) -> Result<T, GatewayError> {
        let patience = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(50))
            .with_max_delay(Duration::from_secs(2))
            .with_jitter()
            .without_max_times();
        call.retry(patience).when(GatewayError::is_passing).await
    }
}

fn gives_up_soon(client: reqwest::ClientBuilder) -> reqwest::ClientBuilder {
    let client = client.tcp_keepalive(SILENCE / 2).tcp_keepalive_interval(SILENCE / 4).tcp_keepalive_retries(2);
    #[cfg(target_os = "linux")]
    let client = client.tcp_user_timeout(SILENCE);
    client
}

fn nonce() -> String {
    uuid::Uuid::new_v4().to_string()
}

async fn checked(response: Result<reqwest::Response, reqwest::Error>) -> Result<reqwest::Response, GatewayError> {
    let response = response.map_err(GatewayError::Away)?;
    if response.status().is_success() {
        return Ok(response);
    }
    if response.status().is_server_error() {
        return Err(GatewayError::Fault);
    }
    let status = response.status();
    match response.json::<Denial>().await {
        Ok(denial) => Err(GatewayError::Denied(denial)),
        Err(_) => Err(GatewayError::Denied(Denial::Invalid(format!("the gateway answered {status}")))),
    }
}

async fn decode<T: DeserializeOwned>(response: Result<reqwest::Response, reqwest::Error>) -> Result<T, GatewayError> {
    checked(response).await?.json().await.map_err(GatewayError::Away)
}
