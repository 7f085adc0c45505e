//! The golden cases: what each adapter made of what a real agent printed. On the prebuilt adapters, or on those in `CKRV_ADAPTERS_DIR`.
//!
//! `CKRV_GOLDEN_UPDATE=1` writes what is expected anew; read the difference like code.
#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ckrv_core::event::AgentEvent;
use ckrv_core::plan::{AdapterJob, ContainerRequest, Decision, ExitStatus, OutputLine, PastRun, RunOutcome, Source};
use ckrv_core::policy::{Policy, clamp};
use ckrv_orchestrator::adapter::{Adapter, AdapterHost, Limits, builtin_names};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// What a case expects.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Expected {
    /// The request, or the adapter's words of refusal.
    plan: Result<ContainerRequest, String>,
    /// Events while lines came, each with its line.
    events: Vec<(u32, AgentEvent)>,
    outcome: RunOutcome,
    summary: String,
    /// Events that came with the verdict.
    late_events: Vec<(u32, AgentEvent)>,
    /// The advice after this run.
    next: Decision,
}

struct Case {
    folder: PathBuf,
    job: AdapterJob,
    lines: Vec<OutputLine>,
    exit: ExitStatus,
}

fn agents_wasm() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../agents-wasm")
}

fn json<T: DeserializeOwned>(path: &Path) -> T {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn load(host: &AdapterHost, name: &str) -> Adapter {
    let folder = std::env::var_os("CKRV_ADAPTERS_DIR").map_or_else(|| agents_wasm().join("prebuilt"), PathBuf::from);
    let path = folder.join(format!("{name}.wasm"));
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    host.load(&bytes).unwrap()
}

fn cases(name: &str) -> Vec<Case> {
    let folders = std::fs::read_dir(agents_wasm().join("golden").join(name)).unwrap();
    let mut folders: Vec<PathBuf> = folders.map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    let case = |folder: PathBuf| Case {
        job: json(&folder.join("job.json")),
        exit: json(&folder.join("exit.json")),
        lines: std::fs::read_to_string(folder.join("transcript.ndjson"))
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect(),
        folder,
    };
    folders.into_iter().map(case).collect()
}

fn run(adapter: &Adapter, case: &Case, batch: usize) -> Expected {
    let mut transcript = adapter.transcript(&case.job);
    let events = case.lines.chunks(batch).flat_map(|lines| transcript.feed(lines)).collect();
    let verdict = transcript.finish(&case.exit);
    assert_eq!(transcript.take_notes(), Vec::<String>::new(), "{}", case.folder.display());
    let run =
        PastRun { number: case.job.run_number, phase: case.job.phase, exit: case.exit.clone(), outcome: verdict.outcome.clone() };
    Expected {
        plan: adapter.plan(&case.job).map_err(|error| error.to_string()),
        events,
        next: adapter.next(&case.job, &[run]).unwrap(),
        outcome: verdict.outcome,
        summary: verdict.summary,
        late_events: verdict.events,
    }
}

#[test]
fn every_golden_case_gives_what_is_expected_whatever_the_batches() {
    let host = AdapterHost::new(Limits::default(), None).unwrap();
    let update = std::env::var_os("CKRV_GOLDEN_UPDATE").is_some();
    for name in builtin_names() {
        let adapter = load(&host, name);
        let descriptor = adapter.describe().unwrap();
        assert_eq!(adapter.describe().unwrap(), descriptor, "describe is constant");
        let cases = cases(name);
        assert!(cases.len() >= 8, "{name} has {} cases", cases.len());
        for case in cases {
            let path = case.folder.join("expected.json");
            if update {
                let text = serde_json::to_string_pretty(&run(&adapter, &case, usize::MAX)).unwrap();
                std::fs::write(&path, text + "\n").unwrap();
            }
            let expected: Expected = json(&path);
            for batch in [1, 7, usize::MAX] {
                let found = run(&adapter, &case, batch);
                let (found, expected) =
                    (serde_json::to_string_pretty(&found).unwrap(), serde_json::to_string_pretty(&expected).unwrap());
                assert!(found == expected, "{} in batches of {batch} gives\n{found}", case.folder.display());
            }
            if let Ok(plan) = &expected.plan {
                clamp(plan, &descriptor, &Policy::default()).unwrap();
            }
            let good = expected.outcome == RunOutcome::Success;
            assert!(!good || case.exit == ExitStatus::Code(0), "{}: no success without exit 0", case.folder.display());
        }
    }
}

/// What an agent may print instead of what it should.
fn garbage() -> Vec<OutputLine> {
    let texts = [
        "",
        "{",
        "null",
        "[]",
        "{}",
        r#"{"type":1}"#,
        r#"{"type":"assistant"}"#,
        r#"{"type":"assistant","message":{"content":"text"}}"#,
        r#"{"type":"assistant","message":{"id":"m","model":"x","content":[1,{"type":"tool_use"}],"usage":{"input_tokens":-1,"output_tokens":99999999999}}}"#,
        r#"{"type":"user","message":{"content":[{"type":"tool_result","content":[{"type":"image"},{"text":"t"}]}]}}"#,
        r#"{"type":"system"}"#,
        r#"{"type":"brand-new","x":[1,2]}"#,
        r#"{"type":"message","role":"assistant","delta":true,"content":"héé\n\nx"}"#,
        r#"{"type":"tool_use"}"#,
        r#"{"type":"result","stats":{"models":[]},"modelUsage":3,"total_cost_usd":1e300}"#,
        r#"{"type":"result","status":"success","subtype":"success","stats":null}"#,
        "\u{1b}[31mred\u{1b}[0m",
        "\u{0}\u{ffff}",
    ];
    let big = [
        "x".repeat(1 << 20),
        format!(r#"{{"type":"result","result":"{}"#, "y".repeat(1 << 20)),
        "[".repeat(100_000),
        "{\"a\":".repeat(100_000),
    ];
    let all = texts.iter().map(|text| (*text).to_owned()).chain(big);
    let line = |(seq, text): (usize, String)| OutputLine {
        seq: u32::try_from(seq).unwrap(),
        source: if seq % 5 == 4 { Source::Stderr } else { Source::Stdout },
        truncated: text.len() >= 1 << 20,
        text,
    };
    all.enumerate().map(line).collect()
}

#[test]
fn garbage_never_traps_and_never_succeeds_by_itself() {
    let host = AdapterHost::new(Limits::default(), None).unwrap();
    let job = AdapterJob {
        run_id: "r".to_owned(),
        run_number: 1,
        phase: ckrv_core::plan::Phase::Executing,
        prompt: "x".to_owned(),
        feedback: None,
        workspace: "/workspace".to_owned(),
        model: None,
        session_id: None,
        deadline_seconds: 1,
        extra: BTreeMap::new(),
    };
    for name in builtin_names() {
        let adapter = load(&host, name);
        let mut lines = garbage();
        for order in 0..3 {
            let mut transcript = adapter.transcript(&job);
            let mut events = transcript.feed(&lines);
            let verdict = transcript.finish(&ExitStatus::Code(1));
            events.extend(verdict.events);
            assert_eq!(transcript.take_notes(), Vec::<String>::new(), "{name}, order {order}");
            assert_ne!(verdict.outcome, RunOutcome::Success, "{name}");
            let last = u32::try_from(lines.len()).unwrap();
            assert!(events.iter().all(|(seq, _)| *seq < last), "{name}: an event of a line that was not there");
            lines.rotate_left(7);
        }
    }
}
