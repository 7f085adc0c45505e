//! The orchestrator: dispatch (claim, launch, reap), the gateway, and the job runner (prepare, plan, execute, verify, publish).

pub mod adapter;
pub mod clock;
pub mod dispatch;
#[cfg(test)]
mod fixture;
pub mod gateway;
pub mod git;
pub mod job;
pub mod launch;
pub mod launch_choice;
pub mod metrics;
pub mod notify;
pub mod settings;
pub mod trace;
