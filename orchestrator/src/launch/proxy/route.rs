//! A model route: HTTP/1.1 from the agent, the same request to the model API with the key in it, the answer as it comes.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::sync::Arc;

use bytes::Bytes;
use ckrv_shim::mux::MuxStream;
use futures::StreamExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{ACCEPT_ENCODING, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use secrecy::ExposeSecret as _;
use sha2::{Digest as _, Sha256};
use url::Url;

use super::Route;
use super::mask::{Masker, mask};

type BoxError = Box<dyn StdError + Send + Sync>;
type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Of one connection only (RFC 9110, 7.6.1).
const HOP_BY_HOP: [&str; 8] =
    ["connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade"];

/// A route with the token of its run.
#[derive(Debug)]
pub struct Target {
    route: Route,
    token: Option<String>,
}

impl Target {
    pub fn new(route: Route) -> Self {
        let token = route.placeholder_env.as_ref().map(|_| {
            let random: [u8; 16] = rand::random();
            format!("ckrv-run-{}", hex::encode(random))
        });
        Self { route, token }
    }

    pub fn for_shim(&self) -> ckrv_shim::protocol::Route {
        ckrv_shim::protocol::Route {
            base_url_env: self.route.base_url_env.clone(),
            path: self.route.path.clone(),
            placeholder: self.route.placeholder_env.clone().zip(self.token.clone()),
        }
    }

    /// Whether the request carries the run's token where the key belongs.
    fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(token) = &self.token else { return true };
        headers.get_all(&self.route.header).iter().filter_map(|value| value.to_str().ok()).any(|value| {
            let value = value
                .get(..self.route.prefix.len())
                .filter(|start| start.eq_ignore_ascii_case(&self.route.prefix))
                .map_or(value, |start| &value[start.len()..]);
            // Of hashes, so that the time it takes says nothing.
            Sha256::digest(value.trim()) == Sha256::digest(token)
        })
    }

    fn url(&self, request: &Request<Incoming>) -> Url {
        let mut url = self.route.upstream.clone();
        let path = format!("{}{}", url.path().trim_end_matches('/'), request.uri().path());
        url.set_path(&path);
        url.set_query(request.uri().query());
        url
    }

    /// The agent's headers without the connection's own, without its token in any of them, with the key.
    fn headers(&self, from: &HeaderMap) -> Result<HeaderMap, BoxError> {
        let mut headers = end_to_end(from);
        let carries_token =
            |value: &HeaderValue| self.token.as_ref().is_some_and(|token| contains(value.as_bytes(), token.as_bytes()));
        let tokens: Vec<HeaderName> =
            headers.iter().filter(|(_, value)| carries_token(value)).map(|(name, _)| name.clone()).collect();
        for name in tokens {
            headers.remove(name);
        }
        headers.remove(HOST);
        // Compressed, an echoed key couldn't be seen.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let key = format!("{}{}", self.route.prefix, self.route.secret.expose_secret());
        let mut key = HeaderValue::try_from(key).map_err(|_| "the secret can't be sent in a header")?;
        key.set_sensitive(true);
        headers.insert(HeaderName::try_from(&self.route.header)?, key);
        Ok(headers)
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

fn end_to_end(from: &HeaderMap) -> HeaderMap {
    let named: Vec<String> = from
        .get_all("connection")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(|name| name.trim().to_ascii_lowercase()))
        .collect();
    let kept = |name: &HeaderName| !HOP_BY_HOP.contains(&name.as_str()) && !named.iter().any(|other| other == name.as_str());
    from.iter().filter(|(name, _)| kept(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Serves one connection of the agent until either side ends it.
pub async fn serve(target: Arc<Target>, client: reqwest::Client, stream: MuxStream) {
    let service = service_fn(move |request| {
        let (target, client) = (Arc::clone(&target), client.clone());
        async move {
            let response = forward(&target, &client, request).await.unwrap_or_else(|error| bad_gateway(&target, &*error));
            Ok::<_, Infallible>(response)
        }
    });
    if let Err(error) = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a connection to a model route broke off");
    }
}

async fn forward(target: &Target, client: &reqwest::Client, request: Request<Incoming>) -> Result<Response<Body>, BoxError> {
    if !target.admits(request.headers()) {
        tracing::warn!(upstream = %target.route.upstream, "a request without this run's token was refused");
        return Ok(problem(StatusCode::UNAUTHORIZED, "the request does not carry this run's token"));
    }
    let (url, headers) = (target.url(&request), target.headers(request.headers())?);
    let outgoing = client.request(request.method().clone(), url).headers(headers);
    let outgoing = outgoing.body(reqwest::Body::wrap_stream(request.into_body().into_data_stream()));
    let answer = outgoing.send().await.map_err(reqwest::Error::without_url)?;

    let mut response = Response::builder().status(answer.status());
    if let Some(headers) = response.headers_mut() {
        *headers = masked_headers(answer.headers(), target.route.secret.expose_secret());
    }
    let mut masker = Masker::new(target.route.secret.expose_secret());
    let chunks = answer.bytes_stream().map(Some).chain(futures::stream::iter([None]));
    let masked = chunks.map(move |chunk| match chunk {
        Some(chunk) => chunk.map(|chunk| Frame::data(masker.push(&chunk))).map_err(|error| error.without_url().into()),
        None => Ok(Frame::data(masker.finish())),
    });
    Ok(response.body(StreamBody::new(masked).boxed_unsync())?)
}

fn masked_headers(from: &HeaderMap, secret: &str) -> HeaderMap {
    let mut headers = end_to_end(from);
    for value in headers.values_mut() {
        let mut bytes = value.as_bytes().to_vec();
        mask(&mut bytes, secret.as_bytes());
        if let Ok(masked) = HeaderValue::from_bytes(&bytes) {
            *value = masked;
        }
    }
    headers
}

/// The agent sees why, with the key masked should an error ever name it.
fn bad_gateway(target: &Target, error: &(dyn StdError + 'static)) -> Response<Body> {
    let mut bytes = ckrv_store::chain(error).into_bytes();
    mask(&mut bytes, target.route.secret.expose_secret().as_bytes());
    let text = String::from_utf8_lossy(&bytes);
    tracing::warn!(upstream = %target.route.upstream, error = %text, "a model API could not be reached");
    problem(StatusCode::BAD_GATEWAY, &format!("the model API could not be reached: {text}"))
}

/// In the shape that the agents' own libraries print.
fn problem(status: StatusCode, message: &str) -> Response<Body> {
    let json = serde_json::json!({ "error": { "type": "ckrv_route", "message": message } }).to_string();
    let mut response = Response::new(Full::from(json).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
