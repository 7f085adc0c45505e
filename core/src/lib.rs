//! The pure heart of `ckrv`: what a job is, which changes of state are allowed, what an adapter may ask for and what policy grants.
//!
//! Invariant: nothing here does input or output, reads a clock, or draws a random number. Time and ids come in as arguments,
//! so that the state machine and the queue can be run under simulated time.

pub mod address;
pub mod event;
pub mod id;
pub mod job;
pub mod log;
pub mod machine;
pub mod mask;
pub mod plan;
pub mod policy;
pub mod repo_url;
pub mod spec;
pub mod trace;
pub mod tree;
pub mod verb;
pub mod view;
pub mod webhook;
pub mod wire;

pub use jiff::Timestamp;
