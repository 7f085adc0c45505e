//! A scripted model: an HTTP server that answers as the Anthropic Messages and the Gemini API do, well enough for the real Claude
//! Code and Gemini CLI. The scenario is the first part of the path (`/s/NAME/…`), so one server serves many agents at once; what
//! it answers depends on the conversation that it is sent and on nothing else, so that they don't mix.

mod anthropic;
mod conversation;
mod gemini;
mod reply;
mod script;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

pub use script::{Call, Script, Step};

use crate::http::{Authority, Http};

/// What the model says last.
pub const DONE: &str = "Done.";

/// A running model; dropped, it is gone.
#[derive(Debug)]
pub struct Model {
    http: Http,
    desk: Arc<Desk>,
}

#[derive(Debug)]
struct Desk {
    scripts: BTreeMap<String, Script>,
    requests: Mutex<Vec<Request>>,
    failures: Mutex<BTreeMap<String, u32>>,
    released: tokio::sync::watch::Sender<bool>,
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// With the query.
    pub path: String,
    pub scenario: String,
    pub headers: Vec<(String, String)>,
    /// The key that came along, in whichever header its dialect has for it.
    pub key: Option<String>,
    pub body: Bytes,
}

impl Model {
    /// The built-in scenarios (see [`Script::built_in`]) and the test's own.
    pub async fn start<'a>(own: impl IntoIterator<Item = (&'a str, Script)>, authority: Option<&Authority>) -> Result<Self> {
        let mut scripts = Script::built_in();
        scripts.extend(own.into_iter().map(|(name, script)| (name.to_owned(), script)));
        let desk = Arc::new(Desk {
            scripts,
            requests: Mutex::default(),
            failures: Mutex::default(),
            released: tokio::sync::watch::Sender::new(false),
        });
        let limit = axum::extract::DefaultBodyLimit::max(32 << 20);
        let router = Router::new().fallback(answer).layer(limit).with_state(Arc::clone(&desk));
        Ok(Self { http: Http::start(router, authority).await?, desk })
    }

    /// The base URL to give an agent.
    pub fn url(&self, scenario: &str) -> String {
        format!("{}/s/{scenario}", self.http.url)
    }

    pub fn address(&self) -> std::net::SocketAddr {
        self.http.address
    }

    /// Lets every [`Script::Held`] go on, now and later.
    pub fn release(&self) {
        self.desk.released.send_replace(true);
    }

    /// Everything that has arrived so far.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.desk.requests).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn answer(State(desk): State<Arc<Desk>>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let (scenario, path) = match uri.path().strip_prefix("/s/").and_then(|rest| rest.split_once('/')) {
        Some((scenario, rest)) => (scenario.to_owned(), format!("/{rest}")),
        None => ("ok".to_owned(), uri.path().to_owned()),
    };
    lock(&desk.requests).push(record(&method, &uri, &scenario, &headers, &body));
    if method == Method::HEAD {
        return StatusCode::OK.into_response();
    }
    let Some(script) = desk.scripts.get(&scenario) else {
        return reply::json(StatusCode::NOT_FOUND, &json!({"error": {"message": format!("no scenario {scenario}")}}));
    };
    let body: Value = match serde_json::from_slice(&body) {
        Ok(body) => body,
        Err(_) if method == Method::GET => Value::Null,
        Err(error) => return reply::json(StatusCode::BAD_REQUEST, &json!({"error": {"message": error.to_string()}})),
    };
    let script = desk.next(&scenario, script);
    if matches!(script, Script::Held(_)) && conversation::has_result(&body) {
        // It lives as long as the desk, so this ends.
        let _ = desk.released.subscribe().wait_for(|released| *released).await;
    }
    if path.ends_with("/v1/messages/count_tokens") {
        reply::json(StatusCode::OK, &json!({"input_tokens": reply::TOKENS_IN}))
    } else if path.ends_with("/v1/messages") {
        anthropic::answer(&script, &body).await
    } else if let Some((model, verb)) = gemini_call(&path) {
        gemini::answer(&script, &body, model, verb).await
    } else {
        reply::json(StatusCode::NOT_FOUND, &json!({"error": {"type": "not_found_error", "message": "no such path"}}))
    }
}

impl Desk {
    /// A script that fails first has a memory; all others are what they are.
    fn next(&self, scenario: &str, script: &Script) -> Script {
        let Script::FailFirst { times, status, then } = script else { return script.clone() };
        let mut failures = lock(&self.failures);
        let count = failures.entry(scenario.to_owned()).or_default();
        *count += 1;
        if *count <= *times { Script::Error { status: *status, retry_after: 1 } } else { (**then).clone() }
    }
}

fn gemini_call(path: &str) -> Option<(&str, &str)> {
    path.rsplit_once("/models/")?.1.split_once(':')
}

fn record(method: &Method, uri: &Uri, scenario: &str, headers: &HeaderMap, body: &Bytes) -> Request {
    let text = |name: &str| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let bearer = || text("authorization").map(|value| value.trim_start_matches("Bearer ").to_owned());
    let query = || uri.query()?.split('&').find_map(|pair| pair.strip_prefix("key=").map(str::to_owned));
    Request {
        method: method.to_string(),
        path: uri.to_string(),
        scenario: scenario.to_owned(),
        headers: headers
            .iter()
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect(),
        key: text("x-api-key").or_else(|| text("x-goog-api-key")).or_else(bearer).or_else(query),
        body: body.clone(),
    }
}
