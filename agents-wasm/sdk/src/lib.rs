//! The guest side of a `ckrv` agent adapter.
//!
//! An adapter is a type that implements [`Adapter`], exported by [`export_adapter!`]. It is a set of pure functions: no clock, no
//! network, no files, no randomness. The host limits its memory, time and output, and treats all that it returns as a request.
//!
//! ```ignore
//! struct Mine;
//! impl ckrv_adapter_sdk::Adapter for Mine { /* describe, plan, a Transcript */ }
//! ckrv_adapter_sdk::export_adapter!(Mine);
//! ```

#[doc(hidden)]
pub mod bindings;
mod decide;
mod events;
#[doc(hidden)]
pub mod glue;
mod plan;
pub mod text;
mod verdict;

pub use bindings::ckrv::agent::types::{
    ContainerSpec, Custom, Decision, Descriptor, EgressRule, Error, Event, EventBody, ExitStatus, File, Job, KeyValue, Message,
    ModelRoute, Outcome, OutputLine, PastRun, Phase, Place, Resources, Retry, RunResult, SecretRef, SecretSlot, Source, Stop,
    StopSignal, ToolCall, ToolResult, Usage, Verdict, Watchdog,
};
pub use decide::{RepairRule, decide};
pub use events::Events;
pub use plan::{config_number, env, extra, image, number, prompt_with_feedback};
pub use verdict::stopped_by_host;

/// Words for the operator; the host limits and escapes them.
pub mod log {
    pub use crate::bindings::ckrv::agent::log::{Level, write};
}

/// What the operator configured for this adapter: no secrets, constant for a run.
pub mod config {
    pub use crate::bindings::ckrv::agent::config::get;
}

/// One agent, seen from the host.
pub trait Adapter: 'static {
    /// Reads the output of one run.
    type Transcript: Transcript;

    /// The most that this adapter will ever ask for. Pure and constant.
    fn describe() -> Descriptor;

    /// Whether [`config`] makes sense. Called once, before any run.
    fn validate_config() -> Result<(), Error> {
        Ok(())
    }

    /// How to start the agent for this job and phase.
    fn plan(job: &Job) -> Result<ContainerSpec, Error>;

    /// What to do after a run; `history` is oldest first and ends with the run that just finished.
    fn next(job: &Job, history: &[PastRun]) -> Result<Decision, Error> {
        Ok(decide(job, history, RepairRule::WithFeedback))
    }
}

/// Reads the output of one run, a line at a time: so it cannot depend on how the host batches lines.
pub trait Transcript: 'static {
    /// Begins a run. A checkpoint that cannot be read is as good as none.
    fn start(job: Job, checkpoint: Option<Vec<u8>>) -> Self;

    /// One line. Unknown things become `other` events or plain messages; nothing here should fail.
    fn line(&mut self, line: OutputLine, events: &mut Events);

    /// A value that `start` can go on from; `None` has the host replay the output.
    fn save(&self) -> Option<Vec<u8>> {
        None
    }

    /// The run is over. `events` takes what only the end made complete.
    fn finish(&mut self, exit: &ExitStatus, events: &mut Events) -> (Outcome, String);
}

/// Exports a type that implements [`Adapter`] as the component's `adapter` interface. Once in a crate.
#[macro_export]
macro_rules! export_adapter {
    ($adapter:ty) => {
        #[cfg(target_family = "wasm")]
        const _: () = {
            type Exported = $crate::glue::Exported<$adapter>;
    $crate::bindings::__export_world!(Exported with_types_in $crate::bindings);
        };
    };
}
