//! Replies in pieces, whatever the dialect.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::Value;
use tokio::sync::mpsc::{Sender, channel};

pub const TOKENS_IN: u32 = 1234;
pub const TOKENS_OUT: u32 = 56;
pub const TOKENS_CACHED: u32 = 1000;

pub fn json(status: StatusCode, body: &Value) -> Response {
    (
        status,
        [(header::CONTENT_TYPE, "application/json"), (header::HeaderName::from_static("request-id"), "req_test")],
        body.to_string(),
    )
        .into_response()
}

pub fn error(status: u16, retry_after: u32, body: &Value) -> Response {
    let mut response = json(StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), body);
    if matches!(status, 429 | 529) {
        response.headers_mut().insert(header::RETRY_AFTER, retry_after.into());
    }
    response
}

/// Server-sent events, one by one as `write` sends them; it ends when the client is gone.
pub fn events<W, F>(write: W) -> Response
where
    W: FnOnce(Events) -> F,
    F: Future<Output = Option<()>> + Send + 'static,
{
    let (sender, receiver) = channel::<Bytes>(16);
    tokio::spawn(write(Events(sender)));
    let body = futures::stream::unfold(receiver, async |mut receiver| receiver.recv().await.map(|bytes| (bytes, receiver)));
    let body = Body::from_stream(futures::StreamExt::map(body, Ok::<_, std::convert::Infallible>));
    ([(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")], body).into_response()
}

/// The sending side of [`events`]; `None` says that nobody listens any more.
pub struct Events(Sender<Bytes>);

impl Events {
    pub async fn send(&self, event: Option<&str>, data: &Value) -> Option<()> {
        let event = event.map(|event| format!("event: {event}\n")).unwrap_or_default();
        self.0.send(format!("{event}data: {data}\n\n").into()).await.ok()
    }
}

/// Never.
pub async fn hang() -> Response {
    tokio::time::sleep(Duration::from_secs(3600)).await;
    StatusCode::GATEWAY_TIMEOUT.into_response()
}
