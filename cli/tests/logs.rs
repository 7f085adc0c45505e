//! `ckrv logs` against a service whose connection breaks. That a real service's log has no gaps is shown end to end, elsewhere.

#![expect(clippy::unwrap_used, reason = "in tests, helpers too")]

mod common;

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use axum::response::IntoResponse as _;
use common::*;
use serde_json::json;

fn messages(output: &[u8]) -> Vec<String> {
    let lines = output.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines
        .map(|line| serde_json::from_slice::<serde_json::Value>(line).unwrap()["message"].as_str().unwrap_or_default().to_owned())
        .collect()
}

#[test]
fn us3_a_followed_log_goes_on_where_the_connection_broke() {
    let stub = Stub::start(|seen, before| match (seen.path.ends_with("/logs"), before) {
        (false, _) => reply(200, &job(ID, "succeeded")),
        // Breaks in the middle of an entry.
        (_, 0) => events(&[event(1, 1, "one"), event(1, 2, "two"), "id: 1.3\ndata: {\"timest".to_owned()]),
        (_, 1) => problem(503, "unavailable", "restarting"),
        // Garbage instead of an entry.
        (_, 2) => events(&["data: garbage\n\n".to_owned()]),
        // A service that repeats what we have.
        _ => events(&[event(1, 2, "two"), event(1, 3, "three"), event(2, 1, "four"), DONE.to_owned()]),
    });
    let machine = Machine::new(&stub.url);
    let output = machine.run("", &["logs", "-f", ID, "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", machine.shown(&output));
    assert_eq!(messages(&output.stdout), ["one", "two", "three", "four"]);
    let resumed: Vec<_> = stub
        .calls(&format!("GET /v1/jobs/{ID}/logs"))
        .iter()
        .map(|seen| seen.header("last-event-id").map(str::to_owned))
        .collect();
    assert_eq!(resumed[0], None);
    assert!(resumed[1..].iter().all(|id| id.as_deref() == Some("1.2")), "{resumed:?}");
}

#[test]
fn us3_a_followed_job_gives_its_exit_code_and_cannot_drive_the_terminal() {
    let stub = Stub::start(|seen, _| {
        if !seen.path.ends_with("/logs") {
            return reply(200, &job(ID, "failed"));
        }
        let call = json!({ "timestamp": "2026-01-02T03:04:06Z", "level": "info", "source": "agent", "message": "tool", "fence": 1, "seq": 2,
            "event": { "type": "tool-call", "id": "1", "name": "Bash", "input": { "command": "ls\u{1b}[2J" } } });
        events(&[event(1, 1, "\u{1b}]0;owned\u{7}\u{9b}31m"), format!("id: 1.2\ndata: {call}\n\n"), DONE.to_owned()])
    });
    insta::assert_snapshot!(Machine::new(&stub.url).show("", &["logs", "--follow", ID]));
}

#[test]
fn us3_the_whole_log_of_a_finished_job_is_shown_page_by_page() {
    let entry = |seq: u64| json!({ "timestamp": "2026-01-02T03:04:05Z", "level": "info", "source": "agent", "message": seq.to_string(), "fence": 1, "seq": seq });
    let stub = Stub::start(move |seen, _| match seen.query.contains("after=1.2") {
        false => reply(200, &json!({ "logs": [entry(1), entry(2)], "next_cursor": "1.2" })),
        true => reply(200, &json!({ "logs": [entry(3)] })),
    });
    assert_eq!(messages(&Machine::new(&stub.url).run("", &["logs", ID, "--json"]).stdout), ["1", "2", "3"]);
}

#[test]
fn ctrl_c_ends_the_following_and_not_the_job() {
    let stub = Stub::start(|_, _| {
        let first = futures::stream::once(async { Ok::<_, std::io::Error>(event(1, 1, "one")) });
        let body = axum::body::Body::from_stream(futures::StreamExt::chain(first, futures::stream::pending()));
        ([("content-type", "text/event-stream")], body).into_response()
    });
    let machine = Machine::new(&stub.url);
    let mut child = machine.ckrv("", &["logs", "-f", ID]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert!(line.contains("one"));
    assert!(std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    insta::assert_snapshot!(machine.shown(&output));
    assert!(stub.seen().iter().all(|seen| seen.method == "GET"), "nothing is cancelled");
}
