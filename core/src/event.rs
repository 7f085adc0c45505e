//! What an agent did, in words that are the same for every agent. An adapter makes these from its agent's output.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One thing that an agent did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum AgentEvent {
    /// Text that the agent (or the user, on its behalf) said.
    Message {
        role: String,
        text: String,
    },
    ToolCall {
        id: String,
        name: String,
        input: Value,
    },
    ToolResult {
        id: String,
        is_error: bool,
        output: String,
    },
    Usage(Usage),
    RunResult {
        text: String,
        is_error: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session_id: Option<String>,
    },
    /// Something of one agent only; `kind` is namespaced, for example `anthropic/api-retry`.
    Other {
        kind: String,
        data: Value,
    },
}

/// Tokens and cost. In an event: since the previous usage event. In a job: in all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct Usage {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Prompt tokens that were not read from a cache.
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub cache_read_tokens: u64,
    pub cache_write_tokens: u64,
    /// Millionths of a US dollar; absent where neither agent nor price table tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_micro_usd: Option<u64>,
    /// Model turns, where the agent tells.
    pub turns: u64,
}

impl Usage {
    /// Adds a later delta. A cost stays unknown only as long as nobody told one.
    pub fn add(&mut self, delta: &Usage) {
        self.input_tokens += delta.input_tokens;
        self.output_tokens += delta.output_tokens;
        self.cache_read_tokens += delta.cache_read_tokens;
        self.cache_write_tokens += delta.cache_write_tokens;
        self.turns += delta.turns;
        if let Some(cost) = delta.cost_micro_usd {
            *self.cost_micro_usd.get_or_insert(0) += cost;
        }
        if delta.model.is_some() {
            self.model.clone_from(&delta.model);
        }
    }
}
