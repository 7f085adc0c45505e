//! What a user sees of a service that misbehaves or refuses. The service here is a script: these tests show what `ckrv` makes of its
//! answers, not that a real service gives them.

#![expect(clippy::unwrap_used, reason = "in tests, helpers too")]

mod common;

use common::*;
use serde_json::json;

fn only(state: &'static str) -> Stub {
    Stub::start(move |seen, _| match seen.call().as_str() {
        call if call == format!("GET /v1/jobs/{ID}") => reply(200, &job(ID, state)),
        call if call == format!("GET /v1/jobs/{ID}/artifacts") => reply(200, &json!({ "artifacts": [] })),
        "GET /v1/jobs" => reply(200, &json!({ "jobs": [job(ID, state)] })),
        "POST /v1/jobs" => reply(201, &job(ID, "queued")),
        _ => problem(404, "not_found", "no such job"),
    })
}

#[test]
fn us1_not_logged_in_says_how_to_log_in() {
    let stub = only("queued");
    let machine = Machine::logged_out(&stub.url);
    machine.project();
    insta::assert_snapshot!(machine.show("project", &["run", "--cloud"]));
    assert!(stub.seen().is_empty(), "nothing is sent without a login");
}

#[test]
fn us1_an_unreachable_service_suggests_a_local_run() {
    // Port 1 is reserved, and nobody listens there.
    let machine = Machine::new("http://127.0.0.1:1");
    machine.project();
    insta::assert_snapshot!(machine.show("project", &["run", "--cloud"]));
}

#[test]
fn us1_a_service_that_is_overloaded_is_tried_again_with_the_same_key() {
    let stub =
        Stub::start(|_, before| if before < 2 { problem(503, "unavailable", "busy") } else { reply(201, &job(ID, "queued")) });
    let machine = Machine::new(&stub.url);
    machine.project();
    let output = machine.run("project", &["run", "--cloud"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), ID, "{}", machine.shown(&output));
    let keys: Vec<_> = stub.seen().iter().map(|seen| seen.header("idempotency-key").unwrap().to_owned()).collect();
    assert_eq!(keys.len(), 3);
    assert!(keys.iter().all(|key| *key == keys[0]));
}

#[test]
fn a_used_up_quota_says_when_it_resets_and_where_to_upgrade() {
    let stub = Stub::start(|_, _| {
        reply(
            402,
            &json!({ "error": "quota_exceeded", "message": "all 10 jobs of this month are used up",
            "quota_resets_at": "2026-02-01T00:00:00Z", "upgrade_url": "https://ckrv.example/upgrade" }),
        )
    });
    let machine = Machine::new(&stub.url);
    machine.project();
    insta::assert_snapshot!(machine.show("project", &["run", "--cloud"]));
    insta::assert_snapshot!(machine.show("project", &["run", "--cloud", "--json"]));
}

#[test]
fn us2_an_unknown_job_is_not_found_with_suggestions() {
    let stub = only("executing");
    let machine = Machine::new(&stub.url);
    insta::assert_snapshot!(machine.show("", &["status", &ID.replace("aaaa", "aaba")]));
    insta::assert_snapshot!(machine.show("", &["status", "nonsense", "--json"]));
}

#[test]
fn us2_an_expired_job_is_not_found() {
    let stub = Stub::start(|_, _| problem(410, "gone", "it has expired"));
    insta::assert_snapshot!(Machine::new(&stub.url).show("", &["status", ID]));
}

#[test]
fn us2_status_shows_where_a_job_is() {
    insta::assert_snapshot!(Machine::new(&only("executing").url).show("", &["status", ID]));
    insta::assert_snapshot!(Machine::new(&only("failed").url).show("", &["status", ID]));
}

#[test]
fn us4_pull_of_a_failed_or_running_job_says_that_there_is_no_output() {
    insta::assert_snapshot!(Machine::new(&only("failed").url).show("", &["pull", ID]));
    insta::assert_snapshot!(Machine::new(&only("executing").url).show("", &["pull", ID]));
}

#[test]
fn wait_gives_up_after_its_timeout_and_reports_failure() {
    insta::assert_snapshot!(Machine::new(&only("executing").url).show("", &["wait", ID, "--timeout", "1s"]));
    insta::assert_snapshot!(Machine::new(&only("failed").url).show("", &["wait", ID]));
}

#[test]
fn a_job_is_named_by_a_beginning_if_that_is_unique() {
    let other = ID.replace("aaaa", "aabb");
    let stub = Stub::start(move |seen, _| match (seen.call().as_str(), seen.query.contains("cursor=next")) {
        ("GET /v1/jobs", false) => reply(200, &json!({ "jobs": [job(&other, "queued")], "next_cursor": "next" })),
        ("GET /v1/jobs", true) => reply(200, &json!({ "jobs": [job(ID, "queued")] })),
        _ => reply(200, &job(ID, "queued")),
    });
    let machine = Machine::new(&stub.url);
    assert!(machine.show("", &["status", "0198c0de-aaaa"]).contains(ID));
    insta::assert_snapshot!(machine.show("", &["status", "0198"]));
}

#[test]
fn the_last_job_is_remembered_for_each_service() {
    let stub = only("queued");
    let machine = Machine::new(&stub.url);
    machine.project();
    assert_eq!(machine.run("project", &["status", "@last"]).status.code(), Some(4));
    assert!(machine.run("project", &["run", "--cloud", "-q"]).status.success());
    assert!(machine.show("project", &["status", "@last"]).contains(ID));
    let elsewhere = only("queued");
    assert_eq!(machine.run("project", &["--url", &elsewhere.url, "status", "@last"]).status.code(), Some(4));
}

#[test]
fn usage_errors_are_json_too() {
    let machine = Machine::new("http://127.0.0.1:1");
    insta::assert_snapshot!(machine.show("", &["status", "--json", "--no-such-flag"]));
    insta::assert_snapshot!(machine.show("", &["list", "--url", "http://ckrv.example.com"]));
}

#[test]
fn a_token_that_is_refused_is_not_shown() {
    let stub = Stub::start(|_, _| problem(401, "unauthorized", "bad token"));
    let shown = Machine::new(&stub.url).show("", &["list"]);
    assert!(!shown.contains("test-token"));
    insta::assert_snapshot!(shown);
}

#[test]
fn a_list_that_nobody_reads_to_its_end_is_no_error() {
    let stub = only("queued");
    let machine = Machine::new(&stub.url);
    let mut child =
        machine.ckrv("", &["list"]).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0), "{}", String::from_utf8_lossy(&output.stderr));
}
