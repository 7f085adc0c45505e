//! An event becomes a request, and the answer fits what Lambda takes.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::uri::{PathAndQuery, Uri};
use axum::http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};
use axum::response::IntoResponse as _;
use ckrv_core::Timestamp;
use lambda_http::aws_lambda_events::apigw::ApiGatewayV2httpRequestContext as Context;
use lambda_http::request::RequestContext;
use lambda_http::{RequestExt as _, Service, service_fn};
use tokio::time::Instant;
use tower::ServiceExt as _;
use url::Url;

use crate::audit::Peer;
use crate::jobs::follow::Deadline;

/// What Lambda takes as one answer is 6 MB, of which the envelope needs a part.
const MAX_ANSWER: usize = 5_900_000;
/// The time that is left for ending an answer before Lambda ends the invocation.
const MARGIN: Duration = Duration::from_secs(2);

type Make = Box<dyn Fn(Url) -> axum::Router + Send + Sync>;

/// The router, as soon as it is known where clients reach it.
pub(super) struct Function {
    router: OnceLock<axum::Router>,
    make: Make,
}

impl Function {
    /// Without a public URL the first event tells it: a function can't know its own URL, since that is made after it.
    pub fn new(make: Make, public_url: Option<Url>) -> Self {
        let router = public_url.map_or_else(OnceLock::new, |url| OnceLock::from(make(url)));
        Self { router, make }
    }

    async fn answer(&self, event: lambda_http::Request) -> Response<Body> {
        let Some(RequestContext::ApiGatewayV2(context)) = event.request_context_ref().cloned() else {
            // No other kind of event is compiled in.
            return StatusCode::BAD_REQUEST.into_response();
        };
        let router = self.router.get_or_init(|| (self.make)(url_of(&context)));
        let request = request(event, &context);
        match router.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

/// Each answer whole, as one JSON object.
pub(super) fn buffered(
    function: Arc<Function>,
) -> impl Service<lambda_http::Request, Response = Response<Body>, Error = Infallible, Future: Send> {
    service_fn(move |event| {
        let function = Arc::clone(&function);
        async move { Ok(fitting(function.answer(event).await).await) }
    })
}

/// Each answer as it comes.
pub(super) fn streaming(
    function: Arc<Function>,
) -> impl Service<lambda_http::Request, Response = Response<Body>, Error = Infallible, Future: Send> {
    service_fn(move |event| {
        let function = Arc::clone(&function);
        async move { Ok(function.answer(event).await) }
    })
}

/// Where this event's sender reached us. The name is Lambda's word, not the `Host` header's.
fn url_of(context: &Context) -> Url {
    let host = context.domain_name.as_deref().unwrap_or("localhost");
    let path = stage(context).map_or_else(String::new, |stage| format!("{stage}/"));
    Url::parse(&format!("https://{host}/{path}")).unwrap_or_else(|_| unknown_host())
}

fn unknown_host() -> Url {
    #[expect(clippy::unwrap_used, reason = "a constant that is a URL")]
    Url::parse("https://localhost/").unwrap()
}

/// The stage that is a part of this event's paths.
fn stage(context: &Context) -> Option<&str> {
    context.stage.as_deref().filter(|stage| !stage.is_empty() && *stage != "$default")
}

fn request(event: lambda_http::Request, context: &Context) -> Request<Body> {
    let lambda = event.lambda_context();
    let (mut parts, body) = event.into_parts();
    if let Some(uri) = stage(context).and_then(|stage| without_stage(&parts.uri, stage)) {
        parts.uri = uri;
    }
    // One id in our log, in Lambda's and in the answer, unless the client brought one.
    let id = HeaderName::from_static("x-request-id");
    if let (false, Ok(value)) = (parts.headers.contains_key(&id), HeaderValue::from_str(&lambda.request_id)) {
        parts.headers.insert(id, value);
    }
    if let Some(peer) = context.http.source_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok()) {
        parts.extensions.insert(ConnectInfo(Peer(peer)));
    }
    let left = lambda.deadline.saturating_sub(u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default());
    parts.extensions.insert(Deadline(Instant::now() + Duration::from_millis(left).saturating_sub(MARGIN)));
    Request::from_parts(parts, Body::new(body))
}

/// `/STAGE/v1/jobs` is `/v1/jobs` to us. `lambda_http` has put the stage there where the event had none.
fn without_stage(uri: &Uri, stage: &str) -> Option<Uri> {
    let rest = uri.path().strip_prefix('/')?.strip_prefix(stage)?;
    let path = match rest {
        "" => "/",
        rest if rest.starts_with('/') => rest,
        _ => return None,
    };
    let query = uri.query().map_or_else(String::new, |query| format!("?{query}"));
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(format!("{path}{query}")).ok()?);
    Uri::from_parts(parts).ok()
}

/// A text stands in the answer as a JSON string, which may be several times as long. One that is too long goes as base64 instead: named
/// an encoding, `lambda_http` takes it for binary. Nothing that the API sends has more bytes than base64 has room for.
async fn fitting(response: Response<Body>) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    let bytes = match axum::body::to_bytes(body, usize::MAX).await {
        Ok(bytes) => bytes,
        Err(error) => {
            tracing::error!(%error, "an answer broke off");
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
    };
    if as_json_string(&bytes) > MAX_ANSWER {
        parts.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("identity"));
    }
    Response::from_parts(parts, Body::from(bytes))
}

/// How many bytes a text has as a JSON string.
fn as_json_string(text: &[u8]) -> usize {
    let width = |byte: &u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        0..0x20 => 6,
        _ => 1,
    };
    text.iter().map(width).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_taken_off_once_and_only_where_it_is_the_whole_first_part() {
        let path = |uri: &str, stage| without_stage(&uri.parse().unwrap(), stage).map(|uri| uri.to_string());
        assert_eq!(path("https://h/prod/v1/jobs?limit=2", "prod").unwrap(), "https://h/v1/jobs?limit=2");
        assert_eq!(path("https://h/prod", "prod").unwrap(), "https://h/");
        assert_eq!(path("https://h/prod/prod/x", "prod").unwrap(), "https://h/prod/x");
        assert_eq!(path("https://h/production/x", "prod"), None);
        assert_eq!(path("https://h/v1/jobs", "prod"), None);
    }

    #[test]
    fn the_length_as_a_json_string_is_what_serde_writes() {
        let text = "plain \"quoted\" \\ \n\r\t\u{8}\u{c}\u{1}\u{1f}\u{7f} ü €";
        assert_eq!(as_json_string(text.as_bytes()), serde_json::to_string(text).unwrap().len() - 2);
    }

    #[tokio::test]
    async fn a_text_that_grows_too_long_is_sent_as_binary() {
        let answer = |text: String| fitting(Response::new(Body::from(text)));
        assert!(answer("a".repeat(4 << 20)).await.headers().is_empty());
        assert_eq!(answer("\"".repeat(4 << 20)).await.headers()[header::CONTENT_ENCODING], "identity");
    }
}
