//! What one instance may use.

use std::time::Duration;

use wasmtime::ResourceLimiter;

/// Tables hold function pointers; a real adapter has a few hundred.
const MAX_TABLE_ELEMENTS: usize = 100_000;

/// Counts the memory of a store in all. The limiter that comes with wasmtime counts each memory alone.
#[derive(Debug)]
pub struct Budget {
    pub limit: usize,
    used: usize,
    /// Whether memory was refused: tells an exhausted adapter from one that traps for another reason.
    pub exceeded: bool,
    /// Of a call; for the words of an error.
    pub call_time: Duration,
    pub output_bytes: usize,
    /// The adapter's last line of level `error`: what a panic said before it became a trap.
    pub last_error: Option<String>,
}

impl Budget {
    pub fn new(limit: usize, call_time: Duration, output_bytes: usize) -> Self {
        Self { limit, used: 0, exceeded: false, call_time, output_bytes, last_error: None }
    }
}

impl ResourceLimiter for Budget {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        let used = self.used.saturating_add(desired.saturating_sub(current));
        if used > self.limit {
            self.exceeded = true;
            // Not `false`: the guest would abort, and nobody could tell why.
            return Err(wasmtime::Error::msg("out of memory"));
        }
        self.used = used;
        Ok(true)
    }

    fn table_growing(&mut self, _current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= MAX_TABLE_ELEMENTS)
    }

    fn instances(&self) -> usize {
        64
    }

    fn tables(&self) -> usize {
        16
    }

    fn memories(&self) -> usize {
        16
    }
}
