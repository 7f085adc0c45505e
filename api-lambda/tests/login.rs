//! The device flow, the activation page, refresh. A browser's own rules (cookies, CSP) are not tested here, only what we tell it.

mod support;

use axum::body::Body;
use axum::http::Request;
use serde_json::json;
use support::Service;
use support::login::*;

#[tokio::test]
async fn a_login_goes_from_device_code_over_the_page_to_tokens_once() {
    let service = Service::start().await;
    let login = begin(&service).await;
    for key in ["device_code", "user_code", "verification_uri", "expires_in", "interval"] {
        assert!(!login[key].is_null(), "{key}");
    }
    let code = login["user_code"].as_str().unwrap();
    assert!(
        code.len() == 9
            && code[..4].bytes().all(|b| b.is_ascii_uppercase())
            && &code[4..5] == "-"
            && code[5..].bytes().all(|b| b.is_ascii_digit())
    );
    let body = poll(&service, &login).await.problem(400, "authorization_pending");
    assert_eq!(body["error"], "authorization_pending");
    let pressed = press(&service, &code.to_lowercase().replace('-', ""), &service.last_code().to_lowercase(), "approve").await;
    assert!(pressed.status == 200 && pressed.text.contains("Approved"), "{}", pressed.text);
    let tokens = poll(&service, &login).await.json();
    assert_eq!(tokens["token_type"], "Bearer");
    assert_eq!(tokens["expires_in"], 3600);
    let me = service.get("/v1/users/me", tokens["access_token"].as_str().unwrap()).await;
    assert_eq!(me.json()["id"], service.owner.id.to_string());
    poll(&service, &login).await.problem(400, "invalid_grant");
    service.advance(3600);
    assert_eq!(service.get("/v1/users/me", tokens["access_token"].as_str().unwrap()).await.status, 401);
}

#[tokio::test]
async fn polling_too_fast_a_denial_and_the_end_of_time_each_have_their_word() {
    let service = Service::start().await;
    let login = begin(&service).await;
    poll(&service, &login).await.problem(400, "authorization_pending");
    service.advance(4);
    poll(&service, &login).await.problem(400, "slow_down");
    service.advance(5);
    poll(&service, &login).await.problem(400, "authorization_pending");
    let denied = press(&service, login["user_code"].as_str().unwrap(), "", "deny").await;
    assert_eq!(denied.status, 200);
    poll(&service, &login).await.problem(400, "access_denied");
    let late = begin(&service).await;
    service.advance(600);
    poll(&service, &late).await.problem(400, "expired_token");
    assert_eq!(press(&service, late["user_code"].as_str().unwrap(), &service.last_code(), "approve").await.status, 404);
    let other = json!({"client_id": "other", "device_code": late["device_code"], "grant_type": DEVICE_GRANT});
    service.post("/v1/auth/token", "", other).await.problem(400, "invalid_grant");
    service.post("/v1/auth/token", "", json!({"grant_type": "password"})).await.problem(400, "unsupported_grant_type");
}

#[tokio::test]
async fn an_owner_code_is_good_for_one_approval() {
    let service = Service::start().await;
    let code = service.last_code();
    let (first, second) = (begin(&service).await, begin(&service).await);
    assert_eq!(press(&service, first["user_code"].as_str().unwrap(), &code, "approve").await.status, 200);
    assert_eq!(service.codes.lock().unwrap().len(), 2);
    let again = press(&service, second["user_code"].as_str().unwrap(), &code, "approve").await;
    assert!(again.status == 403 && again.text.contains("used before"), "{}", again.text);
    assert_eq!(press(&service, second["user_code"].as_str().unwrap(), &service.last_code(), "approve").await.status, 200);
}

#[tokio::test]
async fn five_wrong_codes_lock_the_page_for_ten_minutes() {
    let service = Service::start().await;
    let login = begin(&service).await;
    let code = login["user_code"].as_str().unwrap();
    for _ in 0..5 {
        assert_eq!(press(&service, code, "WRONG", "approve").await.status, 403);
    }
    let locked = press(&service, code, &service.last_code(), "approve").await;
    assert_eq!(locked.status, 429);
    assert!((590..=601).contains(&locked.header("retry-after").parse::<u64>().unwrap()));
    service.advance(599);
    let fresh = begin(&service).await;
    let code = fresh["user_code"].as_str().unwrap();
    assert_eq!(press(&service, code, &service.last_code(), "approve").await.status, 429);
    service.advance(1);
    assert_eq!(press(&service, code, &service.last_code(), "approve").await.status, 200);
}

#[tokio::test]
async fn the_page_takes_only_its_own_form() {
    let service = Service::start().await;
    let login = begin(&service).await;
    let code = login["user_code"].as_str().unwrap();
    let page = service.get(&format!("/activate?user_code={code}"), "").await;
    assert!(page.text.contains(code));
    let set = page.header("set-cookie");
    assert!(set.contains("HttpOnly") && set.contains("SameSite=Strict"), "{set}");
    let policy = page.header("content-security-policy");
    assert!(
        policy.starts_with("default-src 'none'; style-src 'sha256-") && policy.contains("frame-ancestors 'none'"),
        "{policy}"
    );
    assert!(!page.text.contains("<script") && !page.text.contains("http"), "nothing external, no script");
    let csrf = between(&page.text, "name=\"csrf\" value=\"", "\"").to_owned();
    let cookie = set.split(';').next().unwrap().to_owned();
    let owner_code = service.last_code();
    assert_eq!(submit(&service, "", &csrf, code, &owner_code, "approve").await.status, 403);
    assert_eq!(submit(&service, &cookie, "", code, &owner_code, "approve").await.status, 403);
    let other = format!("ckrv_csrf={}", "A".repeat(43));
    assert_eq!(submit(&service, &other, &csrf, code, &owner_code, "approve").await.status, 403);
    for (name, value) in [("origin", "http://evil.example"), ("sec-fetch-site", "cross-site"), ("origin", "null")] {
        let form = format!("user_code={code}&owner_code={owner_code}&csrf={csrf}&action=approve");
        let request = Request::post("/activate")
            .header("host", "localhost:7850")
            .header("content-type", "application/x-www-form-urlencoded");
        let request = request.header("cookie", &cookie).header(name, value).body(Body::from(form)).unwrap();
        assert_eq!(service.send(request).await.status, 403, "{name}: {value}");
    }
    poll(&service, &login).await.problem(400, "authorization_pending");
    assert_eq!(submit(&service, &cookie, &csrf, code, &owner_code, "approve").await.status, 200);
}

#[tokio::test]
async fn a_refresh_token_presented_again_within_thirty_seconds_gives_the_same_pair() {
    let service = Service::start().await;
    let first = log_in(&service).await;
    let second = refresh(&service, &first["refresh_token"]).await.json();
    assert_ne!(second["refresh_token"], first["refresh_token"]);
    service.advance(30);
    let repeated = refresh(&service, &first["refresh_token"]).await;
    assert_eq!(repeated.status, 200, "{}", repeated.text);
    assert_eq!(repeated.json()["access_token"], second["access_token"]);
    assert_eq!(repeated.json()["refresh_token"], second["refresh_token"]);
    assert_eq!(repeated.json()["expires_in"], 3570);
    assert_eq!(service.get("/v1/users/me", second["access_token"].as_str().unwrap()).await.status, 200);
    assert_eq!(refresh(&service, &second["refresh_token"]).await.status, 200);
}

#[tokio::test]
async fn a_refresh_token_presented_later_revokes_the_login_and_its_access_tokens() {
    let service = Service::start().await;
    let first = log_in(&service).await;
    let second = refresh(&service, &first["refresh_token"]).await.json();
    service.advance(31);
    refresh(&service, &first["refresh_token"]).await.problem(400, "invalid_grant");
    refresh(&service, &second["refresh_token"]).await.problem(400, "invalid_grant");
    for tokens in [&first, &second] {
        assert_eq!(service.get("/v1/users/me", tokens["access_token"].as_str().unwrap()).await.status, 401);
    }
    refresh(&service, &json!("ckrv_rt_x.y")).await.problem(400, "invalid_grant");
}

#[tokio::test]
async fn two_refreshes_at_once_agree() {
    let service = Service::start().await;
    let first = log_in(&service).await;
    let (a, b) = tokio::join!(refresh(&service, &first["refresh_token"]), refresh(&service, &first["refresh_token"]));
    assert_eq!((a.status.as_u16(), b.status.as_u16()), (200, 200), "{} {}", a.text, b.text);
    assert_eq!(a.json()["refresh_token"], b.json()["refresh_token"]);
}

#[tokio::test]
async fn logins_are_bounded_in_number() {
    let service = Service::start_with(|config| config.device_logins_per_minute = 2).await;
    begin(&service).await;
    begin(&service).await;
    service.advance(20);
    let refused = service.post("/v1/auth/device", "", json!({"client_id": "ckrv"})).await;
    refused.problem(429, "too_many_logins");
    assert_eq!(refused.header("retry-after"), "40");
    service.advance(40);
    begin(&service).await;
}
