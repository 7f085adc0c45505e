//! The API as a Lambda function: the real binary in a stub of Lambda's Runtime API, on the AWS backend.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use base64::Engine as _;
use ckrv_tests::api::Api;
use ckrv_tests::aws::Aws;
use ckrv_tests::lambda_front::{Entrance, LambdaFront, environment};
use ckrv_tests::lambda_runtime::{Outcome, Sandbox, Whole};
use ckrv_tests::repo::Repo;
use ckrv_tests::scene::{Scene, script_spec};
use ckrv_tests::server::{Server, Setup};
use ckrv_tests::{http, wait};
use serde_json::{Value, json};

const MODES: [&str; 2] = ["BUFFERED", "RESPONSE_STREAM"];
const LIMIT: Duration = Duration::from_secs(60);

/// An event as AWS sends it, recorded.
fn recorded(name: &str) -> Result<Value> {
    let path = format!("{}/fixtures/lambda/{name}.json", env!("CARGO_MANIFEST_DIR"));
    Ok(serde_json::from_str(&std::fs::read_to_string(&path).with_context(|| path)?)?)
}

/// The recorded function URL's event with another request in it.
fn event(method: &str, path: &str, token: &str, body: Option<&str>) -> Result<Value> {
    let mut event = recorded("function_url")?;
    event["rawPath"] = path.into();
    event["requestContext"]["http"]["path"] = path.into();
    event["requestContext"]["http"]["method"] = method.into();
    if !token.is_empty() {
        event["headers"]["authorization"] = format!("Bearer {token}").into();
    }
    if let Some(body) = body {
        event["headers"]["content-type"] = "application/json".into();
        event["body"] = body.into();
    }
    Ok(event)
}

async fn sandbox(aws: &Aws, mode: &str) -> Result<Sandbox> {
    let mut env = environment(aws, "");
    env.push(("CKRV_INVOKE_MODE".to_owned(), mode.to_owned()));
    Sandbox::start(&env).await
}

async fn ask(sandbox: &Sandbox, event: &Value) -> Result<Whole> {
    let outcome = sandbox.invoke(event, LIMIT).await?;
    outcome.whole().await.with_context(|| sandbox.log())
}

/// A problem of that status and code.
#[track_caller]
fn assert_problem(answer: &Whole, status: u16, code: &str) {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    assert!(answer.json().is_ok_and(|body| body["code"] == code), "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_each_kind_are_answered_in_both_modes() -> Result<()> {
    let aws = Aws::make().await?;
    for mode in MODES {
        let sandbox = sandbox(&aws, mode).await?;
        let mut unprefixed = recorded("http_api_stage")?;
        unprefixed["rawPath"] = "/healthz".into();
        let kinds = [recorded("function_url")?, recorded("http_api")?, recorded("http_api_stage")?, unprefixed];
        for event in kinds {
            let Outcome::Answer(answer) = sandbox.invoke(&event, LIMIT).await? else { panic!("{}", sandbox.log()) };
            assert_eq!(answer.streamed, mode == "RESPONSE_STREAM");
            let answer = answer.whole().await;
            assert_eq!((answer.status, &answer.json()?["status"]), (200, &json!("ok")), "{mode}: {event}");
            assert_eq!(answer.header("content-type"), Some("application/json"));
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_answers_under_the_name_that_lambda_gave_it_and_no_other() -> Result<()> {
    let sandbox = sandbox(&Aws::make().await?, "BUFFERED").await?;
    let own = ask(&sandbox, &event("GET", "/v1/users/me", "", None)?).await?;
    assert_problem(&own, 401, "unauthorized");
    assert_eq!(own.header("www-authenticate"), Some("Bearer realm=\"ckrv\""));
    let mut foreign = event("GET", "/v1/users/me", "", None)?;
    foreign["headers"]["host"] = "rebound.example".into();
    assert_problem(&ask(&sandbox, &foreign).await?, 421, "host_not_allowed");
    // Who signs in is sent to the same name.
    let login = ask(&sandbox, &event("POST", "/v1/auth/device", "", Some(r#"{"client_id":"ckrv-cli"}"#))?).await?;
    let page = login.json()?["verification_uri"].as_str().map(str::to_owned).context("no page")?;
    assert_eq!(page, "https://abcdefghijklmnopqrstuvwxyz012345.lambda-url.us-east-1.on.aws/activate");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_is_a_part_of_the_address_that_users_are_sent_to() -> Result<()> {
    let sandbox = sandbox(&Aws::make().await?, "BUFFERED").await?;
    let mut login = recorded("http_api_stage")?;
    login["rawPath"] = "/prod/v1/auth/device".into();
    login["requestContext"]["http"]["method"] = "POST".into();
    login["headers"]["content-type"] = "application/json".into();
    login["body"] = r#"{"client_id":"ckrv-cli"}"#.into();
    let page = ask(&sandbox, &login).await?.json()?["verification_uri"].clone();
    assert_eq!(page, "https://a1b2c3d4e5.execute-api.us-east-1.amazonaws.com/prod/activate");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lambda_http_itself_cannot_take_fails_one_invocation_and_not_the_sandbox() -> Result<()> {
    let aws = Aws::make().await?;
    for mode in MODES {
        let mut sandbox = sandbox(&aws, mode).await?;
        let mut broken = event("GET", "/healthz", "", None)?;
        // It panics on this before our router sees anything.
        broken["headers"]["host"] = "no host at all".into();
        let pid = sandbox.pid();
        assert!(matches!(sandbox.invoke(&broken, LIMIT).await?, Outcome::Error(_)), "{}", sandbox.log());
        assert_eq!(ask(&sandbox, &recorded("function_url")?).await?.status, 200);
        assert!(sandbox.runs() && sandbox.pid() == pid);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_come_and_go_in_every_form() -> Result<()> {
    let aws = Aws::make().await?;
    let server = Server::start_on_aws(Setup::unsandboxed(), aws.clone()).await?;
    let token = server.login().await?.access;
    for mode in MODES {
        let sandbox = sandbox(&aws, mode).await?;
        let secret = json!({"name": format!("of-{}", mode.to_lowercase().replace('_', "-")), "value": "v"});
        let made = ask(&sandbox, &event("POST", "/v1/secrets", &token, Some(&secret.to_string()))?).await?;
        assert_eq!(made.status, 201, "{}", made.text());
        let path = format!("/v1/secrets/{}", secret["name"].as_str().unwrap_or_default());
        let removed = ask(&sandbox, &event("DELETE", &path, &token, None)?).await?;
        assert_eq!((removed.status, removed.body.len(), removed.binary), (204, 0, false), "{}", removed.text());

        let long = format!(r#"{{"git_repo_url":"https://github.com/o/r.git","spec_content":"{}"}}"#, "x".repeat(2 * 1024 * 1024));
        assert_problem(&ask(&sandbox, &event("POST", "/v1/jobs", &token, Some(&long))?).await?, 413, "body_too_large");
        let spec = format!(r#"{{"git_repo_url":"https://github.com/o/r.git","spec_content":"{}"}}"#, "x".repeat(1024 * 1024));
        assert_problem(&ask(&sandbox, &event("POST", "/v1/jobs", &token, Some(&spec))?).await?, 413, "spec_too_large");

        let mut binary = event("POST", "/v1/auth/device", "", None)?;
        binary["headers"]["content-type"] = "application/json".into();
        binary["body"] = base64::engine::general_purpose::STANDARD.encode(r#"{"client_id":"ckrv-cli"}"#).into();
        binary["isBase64Encoded"] = true.into();
        assert_eq!(ask(&sandbox, &binary).await?.status, 200);
        for path in ["/v1/users/me", "/v1/jobs", "/v1/usage", "/v1/secrets", "/v1/agents"] {
            assert_problem(&ask(&sandbox, &event("GET", path, "", None)?).await?, 401, "unauthorized");
            assert_eq!(ask(&sandbox, &event("GET", path, &token, None)?).await?.status, 200, "{path}");
        }
        assert!(!sandbox.log().contains(&token));
    }
    Ok(())
}

/// A service on the AWS backend with an entrance in front of its function, and a user who goes through it.
async fn through(entrance: Entrance, limit: Duration) -> Result<(Scene, LambdaFront, Api)> {
    let aws = Aws::make().await?;
    let server = Server::start_on_aws(Setup::unsandboxed(), aws.clone()).await?;
    let mut scene = Scene::of(server, Repo::small(&[("README.md", "# A project\n")])?).await?;
    let front = LambdaFront::start(entrance, environment(&aws, "local_repositories = true"), limit).await?;
    scene.user.set("CKRV_URL", &front.url);
    let api = Api::at(&front.url, &scene.server.login().await?.access)?;
    Ok((scene, front, api))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_made_followed_and_pulled_through_a_function() -> Result<()> {
    let entrances = [Entrance::FunctionUrl { streams: true }, Entrance::HttpApi { stage: "prod".to_owned() }];
    for entrance in entrances {
        let (scene, front, api) = through(entrance.clone(), LIMIT).await?;
        // 5 MB that don't compress into one answer: it has to be fetched from the store, which takes no token.
        let script = "echo first; head -c 3750000 /dev/urandom | base64 > large.txt; echo last";
        let id = scene.succeed(script).await.with_context(|| format!("{entrance:?}"))?;
        let listed: Value = serde_json::from_str(&api.get(&format!("/v1/jobs/{id}/artifacts")).await?)?;
        let diff =
            listed["artifacts"].as_array().and_then(|all| all.iter().find(|one| one["name"] == "diff")).context("no diff")?;
        assert!(diff["bytes"].as_u64().is_some_and(|bytes| bytes > 5_000_000), "{listed}");
        let url = diff["url"].as_str().context("no address")?;
        let bare = http::client()?.get(url).send().await?;
        assert_eq!(bare.status(), 200);
        let path = format!("{}/v1/jobs/{id}/artifacts/diff", front.url);
        let token = scene.server.login().await?.access;
        let sent_on = http::client()?.get(&path).bearer_auth(&token).send().await?;
        assert_eq!(sent_on.status(), 307);
        let place = sent_on.headers()["location"].to_str()?.to_owned();
        assert!(place.contains("X-Amz-Expires=300") && !place.contains(&token), "{place}");
        // The CLI takes the same way, and checks the hash.
        scene.ckrv(&["pull", &id]).await?.ok()?;
        assert!(std::fs::metadata(scene.project.join("large.txt"))?.len() > 5_000_000);
        let followed = scene.ckrv(&["logs", "-f", &id]).await?.ok()?;
        assert!(followed.contains("first") && followed.contains("last"), "{followed}");
        assert!(front.log().lines().all(|line| !line.contains(&token)));
    }
    Ok(())
}

/// The rest of what a running job's log says: text, and how long it took.
async fn follow(front: &LambdaFront, id: &str, token: &str, batch: bool) -> Result<(String, Duration)> {
    let began = Instant::now();
    let url = format!("{}/v1/jobs/{id}/logs?follow=true", front.url);
    let request = http::client()?.get(url).bearer_auth(token).header("accept", "text/event-stream");
    let request = if batch { request.header("ckrv-follow", "batch") } else { request };
    let response = request.timeout(LIMIT).send().await?;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    Ok((response.text().await?, began.elapsed()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_followed_log_comes_in_batches_or_as_one_reply_that_ends_before_the_deadline() -> Result<()> {
    let limit = Duration::from_secs(8);
    let (scene, front, _) = through(Entrance::FunctionUrl { streams: true }, limit).await?;
    let token = scene.server.login().await?.access;
    let gate = scene.gate();
    let id = scene.submit_spec(&script_spec("", &format!("echo before; {}; echo after", gate.wait()))).await?;
    gate.reached().await?;
    let seen = async || {
        let (text, _) = follow(&front, &id, &token, true).await.ok()?;
        text.contains("before").then_some(text)
    };
    let batch = wait::wait_until("the log has what the job said first", wait::PATIENCE, seen).await?;
    assert!(batch.ends_with("\n\nretry: 700\n\n") && !batch.contains("[DONE]"), "{batch}");
    let (open, took) = follow(&front, &id, &token, false).await?;
    assert!(open.contains("before") && !open.contains("[DONE]") && !open.contains("retry:"), "{open}");
    assert!(took < limit, "Lambda would have cut it off: {took:?}");
    // Open while the job runs, and to its end.
    let rest = tokio::spawn({
        let url = format!("{}/v1/jobs/{id}/logs?follow=true", front.url);
        let request = http::client()?.get(url).bearer_auth(&token).header("accept", "text/event-stream");
        async move { request.timeout(LIMIT).send().await?.text().await }
    });
    gate.open()?;
    let mut whole = rest.await??;
    if !whole.ends_with("data: [DONE]\n\n") {
        // The job took longer than one invocation may.
        scene.ckrv(&["wait", &id]).await?.ok()?;
        whole = follow(&front, &id, &token, false).await?.0;
    }
    assert!(whole.contains("after") && whole.ends_with("data: [DONE]\n\n"), "{whole}");
    let (ended, _) = follow(&front, &id, &token, true).await?;
    assert!(ended.ends_with("data: [DONE]\n\n") && !ended.contains("retry:"), "{ended}");
    for block in ended.split("\n\n").filter(|block| !block.is_empty()) {
        assert_eq!(block.contains("[DONE]"), !block.starts_with("id: "), "only entries have a place: {block}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buffered_function_gives_a_finite_batch_to_every_client() -> Result<()> {
    let (scene, front, _) = through(Entrance::FunctionUrl { streams: false }, LIMIT).await?;
    let token = scene.server.login().await?.access;
    let gate = scene.gate();
    let id = scene.submit_spec(&script_spec("", &gate.wait())).await?;
    gate.reached().await?;
    let (text, _) = follow(&front, &id, &token, false).await?;
    assert!(text.ends_with("retry: 700\n\n") && !text.contains("[DONE]"), "{text}");
    gate.open()?;
    Ok(())
}

/// Printed, not judged: it is the machine's matter.
#[tokio::test(flavor = "multi_thread")]
async fn figures_of_the_function() -> Result<()> {
    let aws = Aws::make().await?;
    let server = Server::start_on_aws(Setup::unsandboxed(), aws.clone()).await?;
    let token = server.login().await?.access;
    let mut starts = Vec::new();
    for _ in 0..5 {
        starts.push(sandbox(&aws, "BUFFERED").await?.init);
    }
    starts.sort();
    let sandbox = sandbox(&aws, "BUFFERED").await?;
    let mut line = format!("init {:?} (median of 5)", starts[2]);
    for path in ["/healthz", "/v1/users/me"] {
        let event = event("GET", path, &token, None)?;
        let mut times = Vec::new();
        for _ in 0..100 {
            let began = Instant::now();
            assert_eq!(ask(&sandbox, &event).await?.status, 200);
            times.push(began.elapsed());
        }
        times.sort();
        line.push_str(&format!(", {path} p50 {:?} p99 {:?}", times[50], times[99]));
    }
    let (resident, highest) = sandbox.memory()?;
    println!("{line}, resident {:.1} MB, at most {:.1} MB", resident as f64 / 1000.0, highest as f64 / 1000.0);
    Ok(())
}
