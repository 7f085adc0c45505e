//! Webhooks end to end. Which addresses are refused, redirects, retries and names that change are the notifier's own tests
//! (`orchestrator/src/notify/tests.rs`).

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use ckrv_tests::http::{Authority, Http};
use ckrv_tests::records::Records;
use ckrv_tests::repo::Repo;
use ckrv_tests::scene::{Scene, error, script_spec};
use ckrv_tests::server::Setup;
use ckrv_tests::wait::{PATIENCE, wait_until};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

/// Signature and body of each request.
type Seen = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// What a receiver saw, and whether it answers yet.
#[derive(Clone)]
struct Hook {
    seen: Seen,
    open: watch::Sender<bool>,
}

impl Hook {
    async fn start(open: bool, authority: Option<&Authority>) -> Result<(Self, Http)> {
        let hook = Self { seen: Arc::default(), open: watch::Sender::new(open) };
        let http = Http::start(Router::new().route("/hook", post(receive)).with_state(hook.clone()), authority).await?;
        Ok((hook, http))
    }

    fn seen(&self) -> Vec<(String, Vec<u8>)> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn until(&self, count: usize) -> Result<Vec<(String, Vec<u8>)>> {
        let seen = async || Some(self.seen()).filter(|seen| seen.len() >= count);
        wait_until(&format!("{count} deliveries"), PATIENCE, seen).await
    }
}

async fn receive(State(hook): State<Hook>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let signature = headers.get("ckrv-signature").and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    hook.seen.lock().unwrap_or_else(PoisonError::into_inner).push((signature, body.to_vec()));
    let _ = hook.open.subscribe().wait_for(|open| *open).await;
    StatusCode::NO_CONTENT
}

fn setup(extra: &str) -> Result<Setup> {
    Ok(Setup {
        config: format!("{extra}\n[policy.notify]\nallow_http = true\nallow_private = true\n").parse()?,
        ..Setup::unsandboxed()
    })
}

/// HMAC-SHA256 by its definition, as a receiver would have it from a library of its own.
fn hmac_sha256(key: &[u8], message: &[u8]) -> String {
    let key = if key.len() > 64 { Sha256::digest(key).to_vec() } else { key.to_vec() };
    let pad = |byte: u8| (0..64).map(|at| key.get(at).unwrap_or(&0) ^ byte).collect::<Vec<u8>>();
    let inner = Sha256::digest([pad(0x36), message.to_vec()].concat());
    let outer = Sha256::digest([pad(0x5c), inner.to_vec()].concat());
    hex::encode(outer)
}

fn verified(secret: &str, (signature, body): &(String, Vec<u8>)) -> Result<Value> {
    let parts = signature.strip_prefix("t=").and_then(|rest| rest.split_once(",v1="));
    let (time, hex) = parts.with_context(|| format!("no signature: {signature}"))?;
    ensure!(hex == hmac_sha256(secret.as_bytes(), &[time.as_bytes(), b".", body].concat()), "the signature is wrong");
    Ok(serde_json::from_slice(body)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asked_is_told_over_https_and_can_check_by_whom() -> Result<()> {
    let authority = Authority::new()?;
    let (hook, http) = Hook::start(true, Some(&authority)).await?;
    let ca_file = format!("ca_file = '{}'", authority.ca_file().display());
    let scene = Scene::with(setup(&ca_file)?, Repo::small(&[("README.md", "x\n")])?).await?;
    let url = format!("{}/hook?token=1", http.url);
    let spec = scene.spec(script_spec("", "echo a > a.txt"))?;
    let id = scene.ckrv(&["run", "--cloud", "--notify", &url, &spec]).await?.ok()?;
    let secret = scene.ckrv(&["cloud", "webhook-secret"]).await?.ok()?;
    let told = verified(&secret, &hook.until(1).await?[0])?;
    assert_eq!((&told["id"], &told["type"]), (&format!("job.ended:{id}").into(), &"job.ended".into()));
    let job = scene.job(&id).await?;
    for field in ["id", "state", "status", "head_sha", "diff_stat", "result_summary", "result_url", "usage", "completed_at"] {
        // A dispatcher of its own isn't told here where the API is.
        if field == "result_url" && scene.server.aws().is_some() {
            assert!(told["job"][field].is_null(), "{told}");
            continue;
        }
        assert!(!job[field].is_null() && told["job"][field] == job[field], "{field}: {told}\n{job}");
    }
    let records = Records::of(&scene.server);
    let noted = async || records.job(&id).await.ok().filter(|job| job["notice"].is_null());
    wait_until("the delivery is noted", PATIENCE, noted).await?;
    let events = records.events(&id).await?;
    assert_eq!(events.last().map(|event| event["note"].clone()), Some("delivered: 204 No Content".into()), "{events:?}");
    assert_eq!(hook.seen().len(), 1);
    // A failed job is told of too, a job without a URL is not.
    let spec = scene.spec(script_spec("", "exit 3"))?;
    let failed = scene.ckrv(&["run", "--cloud", "--notify", &url, &spec]).await?.ok()?;
    let told = verified(&secret, &hook.until(2).await?[1])?;
    assert_eq!((&told["job"]["id"], &told["job"]["status"]), (&failed.into(), &"failed".into()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_between_delivery_and_note_delivers_again_with_the_same_id() -> Result<()> {
    let (hook, http) = Hook::start(false, None).await?;
    let mut scene = Scene::with(setup("")?, Repo::small(&[("README.md", "x\n")])?).await?;
    let url = format!("{}/hook", http.url);
    let spec = scene.spec(script_spec("", "true"))?;
    let id = scene.ckrv(&["run", "--cloud", "--notify", &url, &spec]).await?.ok()?;
    let secret = scene.ckrv(&["cloud", "webhook-secret"]).await?.ok()?;
    hook.until(1).await?;
    scene.server.kill().await?;
    hook.open.send_replace(true);
    scene.server.start_again().await?;
    let seen = hook.until(2).await?;
    let (first, second) = (verified(&secret, &seen[0])?, verified(&secret, &seen[1])?);
    assert_eq!((&first["id"], &first), (&format!("job.ended:{id}").into(), &second));
    let records = Records::of(&scene.server);
    let noted = async || records.job(&id).await.ok().filter(|job| job["notice"].is_null());
    wait_until("the delivery is noted", PATIENCE, noted).await?;
    assert_eq!(hook.seen().len(), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_leave_of_the_policy_no_webhook_leads_inward_or_in_the_clear() -> Result<()> {
    let scene = Scene::start().await?;
    let spec = scene.spec(script_spec("", "true"))?;
    for (url, reason) in [("http://ci.example.com/hook", "https"), ("https://127.0.0.1/hook", "private address")] {
        let ran = scene.ckrv(&["run", "--cloud", "--json", "--notify", url, &spec]).await?;
        let (code, said) = error(&ran)?;
        assert_eq!((code, &said["code"]), (1, &"invalid_notify_url".into()), "{said}");
        assert!(said.to_string().contains(reason), "{said}");
    }
    let ran = scene.ckrv(&["run", "--notify", "https://ci.example.com/hook", &spec]).await?;
    assert!(ran.code == 2 && ran.stderr.contains("--cloud"), "{ran:?}");
    Ok(())
}
