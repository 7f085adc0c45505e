//! A job's log as server-sent events. The stream is pulled by the connection: a slow client costs one batch of memory, an idle one a timer.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use ckrv_core::id::JobId;
use ckrv_core::log::{Cursor, LogEntry};
use ckrv_store::{JobSignals, Signal, StoreError};
use futures::stream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;

use super::watching;
use crate::error::{ApiError, chain};
use crate::state::ApiState;

/// Signals are hints; without one the store is asked this often.
const POLL: Duration = Duration::from_secs(1);
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Entries in one write, and their bytes unless one alone has more.
const BATCH: usize = 200;
const BATCH_BYTES: usize = 1024 * 1024;
/// Failures of the store in a row, after which the client is left to come back.
const MAX_FAILURES: u32 = 5;

/// When an answer must have ended, for requests that have such a time: their process is stopped soon after it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(pub Instant);

struct Follower {
    state: ApiState,
    id: JobId,
    cursor: Cursor,
    signals: JobSignals,
    closing: watch::Receiver<bool>,
    deadline: Option<Deadline>,
    last_write: Instant,
    failures: u32,
    done: bool,
    _permit: OwnedSemaphorePermit,
}

/// What a look into the store gave.
pub(super) enum Step {
    /// Events, and the place of the last one.
    Send(String, Cursor),
    /// What is behind the cursor was sent, and the job has ended.
    End,
    Wait,
    /// Nothing more can come for this client: the log has expired.
    Gone,
}

/// One reply until `[DONE]`, or until the server or the request's time ends: then without it, and the client comes back.
pub(super) fn follow(state: &ApiState, id: JobId, after: Cursor, deadline: Option<Deadline>) -> Result<Response, ApiError> {
    let full =
        |_| ApiError::later(StatusCode::TOO_MANY_REQUESTS, "too_many_followers", "Too many logs are being followed just now.", 5);
    let permit = state.followers.clone().try_acquire_owned().map_err(full)?;
    let follower = Follower {
        state: state.clone(),
        id,
        cursor: after,
        // Before the first look: what is written after it is signalled.
        signals: state.stores.signals.subscribe_to(id),
        closing: state.closing(),
        deadline,
        last_write: Instant::now(),
        failures: 0,
        done: false,
        _permit: permit,
    };
    Ok(event_stream(Body::from_stream(stream::unfold(follower, next_chunk))))
}

pub(super) fn event_stream(body: Body) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    // For proxies that would gather the stream.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

async fn next_chunk(mut follower: Follower) -> Option<(Result<Bytes, Infallible>, Follower)> {
    if follower.done {
        return None;
    }
    loop {
        if follower.deadline.is_some_and(|Deadline(at)| at <= Instant::now()) {
            return None;
        }
        let looked = look(&follower.state, follower.id, follower.cursor).await;
        follower.failures = if looked.is_ok() { 0 } else { follower.failures + 1 };
        let chunk = match looked {
            Ok(Step::Send(events, last)) => {
                follower.cursor = last;
                events
            }
            Ok(Step::End) => {
                follower.done = true;
                "data: [DONE]\n\n".to_owned()
            }
            Ok(Step::Gone) => return None,
            Ok(Step::Wait) => {
                if !follower.wait().await {
                    return None;
                }
                if follower.last_write.elapsed() < KEEP_ALIVE {
                    continue;
                }
                ": keep-alive\n\n".to_owned()
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), job = %follower.id, "a followed log could not be read");
                if follower.failures >= MAX_FAILURES || !follower.wait().await {
                    return None;
                }
                continue;
            }
        };
        follower.last_write = Instant::now();
        return Some((Ok(Bytes::from(chunk)), follower));
    }
}

/// One look into the store, at what is behind `after`.
pub(super) async fn look(state: &ApiState, id: JobId, after: Cursor) -> Result<Step, StoreError> {
    // The job first, the log after it: nothing is appended once a job has ended, so a log that was read after the end is
    // complete. The other way round, the last entries could be missed.
    let Some(job) = state.stores.jobs.job(id).await? else { return Ok(Step::Gone) };
    if job.is_expired(state.now()) {
        return Ok(Step::Gone);
    }
    watching::tell_worker(state, &job).await;
    let entries = state.stores.jobs.read_log(id, after, BATCH).await?;
    Ok(match events(&entries) {
        Some((text, last)) => Step::Send(text, last),
        None if job.state.is_final() && job.log_end.is_some_and(|end| end.seq == 0 || end <= after) => Step::End,
        None => Step::Wait,
    })
}

impl Follower {
    /// Until something may have changed; `false`: the server closes, or time is up.
    async fn wait(&mut self) -> bool {
        let Self { signals, closing, deadline, .. } = self;
        let told = async { while matches!(signals.recv().await, Some(Signal::Queued(_) | Signal::Watched(_))) {} };
        let closed = async {
            let _ = closing.wait_for(|closed| *closed).await;
        };
        let time_is_up = async {
            match deadline {
                Some(Deadline(at)) => tokio::time::sleep_until(*at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = told => true,
            () = closed => false,
            () = time_is_up => false,
            () = tokio::time::sleep(POLL) => true,
        }
    }
}

/// As many entries as one write takes, and the place of the last of them.
fn events(entries: &[LogEntry]) -> Option<(String, Cursor)> {
    let (mut text, mut last) = (String::new(), None);
    for entry in entries {
        // JSON has no raw line ends, so one `data:` line is enough.
        let Ok(json) = serde_json::to_string(entry) else { continue };
        if last.is_some() && text.len() + json.len() > BATCH_BYTES {
            break;
        }
        text.push_str(&format!("id: {}\ndata: {json}\n\n", entry.cursor()));
        last = Some(entry.cursor());
    }
    last.map(|last| (text, last))
}
