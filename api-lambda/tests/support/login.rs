//! The device flow as its client and its owner go through it.

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};

use super::{Answer, Service};

pub const DEVICE_GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";

pub async fn begin(service: &Service) -> Value {
    let answer = service.post("/v1/auth/device", "", json!({"client_id": "ckrv", "scope": "OAuth says to ignore this"})).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

pub async fn poll(service: &Service, login: &Value) -> Answer {
    service
        .post("/v1/auth/token", "", json!({"client_id": "ckrv", "device_code": login["device_code"], "grant_type": DEVICE_GRANT}))
        .await
}

pub async fn refresh(service: &Service, token: &Value) -> Answer {
    service.post("/v1/auth/refresh", "", json!({"refresh_token": token, "grant_type": "refresh_token"})).await
}

pub fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    text.split_once(from).unwrap().1.split_once(to).unwrap().0
}

/// Opens the page and presses a button.
pub async fn press(service: &Service, user_code: &str, owner_code: &str, action: &str) -> Answer {
    let page = service.get(&format!("/activate?user_code={user_code}"), "").await;
    let csrf = between(&page.text, "name=\"csrf\" value=\"", "\"").to_owned();
    let cookie = page.header("set-cookie").split(';').next().unwrap().to_owned();
    submit(service, &cookie, &csrf, user_code, owner_code, action).await
}

pub async fn submit(service: &Service, cookie: &str, csrf: &str, user_code: &str, owner_code: &str, action: &str) -> Answer {
    let form = format!("user_code={user_code}&owner_code={owner_code}&csrf={csrf}&action={action}");
    let request = Request::post("/activate")
        .header("host", "localhost:7850")
        .header("content-type", "application/x-www-form-urlencoded")
        .header("cookie", cookie);
    service.send(request.body(Body::from(form)).unwrap()).await
}

pub async fn log_in(service: &Service) -> Value {
    let login = begin(service).await;
    let pressed = press(service, login["user_code"].as_str().unwrap(), &service.last_code(), "approve").await;
    assert_eq!(pressed.status, 200, "{}", pressed.text);
    let answer = poll(service, &login).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}
