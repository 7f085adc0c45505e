//! What the API does otherwise behind Lambda, without Lambda: followed logs in batches, and a handler that panics.
#![expect(clippy::unwrap_used, reason = "a test may panic, and so may its helpers")]

mod support;

use std::sync::Arc;

use axum::http::HeaderValue;
use ckrv_api::{AgentCatalog, FollowMode};
use ckrv_core::id::JobId;
use ckrv_core::wire::AgentInfo;
use support::Service;

/// A look at the log by a client with these further headers.
async fn follow(service: &Service, id: JobId, token: &str, headers: &[(&'static str, &str)]) -> String {
    let mut request = support::request("GET", &format!("/v1/jobs/{id}/logs?follow=true"), token, None);
    for (name, value) in headers {
        request.headers_mut().insert(*name, HeaderValue::from_str(value).unwrap());
    }
    let answer = service.send(request).await;
    assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, "text/event-stream"));
    answer.text
}

fn ids(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.strip_prefix("id: ")).collect()
}

#[tokio::test]
async fn a_batch_ends_at_once_and_says_when_to_come_back() {
    let service = Service::start_with(|config| config.follow = FollowMode::Lambda { streams: true }).await;
    let token = service.owner_token().await;
    let id = service.make_job(&token).await;
    let batch = ("ckrv-follow", "batch");
    assert_eq!(follow(&service, id, &token, &[batch]).await, "retry: 700\n\n");
    let (claim, fence) = service.claim(id).await;
    service.log(id, claim, fence, 1..=450).await;
    let first = follow(&service, id, &token, &[batch]).await;
    assert_eq!((ids(&first).len(), ids(&first).last()), (450, Some(&"1.450")));
    assert!(first.ends_with("\n\nretry: 700\n\n") && !first.contains("[DONE]"));
    service.finish(id, claim, fence, 450).await;
    let rest = follow(&service, id, &token, &[batch, ("last-event-id", "1.449")]).await;
    assert_eq!(ids(&rest), ["1.450"]);
    assert!(rest.ends_with("\n\ndata: [DONE]\n\n") && !rest.contains("retry:"), "{rest}");
}

#[tokio::test]
async fn where_answers_are_buffered_every_client_gets_batches() {
    let service = Service::start_with(|config| config.follow = FollowMode::Lambda { streams: false }).await;
    let token = service.owner_token().await;
    let id = service.make_job(&token).await;
    assert_eq!(follow(&service, id, &token, &[]).await, "retry: 700\n\n");
    service.succeed(id, 2).await;
    let whole = follow(&service, id, &token, &[]).await;
    assert_eq!(ids(&whole), ["1.1", "1.2"]);
    assert!(whole.ends_with("data: [DONE]\n\n"));
}

struct Broken;

impl AgentCatalog for Broken {
    fn agents(&self) -> Vec<AgentInfo> {
        panic!("the catalog is broken")
    }
}

#[tokio::test]
async fn a_handler_that_panics_is_a_500_of_that_request_alone() {
    let mut service = Service::start().await;
    service.state.agents = Arc::new(Broken);
    service.router = ckrv_api::router(service.state.clone());
    let token = service.owner_token().await;
    let body = service.get("/v1/agents", &token).await.problem(500, "internal");
    assert!(!body.to_string().contains("catalog"), "{body}");
    assert_eq!(service.get("/v1/users/me", &token).await.status, 200);
}
