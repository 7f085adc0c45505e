//! The contract's rules, which hold at every endpoint.

mod support;

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};
use support::{Service, request};

#[tokio::test]
async fn bad_input_is_refused_the_same_way_everywhere() {
    let service = Service::start().await;
    let token = service.owner_token().await;
    for path in ["/v1/jobs", "/v1/credentials", "/v1/secrets", "/v1/auth/device", "/v1/auth/token", "/v1/auth/refresh"] {
        let raw = |kind: &str, body: Vec<u8>| {
            Request::post(path)
                .header("host", "localhost")
                .header("authorization", format!("Bearer {token}"))
                .header("content-type", kind)
                .body(Body::from(body))
                .unwrap()
        };
        service.send(raw("application/json", b"{".to_vec())).await.problem(400, "bad_json");
        service.send(raw("application/json", b"[1]".to_vec())).await.problem(422, "invalid_body");
        service.send(raw("application/json", br#"["a", "b", "c", "d"]"#.to_vec())).await.problem(422, "invalid_body");
        service.send(raw("text/plain", b"{}".to_vec())).await.problem(415, "unsupported_media_type");
        service.send(raw("application/json", vec![b' '; 3_000_000])).await.problem(413, "body_too_large");
        service.send(raw("application/json", vec![b'['; 10_000])).await.problem(422, "invalid_body");
        if !path.starts_with("/v1/auth") {
            let answer = service.post(path, &token, json!({"nmae": "x"})).await;
            let detail = answer.problem(422, "invalid_body")["detail"].as_str().unwrap().to_owned();
            assert!(detail.contains("unknown field `nmae`"), "{detail}");
        }
    }
    let answer = service.post("/v1/secrets", &token, json!({"name": ["hunter2"], "value": "x"})).await;
    answer.problem(422, "invalid_body");
    let answer = service
        .post("/v1/credentials", &token, json!({"name": "x", "provider": "hunter2", "credential_type": "pat", "value": "x"}))
        .await;
    assert!(!answer.text.contains("hunter2"), "a value is never repeated: {}", answer.text);
}

#[tokio::test]
async fn wrong_methods_paths_and_media_types_are_problems() {
    let service = Service::start().await;
    let token = service.owner_token().await;
    service.get("/v1/nothing", &token).await.problem(404, "no_such_route");
    let answer = service.delete("/v1/jobs", &token).await;
    answer.problem(405, "method_not_allowed");
    assert!(answer.header("allow").contains("POST"));
    let mut asks = request("GET", "/v1/jobs", &token, None);
    asks.headers_mut().insert("accept", "text/csv".parse().unwrap());
    service.send(asks).await.problem(406, "not_acceptable");
    let id = service.make_job(&token).await;
    let mut asks = request("GET", &format!("/v1/jobs/{id}/logs?follow=true"), &token, None);
    asks.headers_mut().insert("accept", "application/json".parse().unwrap());
    service.send(asks).await.problem(406, "not_acceptable");
    for path in ["/v1/jobs?limit=0", "/v1/jobs?limit=101", "/v1/jobs?lmit=1", "/v1/jobs?status=cancelled"] {
        service.get(path, &token).await.problem(422, "invalid_query");
    }
    service.get("/v1/jobs?cursor=%00nonsense", &token).await.problem(422, "bad_cursor");
    service.get(&format!("/v1/jobs/{id}/logs?after=x"), &token).await.problem(422, "bad_cursor");
}

#[tokio::test]
async fn other_host_names_are_refused_against_dns_rebinding() {
    let service = Service::start().await;
    for host in ["evil.example", "evil.example:7850", "localhost.evil.example", ""] {
        let answer = service.send(Request::get("/v1/openapi.json").header("host", host).body(Body::empty()).unwrap()).await;
        answer.problem(421, "host_not_allowed");
    }
    service.send(Request::get("/v1/openapi.json").body(Body::empty()).unwrap()).await.problem(421, "host_not_allowed");
    for host in ["localhost", "127.0.0.1:1234", "[::1]:7850", "LOCALHOST:1"] {
        let answer = service.send(Request::get("/v1/openapi.json").header("host", host).body(Body::empty()).unwrap()).await;
        assert_eq!(answer.status, 200, "{host}");
    }
}

#[tokio::test]
async fn every_answer_has_a_request_id_and_safe_headers() {
    let service = Service::start().await;
    let given = Request::get("/healthz").header("x-request-id", "abcdef-123456").body(Body::empty()).unwrap();
    let answer = service.send(given).await;
    assert_eq!((answer.status.as_u16(), answer.header("x-request-id")), (200, "abcdef-123456"));
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    assert_eq!(answer.header("cache-control"), "no-store");
    let odd = Request::get("/readyz").header("x-request-id", "a\" onload=x").body(Body::empty()).unwrap();
    assert_eq!(service.send(odd).await.header("x-request-id").len(), 36);
}

#[test]
fn the_document_is_openapi_3_1_and_names_every_operation_once() {
    let document: Value = serde_json::to_value(ckrv_api::openapi()).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let mut ids = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            ids.push(operation["operationId"].as_str().unwrap_or_else(|| panic!("{method} {path}")).to_owned());
            assert!(operation["responses"].as_object().is_some_and(|answers| !answers.is_empty()), "{method} {path}");
            for parameter in path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')) {
                let declared = operation["parameters"]
                    .as_array()
                    .is_some_and(|all| all.iter().any(|p| p["name"] == parameter && p["in"] == "path"));
                assert!(declared, "{method} {path} declares {parameter}");
            }
        }
    }
    let count = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), count, "operation ids are unique");
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(document["components"]["schemas"].get(name).is_some(), "{name} is described");
    }
}

#[tokio::test]
async fn the_committed_document_is_the_one_that_is_served() {
    let committed: Value = serde_json::from_str(include_str!("../../docs/openapi.json")).unwrap();
    let served = Service::start().await.get("/v1/openapi.json", "").await.json();
    assert!(committed == served, "run `cargo run -p ckrv -- internal openapi > docs/openapi.json`");
}

#[test]
fn beyond_loopback_needs_tls_or_a_proxy() {
    for (addr, tls, proxy, fine) in [
        ("127.0.0.1:1", false, false, true),
        ("[::1]:1", false, false, true),
        ("0.0.0.0:1", false, false, false),
        ("[::]:1", false, false, false),
        ("10.0.0.1:1", true, false, true),
        ("10.0.0.1:1", false, true, true),
    ] {
        assert_eq!(ckrv_api::check_listen(addr.parse().unwrap(), tls, proxy).is_ok(), fine, "{addr}");
    }
}
