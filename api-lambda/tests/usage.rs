//! Tiers, usage, the ledger, webhook URLs, secrets by reference. That the counts are right under races is the store's contract suite; here
//! that the API keeps to them.
#![expect(clippy::unwrap_used, reason = "a test may panic, and so may its helpers")]

mod support;

use axum::body::Body;
use axum::http::Request;
use ckrv_api::{Overage, TierRule};
use ckrv_core::job::{Facts, Outcome, OutcomeClass};
use ckrv_core::log::Cursor;
use ckrv_core::machine::{Finish, Verb};
use ckrv_core::webhook::NotifyPolicy;
use serde_json::{Value, json};
use support::{Answer, Service, keys, new_job, request, with};

async fn service(included: u32, overage: Overage) -> Service {
    Service::start_with(|config| config.tiers.free = TierRule { included, overage }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_64_jobs_at_once_a_quota_of_five_lets_exactly_five_through() {
    let service = service(3, Overage::UpTo { jobs: 2, usd_per_job: 0.5 }).await;
    let token = service.owner_token().await;
    let creates = (0..64).map(|_| service.post("/v1/jobs", &token, new_job()));
    let answers: Vec<Answer> = futures::future::join_all(creates).await;
    let (made, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status == 201);
    assert_eq!((made.len(), refused.len()), (5, 59));
    for answer in &refused {
        let body = answer.problem(402, "quota_exceeded");
        let expected = [
            "code",
            "detail",
            "error",
            "hint",
            "message",
            "quota_resets_at",
            "request_id",
            "status",
            "title",
            "type",
            "upgrade_url",
        ];
        assert_eq!(keys(&body), expected);
        assert_eq!(body["message"], "This month's 5 jobs are used up. The quota resets at 2026-04-01T00:00:00Z.");
    }
    let usage = service.get("/v1/usage", &token).await.json();
    assert_eq!((&usage["jobs_used"], &usage["overage_jobs"], &usage["overage_cost_usd"]), (&json!(5), &json!(2), &json!(1.0)));
    assert_eq!(service.get("/v1/jobs", &token).await.json()["jobs"].as_array().unwrap().len(), 5);
}

#[tokio::test]
async fn usage_tells_what_was_charged_and_what_the_agents_cost() {
    let service = service(1, Overage::Unlimited { usd_per_job: 0.25 }).await;
    let token = service.owner_token().await;
    let first = service.make_job(&token).await;
    let second = service.make_job(&token).await;
    let third = service.make_job(&token).await;
    // One beyond the included is given back, the included one ends and tells its cost.
    service.apply(third, Verb::Cancel).await;
    let (claim, fence) = service.claim(first).await;
    let mut facts = Facts::default();
    facts.usage.cost_micro_usd = Some(1_500_000);
    let outcome = Outcome::new(OutcomeClass::Agent, "it gave up");
    let finish = Box::new(Finish { outcome, facts, artifacts: Vec::new(), log_end: Cursor { fence, seq: 0 } });
    service.apply(first, Verb::Finish { claim, fence, finish }).await;
    let usage = service.get("/v1/usage", &token).await.json();
    let expected = json!({
        "month": "2026-03", "jobs_used": 2, "jobs_included": 1, "overage_jobs": 1, "overage_cost_usd": 0.25, "agent_cost_usd": 1.5,
        "quota_resets_at": "2026-04-01T00:00:00Z",
    });
    assert_eq!(usage, expected);
    assert_eq!(service.get("/v1/usage?month=2026-03", &token).await.json(), expected);
    let before = service.get("/v1/usage?month=2025-12", &token).await.json();
    assert_eq!((&before["jobs_used"], &before["quota_resets_at"]), (&json!(0), &json!("2026-01-01T00:00:00Z")));
    for month in ["2026", "2026-3", "2026-13", "202603", "2026-03-01", "%2B2026-03", ""] {
        service.get(&format!("/v1/usage?month={month}"), &token).await.problem(422, "invalid_month");
    }
    service.get("/v1/usage?year=2026", &token).await.problem(422, "invalid_query");
    let ledger = service.get("/v1/admin/ledger?month=2026-03", &token).await.json();
    assert_eq!((&ledger["month"], &ledger["total_usd"]), (&json!("2026-03"), &json!(0.25)));
    let entries = ledger["entries"].as_array().unwrap();
    let told: Vec<_> = entries.iter().map(|entry| (entry["job"].clone(), entry["voided"].clone())).collect();
    assert_eq!(told, [(json!(second.to_string()), json!(false)), (json!(third.to_string()), json!(true))]);
    assert_eq!((&entries[0]["owner"], &entries[0]["cost_usd"]), (&json!(service.owner.id.to_string()), &json!(0.25)));
    assert_eq!((&entries[0]["voided_at"], &entries[1]["voided_at"]), (&Value::Null, &json!("2026-03-10T12:00:00Z")));
}

async fn accepting(service: &Service, path: &str, token: &str, accept: &str) -> Answer {
    let (mut parts, ()) = Request::get(path).body(()).unwrap().into_parts();
    parts.headers = request("GET", path, token, None).into_parts().0.headers;
    parts.headers.insert("accept", accept.parse().unwrap());
    service.send(Request::from_parts(parts, Body::empty())).await
}

#[tokio::test]
async fn the_ledger_is_for_admins_and_comes_as_json_or_csv() {
    let service = service(0, Overage::Unlimited { usd_per_job: 0.3 }).await;
    let token = service.owner_token().await;
    let (kept, voided) = (service.make_job(&token).await, service.make_job(&token).await);
    service.apply(voided, Verb::Cancel).await;
    let path = "/v1/admin/ledger";
    assert_eq!(service.get(path, &service.stranger_token().await).await.status, 403);
    let owner = service.owner.id;
    let at = "2026-03-10T12:00:00Z";
    let csv = format!(
        "month,owner,job,at,cost_usd,voided,voided_at\n2026-03,{owner},{kept},{at},0.300000,false,\n2026-03,{owner},{voided},{at},0.300000,true,{at}\n"
    );
    for answer in [
        accepting(&service, path, &token, "text/csv").await,
        accepting(&service, path, &token, "text/csv, application/json;q=0").await,
        service.get(&format!("{path}?format=csv"), &token).await,
    ] {
        assert_eq!((answer.header("content-type"), answer.text.as_str()), ("text/csv; charset=utf-8", csv.as_str()));
        assert_eq!(answer.header("content-disposition"), "attachment; filename=\"ckrv-ledger-2026-03.csv\"");
    }
    for answer in [
        service.get(path, &token).await,
        accepting(&service, path, &token, "*/*").await,
        accepting(&service, &format!("{path}?format=json"), &token, "text/csv").await,
    ] {
        assert_eq!((answer.header("content-type"), &answer.json()["total_usd"]), ("application/json", &json!(0.3)));
    }
    let empty = service.get(&format!("{path}?format=csv&month=2026-02"), &token).await.text;
    assert_eq!(empty, "month,owner,job,at,cost_usd,voided,voided_at\n");
    accepting(&service, path, &token, "text/html").await.problem(406, "not_acceptable");
    service.get(&format!("{path}?format=xml"), &token).await.problem(422, "invalid_query");
}

#[tokio::test]
async fn a_webhook_is_checked_kept_and_not_shown() {
    let service = Service::start().await;
    let token = service.owner_token().await;
    let job = |url: &str| with(new_job(), "notify_url", json!(url));
    for (url, reason) in [
        ("http://ci.example.com/", "must be an https URL"),
        ("https://10.0.0.1/", "private address"),
        ("https://user:secret@ci.example.com/", "user name or password"),
        ("nothing", "can't be read"),
    ] {
        let problem = service.post("/v1/jobs", &token, job(url)).await.problem(422, "invalid_notify_url");
        assert!(problem["detail"].as_str().unwrap().contains(reason) && problem["hint"].is_string(), "{problem}");
        assert!(!problem.to_string().contains("secret"), "{problem}");
    }
    let made = service.post("/v1/jobs", &token, job("https://ci.example.com/hook?token=x")).await;
    assert_eq!(made.status, 201, "{}", made.text);
    assert!(!made.text.contains("ci.example.com"), "{}", made.text);
    let id = made.json()["id"].as_str().unwrap().parse().unwrap();
    let record = service.state.stores.jobs.job(id).await.unwrap().unwrap();
    assert_eq!(record.request.notify_url.as_deref(), Some("https://ci.example.com/hook?token=x"));
    let open = Service::start_with(|config| config.notify = NotifyPolicy { allow_http: true, allow_private: true }).await;
    let token = open.owner_token().await;
    assert_eq!(open.post("/v1/jobs", &token, job("http://127.0.0.1:8080/")).await.status, 201);
}

#[tokio::test]
async fn each_user_has_a_signing_secret_of_their_own() {
    let service = Service::start().await;
    let (mine, other) = (service.owner_token().await, service.stranger_token().await);
    let secret =
        async |token: &str| service.get("/v1/webhooks/secret", token).await.json()["secret"].as_str().unwrap().to_owned();
    let first = secret(&mine).await;
    assert!(first.starts_with("ckrv_whsec_") && first.len() == 75, "{}", first.len());
    assert!(first == secret(&mine).await && first != secret(&other).await);
}

#[tokio::test]
async fn a_secret_may_be_a_reference_to_what_its_owner_may_read() {
    let service = Service::start().await;
    let token = service.owner_token().await;
    let own = format!("aws-secrets-manager:ckrv/users/{}/key", service.owner.id);
    let made = service.post("/v1/secrets", &token, json!({"name": "mine", "reference": own})).await;
    assert_eq!((made.status.as_u16(), &made.json()["reference"]), (201, &json!(own)), "{}", made.text);
    service.post("/v1/secrets", &token, json!({"name": "sealed", "value": "x"})).await;
    let listed = service.get("/v1/secrets", &token).await.json();
    let references: Vec<_> = listed["secrets"].as_array().unwrap().iter().map(|secret| secret["reference"].clone()).collect();
    assert_eq!(references, [json!(own), Value::Null]);
    for reference in ["aws-ssm:/prod/key", "aws-secrets-manager:ckrv/users/0190c3f0-0000-7000-8000-000000000002/key", ""] {
        let problem = service.post("/v1/secrets", &token, json!({"name": "bad", "reference": reference})).await;
        let problem = problem.problem(422, "invalid_reference");
        assert!(problem["hint"].as_str().unwrap().contains("ckrv/shared/NAME"), "{problem}");
    }
    for body in [json!({"name": "bad"}), json!({"name": "bad", "value": "x", "reference": own})] {
        service.post("/v1/secrets", &token, body).await.problem(422, "invalid_body");
    }
    let plain = Service::start_with(|config| config.references = false).await;
    let token = plain.owner_token().await;
    let body = json!({"name": "mine", "reference": "aws-ssm:/ckrv/shared/key"});
    plain.post("/v1/secrets", &token, body).await.problem(422, "no_references");
}
