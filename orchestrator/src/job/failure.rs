//! Everything that can end a job before its result is published, and what its owner is told.

use ckrv_core::job::{JobRecord, Outcome, OutcomeClass};
use ckrv_core::machine::{self, Refusal};
use ckrv_core::policy::Denied;

use crate::adapter::AdapterError;
use crate::gateway::{Denial, GatewayError};
use crate::git::{CloneError, GitError, ResultError};
use crate::launch::{Ended, Fault, LaunchError};

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The job ends with this outcome.
    #[error("{}", .0.message)]
    Ends(Outcome),
    /// Our fault, or the machine's: another attempt may go well.
    #[error("{0}")]
    Infrastructure(String),
    /// This attempt has nothing more to say.
    #[error("the attempt was taken over")]
    Lost,
}

impl Failure {
    pub fn ends(class: OutcomeClass, message: impl Into<String>) -> Self {
        Self::Ends(Outcome::new(class, message))
    }

    pub fn infrastructure(what: &str, error: &dyn std::error::Error) -> Self {
        Self::Infrastructure(format!("{what}: {}", ckrv_store::chain(error)))
    }
}

/// A shim that went away. What the job itself used up ends it; everything else is the machine's doing.
pub fn of_end(ended: &Ended, what: &str, job: &JobRecord) -> Failure {
    if let Some(fault) = &ended.fault {
        return of_fault(fault, what, job);
    }
    let said = if ended.said.is_empty() { String::new() } else { format!(" ({})", ended.said) };
    Failure::Infrastructure(format!("{what}{said}"))
}

/// What a platform's fault means for the job.
fn of_fault(fault: &Fault, what: &str, job: &JobRecord) -> Failure {
    match fault {
        Fault::OutOfMemory => Failure::Ends(out_of_memory()),
        Fault::DiskFull(text) => Failure::Ends(
            Outcome::new(OutcomeClass::DiskFull, format!("the agent's container wrote more than its disk limit allows: {text}"))
                .hint("let the agent write less, or ask the service's operator for a higher `max_resources.disk_mib`"),
        ),
        Fault::Deadline => Failure::Ends(machine::timed_out(job)),
        Fault::Evicted(text) => Failure::Infrastructure(format!("the agent's pod was evicted: {text}")),
        Fault::NodeLost(text) => Failure::Infrastructure(format!("the agent's node was lost: {text}")),
        Fault::Deleted => Failure::Infrastructure(format!("somebody deleted the agent's pod: {what}")),
    }
}

pub fn out_of_memory() -> Outcome {
    Outcome::new(OutcomeClass::OutOfMemory, "the agent's container ran out of memory")
        .hint("split the work, or ask the service's operator for a higher `max_resources.memory_mib`")
}

/// Nothing was launched.
pub fn of_launch(error: &LaunchError, job: &JobRecord) -> Failure {
    match error {
        LaunchError::ImageNotFound { .. } | LaunchError::ImagePull { .. } => {
            Failure::Ends(Outcome::new(OutcomeClass::Policy, error.to_string()).hint(error.hint()))
        }
        LaunchError::NeverUp { fault: Some(fault), message } => of_fault(fault, message, job),
        error => match Failure::infrastructure("the launcher", error) {
            Failure::Infrastructure(text) => Failure::Infrastructure(format!("{text}; {}", error.hint())),
            other => other,
        },
    }
}

/// How a job ends whose holder wanted to give it back for another attempt, and was refused.
pub fn not_again(refused: &GatewayError, note: String, job: &JobRecord) -> Outcome {
    match refused {
        GatewayError::Denied(Denial::Refused(Refusal::CancelRequested)) => machine::cancelled(),
        GatewayError::Denied(Denial::Refused(Refusal::DeadlinePassed)) => machine::timed_out(job),
        _ => Outcome::new(OutcomeClass::Infrastructure, note).hint("this did not count against your quota; try `ckrv retry`"),
    }
}

impl From<GatewayError> for Failure {
    fn from(error: GatewayError) -> Self {
        if error.is_lost() {
            return Self::Lost;
        }
        match error {
            // The runner's next step was refused before the news of the cancel had reached it.
            GatewayError::Denied(Denial::Refused(Refusal::CancelRequested)) => Self::Ends(machine::cancelled()),
            GatewayError::Denied(Denial::Missing(what)) => Self::Ends(
                Outcome::new(OutcomeClass::Policy, format!("{what} does not exist any more, or this service may not read it"))
                    .hint("see `ckrv cloud credentials list` and `ckrv cloud secrets list`; what a reference names must be in the secrets manager"),
            ),
            error => Self::infrastructure("the gateway", &error),
        }
    }
}

impl From<CloneError> for Failure {
    fn from(error: CloneError) -> Self {
        match error {
            CloneError::Git(error) => error.into(),
            error => {
                let hint = error.hint();
                Self::Ends(Outcome::new(OutcomeClass::Repository, error.to_string()).hint(hint))
            }
        }
    }
}

impl From<GitError> for Failure {
    fn from(error: GitError) -> Self {
        Self::infrastructure("git", &error)
    }
}

impl From<ResultError> for Failure {
    fn from(error: ResultError) -> Self {
        match &error {
            ResultError::Secret { .. } => Self::Ends(
                Outcome::new(OutcomeClass::SecretInResult, error.to_string())
                    .hint("nothing was published; keep secrets out of the tree, and change the secret if it may have been seen"),
            ),
            ResultError::TooLarge { .. } => Self::Ends(
                Outcome::new(OutcomeClass::Result, error.to_string())
                    .hint("let the agent clean up what it built, or add it to .gitignore"),
            ),
            ResultError::Archive(_) => Self::infrastructure("the result", &error),
            ResultError::Git(_) => Self::infrastructure("git", &error),
        }
    }
}

impl From<Denied> for Failure {
    fn from(denied: Denied) -> Self {
        let hint = denied.hint.clone();
        Self::Ends(Outcome::new(OutcomeClass::Policy, denied.to_string()).hint(hint))
    }
}

impl From<AdapterError> for Failure {
    fn from(error: AdapterError) -> Self {
        if let AdapterError::InvalidConfig(why) | AdapterError::Unsupported(why) = &error {
            // What the adapter was given is the user's or the operator's, not the adapter's fault.
            return Self::Ends(Outcome::new(OutcomeClass::Policy, format!("the agent can't run this job: {why}")));
        }
        Self::Ends(
            Outcome::new(OutcomeClass::Adapter, format!("the agent's adapter failed: {error}"))
                .hint("this is for the adapter's author; try another agent, or tell the service's operator"),
        )
    }
}

#[cfg(test)]
mod tests;
