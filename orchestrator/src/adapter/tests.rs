//! Adapters that misbehave, and what becomes of them. The hostile one does what its prompt says.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ckrv_core::event::AgentEvent;
use ckrv_core::plan::{AdapterJob, ExitStatus, OutputLine, Phase, RunOutcome, Source};
use ckrv_core::policy::{Policy, clamp};

use super::*;

const HOSTILE: &[u8] = include_bytes!("../../../agents-wasm/prebuilt/testing/hostile.wasm");

fn host() -> AdapterHost {
    // Short calls, so that a loop ends soon; a busy machine makes a trap slower, never a loop shorter.
    AdapterHost::new(Limits { call_time: Duration::from_millis(700), ..Limits::default() }, None).unwrap()
}

fn job(prompt: &str) -> AdapterJob {
    AdapterJob {
        run_id: "r".into(),
        run_number: 1,
        phase: Phase::Executing,
        prompt: prompt.into(),
        feedback: None,
        workspace: "/workspace".into(),
        model: None,
        session_id: None,
        deadline_seconds: 60,
        extra: BTreeMap::new(),
    }
}

fn plan(behaviour: &str) -> AdapterError {
    host().load(HOSTILE).unwrap().plan(&job(&format!("hostile: {behaviour}"))).unwrap_err()
}

fn line(seq: u32, text: &str) -> OutputLine {
    OutputLine { seq, source: Source::Stdout, text: text.into(), truncated: false }
}

fn message(text: &str) -> AgentEvent {
    AgentEvent::Message { role: "stdout".into(), text: text.into() }
}

#[test]
fn a_trap_is_told_with_the_adapters_last_words() {
    let error = plan("plan-trap");
    assert!(matches!(&error, AdapterError::Trap { call: "plan", detail } if detail.contains("traps on purpose")), "{error}");
}

#[test]
fn an_endless_loop_is_stopped() {
    let started = Instant::now();
    let error = plan("plan-loop");
    assert!(matches!(error, AdapterError::OutOfTime { call: "plan", .. }), "{error}");
    assert!(started.elapsed() >= Duration::from_millis(650));
}

#[test]
fn a_memory_bomb_is_stopped() {
    let error = plan("plan-memory");
    assert!(matches!(error, AdapterError::OutOfMemory { call: "plan", limit_mib: 64 }), "{error}");
}

#[test]
fn an_answer_without_bounds_is_refused() {
    let error = plan("plan-large");
    assert!(matches!(error, AdapterError::OutputTooLarge { call: "plan", .. }), "{error}");
}

#[test]
fn an_adapters_own_refusals_keep_their_kind() {
    assert!(matches!(plan("plan-invalid"), AdapterError::InvalidConfig(text) if text.contains("on purpose")));
    assert!(matches!(plan("plan-unsupported"), AdapterError::Unsupported(_)));
}

#[test]
fn a_loop_in_next_is_stopped_too() {
    let error = host().load(HOSTILE).unwrap().next(&job("hostile: next-loop"), &[]).unwrap_err();
    assert!(matches!(error, AdapterError::OutOfTime { call: "next", .. }), "{error}");
}

#[test]
fn what_policy_denies_is_denied_to_an_adapter_that_asks() {
    let adapter = host().load(HOSTILE).unwrap();
    let descriptor = adapter.describe().unwrap();
    for (behaviour, named) in [
        ("plan-image", "registry.example/evil"),
        ("plan-env", "LD_PRELOAD"),
        ("plan-egress", "169.254.169.254"),
        ("plan-file", "../outside"),
    ] {
        let request = adapter.plan(&job(&format!("hostile: {behaviour}"))).unwrap();
        let denied = clamp(&request, &descriptor, &Policy::default()).unwrap_err().to_string();
        assert!(denied.contains(named), "{behaviour}: {denied}");
    }
    let request = adapter.plan(&job("")).unwrap();
    clamp(&request, &descriptor, &Policy::default()).unwrap();
}

#[test]
fn an_adapter_that_asks_for_wasi_is_refused() {
    let component = r#"(component (import "wasi:cli/environment@0.2.0" (instance (export "get-environment" (func)))))"#;
    let error = host().load(&wat::parse_str(component).unwrap()).unwrap_err();
    assert!(matches!(&error, AdapterError::RefusedImport(name) if name == "wasi:cli/environment@0.2.0"), "{error}");
}

#[test]
fn what_is_no_adapter_is_refused() {
    let host = host();
    for bytes in
        [&b""[..], b"MZ", &wat::parse_str("(module)").unwrap(), &wat::parse_str("(component)").unwrap(), &HOSTILE[..1000]]
    {
        assert!(matches!(host.load(bytes), Err(AdapterError::NotAnAdapter(_))));
    }
    let small = AdapterHost::new(Limits { file_bytes: 1000, ..Limits::default() }, None).unwrap();
    assert!(matches!(small.load(HOSTILE), Err(AdapterError::FileTooLarge { .. })));
}

#[test]
fn after_a_trap_the_output_is_read_again_and_nothing_comes_twice() {
    let mut transcript = host().load(HOSTILE).unwrap().transcript(&job("hostile: feed-trap-once"));
    assert_eq!(transcript.feed(&[line(0, "a")]), [(0, message("a"))]);
    assert_eq!(transcript.feed(&[line(1, "now")]), [(1, message("now"))]);
    assert_eq!(transcript.feed(&[line(2, "b")]), [(2, message("b"))]);
    let notes = transcript.take_notes();
    assert!(notes.len() == 1 && notes[0].contains("read again"), "{notes:?}");
    assert_eq!(transcript.finish(&ExitStatus::Code(0)).summary, "3 lines");
}

#[test]
fn after_a_second_trap_lines_are_raw_and_the_exit_code_decides() {
    for behaviour in ["feed-trap", "feed-loop", "feed-memory", "feed-flood"] {
        let mut transcript = host().load(HOSTILE).unwrap().transcript(&job(&format!("hostile: {behaviour}")));
        let mut events = transcript.feed(&[line(0, "a")]);
        events.extend(transcript.feed(&[line(1, "now"), line(2, "b")]));
        events.extend(transcript.feed(&[line(3, "c")]));
        let expected = [(0, message("a")), (1, message("now")), (2, message("b")), (3, message("c"))];
        assert_eq!(events, expected, "{behaviour}");
        let notes = transcript.take_notes();
        assert!(notes.len() == 2 && notes[1].contains("the exit code decides"), "{behaviour}: {notes:?}");
        // It would have praised itself.
        assert_eq!(
            transcript.finish(&ExitStatus::Code(3)).outcome,
            RunOutcome::Failure("the agent ended with exit code 3".into())
        );
    }
}

#[test]
fn a_trap_at_the_end_leaves_the_exit_code() {
    let mut transcript = host().load(HOSTILE).unwrap().transcript(&job("hostile: finish-trap"));
    assert_eq!(transcript.feed(&[line(0, "a")]).len(), 1);
    let verdict = transcript.finish(&ExitStatus::Code(0));
    assert_eq!((verdict.outcome, verdict.events.len()), (RunOutcome::Success, 0));
    assert_eq!(transcript.take_notes().len(), 2);
}

#[test]
fn a_configuration_reaches_the_adapter() {
    let claude = host().load(builtin("claude").unwrap()).unwrap();
    claude.validate_config().unwrap();
    let config = |key: &str, value: &str| claude.clone().with_config(BTreeMap::from([(key.to_owned(), value.to_owned())]));
    assert_eq!(config("image", "localhost/ckrv/claude:9").plan(&job("x")).unwrap().image, "localhost/ckrv/claude:9");
    let error = config("max-turns", "many").validate_config().unwrap_err();
    assert!(matches!(&error, AdapterError::InvalidConfig(text) if text.contains("max-turns")), "{error}");
}

#[test]
fn every_built_in_adapter_is_granted_what_it_plans() {
    let host = host();
    for name in builtin_names() {
        let adapter = host.load(builtin(name).unwrap()).unwrap();
        let descriptor = adapter.describe().unwrap();
        assert_eq!(descriptor.id, name);
        serde_json::from_str::<serde_json::Value>(&descriptor.config_schema).unwrap();
        let granted = clamp(&adapter.plan(&job("echo hello")).unwrap(), &descriptor, &Policy::default()).unwrap();
        assert_eq!(granted.clamped, [], "{name}");
    }
}

#[test]
fn compiled_code_is_kept_and_a_file_that_was_changed_is_not_run() {
    use std::os::unix::fs::PermissionsExt as _;

    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("adapters");
    let load = || AdapterHost::new(Limits::default(), Some(cache.clone())).unwrap().load(HOSTILE).unwrap().describe().unwrap();
    let compiled = || {
        let files = std::fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|end| end == "compiled")).collect::<Vec<_>>()
    };
    load();
    let files = compiled();
    assert_eq!(files.len(), 1);
    assert_eq!(std::fs::metadata(cache.join("cache.key")).unwrap().permissions().mode() & 0o777, 0o600);

    let good = std::fs::read(&files[0]).unwrap();
    let written = std::fs::metadata(&files[0]).unwrap().modified().unwrap();
    load();
    assert_eq!(std::fs::metadata(&files[0]).unwrap().modified().unwrap(), written, "a good file is used as it is");

    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    for bad in [bad, vec![], good[..good.len() / 2].to_vec()] {
        std::fs::write(&files[0], &bad).unwrap();
        load();
        assert_eq!(std::fs::read(&files[0]).unwrap().len(), good.len(), "it was compiled and written again");
    }
}
