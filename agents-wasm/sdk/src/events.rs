//! Collecting events.

use serde_json::Value;

use crate::text::shorten;
use crate::{Custom, Event, EventBody, Message, RunResult, ToolCall, ToolResult, Usage};

/// Longest JSON of an `other` event, in bytes: these are for people who look closely, not for programs.
const MAX_OTHER: usize = 4096;

/// Collects the events of the line that is being read.
#[derive(Debug, Default)]
pub struct Events {
    seq: u32,
    events: Vec<Event>,
}

impl Events {
    /// Following events come from this line.
    pub fn at(&mut self, seq: u32) {
        self.seq = seq;
    }

    /// The line that is being read.
    pub fn seq(&self) -> u32 {
        self.seq
    }

    pub fn push(&mut self, body: EventBody) {
        self.events.push(Event { seq: self.seq, body });
    }

    pub fn message(&mut self, role: &str, text: &str) {
        self.push(EventBody::Message(Message { role: role.into(), text: text.into() }));
    }

    pub fn tool_call(&mut self, id: &str, name: &str, input: &Value) {
        self.push(EventBody::ToolCall(ToolCall { id: id.into(), name: name.into(), input_json: input.to_string() }));
    }

    pub fn tool_result(&mut self, id: &str, is_error: bool, output: String) {
        self.push(EventBody::ToolResult(ToolResult { id: id.into(), is_error, output }));
    }

    /// Leaves out an event that says nothing.
    pub fn usage(&mut self, usage: Usage) {
        let tokens = [usage.input_tokens, usage.output_tokens, usage.cache_read_tokens, usage.cache_write_tokens, usage.turns];
        if tokens.iter().any(|count| *count > 0) || usage.cost_micro_usd.is_some_and(|cost| cost > 0) {
            self.push(EventBody::Usage(usage));
        }
    }

    pub fn run_result(&mut self, text: &str, is_error: bool, session_id: Option<String>) {
        self.push(EventBody::RunResult(RunResult { text: text.into(), is_error, session_id }));
    }

    /// Something of one agent only; `kind` is namespaced. Big data is replaced by its beginning.
    pub fn other(&mut self, kind: &str, data: &Value) {
        let mut json = data.to_string();
        if json.len() > MAX_OTHER {
            json = serde_json::json!({ "cut": shorten(&json, MAX_OTHER / 2) }).to_string();
        }
        self.push(EventBody::Other(Custom { kind: kind.into(), json }));
    }

    /// Whether nothing was pushed since the host's call began. For tests of the host only: events must not depend on it.
    #[doc(hidden)]
    pub fn is_first(&self) -> bool {
        self.events.is_empty()
    }

    #[doc(hidden)]
    pub fn into_vec(self) -> Vec<Event> {
        self.events
    }
}
