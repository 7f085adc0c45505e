//! `openidconnect`'s requests over our HTTP client: no redirects (an answer must come from where the provider's own document says),
//! little time, small answers.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::OnceLock;
use std::time::Duration;

use openidconnect::{AsyncHttpClient, HttpRequest, HttpResponse, http};

const CONNECT: Duration = Duration::from_secs(3);
/// A person waits in front of the page, and a function is paid for meanwhile.
const WHOLE: Duration = Duration::from_secs(10);
/// A large provider's key set has some ten KiB.
const MAX_BODY: usize = 512 * 1024;

/// Made at the first sign-in: a server without providers needs none.
#[derive(Debug, Default)]
pub(super) struct Http(OnceLock<reqwest::Client>);

#[derive(Debug)]
pub(super) enum HttpError {
    Request(reqwest::Error),
    TooLarge,
    Answer(http::Error),
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request(_) => f.write_str("the identity provider can't be reached"),
            Self::TooLarge => write!(f, "the identity provider's answer is larger than {MAX_BODY} bytes"),
            Self::Answer(_) => f.write_str("the identity provider's answer can't be understood"),
        }
    }
}

impl Error for HttpError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Request(error) => Some(error),
            Self::Answer(error) => Some(error),
            Self::TooLarge => None,
        }
    }
}

impl Http {
    fn client(&self) -> Result<&reqwest::Client, HttpError> {
        if let Some(client) = self.0.get() {
            return Ok(client);
        }
        // Another may have been installed before: the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .timeout(WHOLE)
            // A frozen sandbox finds its connections dead.
            .pool_idle_timeout(Duration::from_secs(10))
            .user_agent(concat!("ckrv/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(HttpError::Request)?;
        Ok(self.0.get_or_init(|| client))
    }

    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (parts, body) = request.into_parts();
        let request = self.client()?.request(parts.method, parts.uri.to_string()).headers(parts.headers).body(body);
        // A URL may hold what no log should.
        let failed = |error: reqwest::Error| HttpError::Request(error.without_url());
        let mut response = request.send().await.map_err(failed)?;
        let mut answer = http::Response::builder().status(response.status());
        if let Some(headers) = answer.headers_mut() {
            headers.clone_from(response.headers());
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > MAX_BODY {
                return Err(HttpError::TooLarge);
            }
            body.extend_from_slice(&chunk);
        }
        answer.body(body).map_err(HttpError::Answer)
    }
}

impl<'c> AsyncHttpClient<'c> for Http {
    type Error = HttpError;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(self.send(request))
    }
}
