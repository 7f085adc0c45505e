//! One instance of an adapter, and what it may call.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use wasmtime::Store;

use super::bindings::ckrv::agent::{config, log, types};
use super::bindings::{AgentAdapter, AgentAdapterPre};
use super::error::AdapterError;
use super::host::{Limits, TICK};
use super::limiter::Budget;

/// Longest line that an adapter may log, in bytes, and how many of them in one instance.
const MAX_LOG_BYTES: usize = 2048;
const MAX_LOG_LINES: usize = 200;

/// What a store holds beside the adapter.
#[derive(Debug)]
pub struct State {
    pub budget: Budget,
    adapter: Arc<str>,
    config: Arc<BTreeMap<String, String>>,
    logged: usize,
}

impl types::Host for State {}

impl config::Host for State {
    fn get(&mut self, key: String) -> Option<String> {
        self.config.get(&key).cloned()
    }
}

impl log::Host for State {
    fn write(&mut self, level: log::Level, message: String) {
        let message = escaped(&message);
        self.logged += 1;
        if self.logged > MAX_LOG_LINES {
            return;
        }
        let adapter = &*self.adapter;
        match level {
            log::Level::Debug => tracing::debug!(adapter, "adapter: {message}"),
            log::Level::Info => tracing::info!(adapter, "adapter: {message}"),
            log::Level::Warn => tracing::warn!(adapter, "adapter: {message}"),
            log::Level::Error => {
                tracing::warn!(adapter, "adapter reports an error: {message}");
                self.budget.last_error = Some(message);
            }
        }
    }
}

/// An adapter's words, cut and without control characters: they may reach a terminal.
pub fn escaped(text: &str) -> String {
    let mut end = text.len().min(MAX_LOG_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A store with one adapter in it. After an error it is finished: wasmtime lets nothing into a store that trapped.
pub struct Instance {
    pub store: Store<State>,
    world: AgentAdapter,
    call_ticks: u64,
}

impl Instance {
    pub fn new(
        pre: &AgentAdapterPre<State>,
        adapter: Arc<str>,
        config: Arc<BTreeMap<String, String>>,
        limits: &Limits,
    ) -> Result<Self, AdapterError> {
        let budget = Budget::new(limits.memory_bytes, limits.call_time, limits.output_bytes);
        let mut store = Store::new(pre.engine(), State { budget, adapter, config, logged: 0 });
        store.limiter(|state| &mut state.budget);
        store.set_hostcall_fuel(limits.output_bytes);
        let call_ticks = ticks(limits.call_time);
        // Before instantiation: start code runs in it, and would trap at once without a deadline.
        store.set_epoch_deadline(call_ticks);
        let world = pre.instantiate(&mut store).map_err(|error| AdapterError::of_call("start", &error, &store.data().budget))?;
        Ok(Self { store, world, call_ticks })
    }

    /// Calls the adapter, within the time of one call.
    pub fn call<T>(
        &mut self,
        name: &'static str,
        call: impl FnOnce(&AgentAdapter, &mut Store<State>) -> wasmtime::Result<T>,
    ) -> Result<T, AdapterError> {
        self.store.set_epoch_deadline(self.call_ticks);
        call(&self.world, &mut self.store).map_err(|error| AdapterError::of_call(name, &error, &self.store.data().budget))
    }
}

/// At least one whole tick more than the time, since the first may end at once.
fn ticks(time: Duration) -> u64 {
    u64::try_from(time.as_millis() / TICK.as_millis()).unwrap_or(u64::MAX / 2) + 1
}
