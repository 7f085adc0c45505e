//! A user's machine of its own, cleared of everything else, and a scripted service for what the real one can't be made to show.
#![allow(dead_code, reason = "each test binary uses its part of this")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

pub const ID: &str = "0198c0de-aaaa-7bbb-8ccc-0123456789ab";

/// A home folder, and `ckrv` that sees nothing else.
pub struct Machine {
    pub home: tempfile::TempDir,
    pub url: String,
    pub token: Option<&'static str>,
}

impl Machine {
    pub fn new(url: &str) -> Self {
        Self { home: tempfile::tempdir().unwrap(), url: url.to_owned(), token: Some("test-token") }
    }

    /// Without `CKRV_TOKEN`.
    pub fn logged_out(url: &str) -> Self {
        Self { token: None, ..Self::new(url) }
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.home.path().join(path)
    }

    pub fn write(&self, path: &str, content: &[u8]) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    pub fn command(&self, program: impl AsRef<OsStr>, folder: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(args).current_dir(self.path(folder)).env_clear().stdin(Stdio::null());
        command.env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", self.home.path()).env("TZ", "UTC");
        command.env("CKRV_KEYRING", "off").env("GIT_CONFIG_NOSYSTEM", "1").env("CKRV_URL", &self.url);
        if let Some(token) = self.token {
            command.env("CKRV_TOKEN", token);
        }
        command
    }

    pub fn ckrv(&self, folder: &str, args: &[&str]) -> Command {
        self.command(env!("CARGO_BIN_EXE_ckrv"), folder, args)
    }

    pub fn run(&self, folder: &str, args: &[&str]) -> Output {
        self.ckrv(folder, args).output().unwrap()
    }

    /// Everything that a user sees of a command, with what differs between runs replaced.
    pub fn show(&self, folder: &str, args: &[&str]) -> String {
        self.shown(&self.run(folder, args))
    }

    pub fn shown(&self, output: &Output) -> String {
        let text = format!(
            "exit {}\n--- stdout\n{}--- stderr\n{}",
            output.status.code().map_or_else(|| "by signal".to_owned(), |code| code.to_string()),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        text.replace(&self.url, "[URL]").replace(self.home.path().to_str().unwrap(), "[HOME]")
    }

    pub fn git(&self, folder: &str, args: &[&str]) -> String {
        let output = self.command("git", folder, args).output().unwrap();
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// A clone `project` of a bare repository, with one pushed commit and a spec.
    pub fn project(&self) {
        self.git("", &["init", "--quiet", "--bare", "--initial-branch=main", "origin.git"]);
        self.git("", &["clone", "--quiet", "origin.git", "project"]);
        for (name, value) in [("user.name", "User"), ("user.email", "user@localhost")] {
            self.git("project", &["config", name, value]);
        }
        self.write("project/a.txt", b"a\n");
        self.write("project/secret-content.txt", b"FILE-CONTENT-THAT-STAYS\n");
        self.write("project/.ckrv/specs/task.md", b"Do the task.\n");
        self.git("project", &["add", "."]);
        self.git("project", &["commit", "--quiet", "-m", "start"]);
        self.git("project", &["push", "--quiet", "-u", "origin", "main"]);
    }
}

/// A request as the service saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub query: String,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn call(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// A scripted service on a port of its own. Stopped when dropped.
pub struct Stub {
    pub url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    _runtime: tokio::runtime::Runtime,
}

impl Stub {
    /// `answer` gets a request and how many of the same call came before it.
    pub fn start(answer: impl Fn(&Seen, usize) -> Response + Send + Sync + 'static) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (record, answer) = (Arc::clone(&seen), Arc::new(answer));
        let app = Router::new().fallback(move |request: Request| {
            let (record, answer) = (Arc::clone(&record), Arc::clone(&answer));
            async move {
                let (parts, body) = request.into_parts();
                let body = axum::body::to_bytes(body, 1 << 24).await.unwrap();
                let headers =
                    parts.headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap_or_default().to_owned()));
                let now = Seen {
                    method: parts.method.to_string(),
                    path: parts.uri.path().to_owned(),
                    query: parts.uri.query().unwrap_or_default().to_owned(),
                    headers: headers.collect(),
                    body,
                };
                let before = {
                    let mut seen = record.lock().unwrap();
                    let before = seen.iter().filter(|other: &&Seen| other.call() == now.call()).count();
                    seen.push(now.clone());
                    before
                };
                answer(&now, before)
            }
        });
        runtime.spawn(async move { axum::serve(listener, app).await });
        Self { url, seen, _runtime: runtime }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub fn calls(&self, call: &str) -> Vec<Seen> {
        self.seen().into_iter().filter(|seen| seen.call() == call).collect()
    }
}

pub fn reply(status: u16, body: &Value) -> Response {
    (StatusCode::from_u16(status).unwrap(), [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

pub fn problem(status: u16, code: &str, detail: &str) -> Response {
    reply(
        status,
        &json!({ "type": "about:blank", "title": "", "status": status, "detail": detail, "code": code, "request_id": "r" }),
    )
}

/// A job in a state.
pub fn job(id: &str, state: &str) -> Value {
    let status = match state {
        "queued" => "pending",
        "succeeded" | "failed" | "timeout" => state,
        "cancelled" => "failed",
        _ => "running",
    };
    let mut job = json!({
        "id": id, "status": status, "state": state, "git_repo_url": "https://git.example/o/r", "git_base_branch": "main",
        "created_at": "2026-01-02T03:04:05Z", "updated_at": "2026-01-02T03:05:05Z", "spec_id": "task", "elapsed_seconds": 60.0,
        "agent": "claude", "attempt": 1, "verification": "none", "labels": {},
        "usage": { "input_tokens": 0, "output_tokens": 0, "turns": 0 },
    });
    if state == "failed" {
        job["error_message"] = json!("the agent gave up \u{1b}[31mred");
    }
    job
}

/// Server-sent events; the connection ends after them.
pub fn events(events: &[String]) -> Response {
    ([(header::CONTENT_TYPE, "text/event-stream")], events.concat()).into_response()
}

pub fn event(fence: u32, seq: u64, message: &str) -> String {
    let entry = json!({ "timestamp": "2026-01-02T03:04:05Z", "level": "info", "source": "agent", "message": message, "fence": fence, "seq": seq });
    format!("id: {fence}.{seq}\ndata: {entry}\n\n")
}

pub const DONE: &str = "data: [DONE]\n\n";

pub fn assert_absent(needle: &str, folder: &Path) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            assert_absent(needle, &entry.path());
        } else {
            let bytes = std::fs::read(entry.path()).unwrap();
            assert!(
                !bytes.windows(needle.len()).any(|window| window == needle.as_bytes()),
                "{needle} is in {}",
                entry.path().display()
            );
        }
    }
}
