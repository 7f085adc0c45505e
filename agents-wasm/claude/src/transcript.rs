//! Claude Code's `stream-json` to events and a verdict.

use ckrv_adapter_sdk::text::{Tail, flatten, json_object, shorten, str_of};
use ckrv_adapter_sdk::{Events, ExitStatus, Job, Outcome, OutputLine, Source, Transcript, stopped_by_host};
use serde_json::{Value, json};

use crate::usage::Meter;

const MAX_SUMMARY: usize = 4096;
/// The HTTP statuses of a model API that may pass by themselves.
const PASSING: [u64; 8] = [408, 429, 500, 502, 503, 504, 520, 529];
/// System events that say nothing about the work.
const NOISE: [&str; 2] = ["ui_invalidate", "status"];

/// What the last event said.
#[derive(Debug)]
struct Ending {
    failed: bool,
    text: String,
    denied: Vec<String>,
    passing: bool,
}

/// Reads one run.
#[derive(Debug, Default)]
pub struct ClaudeTranscript {
    meter: Meter,
    ending: Option<Ending>,
    denied: Vec<String>,
    stderr: Tail,
}

impl Transcript for ClaudeTranscript {
    fn start(_job: Job, _checkpoint: Option<Vec<u8>>) -> Self {
        Self::default()
    }

    fn line(&mut self, line: OutputLine, events: &mut Events) {
        if line.source == Source::Stderr {
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
        match str_of(&event, "type") {
            "assistant" => self.assistant(&event, events),
            "user" => user(&event, events),
            "system" => self.system(&event, events),
            "result" => self.result(&event, events),
            // Repeats in pieces what comes whole.
            "stream_event" => {}
            kind => events.other(&format!("anthropic/{kind}"), &event),
        }
    }

    fn finish(&mut self, exit: &ExitStatus, _events: &mut Events) -> (Outcome, String) {
        let outcome = self.outcome(exit);
        let summary = match (&outcome, &self.ending) {
            (Outcome::Success, Some(ending)) => shorten(&ending.text, MAX_SUMMARY),
            (Outcome::Failure(reason) | Outcome::Retryable(reason) | Outcome::NeedsInput(reason), _) => reason.clone(),
            _ => String::new(),
        };
        (outcome, summary)
    }
}

impl ClaudeTranscript {
    fn assistant(&mut self, event: &Value, events: &mut Events) {
        let message = &event["message"];
        for block in message.get("content").and_then(Value::as_array).into_iter().flatten() {
            match str_of(block, "type") {
                "text" => events.message("assistant", str_of(block, "text")),
                "tool_use" => {
                    events.tool_call(str_of(block, "id"), str_of(block, "name"), block.get("input").unwrap_or(&Value::Null))
                }
                "thinking" => events.other("anthropic/thinking", &json!({ "text": str_of(block, "thinking") })),
                kind => events.other(&format!("anthropic/{kind}"), block),
            }
        }
        self.meter.message(message, events);
    }

    fn system(&mut self, event: &Value, events: &mut Events) {
        let subtype = str_of(event, "subtype");
        if NOISE.contains(&subtype) {
            return;
        }
        if subtype == "permission_denied" {
            self.denied.push(shorten(str_of(event, "tool_name"), 100));
            self.denied.truncate(20);
        }
        let data = match subtype {
            "init" => json!({
                "session_id": event["session_id"], "model": event["model"], "version": event["claude_code_version"],
                "permission_mode": event["permissionMode"], "mcp_servers": event["mcp_servers"],
            }),
            "api_retry" => json!({
                "attempt": event["attempt"], "of": event["max_retries"], "wait_ms": event["retry_delay_ms"],
                "status": event["error_status"], "error": event["error"],
            }),
            _ => event.clone(),
        };
        events.other(&format!("anthropic/{}", subtype.replace('_', "-")), &data);
    }

    fn result(&mut self, event: &Value, events: &mut Events) {
        self.meter.result(event, events);
        let errors: Vec<&str> =
            event.get("errors").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        let interrupted = str_of(event, "terminal_reason").starts_with("aborted");
        let text = match str_of(event, "result") {
            // Its own words for this are a diagnosis for its authors.
            "" if interrupted => "the agent was interrupted".to_owned(),
            "" if errors.is_empty() => str_of(event, "subtype").to_owned(),
            "" => errors.join("; "),
            text => text.to_owned(),
        };
        let denied: Vec<String> = event
            .get("permission_denials")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .take(20)
            .map(|denial| shorten(str_of(denial, "tool_name"), 100))
            .collect();
        // `subtype: success` comes with `is_error: true` where the API refused.
        let failed = event.get("is_error").and_then(Value::as_bool).unwrap_or(false) || str_of(event, "subtype") != "success";
        let session = Some(str_of(event, "session_id").to_owned()).filter(|id| !id.is_empty());
        events.run_result(&text, failed || !denied.is_empty() || !self.denied.is_empty(), session);
        self.ending = Some(Ending { failed, passing: passes_by_itself(event, &text), text, denied });
    }

    fn outcome(&self, exit: &ExitStatus) -> Outcome {
        if let Some(outcome) = stopped_by_host(exit) {
            return outcome;
        }
        let ExitStatus::Code(code) = exit else { return Outcome::Failure("the run ended in a way that is not known".into()) };
        let Some(ending) = &self.ending else {
            return Outcome::Failure(match (code, self.stderr.is_empty()) {
                (143, _) => "the agent was stopped by SIGTERM".into(),
                (_, true) => format!("the agent ended with exit code {code} and without a result"),
                (_, false) => format!("the agent ended with exit code {code} and without a result: {}", self.stderr.join()),
            });
        };
        let denied = if ending.denied.is_empty() { &self.denied } else { &ending.denied };
        let text = shorten(&ending.text, MAX_SUMMARY);
        match (ending.failed, ending.passing) {
            (true, true) => Outcome::Retryable(text),
            (true, false) => Outcome::Failure(text),
            (false, _) if !denied.is_empty() => {
                Outcome::Failure(format!("the agent was not permitted to use {}", denied.join(", ")))
            }
            (false, _) if *code != 0 => Outcome::Failure(format!("the agent ended with exit code {code}: {text}")),
            (false, _) => Outcome::Success,
        }
    }
}

fn user(event: &Value, events: &mut Events) {
    match &event["message"]["content"] {
        Value::String(text) => events.message("user", text),
        Value::Array(blocks) => {
            for block in blocks {
                match str_of(block, "type") {
                    "text" => events.message("user", str_of(block, "text")),
                    "tool_result" => {
                        let is_error = block.get("is_error").and_then(Value::as_bool).unwrap_or(false);
                        events.tool_result(
                            str_of(block, "tool_use_id"),
                            is_error,
                            flatten(block.get("content").unwrap_or(&Value::Null)),
                        );
                    }
                    kind => events.other(&format!("anthropic/{kind}"), block),
                }
            }
        }
        _ => {}
    }
}

/// Whether the API's refusal may be gone in a while.
fn passes_by_itself(result: &Value, text: &str) -> bool {
    if str_of(result, "terminal_reason") != "api_error" {
        return false;
    }
    match result.get("api_error_status").and_then(Value::as_u64) {
        Some(status) => PASSING.contains(&status),
        None => str_of(result, "api_error") == "connection_failed" || text.contains("timed out") || text.contains("Connection"),
    }
}
