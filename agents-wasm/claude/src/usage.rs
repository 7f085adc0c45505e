//! Tokens and cost as deltas.
//!
//! The same message comes once for each of its blocks, with the same id and with the usage that was known when it began (its
//! output count is too small). The last event has the true totals. So: one delta for each new message, and the rest at the end.

use std::collections::{BTreeMap, VecDeque};

use ckrv_adapter_sdk::text::{count_of, micro_usd, str_of};
use ckrv_adapter_sdk::{Events, Usage};
use serde_json::Value;

/// Ids that can still come again; agents beneath the agent interleave their messages.
const REMEMBERED_IDS: usize = 64;
/// What Claude Code calls the author of its own error messages.
const NO_MODEL: &str = "<synthetic>";

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    input: u32,
    output: u32,
    cache_read: u32,
    cache_write: u32,
}

impl Counts {
    fn of_message(usage: &Value) -> Self {
        Self {
            input: count_of(usage, "input_tokens"),
            output: count_of(usage, "output_tokens"),
            cache_read: count_of(usage, "cache_read_input_tokens"),
            cache_write: count_of(usage, "cache_creation_input_tokens"),
        }
    }

    fn of_model(total: &Value) -> Self {
        Self {
            input: count_of(total, "inputTokens"),
            output: count_of(total, "outputTokens"),
            cache_read: count_of(total, "cacheReadInputTokens"),
            cache_write: count_of(total, "cacheCreationInputTokens"),
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            input: self.input.saturating_add(other.input),
            output: self.output.saturating_add(other.output),
            cache_read: self.cache_read.saturating_add(other.cache_read),
            cache_write: self.cache_write.saturating_add(other.cache_write),
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            input: self.input.saturating_sub(other.input),
            output: self.output.saturating_sub(other.output),
            cache_read: self.cache_read.saturating_sub(other.cache_read),
            cache_write: self.cache_write.saturating_sub(other.cache_write),
        }
    }

    fn event(self, model: &str, cost_micro_usd: Option<u32>, turns: u32) -> Usage {
        Usage {
            model: Some(model.into()).filter(|name: &String| !name.is_empty()),
            input_tokens: self.input,
            output_tokens: self.output,
            cache_read_tokens: self.cache_read,
            cache_write_tokens: self.cache_write,
            cost_micro_usd,
            turns,
        }
    }
}

/// What was told so far.
#[derive(Debug, Default)]
pub struct Meter {
    seen: VecDeque<String>,
    told: BTreeMap<String, Counts>,
}

impl Meter {
    /// A message of the model, possibly one that was counted already.
    pub fn message(&mut self, message: &Value, events: &mut Events) {
        let (id, model) = (str_of(message, "id"), str_of(message, "model"));
        if model == NO_MODEL || id.is_empty() || self.seen.iter().any(|seen| seen == id) {
            return;
        }
        if self.seen.len() == REMEMBERED_IDS {
            self.seen.pop_front();
        }
        self.seen.push_back(id.into());
        let counts = Counts::of_message(&message["usage"]);
        let told = self.told.entry(model.into()).or_default();
        *told = told.plus(counts);
        events.usage(counts.event(model, None, 1));
    }

    /// The totals at the end, less what was told.
    pub fn result(&mut self, result: &Value, events: &mut Events) {
        let total_cost = result.get("total_cost_usd").and_then(Value::as_f64).map(micro_usd);
        let models: Vec<_> =
            result.get("modelUsage").and_then(Value::as_object).map(|models| models.iter().collect()).unwrap_or_default();
        let alone = models.len() == 1;
        for (model, total) in &models {
            let told = self.told.get(*model).copied().unwrap_or_default();
            // The one model's cost is the whole cost, and the total is what people compare with.
            let cost = if alone { total_cost } else { total.get("costUSD").and_then(Value::as_f64).map(micro_usd) };
            events.usage(Counts::of_model(total).minus(told).event(model, cost, 0));
        }
        if models.is_empty() {
            let told = self.told.values().fold(Counts::default(), |sum, counts| sum.plus(*counts));
            events.usage(Counts::of_message(&result["usage"]).minus(told).event("", total_cost, 0));
        }
    }
}
