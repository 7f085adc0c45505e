//! Gemini CLI's `stream-json` to events and a verdict.

use ckrv_adapter_sdk::text::{Tail, count_of, flatten, json_object, shorten, str_of};
use ckrv_adapter_sdk::{Events, ExitStatus, Job, Outcome, OutputLine, Source, Transcript, Usage, stopped_by_host};
use serde_json::{Value, json};

const MAX_SUMMARY: usize = 4096;
/// Longest final text that is kept for the summary.
const MAX_SAID: usize = 64 * 1024;
/// Exit codes that are an HTTP status modulo 256 and may pass by themselves: 408, 429, 500, 502, 503, 504.
const PASSING_CODES: [i32; 6] = [408 - 256, 429 - 256, 500 - 256, 502 - 256, 503 - 256, 504 - 256];
/// Words of refusals that may pass by themselves; the events carry no status.
const PASSING_WORDS: [&str; 8] = [
    "rate limit",
    "overloaded",
    "quota",
    "fetch failed",
    "without a finish reason",
    "internal error",
    "unavailable",
    "retry after",
];
/// It goes on without the tools that would change something, and says so here only.
const UNTRUSTED: &str = "the current folder is not trusted";

#[derive(Debug)]
struct Ending {
    failed: bool,
    error: String,
    /// The agent's own limit of turns: another run would reach it too.
    turn_limit: bool,
}

/// Reads one run.
#[derive(Debug, Default)]
pub struct GeminiTranscript {
    session: Option<String>,
    /// Pieces of an assistant's text that do not end a line yet.
    pending: String,
    pending_seq: u32,
    /// What the assistant said since its last use of a tool.
    said: String,
    errors: Tail,
    stderr: Tail,
    untrusted: bool,
    ending: Option<Ending>,
}

impl Transcript for GeminiTranscript {
    fn start(_job: Job, _checkpoint: Option<Vec<u8>>) -> Self {
        Self::default()
    }

    fn line(&mut self, line: OutputLine, events: &mut Events) {
        if line.source == Source::Stderr {
            self.untrusted |= line.text.contains(UNTRUSTED);
            self.stderr.push(&line.text);
            events.message("stderr", &line.text);
            return;
        }
        let Some(event) = json_object(&line.text) else {
            if !line.text.trim().is_empty() {
                events.message("stdout", &line.text);
            }
            return;
        };
        let kind = str_of(&event, "type");
        if kind == "message" {
            self.message(&event, events);
            return;
        }
        self.flush(events);
        match kind {
            "init" => {
                self.session = Some(str_of(&event, "session_id").to_owned()).filter(|id| !id.is_empty());
                events.other("google/init", &json!({ "session_id": event["session_id"], "model": event["model"] }));
            }
            "tool_use" => {
                self.said.clear();
                events.tool_call(
                    str_of(&event, "tool_id"),
                    str_of(&event, "tool_name"),
                    event.get("parameters").unwrap_or(&Value::Null),
                );
            }
            "tool_result" => {
                let output = event.get("output").or_else(|| event.get("error")).unwrap_or(&Value::Null);
                events.tool_result(str_of(&event, "tool_id"), str_of(&event, "status") != "success", flatten(output));
            }
            "error" => {
                self.errors.push(str_of(&event, "message"));
                events.other("google/error", &json!({ "severity": event["severity"], "message": event["message"] }));
            }
            "result" => self.result(&event, events),
            kind => events.other(&format!("google/{kind}"), &event),
        }
    }

    fn finish(&mut self, exit: &ExitStatus, events: &mut Events) -> (Outcome, String) {
        self.flush(events);
        let outcome = self.outcome(exit);
        let summary = match &outcome {
            Outcome::Success => shorten(self.said.trim(), MAX_SUMMARY),
            Outcome::Failure(reason) | Outcome::Retryable(reason) | Outcome::NeedsInput(reason) => reason.clone(),
            Outcome::Other(custom) => custom.kind.clone(),
        };
        (outcome, summary)
    }
}

impl GeminiTranscript {
    /// Text comes in pieces of any size; whole lines are passed on.
    fn message(&mut self, event: &Value, events: &mut Events) {
        // The user's part is the prompt again.
        if str_of(event, "role") != "assistant" {
            return;
        }
        let text = str_of(event, "content");
        if self.said.len() < MAX_SAID {
            self.said.push_str(text);
        }
        self.pending.push_str(text);
        self.pending_seq = events.seq();
        if event.get("delta").and_then(Value::as_bool) != Some(true) {
            self.flush(events);
        } else if let Some(end) = self.pending.rfind('\n') {
            let rest = self.pending.split_off(end + 1);
            self.flush(events);
            self.pending = rest;
        }
    }

    fn flush(&mut self, events: &mut Events) {
        let text = std::mem::take(&mut self.pending);
        if text.trim().is_empty() {
            return;
        }
        let now = events.seq();
        events.at(self.pending_seq);
        events.message("assistant", text.trim_end_matches('\n'));
        events.at(now);
    }

    fn result(&mut self, event: &Value, events: &mut Events) {
        let stats = &event["stats"];
        let models: Vec<_> =
            stats.get("models").and_then(Value::as_object).map(|models| models.iter().collect()).unwrap_or_default();
        for (model, counts) in &models {
            events.usage(usage(Some((*model).clone()), counts));
        }
        if models.is_empty() {
            events.usage(usage(None, stats));
        }
        let failed = str_of(event, "status") != "success";
        let error = &event["error"];
        let message = match str_of(error, "message") {
            "" => self.errors.join(),
            message => readable(message),
        };
        let text = if failed { shorten(&message, MAX_SAID) } else { self.said.trim().to_owned() };
        events.run_result(&text, failed || self.untrusted, self.session.clone());
        self.ending = Some(Ending { failed, error: message, turn_limit: str_of(error, "type") == "FatalTurnLimitedError" });
    }

    fn outcome(&self, exit: &ExitStatus) -> Outcome {
        if let Some(outcome) = stopped_by_host(exit) {
            return outcome;
        }
        let ExitStatus::Code(code) = *exit else { return Outcome::Failure("the run ended in a way that is not known".into()) };
        let Some(ending) = &self.ending else {
            return Outcome::Failure(without_result(code, &self.stderr));
        };
        let error = match ending.error.trim() {
            "" => format!("the agent ended with exit code {code}"),
            text => shorten(text, MAX_SUMMARY),
        };
        match ending.failed {
            true if ending.turn_limit => Outcome::Failure(error),
            true if PASSING_CODES.contains(&code) || passes_by_itself(&error) => Outcome::Retryable(error),
            true => Outcome::Failure(error),
            false if self.untrusted => {
                Outcome::Failure("the agent did not trust the checkout, so it was not permitted to change it".into())
            }
            false if code != 0 => Outcome::Failure(format!("the agent ended with exit code {code}")),
            false => Outcome::Success,
        }
    }
}

fn usage(model: Option<String>, counts: &Value) -> Usage {
    let cached = count_of(counts, "cached");
    // `input_tokens` has the cached ones in it; `input`, where there is one, has not.
    let input = match counts.get("input") {
        Some(_) => count_of(counts, "input"),
        None => count_of(counts, "input_tokens").saturating_sub(cached),
    };
    Usage {
        model,
        input_tokens: input,
        output_tokens: count_of(counts, "output_tokens"),
        cache_read_tokens: cached,
        cache_write_tokens: 0,
        cost_micro_usd: None,
        turns: 0,
    }
}

/// What the API said, out of the JSON that the CLI wraps it in.
fn readable(message: &str) -> String {
    let inner = message.find('{').zip(message.rfind('}')).and_then(|(start, end)| json_object(message.get(start..=end)?));
    match inner.as_ref().map(|inner| &inner["error"]) {
        Some(error) if error["message"].is_string() => {
            format!("the model API answered {}: {}", count_of(error, "code"), str_of(error, "message"))
        }
        _ => message.to_owned(),
    }
}

fn passes_by_itself(error: &str) -> bool {
    let error = error.to_ascii_lowercase();
    PASSING_WORDS.iter().any(|word| error.contains(word))
}

/// Ends before or without a result.
fn without_result(code: i32, stderr: &Tail) -> String {
    match code {
        0 => "the agent ended without a result, as it does on SIGTERM".into(),
        41 => "the agent has no key for its model API (exit code 41)".into(),
        55 => "the agent did not trust the checkout, so it was not permitted to start (exit code 55)".into(),
        _ if stderr.is_empty() => format!("the agent ended with exit code {code} and without a result"),
        _ => format!("the agent ended with exit code {code} and without a result: {}", stderr.last()),
    }
}
