//! Every endpoint of the OpenAPI document from another user's seat, without a token, and with each scope of a service token. The table says
//! what is right; an endpoint that is missing in it fails.
#![expect(clippy::unwrap_used, reason = "a test may panic, and so may its helpers")]

mod support;

use std::collections::BTreeSet;

use ckrv_core::wire::Scope;
use serde_json::{Value, json};
use support::{Answer, Service, login, new_job, request};

/// What another user finds there.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Seat {
    /// Needs no token.
    Public,
    /// 404, as for what does not exist.
    NotThere,
    /// Concerns the caller only: an answer in which nothing of the owner's is.
    TheirOwn,
    /// 403: for admins.
    Refused,
}

/// What a service token needs.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Need {
    Nothing,
    Scope(Scope),
    /// No scope is enough.
    Login,
}

use Need::{Login, Nothing};
use Seat::{NotThere, Public, Refused, TheirOwn};

const TABLE: &[(&str, Seat, Need)] = &[
    ("GET /activate", Public, Nothing),
    ("POST /activate", Public, Nothing),
    ("GET /activate/callback", Public, Nothing),
    ("POST /activate/oidc/start", Public, Nothing),
    ("GET /activate/oidc/confirm", Public, Nothing),
    ("POST /activate/oidc/confirm", Public, Nothing),
    ("GET /healthz", Public, Nothing),
    ("GET /readyz", Public, Nothing),
    ("GET /status", Public, Nothing),
    ("POST /v1/auth/device", Public, Nothing),
    ("POST /v1/auth/refresh", Public, Nothing),
    ("POST /v1/auth/revoke", Public, Nothing),
    ("POST /v1/auth/token", Public, Nothing),
    ("GET /v1/openapi.json", Public, Nothing),
    ("GET /v1/agents", TheirOwn, Nothing),
    ("GET /v1/workers", TheirOwn, Nothing),
    ("GET /v1/users/me", TheirOwn, Nothing),
    ("GET /v1/usage", TheirOwn, Need::Scope(Scope::UsageRead)),
    ("GET /v1/webhooks/secret", TheirOwn, Login),
    ("GET /v1/credentials", TheirOwn, Need::Scope(Scope::CredentialsRead)),
    ("POST /v1/credentials", TheirOwn, Need::Scope(Scope::CredentialsWrite)),
    ("DELETE /v1/credentials/{name}", NotThere, Need::Scope(Scope::CredentialsWrite)),
    ("GET /v1/secrets", TheirOwn, Need::Scope(Scope::CredentialsRead)),
    ("POST /v1/secrets", TheirOwn, Need::Scope(Scope::CredentialsWrite)),
    ("DELETE /v1/secrets/{name}", NotThere, Need::Scope(Scope::CredentialsWrite)),
    ("GET /v1/jobs", TheirOwn, Need::Scope(Scope::JobsRead)),
    ("POST /v1/jobs", TheirOwn, Need::Scope(Scope::JobsWrite)),
    ("GET /v1/jobs/{id}", NotThere, Need::Scope(Scope::JobsRead)),
    ("GET /v1/jobs/{id}/artifacts", NotThere, Need::Scope(Scope::JobsRead)),
    ("GET /v1/jobs/{id}/artifacts/diff", NotThere, Need::Scope(Scope::JobsRead)),
    ("GET /v1/jobs/{id}/artifacts/log", NotThere, Need::Scope(Scope::JobsRead)),
    ("GET /v1/jobs/{id}/artifacts/manifest", NotThere, Need::Scope(Scope::JobsRead)),
    ("GET /v1/jobs/{id}/artifacts/transcript", NotThere, Need::Scope(Scope::JobsRead)),
    ("POST /v1/jobs/{id}/cancel", NotThere, Need::Scope(Scope::JobsWrite)),
    ("GET /v1/jobs/{id}/logs", NotThere, Need::Scope(Scope::JobsRead)),
    ("POST /v1/jobs/{id}/retry", NotThere, Need::Scope(Scope::JobsWrite)),
    ("GET /v1/tokens", TheirOwn, Login),
    ("POST /v1/tokens", TheirOwn, Login),
    ("DELETE /v1/tokens/{id}", NotThere, Login),
    ("GET /v1/sessions", TheirOwn, Login),
    ("DELETE /v1/sessions/{id}", NotThere, Login),
    ("GET /v1/admin/audit", Refused, Need::Scope(Scope::Admin)),
    ("GET /v1/admin/ledger", Refused, Need::Scope(Scope::Admin)),
    ("GET /v1/admin/users", Refused, Need::Scope(Scope::Admin)),
    ("POST /v1/admin/users/{id}", Refused, Need::Scope(Scope::Admin)),
];

/// The document's operations, and whether each says that it is public.
fn operations() -> Vec<(String, bool)> {
    let document = serde_json::to_value(ckrv_api::openapi()).unwrap();
    let mut found = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            found.push((format!("{} {path}", method.to_uppercase()), operation["security"] == json!([{}])));
        }
    }
    found
}

#[test]
fn the_table_and_the_document_name_the_same_endpoints() {
    let documented: BTreeSet<String> = operations().into_iter().map(|(operation, _)| operation).collect();
    let tabled: BTreeSet<String> = TABLE.iter().map(|(operation, ..)| (*operation).to_owned()).collect();
    assert_eq!(documented.difference(&tabled).collect::<Vec<_>>(), Vec::<&String>::new(), "not in the table");
    assert_eq!(tabled.difference(&documented).collect::<Vec<_>>(), Vec::<&String>::new(), "not in the document");
    for (operation, is_public) in operations() {
        let seat = TABLE.iter().find(|(tabled, ..)| *tabled == operation).unwrap().1;
        assert_eq!(is_public, seat == Public, "{operation}");
    }
}

/// An owner with one of everything.
struct Owner {
    service: Service,
    token: String,
    job: String,
    service_token: String,
    session: String,
}

impl Owner {
    async fn new() -> Self {
        let service = Service::start().await;
        let token = login::log_in(&service).await["access_token"].as_str().unwrap().to_owned();
        let id = service.make_job(&token).await;
        service.succeed(id, 3).await;
        service
            .post(
                "/v1/credentials",
                &token,
                json!({"name": "mine", "provider": "github", "credential_type": "pat", "value": "x"}),
            )
            .await;
        service.post("/v1/secrets", &token, json!({"name": "mine", "value": "x"})).await;
        let made = service.post("/v1/tokens", &token, json!({"name": "mine", "scopes": ["jobs:read"]})).await.json();
        let session = service.get("/v1/sessions", &token).await.json()["sessions"][0]["id"].as_str().unwrap().to_owned();
        let service_token = made["id"].as_str().unwrap().to_owned();
        Self { service, token, job: id.to_string(), service_token, session }
    }

    fn path(&self, operation: &str) -> String {
        let path = operation.split_once(' ').unwrap().1;
        let id = match path.split('/').nth(2) {
            Some("jobs") => self.job.clone(),
            Some("tokens") => self.service_token.clone(),
            Some("sessions") => self.session.clone(),
            _ => self.service.owner.id.to_string(),
        };
        path.replace("{id}", &id).replace("{name}", "mine")
    }

    async fn call(&self, operation: &str, token: &str) -> Answer {
        let method = operation.split_once(' ').unwrap().0;
        self.service.send(request(method, &self.path(operation), token, body(operation))).await
    }

    /// What names the owner or something of theirs.
    fn marks(&self) -> Vec<String> {
        let owner = &self.service.owner;
        vec![self.job.clone(), self.service_token.clone(), self.session.clone(), owner.id.to_string(), owner.email.clone()]
    }
}

/// A good body, so that nothing but the right to do it is in question.
fn body(operation: &str) -> Option<Value> {
    Some(match operation {
        "POST /v1/jobs" => new_job(),
        "POST /v1/credentials" => json!({"name": "theirs", "provider": "github", "credential_type": "pat", "value": "x"}),
        "POST /v1/secrets" => json!({"name": "theirs", "value": "x"}),
        "POST /v1/tokens" => json!({"name": "theirs", "scopes": ["jobs:read"]}),
        "POST /v1/admin/users/{id}" => json!({"tier": "pro"}),
        _ => return None,
    })
}

#[tokio::test]
async fn without_a_good_token_there_is_nothing() {
    let owner = Owner::new().await;
    for (operation, seat, _) in TABLE.iter().filter(|(_, seat, _)| *seat != Public) {
        for token in ["", "ckrv_at_wrong", "ckrv_st_wrong", "wrong"] {
            let answer = owner.call(operation, token).await;
            answer.problem(401, "unauthorized");
            assert!(answer.header("www-authenticate").starts_with("Bearer"), "{operation} {seat:?}");
        }
    }
}

#[tokio::test]
async fn from_another_users_seat_nothing_of_the_owners_is_there() {
    let owner = Owner::new().await;
    let stranger = owner.service.stranger_token().await;
    for (operation, seat, _) in TABLE {
        let answer = owner.call(operation, &stranger).await;
        match seat {
            Public => continue,
            NotThere => assert_eq!(answer.status, 404, "{operation}: {}", answer.text),
            Refused => drop(answer.problem(403, "admin_only")),
            TheirOwn => assert!(answer.status.is_success(), "{operation}: {} {}", answer.status, answer.text),
        }
        for mark in owner.marks() {
            assert!(!answer.text.contains(&mark), "{operation} tells {mark}: {}", answer.text);
        }
    }
    let follow = format!("/v1/jobs/{}/logs?follow=true", owner.job);
    owner.service.get(&follow, &stranger).await.problem(404, "job_not_found");
    // All of it is still there for the owner.
    for (operation, ..) in TABLE.iter().filter(|(operation, seat, _)| operation.starts_with("GET") && *seat == NotThere) {
        assert_eq!(owner.call(operation, &owner.token).await.status, 200, "{operation}");
    }
    assert!(owner.service.get("/v1/tokens", &owner.token).await.text.contains(&owner.service_token));
    assert_eq!(owner.service.get("/v1/credentials", &owner.token).await.json()["credentials"][0]["name"], "mine");
    let borrowed = support::with(support::with(new_job(), "agent", json!("claude")), "secrets", json!({"api-key": "mine"}));
    owner.service.post("/v1/jobs", &stranger, borrowed).await.problem(422, "unknown_secret");
}

#[tokio::test]
async fn a_service_token_may_do_what_its_scope_says_and_no_more() {
    let owner = Owner::new().await;
    for scope in Scope::ALL {
        let asked = json!({"name": "one scope", "scopes": [scope]});
        let token = owner.service.post("/v1/tokens", &owner.token, asked).await.json()["token"].as_str().unwrap().to_owned();
        for (operation, seat, need) in TABLE {
            let allowed = match need {
                Nothing => true,
                Need::Scope(needed) => *needed == scope,
                Login => false,
            };
            // What an allowed one then does to the owner's things is not the question here.
            if *seat == Public || (allowed && operation.starts_with("DELETE")) {
                continue;
            }
            let answer = owner.call(operation, &token).await;
            if allowed {
                assert!(![401, 403].contains(&answer.status.as_u16()), "{scope}: {operation}: {}", answer.text);
                continue;
            }
            answer.problem(403, "insufficient_scope");
            let challenge = answer.header("www-authenticate");
            assert!(challenge.contains("error=\"insufficient_scope\""), "{operation}: {challenge}");
            if let Need::Scope(needed) = need {
                assert!(challenge.contains(&format!("scope=\"{needed}\"")), "{operation}: {challenge}");
            }
        }
    }
}
