//! The host of agent adapters: WebAssembly components that turn a job into a container request, output into events, and an exit
//! into a verdict.
//!
//! Invariant: an adapter imports `ckrv:agent/*` and nothing else. WASI is not linked, so there is nothing it could call but its own
//! log and its own configuration. Memory, time and output of each call are bounded. What it returns is a request or an advice;
//! `ckrv_core::policy` and verification have the last word.
//!
//! Every call is synchronous and may take as long as [`Limits::call_time`]: call it on a thread that may block
//! (`tokio::task::spawn_blocking`).

mod bindings;
mod builtin;
mod cache;
mod convert;
mod error;
mod host;
mod instance;
mod limiter;
mod transcript;

pub use builtin::{builtin, builtin_names};
pub use error::AdapterError;
pub use host::{Adapter, AdapterHost, Limits};
pub use transcript::{Transcript, Verdict};

#[cfg(test)]
mod tests;
