//! Sessions: the device login, and its renewal by many processes at once. The system's keyring is not tested here.

#![expect(clippy::unwrap_used, reason = "in tests, helpers too")]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use common::*;
use serde_json::{Value, json};

fn tokens(number: usize, expires_in: u32) -> Value {
    json!({ "access_token": format!("access-{number}-SECRET"), "refresh_token": format!("refresh-{number}-SECRET"), "token_type": "Bearer", "expires_in": expires_in })
}

fn me() -> Value {
    json!({ "id": "u", "email": "ada@example.com", "name": "Ada", "subscription_tier": "free", "job_quota_remaining": 9, "billing_cycle_end": "2026-02-01T00:00:00Z" })
}

/// Logs in at once, with an access token that lasts `lifetime` seconds; a refresh token is good once.
fn service(lifetime: u32) -> (Stub, Arc<AtomicUsize>) {
    let current = Arc::new(Mutex::new(1_usize));
    let refreshes = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&refreshes);
    let stub = Stub::start(move |seen, before| match seen.call().as_str() {
        "POST /v1/auth/device" => reply(
            200,
            &json!({ "device_code": "device", "user_code": "ABCD-1234",
            "verification_uri": "http://127.0.0.1:1/activate", "expires_in": 60, "interval": 1 }),
        ),
        "POST /v1/auth/token" if before == 0 => reply(400, &json!({ "error": "authorization_pending" })),
        "POST /v1/auth/token" => reply(200, &tokens(1, lifetime)),
        "POST /v1/auth/refresh" => {
            counted.fetch_add(1, Ordering::SeqCst);
            let mut current = current.lock().unwrap();
            if seen.json()["refresh_token"] != json!(format!("refresh-{current}-SECRET")) {
                return reply(400, &json!({ "error": "invalid_grant" }));
            }
            *current += 1;
            reply(200, &tokens(*current, 3600))
        }
        "POST /v1/auth/revoke" => reply(200, &json!({})),
        "GET /v1/users/me" => {
            let current = *current.lock().unwrap();
            let good = format!("Bearer access-{current}-SECRET");
            // The first access token works once: that is enough for the login itself.
            let used_up = current == 1 && before > 0;
            if seen.header("authorization") == Some(&good) && !used_up {
                reply(200, &me())
            } else {
                problem(401, "unauthorized", "")
            }
        }
        _ => problem(404, "not_found", ""),
    });
    (stub, refreshes)
}

#[test]
fn us5_login_whoami_logout() {
    let (stub, _) = service(3600);
    let machine = Machine::logged_out(&stub.url);
    let login = machine.show("", &["cloud", "login"]);
    assert!(!login.contains("SECRET"));
    insta::assert_snapshot!(login);
    insta::assert_snapshot!(machine.show("", &["cloud", "whoami"]));
    assert_absent("SECRET", machine.home.path());
    insta::assert_snapshot!(machine.show("", &["cloud", "logout"]));
    insta::assert_snapshot!(machine.show("", &["cloud", "whoami"]));
}

#[test]
fn us5_login_tells_programs_by_events() {
    let (stub, _) = service(3600);
    let output = Machine::logged_out(&stub.url).run("", &["cloud", "login", "--json"]);
    let events: Vec<Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.len(), 2);
    assert_eq!((&events[0]["event"], &events[0]["user_code"]), (&json!("code"), &json!("ABCD-1234")));
    assert_eq!((&events[1]["event"], &events[1]["stored_in"]), (&json!("logged_in"), &json!("encrypted-file")));
}

#[test]
fn us5_a_denied_login_is_an_error() {
    let stub = Stub::start(|seen, _| match seen.call().as_str() {
        "POST /v1/auth/device" => reply(
            200,
            &json!({ "device_code": "device", "user_code": "ABCD-1234",
            "verification_uri": "http://127.0.0.1:1/activate", "expires_in": 60, "interval": 1 }),
        ),
        _ => reply(400, &json!({ "error": "access_denied" })),
    });
    insta::assert_snapshot!(Machine::logged_out(&stub.url).show("", &["cloud", "login"]));
}

#[test]
fn us5_eight_processes_renew_a_session_once() {
    let (stub, refreshes) = service(3600);
    let machine = Machine::logged_out(&stub.url);
    machine.run("", &["cloud", "login", "--json"]);
    // From now on the service takes the first access token for used up; see `service`.
    assert_eq!(refreshes.load(Ordering::SeqCst), 0);
    let piped = || std::process::Stdio::piped();
    let children: Vec<_> =
        (0..8).map(|_| machine.ckrv("", &["cloud", "whoami"]).stdout(piped()).stderr(piped()).spawn().unwrap()).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", machine.shown(&output));
    }
    assert_eq!(refreshes.load(Ordering::SeqCst), 1);
}

#[test]
fn us5_a_session_that_is_about_to_end_is_renewed_before_it_is_used() {
    let (stub, refreshes) = service(5);
    let machine = Machine::logged_out(&stub.url);
    assert!(machine.run("", &["cloud", "login"]).status.success());
    assert!(machine.run("", &["cloud", "whoami"]).status.success());
    assert_eq!(refreshes.load(Ordering::SeqCst), 1);
}
