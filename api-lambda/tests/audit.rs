//! The audit record of every change through the API, and the admin's side. That a record which can't be written fails no change is not
//! tested here.
#![expect(clippy::unwrap_used, reason = "a test may panic, and so may its helpers")]

mod support;

use serde_json::{Value, json};
use support::login::{begin, log_in, press, refresh};
use support::{Service, request};

async fn records(service: &Service, admin: &str) -> Vec<Value> {
    let day = service.clock_now().to_string()[..10].to_owned();
    let answer = service.get(&format!("/v1/admin/audit?day={day}"), admin).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()["records"].as_array().unwrap().clone()
}

fn actions(records: &[Value]) -> Vec<&str> {
    records.iter().map(|record| record["action"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn every_change_is_recorded_with_who_what_when_and_by_which_token() {
    let service = Service::start().await;
    let login = log_in(&service).await;
    let token = login["access_token"].as_str().unwrap();
    let job = service.make_job(token).await.to_string();
    assert_eq!(service.post("/v1/jobs", token, support::new_job()).await.status, 201);
    service.post(&format!("/v1/jobs/{job}/cancel"), token, json!({})).await;
    service.post(&format!("/v1/jobs/{job}/retry"), token, json!({})).await;
    let credential = json!({"name": "forge", "provider": "github", "credential_type": "pat", "value": "hunter2-value"});
    service.post("/v1/credentials", token, credential).await;
    service.delete("/v1/credentials/forge", token).await;
    service.post("/v1/secrets", token, json!({"name": "key", "value": "hunter2-value"})).await;
    service.delete("/v1/secrets/key", token).await;
    let made = service.post("/v1/tokens", token, json!({"name": "ci", "scopes": ["jobs:write"]})).await.json();
    let (id, secret) = (made["id"].as_str().unwrap(), made["token"].as_str().unwrap());
    let by_ci = service.make_job(secret).await.to_string();
    service.delete(&format!("/v1/tokens/{id}"), token).await;
    let denied = begin(&service).await;
    press(&service, denied["user_code"].as_str().unwrap(), "", "deny").await;

    let records = records(&service, token).await;
    let expected = [
        "login.approve",
        "token.issue",
        "job.create",
        "job.create",
        "job.cancel",
        "job.retry",
        "credential.create",
        "credential.delete",
        "secret.create",
        "secret.delete",
        "service_token.create",
        "job.create",
        "service_token.delete",
        "login.deny",
    ];
    assert_eq!(actions(&records), expected);
    let session = service.get("/v1/sessions", token).await.json()["sessions"][0]["id"].clone();
    let first = &records[2];
    assert_eq!(first["actor"], service.owner.id.to_string());
    assert_eq!(first["target"], job);
    assert_eq!(first["via"], session);
    assert_eq!(first["at"], "2026-03-10T12:00:00Z");
    assert!(first["request_id"].as_str().is_some_and(|id| !id.is_empty()));
    assert_eq!((&records[11]["target"], &records[11]["via"]), (&json!(by_ci), &json!(id)), "by the service token");
    assert_eq!(records[13]["actor"], "anonymous");
    let text = serde_json::to_string(&records).unwrap();
    for hidden in ["hunter2-value", secret, token, login["refresh_token"].as_str().unwrap()] {
        assert!(!text.contains(hidden), "no record holds a secret");
    }
}

#[tokio::test]
async fn what_changed_nothing_is_not_recorded() {
    let service = Service::start().await;
    let token = service.owner_token().await;
    service.post("/v1/secrets", &token, json!({"name": "Bad Name", "value": "x"})).await.problem(422, "invalid_name");
    service.delete("/v1/secrets/none", &token).await.problem(404, "secret_not_found");
    let keyed = || {
        let mut keyed = request("POST", "/v1/jobs", &token, Some(support::new_job()));
        keyed.headers_mut().insert("idempotency-key", "once".parse().unwrap());
        keyed
    };
    service.send(keyed()).await;
    assert_eq!(service.send(keyed()).await.status, 200, "replayed");
    service.get("/v1/jobs", &token).await;
    assert_eq!(actions(&records(&service, &token).await), ["job.create"]);
}

#[tokio::test]
async fn refused_admins_and_reused_refresh_tokens_are_recorded() {
    let service = Service::start().await;
    let (admin, stranger) = (service.owner_token().await, service.stranger_token().await);
    service.get("/v1/admin/users", &stranger).await.problem(403, "admin_only");
    let login = log_in(&service).await;
    refresh(&service, &login["refresh_token"]).await;
    service.advance(31);
    refresh(&service, &login["refresh_token"]).await.problem(400, "invalid_grant");
    let records = records(&service, &admin).await;
    assert_eq!(actions(&records), ["admin.refuse", "login.approve", "token.issue", "token.reuse"]);
    assert_eq!(records[0]["target"], "GET /v1/admin/users");
    assert_eq!(records[3]["actor"], "anonymous");
    assert_eq!(records[3]["owner"], service.owner.id.to_string());
}

#[tokio::test]
async fn behind_a_proxy_the_proxys_word_says_from_where() {
    for (behind_proxy, expected) in [(true, json!("192.0.2.7")), (false, Value::Null)] {
        let service = Service::start_with(|config| config.behind_proxy = behind_proxy).await;
        let token = service.owner_token().await;
        let mut asks = request("POST", "/v1/secrets", &token, Some(json!({"name": "key", "value": "x"})));
        asks.headers_mut().insert("x-forwarded-for", "6.6.6.6, 192.0.2.7".parse().unwrap());
        assert_eq!(service.send(asks).await.status, 201);
        assert_eq!(records(&service, &token).await[0]["from"], expected, "behind a proxy: {behind_proxy}");
    }
}

#[tokio::test]
async fn an_admin_disables_and_changes_users_and_never_themselves() {
    let service = Service::start().await;
    let (admin, stranger) = (service.owner_token().await, service.stranger_token().await);
    let id = service.get("/v1/users/me", &stranger).await.json()["id"].as_str().unwrap().to_owned();
    let users = service.get("/v1/admin/users", &admin).await.json();
    assert_eq!(users["users"].as_array().unwrap().len(), 2);
    let path = format!("/v1/admin/users/{id}");
    let changed = service.post(&path, &admin, json!({"tier": "pro", "role": "admin"})).await.json();
    assert_eq!((&changed["tier"], &changed["role"]), (&json!("pro"), &json!("admin")));
    assert_eq!(service.get("/v1/admin/users", &stranger).await.status, 200);
    service.post(&path, &admin, json!({"disabled": true})).await;
    service.get("/v1/users/me", &stranger).await.problem(401, "unauthorized");
    service.post(&path, &admin, json!({"disabled": false})).await;
    assert_eq!(service.get("/v1/users/me", &stranger).await.status, 200);
    let own = format!("/v1/admin/users/{}", service.owner.id);
    service.post(&own, &admin, json!({"disabled": true})).await.problem(422, "own_account");
    service.post(&own, &admin, json!({"role": "user"})).await.problem(422, "own_account");
    service.post("/v1/admin/users/nobody", &admin, json!({})).await.problem(404, "user_not_found");
    service.post(&path, &admin, json!({"email": "x"})).await.problem(422, "invalid_body");
    let targets: Vec<String> =
        records(&service, &admin).await.iter().map(|record| record["target"].as_str().unwrap().to_owned()).collect();
    assert_eq!(targets, [format!("{id} tier=pro role=admin"), format!("{id} disabled"), format!("{id} enabled")]);
}

#[tokio::test]
async fn a_day_is_read_as_json_or_as_lines() {
    let service = Service::start().await;
    let token = service.owner_token().await;
    service.post("/v1/secrets", &token, json!({"name": "key", "value": "x"})).await;
    let mut asks = request("GET", "/v1/admin/audit?day=2026-03-10", &token, None);
    asks.headers_mut().insert("accept", "application/x-ndjson".parse().unwrap());
    let lines = service.send(asks).await;
    assert_eq!(lines.header("content-type"), "application/x-ndjson");
    let line: Value = serde_json::from_str(lines.text.strip_suffix('\n').unwrap()).unwrap();
    assert_eq!(line["action"], "secret.create");
    assert_eq!(service.get("/v1/admin/audit?day=2026-03-11", &token).await.json()["records"], json!([]));
    for bad in ["2026-3-10", "today", "20260310", "2026-02-30", "2026-03-10T00:00:00Z"] {
        service.get(&format!("/v1/admin/audit?day={bad}"), &token).await.problem(422, "invalid_day");
    }
}
