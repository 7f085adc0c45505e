//! What is the same for every agent's end.

use crate::{ExitStatus, Outcome};

/// An end that the host or the machine brought about: whatever the agent said before, the run did not succeed.
/// `None` is an end of the agent's own.
pub fn stopped_by_host(exit: &ExitStatus) -> Option<Outcome> {
    match exit {
        ExitStatus::Code(_) => None,
        ExitStatus::Signal(signal) => Some(Outcome::Failure(format!("the agent was killed by signal {signal}"))),
        ExitStatus::OomKilled => Some(Outcome::Failure("the agent ran out of memory".into())),
        ExitStatus::Deadline => Some(Outcome::Failure("the time limit passed".into())),
        ExitStatus::Evicted => Some(Outcome::Retryable("the machine took the agent's place away".into())),
        ExitStatus::Other(why) => Some(Outcome::Failure(format!("the agent was stopped: {why}"))),
    }
}
