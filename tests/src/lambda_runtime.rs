//! Lambda's Runtime API, as a function sees it: a sandbox is one process of the real binary, which takes one invocation after the other.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::StreamExt as _;
use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use crate::bench;
use crate::http::Http;
use crate::wait::PATIENCE;

/// The largest answer that isn't streamed.
const MAX_ANSWER: usize = 6_291_556;
/// Between a streamed answer's head and its body.
const DELIMITER: [u8; 8] = [0; 8];

/// One process of the function; dropped, it is killed.
#[derive(Debug)]
pub struct Sandbox {
    /// From its start to its first question for work.
    pub init: Duration,
    process: Child,
    runtime: Arc<Runtime>,
    free: Arc<Semaphore>,
    _api: Http,
    folder: tempfile::TempDir,
}

/// What an invocation came to.
#[derive(Debug)]
pub enum Outcome {
    Answer(Answer),
    /// What the function reported as its failure.
    Error(Value),
}

/// A head, and a body that may still be coming.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub streamed: bool,
    /// It came as base64; streamed ones never do.
    pub binary: bool,
    pub body: mpsc::UnboundedReceiver<Bytes>,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Whole {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub binary: bool,
    pub body: Vec<u8>,
}

impl Answer {
    pub async fn whole(mut self) -> Whole {
        let mut body = Vec::new();
        while let Some(bytes) = self.body.recv().await {
            body.extend_from_slice(&bytes);
        }
        Whole { status: self.status, headers: self.headers, binary: self.binary, body }
    }
}

impl Whole {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("no JSON: {}", self.text()))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

impl Outcome {
    /// The answer; a failure of the function is an error.
    pub async fn whole(self) -> Result<Whole> {
        match self {
            Self::Answer(answer) => Ok(answer.whole().await),
            Self::Error(error) => bail!("the function failed: {error}"),
        }
    }
}

#[derive(Debug)]
struct Invocation {
    id: String,
    event: String,
    deadline_ms: u128,
}

/// Who waits for an invocation's outcome, and the sandbox's being taken, which ends with the answer.
type Waiting = (oneshot::Sender<Outcome>, OwnedSemaphorePermit);

#[derive(Debug)]
struct Runtime {
    send: mpsc::UnboundedSender<Invocation>,
    receive: tokio::sync::Mutex<mpsc::UnboundedReceiver<Invocation>>,
    waiting: Mutex<HashMap<String, Waiting>>,
    asked: watch::Sender<bool>,
}

impl Sandbox {
    /// Starts the function, and waits until it asks for work.
    pub async fn start(env: &[(String, String)]) -> Result<Self> {
        let (send, receive) = mpsc::unbounded_channel();
        let runtime = Runtime { send, receive: receive.into(), waiting: Mutex::default(), asked: watch::Sender::new(false) };
        let runtime = Arc::new(runtime);
        let routes = Router::new()
            .route("/2018-06-01/runtime/invocation/next", get(next))
            .route("/2018-06-01/runtime/invocation/{id}/response", post(response))
            .route("/2018-06-01/runtime/invocation/{id}/error", post(error))
            .layer(axum::extract::DefaultBodyLimit::disable())
            .with_state(Arc::clone(&runtime));
        let api = Http::start(routes, None).await?;
        let folder = tempfile::Builder::new().prefix("ckrv-lambda-").tempdir()?;
        let log = std::fs::File::create(folder.path().join("log"))?;
        let mut command = Command::new(bench::bootstrap()?);
        command.env_clear().current_dir(folder.path()).env("AWS_LAMBDA_RUNTIME_API", api.address.to_string());
        for (name, value) in [("FUNCTION_NAME", "ckrv-api"), ("FUNCTION_MEMORY_SIZE", "256"), ("FUNCTION_VERSION", "1")] {
            command.env(format!("AWS_LAMBDA_{name}"), value);
        }
        command.envs(env.iter().cloned()).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        let began = Instant::now();
        let mut process = command.spawn().context("can't start the function")?;
        let mut asked = runtime.asked.subscribe();
        let ready = async {
            tokio::select! {
                asked = asked.wait_for(|asked| *asked) => asked.map(drop).context("the stub is gone"),
                status = process.wait() => Err(anyhow::anyhow!("it ended with {status:?}")),
            }
        };
        let ready = tokio::time::timeout(PATIENCE, ready).await.context("it never asks for work").and_then(|ready| ready);
        let init = began.elapsed();
        let text = || std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
        ready.with_context(|| format!("the function doesn't start:\n{}", text()))?;
        Ok(Self { init, process, runtime, free: Arc::new(Semaphore::new(1)), _api: api, folder })
    }

    /// Gives it an event once it is free; `limit` is how long Lambda would let it run.
    pub async fn invoke(&self, event: &Value, limit: Duration) -> Result<Outcome> {
        let permit = Arc::clone(&self.free).acquire_owned().await?;
        self.invoke_with(permit, event, limit).await
    }

    /// Its being free, if it is.
    pub(crate) fn take(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.free).try_acquire_owned().ok()
    }

    #[expect(clippy::disallowed_types, reason = "Lambda's deadlines are wall clock, in milliseconds")]
    pub(crate) async fn invoke_with(&self, permit: OwnedSemaphorePermit, event: &Value, limit: Duration) -> Result<Outcome> {
        let random: u128 = rand::random();
        let id = format!("{:08x}-{:04x}-4000-8000-{:012x}", random >> 96, (random >> 80) & 0xffff, random & 0xffff_ffff_ffff);
        let deadline = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)? + limit;
        let (tell, told) = oneshot::channel();
        self.runtime.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), (tell, permit));
        let invocation = Invocation { id, event: event.to_string(), deadline_ms: deadline.as_millis() };
        self.runtime.send.send(invocation).context("the stub is gone")?;
        let outcome = tokio::time::timeout(limit, told).await.with_context(|| format!("no answer in time:\n{}", self.log()))?;
        outcome.context("the stub is gone")
    }

    pub fn pid(&self) -> Option<u32> {
        self.process.id()
    }

    /// In the middle of whatever it does.
    pub(crate) fn kill(&self) {
        if let Some(pid) = self.pid().and_then(|pid| i32::try_from(pid).ok()) {
            // An error: it has ended already.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }

    pub fn runs(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// What it printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    pub fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// Resident memory in KiB, now and at its highest (Linux).
    pub fn memory(&self) -> Result<(u64, u64)> {
        let pid = self.pid().context("it has ended")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse().ok()
        };
        let kib = |name: &str| field(name).with_context(|| format!("no {name}"));
        Ok((kib("VmRSS:")?, kib("VmHWM:")?))
    }
}

/// `…/invocation/next`: waits until there is work.
async fn next(State(runtime): State<Arc<Runtime>>) -> Response {
    runtime.asked.send_replace(true);
    let Some(invocation) = runtime.receive.lock().await.recv().await else { return StatusCode::GONE.into_response() };
    let head = [
        ("lambda-runtime-aws-request-id", invocation.id),
        ("lambda-runtime-deadline-ms", invocation.deadline_ms.to_string()),
        ("lambda-runtime-invoked-function-arn", "arn:aws:lambda:us-east-1:000000000000:function:ckrv-api:live".to_owned()),
        ("content-type", "application/json".to_owned()),
    ];
    (head, invocation.event).into_response()
}

async fn response(State(runtime): State<Arc<Runtime>>, Path(id): Path<String>, request: Request) -> StatusCode {
    let Some((tell, permit)) = runtime.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&id) else {
        return StatusCode::FORBIDDEN;
    };
    let (parts, body) = request.into_parts();
    let taken = if is_streaming(&parts.headers) { stream(body, tell).await } else { buffer(body, tell).await };
    // Only now it may get the next one.
    drop(permit);
    taken.unwrap_or(StatusCode::BAD_REQUEST)
}

fn is_streaming(headers: &HeaderMap) -> bool {
    headers.get("lambda-runtime-function-response-mode").is_some_and(|mode| mode == "streaming")
        && headers.get("content-type").is_some_and(|kind| kind == "application/vnd.awslambda.http-integration-response")
}

/// Passes on what comes, to its end: Lambda doesn't stop a function whose client has gone.
async fn stream(body: Body, tell: oneshot::Sender<Outcome>) -> Result<StatusCode> {
    let (send, receive) = mpsc::unbounded_channel();
    let (mut chunks, mut head) = (body.into_data_stream(), Vec::new());
    let rest = loop {
        head.extend_from_slice(&chunks.next().await.context("an answer without a head")??);
        if let Some(at) = head.windows(DELIMITER.len()).position(|window| window == DELIMITER) {
            let rest = head.split_off(at + DELIMITER.len());
            head.truncate(at);
            break rest;
        }
    };
    let head: Value = serde_json::from_slice(&head)?;
    let status = u16::try_from(head["statusCode"].as_u64().context("no status")?)?;
    let _ = tell.send(Outcome::Answer(Answer { status, headers: headers(&head), streamed: true, binary: false, body: receive }));
    if !rest.is_empty() {
        let _ = send.send(Bytes::from(rest));
    }
    while let Some(chunk) = chunks.next().await {
        let _ = send.send(chunk?);
    }
    Ok(StatusCode::ACCEPTED)
}

async fn buffer(body: Body, tell: oneshot::Sender<Outcome>) -> Result<StatusCode> {
    let bytes = axum::body::to_bytes(body, usize::MAX).await?;
    if bytes.len() > MAX_ANSWER {
        let _ = tell.send(Outcome::Error(serde_json::json!({ "errorType": "Function.ResponseSizeTooLarge" })));
        return Ok(StatusCode::PAYLOAD_TOO_LARGE);
    }
    let answer: Value = serde_json::from_slice(&bytes)?;
    let status = u16::try_from(answer["statusCode"].as_u64().context("no status")?)?;
    let (text, binary) = (answer["body"].as_str().unwrap_or_default(), answer["isBase64Encoded"] == true);
    let content = if binary { STANDARD.decode(text)? } else { text.as_bytes().to_vec() };
    let (send, receive) = mpsc::unbounded_channel();
    if !content.is_empty() {
        let _ = send.send(Bytes::from(content));
    }
    let _ = tell.send(Outcome::Answer(Answer { status, headers: headers(&answer), streamed: false, binary, body: receive }));
    Ok(StatusCode::ACCEPTED)
}

/// Of either form: a header's value is a text or a list, and cookies stand apart.
fn headers(head: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let mut found = Vec::new();
    for map in ["headers", "multiValueHeaders"].iter().filter_map(|name| head[name].as_object()) {
        for (name, value) in map {
            let values = value.as_array().map_or_else(|| vec![text(value)], |values| values.iter().map(text).collect());
            found.extend(values.into_iter().flatten().map(|value| (name.clone(), value)));
        }
    }
    let cookies = head["cookies"].as_array().into_iter().flatten().filter_map(text);
    found.extend(cookies.map(|cookie| ("set-cookie".to_owned(), cookie)));
    found
}

async fn error(State(runtime): State<Arc<Runtime>>, Path(id): Path<String>, body: Bytes) -> StatusCode {
    let waiting = runtime.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    if let Some((tell, _)) = waiting {
        let _ = tell.send(Outcome::Error(serde_json::from_slice(&body).unwrap_or_default()));
    }
    StatusCode::ACCEPTED
}
