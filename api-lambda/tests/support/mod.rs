//! A service in this process on a store of its own, with a clock that the test moves.
#![allow(
    dead_code,
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "each test file uses a part of this, and a test may panic"
)]

pub mod login;

use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use ckrv_api::{AgentCatalog, ApiConfig, ApiState, Clock, OwnerCodes, ensure_owner};
use ckrv_core::Timestamp;
use ckrv_core::id::{ClaimId, Fence, JobId, UserId};
use ckrv_core::job::{Artifact, Facts, JobRecord, Outcome, OutcomeClass, State};
use ckrv_core::log::{Cursor, Level, LogEntry};
use ckrv_core::machine::{Finish, Verb};
use ckrv_core::wire::{AgentInfo, AgentSecret, Tier};
use ckrv_store::{AccessToken, Role, Stores, User, open_embedded};
use http_body_util::BodyExt;
use jiff::SignedDuration;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use tower::ServiceExt;

pub const REPO: &str = "https://github.com/o/r.git";

pub struct ManualClock(Mutex<Timestamp>);

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        *self.0.lock().unwrap()
    }
}

struct Agents;

impl AgentCatalog for Agents {
    fn agents(&self) -> Vec<AgentInfo> {
        let agent = |name: &str, secrets| AgentInfo {
            name: name.into(),
            version: "1".into(),
            display_name: name.into(),
            image: None,
            secrets,
        };
        let key = AgentSecret { slot: "api-key".into(), required: true, description: "a key".into() };
        vec![agent("claude", vec![key]), agent("script", vec![])]
    }
}

pub struct Service {
    pub state: ApiState,
    pub router: axum::Router,
    pub clock: Arc<ManualClock>,
    pub codes: Arc<Mutex<Vec<String>>>,
    pub owner: User,
    _folder: tempfile::TempDir,
}

/// An answer, read whole.
pub struct Answer {
    pub status: StatusCode,
    pub headers: axum::http::HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Checks that this is a problem of that status and code.
    #[track_caller]
    pub fn problem(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        assert_eq!(self.header("content-type"), "application/problem+json");
        let body = self.json();
        assert_eq!(body["code"], code, "{body}");
        assert_eq!(body["status"], status);
        for field in ["type", "title", "detail", "request_id"] {
            assert!(body[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {body}");
        }
        assert_eq!(body["request_id"], self.header("x-request-id"));
        body
    }
}

impl Service {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub async fn start_with(change: impl FnOnce(&mut ApiConfig)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let stores: Stores = tokio::task::spawn_blocking(move || open_embedded(&path).unwrap()).await.unwrap();
        let clock = Arc::new(ManualClock(Mutex::new("2026-03-10T12:00:00Z".parse().unwrap())));
        let owner = ensure_owner(&stores, Tier::Free, clock.now()).await.unwrap();
        let mut config =
            ApiConfig::embedded("http://localhost:7850/".parse().unwrap(), SecretString::from("k".repeat(43)), owner.id);
        config.repo_urls = Default::default();
        change(&mut config);
        let codes: Arc<Mutex<Vec<String>>> = Arc::default();
        let told = codes.clone();
        let owner_codes = Arc::new(OwnerCodes::new(move |code| told.lock().unwrap().push(code.expose_secret().to_owned())));
        let state = ApiState::new(stores, config, clock.clone(), Arc::new(Agents), owner_codes);
        Self { router: ckrv_api::router(state.clone()), state, clock, codes, owner, _folder: folder }
    }

    pub fn advance(&self, seconds: i64) {
        *self.clock.0.lock().unwrap() += SignedDuration::from_secs(seconds);
    }

    pub fn set_time(&self, time: Timestamp) {
        *self.clock.0.lock().unwrap() = time;
    }

    pub fn clock_now(&self) -> Timestamp {
        self.clock.now()
    }

    pub fn last_code(&self) -> String {
        self.codes.lock().unwrap().last().unwrap().clone()
    }

    pub async fn send(&self, request: Request<Body>) -> Answer {
        let response: Response<Body> = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer { status: parts.status, headers: parts.headers, text: String::from_utf8(bytes.to_vec()).unwrap() }
    }

    pub async fn get(&self, path: &str, token: &str) -> Answer {
        self.send(request("GET", path, token, None)).await
    }

    pub async fn post(&self, path: &str, token: &str, body: Value) -> Answer {
        self.send(request("POST", path, token, Some(body))).await
    }

    pub async fn delete(&self, path: &str, token: &str) -> Answer {
        self.send(request("DELETE", path, token, None)).await
    }

    /// A good token of that user, put into the store without a login.
    pub async fn token_of(&self, user: UserId) -> String {
        let token = format!("ckrv_at_{}", uuid::Uuid::new_v4().simple());
        let expires_at = self.clock.now() + SignedDuration::from_hours(24 * 60);
        let sha256 = sha256(token.as_bytes());
        self.state.stores.accounts.put_access_token(&AccessToken { sha256, user, family: "f".into(), expires_at }).await.unwrap();
        token
    }

    pub async fn owner_token(&self) -> String {
        self.token_of(self.owner.id).await
    }

    pub async fn stranger_token(&self) -> String {
        let user = User {
            id: UserId(uuid::Uuid::now_v7()),
            email: "s@x".into(),
            name: "S".into(),
            tier: Tier::Free,
            role: Role::User,
            created_at: self.clock.now(),
            disabled: false,
        };
        self.state.stores.accounts.put_user(&user).await.unwrap();
        self.token_of(user.id).await
    }

    pub async fn make_job(&self, token: &str) -> JobId {
        let answer = self.post("/v1/jobs", token, new_job()).await;
        assert_eq!(answer.status, 201, "{}", answer.text);
        answer.json()["id"].as_str().unwrap().parse().unwrap()
    }

    pub async fn apply(&self, id: JobId, verb: Verb) -> JobRecord {
        self.state.stores.jobs.apply(id, &verb, self.clock.now()).await.unwrap()
    }

    pub async fn claim(&self, id: JobId) -> (ClaimId, Fence) {
        let claim = ClaimId(uuid::Uuid::now_v7());
        let until = self.clock.now() + SignedDuration::from_mins(1);
        let job = self.apply(id, Verb::Claim { claim, worker: "w".into(), until, has_room: true }).await;
        (claim, job.fence)
    }

    pub async fn log(&self, id: JobId, claim: ClaimId, fence: Fence, seqs: std::ops::RangeInclusive<u64>) {
        let entries: Vec<LogEntry> = seqs.map(|seq| entry(fence, seq, self.clock.now())).collect();
        self.state.stores.jobs.append_log(id, claim, fence, &entries).await.unwrap();
    }

    /// Claims the job, walks it to its end with a diff and `lines` of log.
    pub async fn succeed(&self, id: JobId, lines: u64) -> JobRecord {
        let (claim, fence) = self.claim(id).await;
        self.log(id, claim, fence, 1..=lines).await;
        self.finish(id, claim, fence, lines).await
    }

    pub async fn finish(&self, id: JobId, claim: ClaimId, fence: Fence, lines: u64) -> JobRecord {
        let facts = Facts { feature_branch: Some("ckrv/x".into()), ..Facts::default() };
        for to in [State::Planning, State::Executing, State::Verifying, State::Publishing] {
            self.apply(id, Verb::Advance { claim, fence, to, facts: facts.clone() }).await;
        }
        let mut artifacts = Vec::new();
        for (name, content) in [("diff", "diff --git a b\n"), ("transcript", "{}\n"), ("log", "{}\n"), ("manifest", "{}")] {
            let key = format!("jobs/{id}/{}/{name}", fence.0);
            self.state.stores.blobs.put(&key, content.into()).await.unwrap();
            artifacts.push(Artifact { name: name.into(), key, bytes: content.len() as u64, sha256: sha256(content.as_bytes()) });
        }
        let outcome = Outcome::new(OutcomeClass::Success, "done");
        let finish = Box::new(Finish { outcome, facts, artifacts, log_end: Cursor { fence, seq: lines } });
        self.apply(id, Verb::Finish { claim, fence, finish }).await
    }
}

pub fn new_job() -> Value {
    json!({"spec_content": "# Do it\n", "git_repo_url": REPO})
}

pub fn with(mut value: Value, field: &str, to: Value) -> Value {
    value[field] = to;
    value
}

pub fn entry(fence: Fence, seq: u64, timestamp: Timestamp) -> LogEntry {
    LogEntry { timestamp, level: Level::Info, source: "agent".into(), message: format!("line {seq}"), fence, seq, event: None }
}

pub fn request(method: &str, path: &str, token: &str, body: Option<Value>) -> Request<Body> {
    let mut builder = Request::builder().method(method).uri(path).header("host", "localhost:7850");
    if !token.is_empty() {
        builder = builder.header("authorization", format!("Bearer {token}"));
    }
    match body {
        Some(body) => builder.header("content-type", "application/json").body(Body::from(body.to_string())).unwrap(),
        None => builder.body(Body::empty()).unwrap(),
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    hex::encode(sha2::Sha256::digest(bytes))
}

pub fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}
