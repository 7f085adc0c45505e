//! What somebody may want to do to a job, and what comes of it. Whether it is allowed is decided in [`crate::machine`].

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::id::{ClaimId, Fence};
use crate::job::{Artifact, Checkpoint, Facts, JobEvent, JobRecord, Outcome, State};
use crate::log::Cursor;

/// How somebody knows that an attempt's worker is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Evidence {
    /// The lease has run out.
    Lapsed,
    /// The launcher knows it: the lock file is free, the pod is deleted.
    Gone,
}

/// Why a job is ended by somebody who does not hold its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndReason {
    Cancelled,
    Deadline,
    AttemptsExhausted,
    Unclaimed,
}

/// What the holder of the lease writes at a job's end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finish {
    pub outcome: Outcome,
    pub facts: Facts,
    pub artifacts: Vec<Artifact>,
    pub log_end: Cursor,
}

/// A change that somebody wants to make to a job.
#[derive(Clone, Debug, PartialEq)]
pub enum Verb {
    /// Take the lease. `has_room`: the owner is below the number of jobs that may run at once.
    Claim {
        claim: ClaimId,
        worker: String,
        until: Timestamp,
        has_room: bool,
    },
    /// Keep the lease.
    Beat {
        claim: ClaimId,
        fence: Fence,
        until: Timestamp,
    },
    /// Go on to the next phase (or back from verifying to executing, for a repair).
    Advance {
        claim: ClaimId,
        fence: Fence,
        to: State,
        facts: Facts,
    },
    /// Name what the next attempt would go on from: the content is in the blob store already.
    Checkpoint {
        claim: ClaimId,
        fence: Fence,
        checkpoint: Checkpoint,
    },
    /// Give a secret of this name to the holder: once in an attempt, and again to the same question while its answer may have been lost.
    HandOut {
        claim: ClaimId,
        fence: Fence,
        name: String,
        /// Who asks: the same for a repeated question, and for no other.
        to: String,
    },
    /// Put a job whose worker is no more back into the queue.
    Reap {
        fence: Fence,
        evidence: Evidence,
        not_before: Timestamp,
        note: String,
    },
    /// The holder itself gives the job back after an infrastructure fault.
    Release {
        claim: ClaimId,
        fence: Fence,
        not_before: Timestamp,
        note: String,
    },
    /// The holder undoes its claim: nothing of the attempt has begun, so it doesn't count as one.
    Unclaim {
        claim: ClaimId,
        fence: Fence,
        not_before: Timestamp,
        note: String,
    },
    /// End a job that nobody holds, or whose deadline has passed.
    End {
        fence: Fence,
        reason: EndReason,
        evidence: Evidence,
        log_end: Cursor,
    },
    Finish {
        claim: ClaimId,
        fence: Fence,
        finish: Box<Finish>,
    },
    Cancel,
    /// The webhook of an ended job is being tried or was: `next` is when to try again, `None` that nothing more will be tried.
    Notified {
        /// Deliveries tried before this one, so that of two notifiers only one counts.
        attempts: u32,
        next: Option<Timestamp>,
        note: String,
    },
}

impl Verb {
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Claim { .. } => "claim",
            Self::Beat { .. } => "beat",
            Self::Advance { .. } => "advance",
            Self::Checkpoint { .. } => "checkpoint",
            Self::HandOut { .. } => "hand-out",
            Self::Reap { .. } => "reap",
            Self::Release { .. } => "release",
            Self::Unclaim { .. } => "unclaim",
            Self::End { .. } => "end",
            Self::Finish { .. } => "finish",
            Self::Cancel => "cancel",
            Self::Notified { .. } => "notify",
        }
    }
}

/// Why a change was refused. None of these is an infrastructure fault: trying again changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    #[error("the job has already ended")]
    Ended,
    #[error("the job is not queued")]
    NotQueued,
    #[error("the job may not start yet")]
    NotDue,
    #[error("the job was cancelled")]
    CancelRequested,
    #[error("the owner already runs as many jobs as allowed")]
    NoRoom,
    #[error("the lease of this claim is no longer valid: somebody else took over, or the job was ended")]
    LostLease,
    #[error("the lease has not run out")]
    LeaseHeld,
    #[error("the deadline has passed")]
    DeadlinePassed,
    #[error("no attempts are left")]
    NoAttemptsLeft,
    #[error("a job can't go from {from} to {to}")]
    BadTransition { from: State, to: State },
    #[error("the reason given for ending the job does not hold")]
    ReasonDoesNotHold,
    #[error("this secret was handed out already")]
    HandedOut,
    #[error("there is no notification to be delivered")]
    NoNotice,
}

/// The record as it shall be, and what follows from it.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub job: JobRecord,
    /// `None`: nothing worth telling happened (a beat, a checkpoint, a secret).
    pub event: Option<JobEvent>,
    /// The quota unit is given back in the same write.
    pub refund: bool,
}
