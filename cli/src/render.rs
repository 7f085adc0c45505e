//! Jobs and log entries as lines for people. Everything that came from elsewhere is cleaned here.

use ckrv_core::event::AgentEvent;
use ckrv_core::job::{State, Verification};
use ckrv_core::log::{Level, LogEntry};
use ckrv_core::wire::Job;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use owo_colors::OwoColorize as _;
use serde_json::Value;

use crate::text::{clean, clean_lines, duration, number, shorten, table};

/// Widest summary of a tool call.
const CALL_WIDTH: usize = 110;

/// `succeeded` in green, and so on.
#[must_use]
pub fn state(state: State) -> String {
    match state {
        State::Succeeded => state.green().to_string(),
        State::Failed | State::Timeout => state.red().to_string(),
        State::Cancelled => state.yellow().to_string(),
        _ => state.cyan().to_string(),
    }
}

/// What `ckrv status` shows.
#[must_use]
pub fn status(job: &Job, now: Timestamp) -> Vec<String> {
    let mut lines = Vec::new();
    let mut row = |name: &str, value: String| lines.push(format!("{} {value}", format!("{:<13}", format!("{name}:")).bold()));
    row("Job", job.id.to_string());
    row("State", state_line(job));
    row("Spec", clean(&job.spec_id).into_owned());
    let base = job
        .base_sha
        .as_deref()
        .map(|sha| format!(" at {}", clean(&sha.chars().take(12).collect::<String>())))
        .unwrap_or_default();
    row("Repository", format!("{}, {}{base}", clean(&job.git_repo_url), clean(&job.git_base_branch)));
    let model = job.model.as_deref().map(|model| format!(", {}", clean(model))).unwrap_or_default();
    row("Agent", format!("{}{model}", clean(&job.agent)));
    row("Elapsed", duration(job.elapsed_seconds));
    if !job.state.is_final() {
        row("Estimate", estimate(job, now));
    } else {
        row("Verification", verification(job.verification, job.state).to_owned());
    }
    if let Some(stat) = job.diff_stat {
        let files = if stat.files == 1 { "file" } else { "files" };
        row("Changes", format!("{} {files}, +{} -{}", stat.files, stat.insertions, stat.deletions));
    }
    if job.usage.turns > 0 || job.usage.input_tokens > 0 {
        row("Usage", usage(job));
    }
    if let Some(summary) = &job.result_summary {
        row("Summary", clean_lines(summary));
    }
    if let Some(error) = &job.error_message {
        row("Error", clean_lines(error));
    }
    if let Some(hint) = &job.hint {
        row("Hint", clean_lines(hint));
    }
    lines
}

fn state_line(job: &Job) -> String {
    let mut line = state(job.state);
    if let Some(position) = job.queue_position {
        match position {
            0 => line.push_str(", next in the queue"),
            1 => line.push_str(", 1 job before it"),
            _ => line.push_str(&format!(", {position} jobs before it")),
        }
    }
    if job.attempt > 1 {
        line.push_str(&format!(", attempt {}", job.attempt));
    }
    if job.cancel_requested && !job.state.is_final() {
        line.push_str(", being cancelled");
    }
    line
}

fn estimate(job: &Job, now: Timestamp) -> String {
    match job.estimated_completion_at {
        Some(at) if at > now => format!("done in about {}", duration(at.duration_since(now).as_secs_f64())),
        Some(_) => "done any moment".to_owned(),
        None => "no estimate yet (no earlier job of this repository and agent)".to_owned(),
    }
}

#[must_use]
pub fn verification(verification: Verification, state: State) -> &'static str {
    match verification {
        Verification::Passed => "passed",
        Verification::Failed => "failed",
        Verification::None if state == State::Succeeded => "none (the spec has no checks)",
        Verification::None => "none (the job did not come that far)",
    }
}

fn usage(job: &Job) -> String {
    let usage = &job.usage;
    let cost = usage.cost_usd.map(|cost| format!(", ${cost:.2}")).unwrap_or_default();
    format!("{} tokens in, {} out, {} turns{cost}", number(usage.input_tokens), number(usage.output_tokens), usage.turns)
}

/// What `ckrv list` shows.
#[must_use]
pub fn jobs(jobs: &[Job], now: Timestamp) -> Vec<String> {
    let rows: Vec<Vec<String>> = jobs
        .iter()
        .map(|job| {
            vec![
                job.id.to_string(),
                job.state.to_string(),
                format!("{} ago", duration(now.duration_since(job.created_at).as_secs_f64())),
                duration(job.elapsed_seconds),
                clean(&shorten(&job.agent, 16)).into_owned(),
                clean(&shorten(&job.spec_id, 40)).into_owned(),
            ]
        })
        .collect();
    table(&["JOB", "STATE", "CREATED", "ELAPSED", "AGENT", "SPEC"], &rows)
}

/// A log entry, on one line or more.
#[must_use]
pub fn entry(entry: &LogEntry, zone: &TimeZone) -> String {
    let time = entry.timestamp.to_zoned(zone.clone()).strftime("%H:%M:%S").to_string();
    let head = format!("{} {:<12}", time.dimmed(), clean(&entry.source).cyan());
    let text = entry.event.as_ref().and_then(event).unwrap_or_else(|| entry.message.clone());
    let body = text.trim_end_matches('\n').split('\n').map(|line| {
        let line = clean(line.trim_end_matches('\r'));
        match entry.level {
            Level::Error => line.red().to_string(),
            Level::Warn => line.yellow().to_string(),
            Level::Debug => line.dimmed().to_string(),
            Level::Info => line.into_owned(),
        }
    });
    body.map(|line| format!("{head} {line}")).collect::<Vec<_>>().join("\n")
}

/// An event in short; `None` where the entry's own message says it better.
fn event(event: &AgentEvent) -> Option<String> {
    match event {
        AgentEvent::Message { text, .. } => Some(text.clone()),
        AgentEvent::ToolCall { name, input, .. } => {
            Some(format!("→ {name} {}", shorten(&argument(input), CALL_WIDTH)).trim_end().to_owned())
        }
        AgentEvent::ToolResult { is_error: true, output, .. } => Some(format!("← failed: {}", shorten(output, CALL_WIDTH))),
        AgentEvent::ToolResult { output, .. } => Some(format!("← {}", shorten(output, CALL_WIDTH)).trim_end().to_owned()),
        AgentEvent::Usage(usage) => {
            Some(format!("{} tokens in, {} out", number(usage.input_tokens), number(usage.output_tokens)))
        }
        AgentEvent::RunResult { .. } | AgentEvent::Other { .. } => None,
    }
}

/// The argument of a tool call that tells most.
fn argument(input: &Value) -> String {
    let telling = ["command", "file_path", "path", "pattern", "query", "url", "description", "prompt"];
    if let Some(text) = telling.iter().find_map(|key| input.get(key)).and_then(Value::as_str) {
        return text.to_owned();
    }
    match input {
        Value::Null => String::new(),
        Value::Object(fields) if fields.is_empty() => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(message: &str, event: Option<AgentEvent>) -> String {
        let value = LogEntry {
            timestamp: "2026-01-02T03:04:05Z".parse().unwrap(),
            level: Level::Info,
            source: "agent".into(),
            message: message.into(),
            fence: ckrv_core::id::Fence(1),
            seq: 1,
            event,
        };
        anstream::adapter::strip_str(&entry(&value, &TimeZone::UTC)).to_string()
    }

    #[test]
    fn a_log_entry_is_a_line_and_cannot_drive_the_terminal() {
        assert_eq!(line("done", None), "03:04:05 agent        done");
        assert_eq!(line("\x1b[2Jgone\x07", None), "03:04:05 agent        \\u{1b}[2Jgone\\u{7}");
    }

    #[test]
    fn a_tool_call_is_shown_by_its_telling_argument() {
        let call = |input| Some(AgentEvent::ToolCall { id: "1".into(), name: "Bash".into(), input });
        assert_eq!(
            line("", call(serde_json::json!({"timeout": 1, "command": "ls -la\nrm x"}))),
            "03:04:05 agent        → Bash ls -la…"
        );
        assert_eq!(line("", call(serde_json::json!({"odd": 1}))), "03:04:05 agent        → Bash {\"odd\":1}");
    }
}
