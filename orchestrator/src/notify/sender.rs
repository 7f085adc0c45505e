//! One POST to somebody's URL, without letting them reach what only this machine can.
//!
//! Invariant: a connection goes to an address that was judged here. A host name is looked up by [`Judged`] and nowhere else, so that it
//! can't mean another address when it is connected to; an address in the URL itself is judged before; a redirect is a new URL.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ckrv_core::webhook::{NotifyPolicy, SIGNATURE_HEADER, check_notify_url, parse_notify_url};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{CONTENT_TYPE, LOCATION};
use reqwest::{Certificate, Response, StatusCode};
use url::Url;

/// For all of it: looking up, connecting, every redirect.
const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_REDIRECTS: usize = 3;
/// Of an answer's body; it is read so that the receiver sees no broken connection, and dropped.
const MAX_ANSWER: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum SenderError {
    #[error("the certificates in {path} can't be read")]
    CaFile { path: String, source: std::io::Error },
    #[error("no client for webhooks can be made")]
    Client(#[from] reqwest::Error),
}

/// What became of one delivery.
#[derive(Debug)]
pub enum Answer {
    Delivered(StatusCode),
    /// 410: the receiver wants no more.
    Gone,
    Failed(String),
}

/// Finds the addresses of a name.
#[async_trait]
pub trait Lookup: Send + Sync {
    async fn lookup(&self, name: &str) -> std::io::Result<Vec<IpAddr>>;
}

pub struct SystemLookup;

#[async_trait]
impl Lookup for SystemLookup {
    async fn lookup(&self, name: &str) -> std::io::Result<Vec<IpAddr>> {
        Ok(tokio::net::lookup_host((name, 0)).await?.map(|address| address.ip()).collect())
    }
}

/// Gives the client those addresses of a name that may be reached.
struct Judged {
    lookup: Arc<dyn Lookup>,
    allowed: fn(IpAddr) -> bool,
}

#[derive(Debug, thiserror::Error)]
#[error("`{0}` has no public address")]
struct NotPublic(String);

impl Resolve for Judged {
    fn resolve(&self, name: Name) -> Resolving {
        let (lookup, allowed) = (Arc::clone(&self.lookup), self.allowed);
        Box::pin(async move {
            let name = name.as_str();
            let mut found = lookup.lookup(name).await?;
            found.retain(|address| allowed(*address));
            if found.is_empty() {
                return Err(NotPublic(name.to_owned()).into());
            }
            Ok(Box::new(found.into_iter().map(|address| SocketAddr::new(address, 0))) as Addrs)
        })
    }
}

pub struct Sender {
    http: reqwest::Client,
    policy: NotifyPolicy,
}

impl Sender {
    pub fn new(
        policy: NotifyPolicy,
        ca_file: Option<&Path>,
        lookup: Arc<dyn Lookup>,
        allowed: fn(IpAddr) -> bool,
    ) -> Result<Self, SenderError> {
        // Somebody may have been first; it's the same provider.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            // A proxy of the environment would look the name up again, and reach what it likes.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .dns_resolver(Arc::new(Judged { lookup, allowed }))
            // Each delivery is judged anew.
            .pool_max_idle_per_host(0)
            .user_agent(concat!("ckrv/", env!("CARGO_PKG_VERSION")));
        if let Some(path) = ca_file {
            let pem = std::fs::read(path).map_err(|source| SenderError::CaFile { path: path.display().to_string(), source })?;
            builder = builder.tls_certs_merge(Certificate::from_pem_bundle(&pem)?);
        }
        Ok(Self { http: builder.build()?, policy })
    }

    pub async fn post(&self, url: &str, body: Bytes, signature: &str) -> Answer {
        let url = match parse_notify_url(url, self.policy) {
            Ok(url) => url,
            Err(error) => return Answer::Failed(error.to_string()),
        };
        match tokio::time::timeout(TIMEOUT, self.follow(url, body, signature)).await {
            Ok(answer) => answer,
            Err(_) => Answer::Failed(format!("no answer within {} seconds", TIMEOUT.as_secs())),
        }
    }

    async fn follow(&self, mut url: Url, body: Bytes, signature: &str) -> Answer {
        for _ in 0..=MAX_REDIRECTS {
            let request = self.http.post(url.clone()).header(CONTENT_TYPE, "application/json");
            let response = match request.header(SIGNATURE_HEADER, signature).body(body.clone()).send().await {
                Ok(response) => response,
                Err(error) => return Answer::Failed(reason(error)),
            };
            let status = response.status();
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
            drain(response).await;
            match (status.as_u16(), location) {
                (301 | 302 | 307 | 308, Some(location)) => match redirected(&url, &location, self.policy) {
                    Ok(next) => url = next,
                    Err(why) => return Answer::Failed(format!("a redirect was not followed: {why}")),
                },
                (410, _) => return Answer::Gone,
                (200..=299, _) => return Answer::Delivered(status),
                _ => return Answer::Failed(format!("the receiver answered {status}")),
            }
        }
        Answer::Failed(format!("more than {MAX_REDIRECTS} redirects"))
    }
}

/// Where a redirect leads, judged like the URL that the user gave.
pub fn redirected(from: &Url, location: &str, policy: NotifyPolicy) -> Result<Url, String> {
    let next = from.join(location).map_err(|_| "it leads to no URL".to_owned())?;
    if from.scheme() == "https" && next.scheme() != "https" {
        return Err("it leads away from https".to_owned());
    }
    check_notify_url(&next, policy).map_err(|error| error.to_string())?;
    Ok(next)
}

/// The answer was given with its status: what goes wrong here is of no account.
async fn drain(mut response: Response) {
    let mut read = 0;
    while let Ok(Some(chunk)) = response.chunk().await {
        read += chunk.len();
        if read > MAX_ANSWER {
            return;
        }
    }
}

/// An error's causes, without the URL, which may hold a secret.
fn reason(error: reqwest::Error) -> String {
    ckrv_store::chain(&error.without_url())
}
