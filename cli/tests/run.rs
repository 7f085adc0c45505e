//! What `ckrv run --cloud` sends, what it refuses to send, and `ckrv pull` as a process of its own in a repository of its own.

#![expect(clippy::unwrap_used, reason = "in tests, helpers too")]

mod common;

use common::*;
use serde_json::json;
use sha2::{Digest as _, Sha256};

fn accepting() -> Stub {
    Stub::start(|_, _| reply(201, &job(ID, "queued")))
}

#[test]
fn us1_run_prints_the_id_and_nothing_else_on_stdout() {
    let stub = accepting();
    let machine = Machine::new(&stub.url);
    machine.project();
    insta::assert_snapshot!(machine.show("project", &["run", "--cloud"]));
}

#[test]
fn fr010_only_spec_url_base_and_scalars_leave_the_machine() {
    let stub = accepting();
    let machine = Machine::new(&stub.url);
    machine.project();
    machine.write("project/a.txt", b"LOCAL-CHANGE-THAT-STAYS\n");
    machine.write("project/untracked", b"UNTRACKED-THAT-STAYS\n");
    machine.git("project", &["remote", "set-url", "origin", "https://ada:PASSWORD-THAT-STAYS@git.example/o/r.git"]);
    let args = [
        "run",
        "--cloud",
        "--agent",
        "claude",
        "--timeout",
        "30m",
        "--label",
        "team=a",
        "--secret",
        "slot=name",
        "--max-cost",
        "2.5",
        "--idempotency-key",
        "k",
    ];
    let output = machine.ckrv("project", &args).env("MY_VARIABLE", "ENVIRONMENT-THAT-STAYS").output().unwrap();
    assert!(output.status.success(), "{}", machine.shown(&output));
    assert!(String::from_utf8_lossy(&output.stderr).contains("user or password"));
    let seen = stub.seen();
    assert_eq!(seen.len(), 1);
    // The whole body, field by field: a new field must be thought about here.
    assert_eq!(
        seen[0].json(),
        json!({ "spec_content": "Do the task.\n", "git_repo_url": "https://git.example/o/r.git", "git_base_branch": "main", "agent": "claude",
            "timeout_seconds": 1800, "labels": { "team": "a" }, "secrets": { "slot": "name" }, "max_cost_usd": 2.5, "spec_name": "task.md" })
    );
    let names: Vec<&str> = seen[0].headers.iter().map(|(name, _)| name.as_str()).collect();
    // `traceparent` is two random numbers.
    let expected =
        ["traceparent", "idempotency-key", "content-type", "authorization", "accept", "user-agent", "host", "content-length"];
    assert!(names.iter().all(|name| expected.contains(name)), "{names:?}");
    assert!(!format!("{seen:?}").contains("THAT-STAYS"));
}

#[test]
fn a_base_that_is_not_pushed_is_refused_with_the_command_that_pushes_it() {
    let stub = accepting();
    let machine = Machine::new(&stub.url);
    machine.project();
    machine.git("project", &["commit", "--quiet", "--allow-empty", "-m", "local"]);
    insta::assert_snapshot!(machine.show("project", &["run", "--cloud"]));
    machine.git("project", &["checkout", "--quiet", "-b", "feature"]);
    insta::assert_snapshot!(machine.show("project", &["run", "--cloud"]));
    machine.git("project", &["checkout", "--quiet", "--detach"]);
    insta::assert_snapshot!(machine.show("project", &["run", "--cloud"]));
    assert!(stub.seen().is_empty());
    assert!(machine.run("project", &["run", "--cloud", "--base", "origin/main"]).status.success());
    assert_eq!(stub.seen()[0].json()["git_base_branch"], "main");
}

#[test]
fn a_bad_spec_is_refused_before_anything_is_sent() {
    let stub = accepting();
    let machine = Machine::new(&stub.url);
    machine.project();
    machine.write("project/empty.md", b"\n");
    machine.write("project/latin1.md", b"caf\xe9\n");
    machine.write("project/large.md", &vec![b'x'; 256 * 1024 + 1]);
    machine.write("project/broken.md", b"---\nagent: [\n---\nDo it.\n");
    machine.write("project/unknown.md", b"---\nagnet: claude\n---\nDo it.\n");
    machine.write("project/.ckrv/specs/second.md", b"Another task.\n");
    let shown: Vec<String> = ["missing.md", "empty.md", "latin1.md", "large.md", "broken.md", "unknown.md"]
        .iter()
        .map(|spec| machine.show("project", &["run", "--cloud", spec]))
        .chain([
            machine.show("project", &["run", "--cloud"]),
            machine.show("", &["run", "--cloud", "project/.ckrv/specs/task.md"]),
        ])
        .collect();
    insta::assert_snapshot!(shown.join("\n"));
    assert!(stub.seen().is_empty());
}

#[test]
fn a_repository_cannot_choose_the_service() {
    let stub = accepting();
    let machine = Machine::new(&stub.url);
    machine.project();
    machine.write("project/.ckrv/config.toml", b"agent = \"claude\"\nurl = \"https://evil.example\"\n");
    insta::assert_snapshot!(machine.show("project", &["run", "--cloud"]));
    machine.write("project/.ckrv/config.toml", b"agent = \"gemini\"\ntimeout = \"10m\"\n[labels]\nfrom = \"repository\"\n");
    machine.write(".config/ckrv/config.toml", b"agent = \"claude\"\nmodel = \"m\"\n");
    assert!(machine.run("project", &["run", "--cloud"]).status.success());
    let sent = stub.seen()[0].json();
    assert_eq!((&sent["agent"], &sent["model"], &sent["timeout_seconds"]), (&json!("gemini"), &json!("m"), &json!(600)));
    let output = machine.ckrv("project", &["run", "--cloud"]).env("CKRV_AGENT", "codex").output().unwrap();
    assert!(output.status.success());
    assert_eq!(stub.seen()[1].json()["agent"], "codex");
}

/// A service with one finished job, whose diff is `sent` although its checksum is `listed`'s.
fn finished(machine: &Machine, sent: Vec<u8>, listed: &[u8]) -> Stub {
    let base = machine.git("project", &["rev-parse", "origin/main"]);
    let sha256: String = hex::encode(Sha256::digest(listed));
    Stub::start(move |seen, _| {
        if seen.path.ends_with("/artifacts/diff") {
            return axum::response::IntoResponse::into_response(sent.clone());
        }
        if seen.path.ends_with("/artifacts") {
            return reply(200, &json!({ "artifacts": [{ "name": "diff", "bytes": 1, "sha256": sha256 }] }));
        }
        let mut job = job(ID, "succeeded");
        job["base_sha"] = json!(base);
        job["feature_branch_name"] = json!("ckrv/task-456789ab");
        reply(200, &job)
    })
}

const DIFF: &[u8] = b"diff --git a/a.txt b/a.txt\n--- a/a.txt\n+++ b/a.txt\n@@ -1 +1 @@\n-a\n+job\n";

#[test]
fn us4_pull_merges_into_the_repository_that_the_user_is_in() {
    let mut machine = Machine::new("");
    machine.project();
    machine.git("", &["init", "--quiet", "elsewhere"]);
    let stub = finished(&machine, DIFF.to_vec(), DIFF);
    machine.url = stub.url.clone();
    // As in a hook or an alias of another repository.
    let foreign = machine.path("elsewhere/.git");
    let output = machine
        .ckrv("project", &["pull", ID])
        .env("GIT_DIR", &foreign)
        .env("GIT_INDEX_FILE", foreign.join("index"))
        .output()
        .unwrap();
    insta::assert_snapshot!(machine.shown(&output));
    assert_eq!(std::fs::read(machine.path("project/a.txt")).unwrap(), b"job\n");
    insta::assert_snapshot!(machine.show("project", &["pull", ID]));
    insta::assert_snapshot!(
        machine
            .show("project", &["pull", ID, "--branch", "--json"])
            .replace(&machine.git("project", &["rev-parse", "ckrv/task-456789ab"]), "[COMMIT]")
    );
}

#[test]
fn us4_conflicts_exit_7_and_list_the_paths() {
    let mut machine = Machine::new("");
    machine.project();
    let stub = finished(&machine, DIFF.to_vec(), DIFF);
    machine.url = stub.url.clone();
    machine.write("project/a.txt", b"mine\n");
    insta::assert_snapshot!(machine.show("project", &["pull", ID]));
    machine.git("project", &["commit", "--quiet", "-am", "mine"]);
    insta::assert_snapshot!(machine.show("project", &["pull", ID]));
    assert_eq!(machine.git("project", &["status", "--porcelain"]), "");
}

#[test]
fn us4_a_diff_that_was_changed_on_its_way_is_refused() {
    let mut machine = Machine::new("");
    machine.project();
    let stub = finished(&machine, DIFF.to_vec(), b"what the job published");
    machine.url = stub.url.clone();
    insta::assert_snapshot!(machine.show("project", &["pull", ID]));
    assert_eq!(machine.git("project", &["status", "--porcelain"]), "");
}

#[test]
fn us4_the_diff_can_be_had_as_it_is() {
    let mut machine = Machine::new("");
    machine.project();
    let stub = finished(&machine, DIFF.to_vec(), DIFF);
    machine.url = stub.url.clone();
    assert_eq!(machine.run("", &["diff", ID]).stdout, DIFF);
    assert_eq!(machine.run("", &["pull", ID, "--stdout"]).stdout, DIFF);
    assert!(machine.run("", &["pull", ID, "--output", "job.diff"]).status.success());
    assert_eq!(std::fs::read(machine.path("job.diff")).unwrap(), DIFF);
    assert_eq!(machine.run("", &["pull", ID]).status.code(), Some(2), "there is no repository here");
}
