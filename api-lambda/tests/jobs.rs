//! Jobs, quota, idempotency, retention, credentials, secrets, by their version 1 shapes.

mod support;

use ckrv_core::Timestamp;
use ckrv_core::machine::Verb;
use serde_json::{Value, json};
use support::{REPO, Service, keys, new_job, request, with};

#[tokio::test]
async fn a_job_has_the_fields_of_version_1() {
    let service = Service::start().await;
    let token = service.owner_token().await;
    let made = service.post("/v1/jobs", &token, new_job()).await;
    assert_eq!(made.status, 201);
    let job = made.json();
    for (field, value) in [
        ("status", "pending"),
        ("git_repo_url", REPO),
        ("git_base_branch", "main"),
        ("spec_id", "do-it"),
        ("agent", "claude"),
        ("state", "queued"),
        ("created_at", "2026-03-10T12:00:00Z"),
    ] {
        assert_eq!(job[field], value, "{field}");
    }
    assert_eq!(job["queue_position"], 0);
    for absent in [
        "started_at",
        "completed_at",
        "result_status",
        "result_summary",
        "error_message",
        "feature_branch_name",
        "phase",
        "result_url",
    ] {
        assert!(job.get(absent).is_none(), "{absent}");
    }
    let id = job["id"].as_str().unwrap().parse().unwrap();
    assert_eq!(service.get(&format!("/v1/jobs/{id}"), &token).await.json(), job);
    let (claim, fence) = service.claim(id).await;
    service.advance(90);
    let running = service.get(&format!("/v1/jobs/{id}"), &token).await.json();
    assert_eq!(
        (running["status"].as_str(), running["phase"].as_str(), running["elapsed_seconds"].as_f64()),
        (Some("running"), Some("preparing"), Some(90.0))
    );
    assert!(running.get("estimated_completion_at").is_none(), "there is no earlier job");
    service.finish(id, claim, fence, 0).await;
    let done = service.get(&format!("/v1/jobs/{id}"), &token).await.json();
    for (field, value) in
        [("status", "succeeded"), ("result_status", "succeeded"), ("result_summary", "done"), ("feature_branch_name", "ckrv/x")]
    {
        assert_eq!(done[field], value, "{field}");
    }
    assert_eq!(done["result_url"], format!("http://localhost:7850/v1/jobs/{id}/artifacts/diff"));
    let next = service.make_job(&token).await;
    service.claim(next).await;
    let estimate = service.get(&format!("/v1/jobs/{next}"), &token).await.json()["estimated_completion_at"].clone();
    let began = service.clock_now();
    assert_eq!(estimate.as_str().unwrap().parse::<Timestamp>().unwrap(), began + jiff::SignedDuration::from_secs(90));
}

#[tokio::test]
async fn the_other_shapes_of_version_1_are_as_agreed() {
    let service = Service::start().await;
    let token = service.owner_token().await;
    let me = service.get("/v1/users/me", &token).await.json();
    assert_eq!(keys(&me), ["billing_cycle_end", "email", "id", "job_quota_remaining", "name", "subscription_tier"]);
    assert_eq!(
        (&me["subscription_tier"], &me["job_quota_remaining"], &me["billing_cycle_end"]),
        (&json!("free"), &json!(10), &json!("2026-04-01T00:00:00Z"))
    );
    let id = service.make_job(&token).await;
    service.succeed(id, 2).await;
    let logs = service.get(&format!("/v1/jobs/{id}/logs"), &token).await.json();
    assert_eq!(keys(&logs), ["logs"]);
    for field in ["timestamp", "level", "source", "message", "seq"] {
        assert!(logs["logs"][0].get(field).is_some(), "{field}");
    }
    let diff = service.get(&format!("/v1/jobs/{id}/artifacts/diff"), &token).await;
    assert_eq!((diff.header("content-type"), diff.text.as_str()), ("text/plain; charset=utf-8", "diff --git a b\n"));
    let list = service.get(&format!("/v1/jobs/{id}/artifacts"), &token).await.json();
    assert_eq!(list["artifacts"].as_array().unwrap().len(), 4);
    assert!(!list.to_string().contains("jobs/"), "keys of the blob store stay inside");
    assert_eq!(service.get("/v1/agents", &token).await.json()["agents"][0]["name"], "claude");
    let usage = service.get("/v1/usage", &token).await.json();
    assert_eq!((&usage["jobs_used"], &usage["overage_jobs"]), (&json!(1), &json!(0)));
    let waiting = service.make_job(&token).await;
    service.get(&format!("/v1/jobs/{waiting}/artifacts/diff"), &token).await.problem(404, "artifact_not_found");
}

#[tokio::test]
async fn a_list_goes_by_pages_newest_first_and_by_status() {
    let service = Service::start().await;
    let token = service.owner_token().await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        service.advance(1);
        ids.insert(0, service.make_job(&token).await.to_string());
    }
    let cancelled = ids.remove(2);
    assert_eq!(
        service.send(request("POST", &format!("/v1/jobs/{cancelled}/cancel"), &token, None)).await.json()["status"],
        "failed"
    );
    let mut found = Vec::new();
    let mut path = "/v1/jobs?limit=2&status=pending".to_owned();
    loop {
        let page = service.get(&path, &token).await.json();
        found.extend(page["jobs"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()));
        let Some(cursor) = page.get("next_cursor") else { break };
        path = format!("/v1/jobs?limit=2&status=pending&cursor={}", cursor.as_str().unwrap());
    }
    assert_eq!(found, ids);
    let failed = service.get("/v1/jobs?status=failed", &token).await.json();
    assert_eq!(failed["jobs"][0]["state"], "cancelled");
}

#[tokio::test]
async fn quota_ends_with_402_and_its_body_and_a_replay_answers_all_the_same() {
    let service = Service::start().await;
    let token = service.owner_token().await;
    let send = |key: &str, body: Value| {
        let mut made = request("POST", "/v1/jobs", &token, Some(body));
        made.headers_mut().insert("idempotency-key", key.parse().unwrap());
        service.send(made)
    };
    let first = send("k1", new_job()).await;
    assert_eq!(first.status, 201);
    for _ in 0..9 {
        service.make_job(&token).await;
    }
    let refused = service.post("/v1/jobs", &token, new_job()).await;
    let body = refused.problem(402, "quota_exceeded");
    assert_eq!((&body["error"], &body["quota_resets_at"]), (&json!("quota_exceeded"), &json!("2026-04-01T00:00:00Z")));
    assert!(body["message"].is_string() && body["upgrade_url"].as_str().unwrap().starts_with("http"));
    let replay = send("k1", new_job()).await;
    assert_eq!((replay.status.as_u16(), &replay.json()["id"]), (200, &first.json()["id"]));
    send("k1", with(new_job(), "git_base_branch", json!("dev"))).await.problem(422, "idempotency_mismatch");
    assert_eq!(service.get("/v1/users/me", &token).await.json()["job_quota_remaining"], 0);
    service.set_time("2026-04-01T00:00:00Z".parse().unwrap());
    assert_eq!(service.post("/v1/jobs", &token, new_job()).await.status, 201);
}

#[tokio::test]
async fn results_and_logs_are_gone_after_seven_days_to_the_second() {
    let service = Service::start().await;
    let token = service.owner_token().await;
    let id = service.make_job(&token).await;
    service.succeed(id, 2).await;
    let base = format!("/v1/jobs/{id}");
    let paths = ["/artifacts", "/artifacts/diff", "/artifacts/transcript", "/artifacts/log", "/artifacts/manifest", "/logs"]
        .map(|end| format!("{base}{end}"));
    service.advance(7 * 86_400 - 1);
    for path in &paths {
        assert_eq!(service.get(path, &token).await.status, 200, "{path}");
    }
    assert!(service.get(&base, &token).await.json().get("result_url").is_some());
    service.advance(1);
    for path in paths.iter().chain([&format!("{base}/logs?follow=true")]) {
        service.get(path, &token).await.problem(410, "expired");
    }
    service.send(request("POST", &format!("{base}/retry"), &token, None)).await.problem(410, "expired");
    service.get(&base, &token).await.problem(410, "expired");
    assert_eq!(service.get("/v1/jobs", &token).await.json()["jobs"], serde_json::json!([]));
    ckrv_store::purge(&service.state.stores, ckrv_api::Clock::now(&*service.clock)).await.unwrap();
    service.get(&paths[1], &token).await.problem(410, "expired");
    assert!(service.state.stores.blobs.get(&format!("jobs/{id}/1/diff")).await.unwrap().is_none());
}

#[tokio::test]
async fn cancel_is_repeatable_and_retry_makes_a_new_job() {
    let service = Service::start().await;
    let token = service.owner_token().await;
    let id = service.make_job(&token).await;
    service.send(request("POST", &format!("/v1/jobs/{id}/retry"), &token, None)).await.problem(409, "job_not_ended");
    service.claim(id).await;
    for _ in 0..2 {
        let answer = service.send(request("POST", &format!("/v1/jobs/{id}/cancel"), &token, None)).await.json();
        assert_eq!((&answer["cancel_requested"], &answer["status"]), (&json!(true), &json!("running")));
    }
    let done = service.make_job(&token).await;
    service.succeed(done, 0).await;
    service.send(request("POST", &format!("/v1/jobs/{done}/cancel"), &token, None)).await.problem(409, "job_ended");
    let again = service.send(request("POST", &format!("/v1/jobs/{done}/retry"), &token, None)).await;
    assert_eq!((again.status.as_u16(), &again.json()["retry_of"]), (201, &json!(done.to_string())));
    let record = service.state.stores.jobs.job(again.json()["id"].as_str().unwrap().parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(service.state.stores.blobs.get(&record.spec_key).await.unwrap().unwrap(), "# Do it\n");
}

#[tokio::test]
async fn a_job_that_cannot_work_is_refused_with_its_reason() {
    let service = Service::start().await;
    let token = service.owner_token().await;
    service
        .post("/v1/credentials", &token, json!({"name": "pat", "provider": "gitlab", "credential_type": "pat", "value": "x"}))
        .await;
    let many: serde_json::Map<String, Value> = (0..21).map(|n| (format!("k{n}"), json!("v"))).collect();
    let cases = [
        ("git_repo_url", json!("https://u:hunter2@github.com/o/r"), 422, "invalid_repo_url"),
        ("git_repo_url", json!("file:///srv/r"), 422, "invalid_repo_url"),
        ("git_repo_url", json!("https://169.254.169.254/o/r"), 422, "invalid_repo_url"),
        ("git_base_branch", json!("a..b"), 422, "invalid_branch"),
        ("agent", json!("nobody"), 422, "unknown_agent"),
        ("best_of", json!(2), 422, "not_available"),
        ("push", json!(true), 422, "not_available"),
        ("notify_url", json!("http://x.org"), 422, "invalid_notify_url"),
        ("max_cost_usd", json!(0), 422, "invalid_max_cost"),
        ("timeout_seconds", json!(0), 422, "invalid_timeout"),
        ("labels", Value::Object(many), 422, "too_many_labels"),
        ("labels", json!({"a b": "x"}), 422, "invalid_label"),
        ("secrets", json!({"no-slot": "x"}), 422, "unknown_secret_slot"),
        ("secrets", json!({"api-key": "x"}), 422, "unknown_secret"),
        ("git_credential_name", json!("none"), 422, "unknown_credential"),
        ("git_credential_name", json!("pat"), 422, "credential_mismatch"),
        ("spec_content", json!(" "), 422, "spec_empty"),
        ("spec_content", json!("---\na: [\n---\nx"), 422, "invalid_spec"),
        ("spec_content", json!("x".repeat(256 * 1024 + 1)), 413, "spec_too_large"),
        ("spec_content", json!(7), 422, "invalid_body"),
    ];
    for (field, value, status, code) in cases {
        let answer = service.post("/v1/jobs", &token, with(new_job(), field, value)).await;
        answer.problem(status, code);
        assert!(!answer.text.contains("hunter2"));
    }
    let unknown = service.post("/v1/jobs", &token, with(new_job(), "agent", json!("nobody"))).await;
    assert!(unknown.text.contains("`claude`, `script`"), "{}", unknown.text);
    assert_eq!(service.get("/v1/usage", &token).await.json()["jobs_used"], 0, "what was refused does not count");
    let fine = with(with(new_job(), "max_cost_usd", json!(1.5)), "best_of", json!(1));
    assert_eq!(service.post("/v1/jobs", &token, fine).await.status, 201);
}

#[tokio::test]
async fn credentials_and_secrets_are_checked_sealed_and_never_given_back() {
    let service = Service::start().await;
    let token = service.owner_token().await;
    let pat = json!({"name": "mine", "provider": "github", "credential_type": "pat", "value": "ghp_hunter2"});
    let made = service.post("/v1/credentials", &token, pat.clone()).await;
    assert_eq!((made.status.as_u16(), &made.json()["hosts"]), (201, &json!(["github.com"])));
    service.post("/v1/credentials", &token, pat.clone()).await.problem(409, "name_taken");
    let listed = service.get("/v1/credentials", &token).await;
    assert_eq!(keys(&listed.json()["credentials"][0]), ["created_at", "credential_type", "hosts", "name", "provider"]);
    assert_eq!(service.post("/v1/secrets", &token, json!({"name": "key", "value": "hunter2"})).await.status, 201);
    let secrets = service.get("/v1/secrets", &token).await;
    assert_eq!(keys(&secrets.json()["secrets"][0]), ["created_at", "name"]);
    assert!(![made.text, listed.text, secrets.text].concat().contains("hunter2"));
    let stored = service.state.stores.accounts.credential(service.owner.id, "mine").await.unwrap().unwrap();
    let owner = service.owner.id.to_string();
    let context = ckrv_store::SealContext { owner: &owner, kind: "credential", name: "mine" };
    let opened = service.state.stores.opener.open(context, &stored.value).await.unwrap();
    assert_eq!(secrecy::ExposeSecret::expose_secret(&opened), "ghp_hunter2");
    assert_eq!(service.delete("/v1/credentials/mine", &token).await.status, 204);
    service.delete("/v1/credentials/mine", &token).await.problem(404, "credential_not_found");
    assert_eq!(service.delete("/v1/secrets/key", &token).await.status, 204);
    service.delete("/v1/secrets/key", &token).await.problem(404, "secret_not_found");

    let key = |cipher: &str| {
        let mut bytes = b"openssh-key-v1\0".to_vec();
        bytes.extend((cipher.len() as u32).to_be_bytes());
        bytes.extend(cipher.as_bytes());
        use base64::Engine as _;
        format!(
            "-----BEGIN OPENSSH PRIVATE KEY-----\r\n{}\r\n-----END OPENSSH PRIVATE KEY-----",
            base64::engine::general_purpose::STANDARD.encode(bytes)
        )
    };
    let deploy = json!({"name": "deploy", "provider": "generic", "credential_type": "deploy_key", "value": key("none"), "hosts": ["Git.Example.com:2222"], "known_hosts": "git.example.com ssh-ed25519 AAAA"});
    assert_eq!(service.post("/v1/credentials", &token, deploy.clone()).await.json()["hosts"], json!(["git.example.com:2222"]));
    for (field, value, code, says) in [
        ("value", json!(key("aes256-ctr")), "invalid_value", "passphrase"),
        ("value", json!("ssh-ed25519 AAAA me"), "invalid_value", "private key"),
        ("value", json!("hello"), "invalid_value", "private key"),
        ("hosts", json!([]), "hosts_required", "hosts"),
        ("hosts", Value::Null, "hosts_required", "hosts"),
        ("hosts", json!(["https://x.org/"]), "invalid_hosts", "scheme"),
        ("known_hosts", json!("nonsense"), "invalid_known_hosts", "ssh-keyscan"),
        ("name", json!("Not OK"), "invalid_name", "lower-case"),
        ("value", json!("x".repeat(64 * 1024 + 1)), "invalid_value", "65536"),
    ] {
        let answer =
            service.post("/v1/credentials", &token, with(with(deploy.clone(), "name", json!("other")), field, value)).await;
        answer.problem(422, code);
        assert!(answer.text.contains(says), "{}", answer.text);
    }
    service
        .post("/v1/credentials", &token, with(with(pat, "name", json!("p2")), "value", json!("a b")))
        .await
        .problem(422, "invalid_value");
}

#[tokio::test]
async fn log_pages_go_on_where_the_one_before_ended() {
    let service = Service::start().await;
    let token = service.owner_token().await;
    let id = service.make_job(&token).await;
    let (claim, fence) = service.claim(id).await;
    service.log(id, claim, fence, 1..=5).await;
    let mut seen = Vec::new();
    let mut path = format!("/v1/jobs/{id}/logs?limit=2");
    loop {
        let page = service.get(&path, &token).await.json();
        seen.extend(page["logs"].as_array().unwrap().iter().map(|entry| entry["seq"].as_u64().unwrap()));
        let Some(cursor) = page.get("next_cursor") else { break };
        path = format!("/v1/jobs/{id}/logs?limit=2&after={}", cursor.as_str().unwrap());
    }
    assert_eq!(seen, [1, 2, 3, 4, 5]);
    service.apply(id, Verb::Cancel).await;
}

/// Except `@`, which git reads as another word for HEAD.
#[test]
fn branch_names_are_judged_as_git_judges_them() {
    let names = [
        "main", "a/b", "a.b", "-x", "HEAD", "a b", "a..b", "a~1", "a^", "a:b", "a?", "a*", "a[b", "a\\b", "/a", "a/", "a//b",
        ".a", "a/.b", "a.lock", "a.lock/b", "a.", "a@{b", "@x", "x@", "ü", "a]",
    ];
    for name in names {
        let git = std::process::Command::new("git")
            .args(["check-ref-format", "--branch", name])
            .output()
            .expect("git is needed")
            .status
            .success();
        assert_eq!(ckrv_core::repo_url::check_branch(name).is_ok(), git, "{name}");
    }
}
