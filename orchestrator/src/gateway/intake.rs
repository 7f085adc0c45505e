//! What this server's memory holds of other people's bytes at once. A body is weighed before it is read: where there is no room, whoever
//! sends it waits a little, and is then asked to come again.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State as AxumState};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::BytesMut;
use futures::StreamExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::denied::Denied;
use super::server::GatewayServer;
use super::wire::{Denial, LARGEST_ARTIFACT, LARGEST_MESSAGE};

/// Beats and the like are never held up by somebody's upload.
const UNWEIGHED: u64 = 64 * 1024;
/// How long a body waits for room: first come, first served, so that a large one gets its turn too.
const PATIENCE: Duration = Duration::from_secs(5);
/// Whoever sends more slowly than this lets others wait for the room: two minutes are twice what a job runner gives an upload itself.
const LONGEST: Duration = Duration::from_secs(120);
const CHUNK: usize = 256 * 1024;

/// Room for bodies, in KiB.
#[derive(Debug)]
pub(super) struct Intake {
    free: Arc<Semaphore>,
    total: u32,
    patience: Duration,
}

impl Intake {
    pub fn new(mib: u32) -> Self {
        let total = mib.saturating_mul(1024);
        Self { free: Arc::new(Semaphore::new(total as usize)), total, patience: PATIENCE }
    }

    /// Room for so many bytes, until it is dropped; for a body that is larger than all of it: all. `None`: the body is small.
    pub async fn room(&self, bytes: u64) -> Result<Option<OwnedSemaphorePermit>, Denied> {
        if bytes <= UNWEIGHED {
            return Ok(None);
        }
        let waiting = Arc::clone(&self.free).acquire_many_owned(kib(bytes).min(self.total));
        match tokio::time::timeout(self.patience, waiting).await {
            Ok(Ok(room)) => Ok(Some(room)),
            Ok(Err(_)) | Err(_) => Err(Denied(Denial::Busy)),
        }
    }
}

fn kib(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX)
}

/// Weighs a message and keeps its room until it is answered.
pub(super) async fn weigh_message(gateway: AxumState<Arc<GatewayServer>>, request: Request, next: Next) -> Response {
    weigh(&gateway, request, next, LARGEST_MESSAGE).await
}

/// The same for what goes to the blob store.
pub(super) async fn weigh_artifact(gateway: AxumState<Arc<GatewayServer>>, request: Request, next: Next) -> Response {
    weigh(&gateway, request, next, LARGEST_ARTIFACT).await
}

async fn weigh(gateway: &GatewayServer, request: Request, next: Next, most: u64) -> Response {
    let length = match length(request.headers()) {
        Some(length) => length,
        // There is none.
        None if !request.headers().contains_key(TRANSFER_ENCODING) => 0,
        None => return Denied(Denial::Invalid("a body's length must be given".to_owned())).into_response(),
    };
    if length > most {
        return Denied(Denial::TooLarge(most >> 20)).into_response();
    }
    match gateway.intake().room(length).await {
        Ok(None) => next.run(request).await,
        Ok(Some(room)) => {
            let answered = tokio::time::timeout(LONGEST, next.run(request)).await;
            drop(room);
            answered.unwrap_or_else(|_elapsed| Denied(Denial::Busy).into_response())
        }
        Err(denied) => denied.into_response(),
    }
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// A body whose length was weighed, in memory once: the extractors of axum hold it twice for a moment.
pub(super) async fn whole(headers: &HeaderMap, body: Body) -> Result<Bytes, Denied> {
    let length = length(headers).and_then(|length| usize::try_from(length).ok()).unwrap_or_default();
    let mut content = BytesMut::with_capacity(length);
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| Denied(Denial::Invalid("the body broke off".to_owned())))?;
        content.extend_from_slice(&chunk);
    }
    Ok(content.freeze())
}

/// A response of these bytes, which keep their room until they are sent.
pub(super) fn answer(content: Bytes, room: Option<OwnedSemaphorePermit>) -> Response {
    let length = content.len();
    let chunks = futures::stream::unfold((content, room), async |(mut rest, room)| {
        let chunk = rest.split_to(rest.len().min(CHUNK));
        (!chunk.is_empty()).then_some((Ok::<_, std::convert::Infallible>(chunk), (rest, room)))
    });
    ([(CONTENT_LENGTH, length)], Body::from_stream(chunks)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_does_not_fit_waits_and_then_comes_again_and_small_things_pass() {
        let intake = Intake { patience: Duration::from_millis(20), ..Intake::new(128) };
        let held = intake.room(LARGEST_ARTIFACT).await.ok().flatten().expect("room");
        assert!(matches!(intake.room(LARGEST_ARTIFACT).await, Err(Denied(Denial::Busy))), "there is no room for two");
        assert!(matches!(intake.room(UNWEIGHED).await, Ok(None)));
        let rest = intake.room(20 << 20).await.ok().flatten().expect("the rest is free");
        drop(held);
        assert!(intake.room(LARGEST_ARTIFACT).await.is_ok());
        drop(rest);
        assert_eq!(intake.free.available_permits(), 128 * 1024, "all of it is given back");
    }

    #[tokio::test]
    async fn an_answer_keeps_its_room_until_it_is_sent() {
        let intake = Intake::new(128);
        let room = intake.room(1 << 20).await.ok().flatten();
        let response = answer(Bytes::from(vec![7; 1 << 20]), room);
        assert_eq!(intake.free.available_permits(), 127 * 1024);
        let sent = whole(&response.headers().clone(), response.into_body()).await;
        assert!(sent.is_ok_and(|sent| sent == vec![7; 1 << 20]));
        assert_eq!(intake.free.available_permits(), 128 * 1024);
    }
}
