//! Service tokens and sessions: made, listed, ended. Which scope opens which endpoint is in `authorisation.rs`.
#![expect(clippy::unwrap_used, reason = "a test may panic, and so may its helpers")]

mod support;

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};
use support::login::{log_in, refresh};
use support::{Answer, Service, sha256};

async fn make(service: &Service, login: &str, scopes: &[&str]) -> Value {
    let answer = service.post("/v1/tokens", login, json!({"name": "ci", "scopes": scopes})).await;
    assert_eq!(answer.status, 201, "{}", answer.text);
    answer.json()
}

async fn revoke(service: &Service, form: &str) -> Answer {
    let request =
        Request::post("/v1/auth/revoke").header("host", "localhost").header("content-type", "application/x-www-form-urlencoded");
    service.send(request.body(Body::from(form.to_owned())).unwrap()).await
}

#[tokio::test]
async fn a_token_is_shown_once_and_stored_as_a_hash() {
    let service = Service::start().await;
    let login = service.owner_token().await;
    let made = make(&service, &login, &["jobs:read", "jobs:write", "jobs:read"]).await;
    let token = made["token"].as_str().unwrap();
    assert!(token.starts_with("ckrv_st_") && token.len() == 8 + 43, "256 bits: {}", token.len());
    assert_eq!(made["scopes"], json!(["jobs:read", "jobs:write"]));
    assert_eq!(service.get("/v1/jobs", token).await.status, 200);
    let list = service.get("/v1/tokens", &login).await;
    assert!(!list.text.contains(token), "it is never shown again");
    assert_eq!(list.json()["tokens"][0]["last_used_at"], "2026-03-10T12:00:00Z");
    let stored = service.state.stores.accounts.service_token(&sha256(token.as_bytes())).await.unwrap().unwrap();
    assert!(!format!("{stored:?}").contains(token));
    assert_eq!(service.state.stores.accounts.service_token(token).await.unwrap(), None);
    let path = format!("/v1/tokens/{}", made["id"].as_str().unwrap());
    assert_eq!(service.delete(&path, &login).await.status, 204);
    service.delete(&path, &login).await.problem(404, "token_not_found");
    service.get("/v1/jobs", token).await.problem(401, "unauthorized");
}

#[tokio::test]
async fn a_token_ends_at_its_second_and_with_its_owner() {
    let service = Service::start().await;
    let login = service.owner_token().await;
    let asked = json!({"name": "ci", "scopes": ["jobs:read"], "expires_in_days": 1});
    let made = service.post("/v1/tokens", &login, asked).await.json();
    assert_eq!(made["expires_at"], "2026-03-11T12:00:00Z");
    let token = made["token"].as_str().unwrap();
    service.advance(86_399);
    assert_eq!(service.get("/v1/jobs", token).await.status, 200);
    service.advance(1);
    assert_eq!(service.get("/v1/jobs", token).await.status, 401);
    let lasting = make(&service, &login, &["jobs:read"]).await["token"].as_str().unwrap().to_owned();
    let mut owner = service.owner.clone();
    owner.disabled = true;
    service.state.stores.accounts.put_user(&owner).await.unwrap();
    for token in [&login, &lasting] {
        service.get("/v1/jobs", token).await.problem(401, "unauthorized");
    }
}

#[tokio::test]
async fn a_token_can_neither_make_another_nor_grow() {
    let service = Service::start().await;
    let all = ["jobs:read", "jobs:write", "credentials:read", "credentials:write", "usage:read", "admin"];
    let token = make(&service, &service.owner_token().await, &all).await["token"].as_str().unwrap().to_owned();
    service.post("/v1/tokens", &token, json!({"name": "x", "scopes": ["jobs:read"]})).await.problem(403, "insufficient_scope");
    service.get("/v1/tokens", &token).await.problem(403, "insufficient_scope");
    assert_eq!(service.get("/v1/admin/users", &token).await.status, 200, "its owner is an admin");
    let stranger = service.stranger_token().await;
    service.post("/v1/tokens", &stranger, json!({"name": "x", "scopes": ["admin"]})).await.problem(403, "admin_only");
    // The scope is worth nothing from the moment on at which its owner is no admin any more.
    let mut owner = service.owner.clone();
    owner.role = ckrv_store::Role::User;
    service.state.stores.accounts.put_user(&owner).await.unwrap();
    service.get("/v1/admin/users", &token).await.problem(403, "admin_only");
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let service = Service::start().await;
    let login = service.owner_token().await;
    for (body, code) in [
        (json!({"name": "", "scopes": ["jobs:read"]}), "invalid_name"),
        (json!({"name": "a\nb", "scopes": ["jobs:read"]}), "invalid_name"),
        (json!({"name": "a", "scopes": []}), "invalid_scope"),
        (json!({"name": "a", "scopes": ["jobs:own"]}), "invalid_body"),
        (json!({"name": "a", "scopes": ["jobs:read"], "expires_in_days": 0}), "invalid_expiry"),
        (json!({"name": "a", "scopes": ["jobs:read"], "token": "mine"}), "invalid_body"),
    ] {
        service.post("/v1/tokens", &login, body).await.problem(422, code);
    }
}

#[tokio::test]
async fn a_session_is_listed_and_ended_with_all_its_tokens() {
    let service = Service::start().await;
    let (here, there) = (log_in(&service).await, log_in(&service).await);
    let (mine, other) = (here["access_token"].as_str().unwrap(), there["access_token"].as_str().unwrap());
    let sessions = service.get("/v1/sessions", mine).await.json()["sessions"].as_array().unwrap().clone();
    assert_eq!(sessions.len(), 2);
    let away = sessions.iter().find(|session| session["current"] == false).unwrap()["id"].as_str().unwrap().to_owned();
    assert_eq!(service.delete(&format!("/v1/sessions/{away}"), mine).await.status, 204);
    service.delete(&format!("/v1/sessions/{away}"), mine).await.problem(404, "session_not_found");
    assert_eq!(service.get("/v1/users/me", other).await.status, 401);
    refresh(&service, &there["refresh_token"]).await.problem(400, "invalid_grant");
    assert_eq!(service.get("/v1/users/me", mine).await.status, 200);
    assert_eq!(service.get("/v1/sessions", mine).await.json()["sessions"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn who_holds_a_token_may_end_it_and_learns_nothing_of_others() {
    let service = Service::start().await;
    for kind in ["refresh_token", "access_token"] {
        let login = log_in(&service).await;
        let form = format!("token={}&token_type_hint=whatever&client_id=x", login[kind].as_str().unwrap());
        assert_eq!(revoke(&service, &form).await.status, 200);
        assert_eq!(service.get("/v1/users/me", login["access_token"].as_str().unwrap()).await.status, 401, "{kind}");
        refresh(&service, &login["refresh_token"]).await.problem(400, "invalid_grant");
        assert_eq!(revoke(&service, &form).await.status, 200, "again");
    }
    let login = log_in(&service).await;
    let family = login["refresh_token"].as_str().unwrap().split_once('.').unwrap().0.to_owned();
    // Knowing a login's id, which is no secret, is not holding its token.
    for unknown in ["x", "ckrv_rt_x.y", &format!("{family}.invented"), "ckrv_at_x", "ckrv_st_x"] {
        assert_eq!(revoke(&service, &format!("token={unknown}")).await.status, 200);
    }
    assert_eq!(service.get("/v1/users/me", login["access_token"].as_str().unwrap()).await.status, 200);
    revoke(&service, "token_type_hint=refresh_token").await.problem(400, "invalid_request");
    service.post("/v1/auth/revoke", "", json!({"token": "x"})).await.problem(415, "unsupported_media_type");
    let token =
        make(&service, login["access_token"].as_str().unwrap(), &["jobs:read"]).await["token"].as_str().unwrap().to_owned();
    assert_eq!(revoke(&service, &format!("token={token}")).await.status, 200);
    assert_eq!(service.get("/v1/jobs", &token).await.status, 401);
}

#[tokio::test]
async fn a_disabled_users_login_is_neither_renewed_nor_finished() {
    let service = Service::start().await;
    let login = log_in(&service).await;
    let waiting = support::login::begin(&service).await;
    let code = waiting["user_code"].as_str().unwrap();
    support::login::press(&service, code, &service.last_code(), "approve").await;
    let mut owner = service.owner.clone();
    owner.disabled = true;
    service.state.stores.accounts.put_user(&owner).await.unwrap();
    refresh(&service, &login["refresh_token"]).await.problem(400, "invalid_grant");
    support::login::poll(&service, &waiting).await.problem(400, "access_denied");
}
