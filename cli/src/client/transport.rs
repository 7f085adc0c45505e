//! One request and its answer: authentication, patience with a network that fails for a moment, and errors in the user's words.

use std::path::{Path, PathBuf};
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use ckrv_core::wire::{REFRESH_GRANT, RefreshRequest, TokenResponse};
use jiff::Timestamp;
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Method, RequestBuilder, Response, StatusCode, header};
use secrecy::{ExposeSecret as _, SecretString};
use serde::de::DeserializeOwned;
use url::Url;

use super::error;
use crate::config::{Settings, is_loopback};
use crate::error::{CliError, Kind};
use crate::tokens::{Exchange, Sessions};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two reads; a stream of events is kept alive by the service far more often than this.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Who we are to the service.
#[derive(Clone, Debug)]
pub enum Auth {
    /// `CKRV_TOKEN`, or the token of a service of our own.
    Token(SecretString),
    Session(Sessions),
}

/// A connection to one service.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    auth: Auth,
    /// For what the service keeps elsewhere.
    ca_file: Option<PathBuf>,
    /// `traceparent` of this command.
    trace: Option<String>,
}

impl Client {
    /// # Errors
    /// A service URL that is refused.
    pub fn new(settings: &Settings) -> Result<Self, CliError> {
        let base = settings.service()?;
        let auth = match &settings.env.token {
            Some(token) => Auth::Token(token.clone()),
            None => Auth::Session(Sessions::new(&settings.env, base.as_str())),
        };
        Self::of(base, auth, settings)
    }

    /// For a service that runs inside this process.
    ///
    /// # Errors
    /// A URL that is refused.
    pub fn with_token(settings: &Settings, base: &str, token: SecretString) -> Result<Self, CliError> {
        let base = crate::config::service_url(base)?;
        Self::of(base, Auth::Token(token), settings)
    }

    fn of(base: Url, auth: Auth, settings: &Settings) -> Result<Self, CliError> {
        let ca_file = settings.env.ca_file.clone();
        let trace = settings.trace.map(|trace| trace.to_string());
        Ok(Self { http: http_client(&base, ca_file.as_deref())?, base, auth, ca_file, trace })
    }

    #[must_use]
    pub fn service(&self) -> &Url {
        &self.base
    }

    pub(super) fn request(&self, method: Method, path: &str) -> Result<RequestBuilder, CliError> {
        self.request_with(method, path, &[])
    }

    pub(super) fn request_with(&self, method: Method, path: &str, query: &[(&str, &str)]) -> Result<RequestBuilder, CliError> {
        let mut url = self.base.join(path).map_err(|error| CliError::io("can't build a URL", error))?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let request = self.http.request(method, url);
        Ok(match &self.trace {
            Some(trace) => request.header("traceparent", trace),
            None => request,
        })
    }

    pub(super) async fn json<T: DeserializeOwned>(
        &self,
        request: impl Fn() -> Result<RequestBuilder, CliError>,
        repeatable: bool,
    ) -> Result<T, CliError> {
        // An answer that breaks off is asked for again where that does no harm. What `send` gives up has had its own tries.
        let whole = || async {
            match self.send(&request, repeatable).await {
                Ok(response) => response.bytes().await.map(Ok),
                Err(error) => Ok(Err(error)),
            }
        };
        let bytes = whole.retry(tries()).when(|_| repeatable).await.map_err(|error| self.broken_off(error))??;
        self.parse(&bytes)
    }

    /// Sends with our token, which is renewed once if the service says that it is used up.
    pub(super) async fn send(
        &self,
        request: impl Fn() -> Result<RequestBuilder, CliError>,
        repeatable: bool,
    ) -> Result<Response, CliError> {
        let response = self.send_authorised(request, repeatable).await?;
        self.checked(response).await
    }

    /// Gets what the service may keep elsewhere. Where it sends us is asked without our token: the address alone opens it.
    pub(super) async fn download(&self, path: &str) -> Result<Response, CliError> {
        let response = self.send_authorised(|| self.request(Method::GET, path), true).await?;
        if !response.status().is_redirection() {
            return self.checked(response).await;
        }
        let place = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
        let place = place.and_then(|text| response.url().join(text).ok()).filter(|place| {
            place.scheme() == "https" || (place.scheme() == "http" && is_loopback(place) && is_loopback(&self.base))
        });
        let refused = || CliError::other("bad_answer", "the service sends us to an address that is refused");
        let place = place.ok_or_else(|| refused().hint("it must be https; tell whoever runs the service"))?;
        let http = http_client(&place, self.ca_file.as_deref())?;
        let response = self.patiently(|| Ok(http.get(place.clone())), true).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let host = place.host_str().unwrap_or_default();
        let text = format!("the service's storage at {host} answers {}", response.status());
        Err(CliError::new(Kind::Unreachable, "storage", text)
            .hint("try again: each address is good for some minutes")
            .retryable())
    }

    async fn send_authorised(
        &self,
        request: impl Fn() -> Result<RequestBuilder, CliError>,
        repeatable: bool,
    ) -> Result<Response, CliError> {
        let token = match &self.auth {
            Auth::Token(token) => token.clone(),
            Auth::Session(sessions) => sessions.access(self, Timestamp::now()).await?,
        };
        let with = |token: &SecretString| Ok(request()?.bearer_auth(token.expose_secret()));
        let response = self.patiently(|| with(&token), repeatable).await?;
        let response = match &self.auth {
            Auth::Session(sessions) if response.status() == StatusCode::UNAUTHORIZED => {
                let token = sessions.renew(&token, self, Timestamp::now()).await?;
                self.patiently(|| with(&token), repeatable).await?
            }
            _ => response,
        };
        Ok(response)
    }

    pub(super) async fn send_anonymous(
        &self,
        request: impl Fn() -> Result<RequestBuilder, CliError>,
        repeatable: bool,
    ) -> Result<Response, CliError> {
        let response = self.patiently(request, repeatable).await?;
        self.checked(response).await
    }

    /// Whatever the answer is.
    pub(super) async fn send_raw(&self, request: impl Fn() -> Result<RequestBuilder, CliError>) -> Result<Response, CliError> {
        self.patiently(request, false).await
    }

    /// An answer that says success, or the error that it describes.
    pub(super) async fn checked(&self, response: Response) -> Result<Response, CliError> {
        if response.status().is_success() {
            return Ok(response);
        }
        let has_token = matches!(self.auth, Auth::Token(_));
        Err(error::from_response(response, has_token).await)
    }

    pub(super) async fn decode<T: DeserializeOwned>(&self, response: Response) -> Result<T, CliError> {
        let bytes = response.bytes().await.map_err(|error| self.broken_off(error))?;
        self.parse(&bytes)
    }

    fn parse<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, CliError> {
        serde_json::from_slice(bytes).map_err(|error| {
            CliError::other("bad_answer", format!("{} answers something that is not the ckrv API", self.base))
                .hint("check the service's URL, and that this ckrv is not older than the service")
                .source(error)
        })
    }

    pub(super) fn broken_off(&self, error: reqwest::Error) -> CliError {
        error::unreachable(&self.base, error)
    }

    /// A connection that fails is tried again at once: nothing was sent. Anything else only if the request may be repeated.
    async fn patiently(
        &self,
        request: impl Fn() -> Result<RequestBuilder, CliError>,
        repeatable: bool,
    ) -> Result<Response, CliError> {
        let attempt = || async {
            let response = request().map_err(Failure::Ours)?.send().await.map_err(Failure::Network)?;
            let busy = matches!(
                response.status(),
                StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
            );
            if busy { Err(Failure::Busy(response)) } else { Ok(response) }
        };
        let result = attempt.retry(tries()).when(|failure| match failure {
            // Nobody listens on this machine: that doesn't change within a second.
            Failure::Network(error) if error.is_connect() => !is_loopback(&self.base),
            Failure::Network(_) | Failure::Busy(_) => repeatable,
            Failure::Ours(_) => false,
        });
        match result.await {
            Ok(response) | Err(Failure::Busy(response)) => Ok(response),
            Err(Failure::Network(error)) => Err(self.broken_off(error)),
            Err(Failure::Ours(error)) => Err(error),
        }
    }
}

enum Failure {
    Ours(CliError),
    Network(reqwest::Error),
    Busy(Response),
}

impl Exchange for Client {
    async fn exchange(&self, refresh: &SecretString) -> Result<Option<TokenResponse>, CliError> {
        let body = RefreshRequest { refresh_token: refresh.expose_secret().to_owned(), grant_type: REFRESH_GRANT.to_owned() };
        // Repeatable: the service gives the same successor again for a while.
        let response = self.patiently(|| Ok(self.request(Method::POST, "v1/auth/refresh")?.json(&body)), true).await?;
        if matches!(response.status(), StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED) {
            return Ok(None);
        }
        let response = self.checked(response).await?;
        self.decode(response).await.map(Some)
    }
}

/// Within one origin. Where another is to be asked, that is [`Client::download`]'s to do.
fn redirect(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    let stays = attempt.previous().last().is_some_and(|from| from.origin() == attempt.url().origin());
    match attempt.previous().len() {
        0..=3 if stays => attempt.follow(),
        0..=3 => attempt.stop(),
        _ => attempt.error("too many redirects"),
    }
}

fn http_client(base: &Url, ca_file: Option<&Path>) -> Result<reqwest::Client, CliError> {
    // Someone else may have installed it before us: the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let failed = |error| CliError::io("can't start the HTTP client", error);
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("ckrv/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .redirect(Policy::custom(redirect));
    if base.scheme() == "http" {
        // This machine: no proxy, and no time spent on loading the system's certificates.
        builder = builder.no_proxy().tls_certs_only(std::iter::empty());
    } else {
        builder = builder.https_only(true);
        if let Some(path) = ca_file {
            let pem = std::fs::read(path)
                .map_err(|error| CliError::io(format!("can't read CKRV_CA_FILE {}", path.display()), error))?;
            builder = builder.tls_certs_merge(reqwest::Certificate::from_pem_bundle(&pem).map_err(failed)?);
        }
    }
    builder.build().map_err(failed)
}

/// How often and how soon something is tried again.
fn tries() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(2))
        .with_max_times(3)
        .with_jitter()
}
