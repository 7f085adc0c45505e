//! What stands before a function on AWS, in plain HTTP on loopback: a function URL or an HTTP API turns each request into an event
//! (payload format 2.0) and the function's answer back into HTTP. As many sandboxes are started as there are requests at once.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use axum::body::Body;
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{JoinHandle, JoinSet};

use crate::aws::Aws;
use crate::lambda_runtime::{Answer, Outcome, Sandbox};

/// The largest request.
const MAX_REQUEST: usize = 6 * 1024 * 1024;
const MAX_SANDBOXES: usize = 16;

/// How requests come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entrance {
    FunctionUrl {
        streams: bool,
    },
    /// Never streams; its stage is the first part of its paths.
    HttpApi {
        stage: String,
    },
}

/// A running entrance with its function; dropped, both are gone.
#[derive(Debug)]
pub struct LambdaFront {
    /// Where clients reach it, with the stage and without a slash at the end.
    pub url: String,
    front: Arc<Front>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Front {
    entrance: Entrance,
    limit: Duration,
    env: Vec<(String, String)>,
    sandboxes: tokio::sync::Mutex<Vec<Arc<Sandbox>>>,
    logs: Mutex<Vec<PathBuf>>,
}

/// What the function is told of its stores, and of its configuration as TOML.
pub fn environment(aws: &Aws, config: &str) -> Vec<(String, String)> {
    let mut env = aws.environment();
    let own = [
        ("CKRV_TABLE", aws.table.as_str()),
        ("CKRV_BUCKET", aws.bucket.as_str()),
        ("CKRV_KMS_KEY", aws.kms_key.as_str()),
        ("CKRV_SERVER_KEY_SECRET", aws.server_key.as_str()),
        ("CKRV_ENDPOINT_DYNAMODB", aws.dynamodb.as_str()),
        ("CKRV_ENDPOINT_S3", aws.s3.as_str()),
        ("CKRV_ENDPOINT_KMS", aws.other.as_str()),
        ("CKRV_ENDPOINT_SECRETS_MANAGER", aws.other.as_str()),
        ("CKRV_ENDPOINT_SSM", aws.other.as_str()),
        ("CKRV_CONFIG", config),
    ];
    env.extend(own.map(|(name, value)| (name.to_owned(), value.to_owned())));
    env
}

/// The keys of a server's configuration that a function has too, and the operator's own agents, which a function has to be told of.
pub fn function_config(config: &toml::Table, agents: &[Value]) -> Result<String> {
    const OTHERS: [&str; 13] = [
        "store",
        "server_key_secret",
        "ca_file",
        "capacity",
        "max_running",
        "owner",
        "secrets",
        "adapters",
        "public_url",
        "metrics_listen",
        "references",
        "checkpoints",
        "upload_memory_mib",
    ];
    let mut config = config.clone();
    config.retain(|name, _| !OTHERS.contains(&name));
    config.insert("local_repositories".to_owned(), true.into());
    if !agents.is_empty() {
        let told = agents.iter().map(|agent| {
            let known = agent.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
            toml::Value::try_from(known.collect::<BTreeMap<_, _>>())
        });
        config.insert("agents".to_owned(), told.collect::<Result<toml::value::Array, _>>()?.into());
    }
    Ok(config.to_string())
}

impl LambdaFront {
    /// `limit`: how long Lambda lets an invocation run.
    pub async fn start(entrance: Entrance, env: Vec<(String, String)>, limit: Duration) -> Result<Self> {
        Self::start_at("127.0.0.1:0", entrance, env, limit).await
    }

    pub async fn start_at(listen: &str, entrance: Entrance, mut env: Vec<(String, String)>, limit: Duration) -> Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let mut url = format!("http://{}", listener.local_addr()?);
        if let Entrance::HttpApi { stage } = &entrance {
            url = format!("{url}/{stage}");
        }
        let mode = if entrance == (Entrance::FunctionUrl { streams: true }) { "RESPONSE_STREAM" } else { "BUFFERED" };
        env.push(("CKRV_INVOKE_MODE".to_owned(), mode.to_owned()));
        env.push(("CKRV_PUBLIC_URL".to_owned(), url.clone()));
        let front = Arc::new(Front { entrance, limit, env, sandboxes: tokio::sync::Mutex::default(), logs: Mutex::default() });
        // So that a function that can't start is told at once.
        drop(front.sandbox().await?);
        let task = tokio::spawn(listen_on(listener, Arc::clone(&front)));
        Ok(Self { url, front, task })
    }

    /// What all its sandboxes have printed.
    pub fn log(&self) -> String {
        let logs = self.front.logs.lock().unwrap_or_else(PoisonError::into_inner);
        logs.iter().map(|log| std::fs::read_to_string(log).unwrap_or_default()).collect()
    }

    /// Kills its sandboxes in the middle of their work, and breaks every connection.
    pub async fn kill(mut self) {
        self.task.abort();
        // It was cancelled, or its listener had failed.
        let _ = (&mut self.task).await;
        for sandbox in self.front.sandboxes.lock().await.drain(..) {
            sandbox.kill();
        }
    }

    /// Of the first sandbox: how long it took to start, and its memory in KiB, now and at its highest.
    pub async fn figures(&self) -> Result<(Duration, (u64, u64))> {
        let sandboxes = self.front.sandboxes.lock().await;
        let first = sandboxes.first().context("no sandbox")?;
        Ok((first.init, first.memory()?))
    }
}

impl Drop for LambdaFront {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Front {
    /// A free sandbox, taken; a new one where all are busy.
    async fn sandbox(&self) -> Result<(Arc<Sandbox>, OwnedSemaphorePermit)> {
        let give_up = Instant::now() + self.limit;
        loop {
            {
                let mut sandboxes = self.sandboxes.lock().await;
                if let Some((sandbox, permit)) = sandboxes.iter().find_map(|sandbox| Some((sandbox, sandbox.take()?))) {
                    return Ok((Arc::clone(sandbox), permit));
                }
                if sandboxes.len() < MAX_SANDBOXES {
                    let sandbox = Sandbox::start(&self.env).await?;
                    self.logs.lock().unwrap_or_else(PoisonError::into_inner).push(sandbox.log_file());
                    sandboxes.push(Arc::new(sandbox));
                    continue;
                }
            }
            anyhow::ensure!(Instant::now() < give_up, "every sandbox stays busy");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn answer(&self, request: Request) -> Result<Response> {
        let (parts, body) = request.into_parts();
        let Ok(body) = axum::body::to_bytes(body, MAX_REQUEST).await else {
            return Ok(StatusCode::PAYLOAD_TOO_LARGE.into_response());
        };
        let event = event(&self.entrance, &parts, &body);
        let (sandbox, permit) = self.sandbox().await?;
        match sandbox.invoke_with(permit, &event, self.limit).await? {
            Outcome::Answer(answer) => response(answer),
            Outcome::Error(error) => Ok((StatusCode::BAD_GATEWAY, error.to_string()).into_response()),
        }
    }
}

/// Ends only by being dropped, and its connections with it.
async fn listen_on(listener: TcpListener, front: Arc<Front>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let front = Arc::clone(&front);
        let serve = service_fn(move |request: hyper::Request<Incoming>| {
            let front = Arc::clone(&front);
            async move { Ok::<_, Infallible>(serve(&front, request.map(Body::new)).await) }
        });
        connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), serve));
    }
}

async fn serve(front: &Front, request: Request) -> Response {
    match front.answer(request).await {
        Ok(response) => response,
        Err(error) => (StatusCode::BAD_GATEWAY, format!("{error:#}")).into_response(),
    }
}

fn response(answer: Answer) -> Result<Response> {
    let mut headers = HeaderMap::new();
    for (name, value) in answer.headers {
        // As AWS does.
        let name = if name == "www-authenticate" { "x-amzn-remapped-www-authenticate".to_owned() } else { name };
        let name = HeaderName::from_bytes(name.as_bytes())?;
        if !["connection", "content-length", "transfer-encoding"].contains(&name.as_str()) {
            headers.append(name, HeaderValue::from_str(&value)?);
        }
    }
    let chunks = futures::stream::unfold(answer.body, async |mut body| {
        body.recv().await.map(|bytes: Bytes| (Ok::<_, Infallible>(bytes), body))
    });
    let body = if answer.status == 204 { Body::empty() } else { Body::from_stream(chunks) };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(answer.status)?;
    *response.headers_mut() = headers;
    Ok(response)
}

/// The event of a request. A body that is no text goes as base64, and so do forms.
pub fn event(entrance: &Entrance, parts: &Parts, body: &[u8]) -> Value {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let mut headers = serde_json::Map::new();
    for name in parts.headers.keys().filter(|name| name.as_str() != "cookie") {
        let values: Vec<_> = parts.headers.get_all(name).iter().map(text).collect();
        headers.insert(name.as_str().to_owned(), values.join(",").into());
    }
    let host = parts.headers.get("host").map(text).unwrap_or_default();
    headers.insert("x-forwarded-proto".to_owned(), "http".into());
    headers.insert("x-forwarded-for".to_owned(), "127.0.0.1".into());
    let cookies = parts.headers.get_all("cookie").iter().map(text);
    let cookies: Vec<_> = cookies.flat_map(|line| line.split("; ").map(str::to_owned).collect::<Vec<_>>()).collect();
    let kind = parts.headers.get("content-type").map(text).unwrap_or_default();
    let is_text = kind.starts_with("text/") || kind.starts_with("application/json");
    let content = if is_text { String::from_utf8_lossy(body).into_owned() } else { STANDARD.encode(body) };
    let stage = match entrance {
        Entrance::FunctionUrl { .. } => "$default",
        Entrance::HttpApi { stage } => stage,
    };
    let path = parts.uri.path();
    json!({
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": parts.uri.query().unwrap_or_default(),
        "cookies": cookies,
        "headers": headers,
        "requestContext": {
            "accountId": "anonymous",
            "apiId": "front",
            "domainName": host,
            "domainPrefix": "front",
            "http": {
                "method": parts.method.as_str(),
                "path": path,
                "protocol": "HTTP/1.1",
                "sourceIp": "127.0.0.1",
                "userAgent": parts.headers.get("user-agent").map(text).unwrap_or_default(),
            },
            "requestId": "front-request",
            "routeKey": "$default",
            "stage": stage,
            "time": "01/Jan/2026:00:00:00 +0000",
            "timeEpoch": 1_767_225_600_000_u64,
        },
        "body": if body.is_empty() { Value::Null } else { content.into() },
        "isBase64Encoded": !body.is_empty() && !is_text,
    })
}
