//! Private repositories over HTTP: the real `git http-backend` behind a door that wants a token.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::http::{Authority, Http};

/// How the server behaves.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// The password that opens every repository; any user name will do, as on the big forges. Empty: everybody may read.
    pub token: String,
    /// Instead of answering, send every request to this base URL.
    pub redirect_to: Option<String>,
}

/// What somebody offered: nothing, or user and password.
pub type Offer = Option<(String, String)>;

/// A running server of all bare repositories in a folder: `url/NAME.git`.
#[derive(Debug)]
pub struct GitHttp {
    http: Http,
    door: Arc<Door>,
}

#[derive(Debug)]
struct Door {
    root: PathBuf,
    rules: Rules,
    offers: Mutex<Vec<Offer>>,
}

impl GitHttp {
    pub async fn start(root: PathBuf, rules: Rules, authority: Option<&Authority>) -> Result<Self> {
        let door = Arc::new(Door { root, rules, offers: Mutex::new(Vec::new()) });
        let router =
            Router::new().fallback(answer).layer(axum::extract::DefaultBodyLimit::max(64 << 20)).with_state(Arc::clone(&door));
        Ok(Self { http: Http::start(router, authority).await?, door })
    }

    pub fn url(&self, repository: &str) -> String {
        format!("{}/{repository}", self.http.url)
    }

    pub fn base_url(&self) -> &str {
        &self.http.url
    }

    /// What every request so far has offered, in order.
    pub fn offers(&self) -> Vec<Offer> {
        self.door.offers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn answer(State(door): State<Arc<Door>>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let offer = offer(&headers);
    door.offers.lock().unwrap_or_else(PoisonError::into_inner).push(offer.clone());
    if let Some(other) = &door.rules.redirect_to {
        return (StatusCode::FOUND, [(header::LOCATION, format!("{other}{uri}"))]).into_response();
    }
    let (user, password) = match offer {
        Some(offer) => offer,
        None if door.rules.token.is_empty() => ("nobody".to_owned(), String::new()),
        None => return refused(),
    };
    if password != door.rules.token {
        return refused();
    }
    match backend(&door, &user, &method, &uri, &headers, body).await {
        Ok(response) => response,
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}")).into_response(),
    }
}

fn refused() -> Response {
    (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=\"git\"")], "who are you?").into_response()
}

fn offer(headers: &HeaderMap) -> Offer {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let text = String::from_utf8(STANDARD.decode(value.strip_prefix("Basic ")?).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

/// One CGI call (RFC 3875).
async fn backend(door: &Door, user: &str, method: &Method, uri: &Uri, headers: &HeaderMap, body: Bytes) -> Result<Response> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut command = Command::new("git");
    command.arg("http-backend").env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null");
    command
        .env("GIT_PROJECT_ROOT", &door.root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REMOTE_USER", user)
        .env("REMOTE_ADDR", "127.0.0.1");
    command
        .env("REQUEST_METHOD", method.as_str())
        .env("PATH_INFO", uri.path())
        .env("QUERY_STRING", uri.query().unwrap_or_default());
    command.env("CONTENT_TYPE", text("content-type")).env("CONTENT_LENGTH", body.len().to_string());
    command.env("HTTP_CONTENT_ENCODING", text("content-encoding")).env("GIT_PROTOCOL", text("git-protocol"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn().context("can't start git http-backend")?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    // A backend that has read enough closes its end: no error of ours.
    let feed = tokio::spawn(async move { stdin.write_all(&body).await });
    let output = child.wait_with_output().await?;
    let _ = feed.await;
    response(output.stdout)
}

/// From the CGI's headers and body.
fn response(stdout: Vec<u8>) -> Result<Response> {
    let end = stdout.windows(4).position(|window| window == b"\r\n\r\n").context("git http-backend gave no headers")?;
    let head = std::str::from_utf8(&stdout[..end])?.to_owned();
    let mut response = Response::builder();
    for (name, value) in head.lines().filter_map(|line| line.split_once(':')) {
        response = match name {
            "Status" => response.status(value.split_whitespace().next().unwrap_or("500")),
            name => response.header(name, value.trim()),
        };
    }
    Ok(response.body(Bytes::from(stdout).slice(end + 4..).into())?)
}
