//! A job's log as server-sent events. The stream is pulled by the connection: a slow client costs one batch of memory, an idle one a timer.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use ckrv_core::id::JobId;
use ckrv_core::job::JobRecord;
use ckrv_core::log::{Cursor, LogEntry};
use ckrv_store::{Signal, StoreError};
use futures::stream;
use jiff::SignedDuration;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, broadcast, watch};
use tokio::time::Instant;

use crate::error::ApiError;
use crate::state::ApiState;

/// Signals are hints; without one the store is asked this often.
const POLL: Duration = Duration::from_secs(1);
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How often the worker is told that somebody watches.
const WATCHED: Duration = Duration::from_secs(5);
/// For how long that counts.
const WATCHED_FOR: SignedDuration = SignedDuration::from_secs(15);
/// Entries in one write.
const BATCH: usize = 200;
/// Failures of the store in a row, after which the client is left to come back.
const MAX_FAILURES: u32 = 5;

struct Follower {
    state: ApiState,
    id: JobId,
    cursor: Cursor,
    signals: broadcast::Receiver<Signal>,
    closing: watch::Receiver<bool>,
    last_write: Instant,
    last_watched: Option<Instant>,
    failures: u32,
    done: bool,
    _permit: OwnedSemaphorePermit,
}

/// What a look into the store gave.
enum Step {
    Send(String),
    /// What is behind the cursor was sent, and the job has ended.
    End,
    Wait,
    /// Nothing more can come for this client: the log has expired.
    Gone,
}

pub(crate) fn follow(state: &ApiState, id: JobId, after: Cursor) -> Result<Response, ApiError> {
    let full =
        |_| ApiError::later(StatusCode::TOO_MANY_REQUESTS, "too_many_followers", "Too many logs are being followed just now.", 5);
    let permit = state.followers.clone().try_acquire_owned().map_err(full)?;
    let follower = Follower {
        state: state.clone(),
        id,
        cursor: after,
        // Before the first look: what is written after it is signalled.
        signals: state.stores.signals.subscribe(),
        closing: state.closing(),
        last_write: Instant::now(),
        last_watched: None,
        failures: 0,
        done: false,
        _permit: permit,
    };
    let mut response = Response::new(Body::from_stream(stream::unfold(follower, next_chunk)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    // For proxies that would gather the stream.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

async fn next_chunk(mut follower: Follower) -> Option<(Result<Bytes, Infallible>, Follower)> {
    if follower.done {
        return None;
    }
    loop {
        let chunk = match follower.look().await {
            Ok(Step::Send(text)) => text,
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
                follower.failures += 1;
                tracing::warn!(error = &error as &dyn std::error::Error, job = %follower.id, "a followed log could not be read");
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

impl Follower {
    /// For the worker to send what it has sooner. A hint: where it can't be noted, the log comes later.
    async fn tell_watched(&mut self, job: &JobRecord) {
        if self.last_watched.is_some_and(|last| last.elapsed() < WATCHED) {
            return;
        }
        self.last_watched = Some(Instant::now());
        if let Err(error) = self.state.stores.jobs.watch(job, self.state.now() + WATCHED_FOR).await {
            tracing::warn!(error = &error as &dyn std::error::Error, job = %self.id, "that a log is followed could not be noted");
        }
    }

    async fn look(&mut self) -> Result<Step, StoreError> {
        // The job first, the log after it: nothing is appended once a job has ended, so a log that was read after the end is
        // complete. The other way round, the last entries could be missed.
        let Some(job) = self.state.stores.jobs.job(self.id).await? else { return Ok(Step::Gone) };
        if job.is_expired(self.state.now()) {
            return Ok(Step::Gone);
        }
        if !job.state.is_final() {
            self.tell_watched(&job).await;
        }
        let entries = self.state.stores.jobs.read_log(self.id, self.cursor, BATCH).await?;
        self.failures = 0;
        if let Some(last) = entries.last() {
            self.cursor = last.cursor();
            return Ok(Step::Send(events(&entries)));
        }
        Ok(if job.state.is_final() && job.log_end.is_some() { Step::End } else { Step::Wait })
    }

    /// Until something may have changed; `false`: the server closes.
    async fn wait(&mut self) -> bool {
        let Self { signals, closing, id, .. } = self;
        let told = async {
            loop {
                match signals.recv().await {
                    Ok(Signal::Log(about) | Signal::Changed(about)) if about == *id => return,
                    Err(RecvError::Lagged(_)) => return,
                    Err(RecvError::Closed) => std::future::pending().await,
                    Ok(_) => {}
                }
            }
        };
        let closed = async {
            let _ = closing.wait_for(|closed| *closed).await;
        };
        tokio::select! {
            () = told => true,
            () = closed => false,
            () = tokio::time::sleep(POLL) => true,
        }
    }
}

fn events(entries: &[LogEntry]) -> String {
    let mut text = String::new();
    for entry in entries {
        // JSON has no raw line ends, so one `data:` line is enough.
        if let Ok(json) = serde_json::to_string(entry) {
            text.push_str(&format!("id: {}\ndata: {json}\n\n", entry.cursor()));
        }
    }
    text
}
