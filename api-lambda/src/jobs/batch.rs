//! A followed log behind Lambda: what there is, at once, and the word when to come back. Nothing is held open, since an open reply is paid
//! for by the millisecond, and one that Lambda buffers shows nothing before its end.
//!
//! A client that didn't ask for batches gets them too where answers are buffered. It can live with them: to it this is a connection that
//! broke without `[DONE]`, after which every reader of server-sent events comes back by itself, with `Last-Event-ID` and after `retry:`.

use axum::body::Body;
use axum::response::Response;
use ckrv_core::id::JobId;
use ckrv_core::log::Cursor;

use super::follow::{Step, event_stream, look};
use crate::error::ApiError;
use crate::state::ApiState;

/// The most that is sent at once.
const MAX_BYTES: usize = 2 * 1024 * 1024;
/// Milliseconds until a log may have grown.
const PAUSE: u32 = 700;

pub(super) async fn batch(state: &ApiState, id: JobId, after: Cursor) -> Result<Response, ApiError> {
    let (mut text, mut cursor) = (String::new(), after);
    let end = loop {
        match look(state, id, cursor).await? {
            Step::Send(events, last) => {
                text.push_str(&events);
                cursor = last;
            }
            Step::End => break "data: [DONE]\n\n".to_owned(),
            Step::Wait | Step::Gone => break format!("retry: {PAUSE}\n\n"),
        }
        if text.len() >= MAX_BYTES {
            break "retry: 0\n\n".to_owned();
        }
    };
    text.push_str(&end);
    Ok(event_stream(Body::from(text)))
}
