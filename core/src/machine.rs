//! The one place that decides which change of a job is allowed. A store reads the record, asks [`apply`], and writes the
//! answer on the condition that the record is still the one that was read. What is refused here is never stored.

use jiff::{SignedDuration, Timestamp};

use crate::id::{ClaimId, Fence};
use crate::job::{Artifact, Checkpoint, Facts, HandedOut, JobEvent, JobRecord, Lease, Notice, Outcome, OutcomeClass, State};
use crate::log::Cursor;
pub use crate::verb::{Change, EndReason, Evidence, Finish, Refusal, Verb};

/// A job's first attempt and three more after infrastructure faults.
pub const MAX_ATTEMPTS: u32 = 4;
/// A queued job that nobody claims for this long fails as `no worker`.
pub const UNCLAIMED_LIMIT: SignedDuration = SignedDuration::from_hours(24);
/// How long a question for a secret may be repeated: its answer can be lost on its way.
pub const REPEATABLE: SignedDuration = SignedDuration::from_secs(60);
/// How far two clocks of ours may differ.
pub const CLOCK_SKEW: SignedDuration = SignedDuration::from_secs(5);

/// Decides one change.
///
/// # Errors
/// The refusal; the record must then stay as it is.
pub fn apply(job: &JobRecord, verb: &Verb, now: Timestamp) -> Result<Change, Refusal> {
    match verb {
        Verb::Claim { claim, worker, until, has_room } => apply_claim(job, *claim, worker, *until, *has_room, now),
        Verb::Beat { claim, fence, until } => {
            held_by(job, *claim, *fence)?;
            let mut next = job.clone();
            if let Some(lease) = &mut next.lease {
                lease.until = (*until).max(lease.until);
            }
            next.version += 1;
            Ok(Change { job: next, event: None, refund: false })
        }
        Verb::Advance { claim, fence, to, facts } => apply_advance(job, *claim, *fence, *to, facts, now),
        Verb::Checkpoint { claim, fence, checkpoint } => apply_checkpoint(job, *claim, *fence, checkpoint),
        Verb::HandOut { claim, fence, name, to } => apply_hand_out(job, *claim, *fence, name, to, now),
        Verb::Reap { fence, evidence, not_before, note } => {
            seen(job, *fence)?;
            lease_is_over(job, *evidence, now)?;
            requeue(job, *not_before, note, now, "reap")
        }
        Verb::Release { claim, fence, not_before, note } => {
            held_by(job, *claim, *fence)?;
            requeue(job, *not_before, note, now, "release")
        }
        Verb::Unclaim { claim, fence, not_before, note } => {
            held_by(job, *claim, *fence)?;
            apply_unclaim(job, *not_before, note, now)
        }
        Verb::End { fence, reason, evidence, log_end } => apply_end(job, *fence, *reason, *evidence, *log_end, now),
        Verb::Finish { claim, fence, finish } => apply_finish(job, *claim, *fence, finish, now),
        Verb::Cancel => apply_cancel(job, now),
        Verb::Notified { attempts, next, note } => apply_notified(job, *attempts, *next, note, now),
    }
}

fn apply_claim(
    job: &JobRecord,
    claim: ClaimId,
    worker: &str,
    until: Timestamp,
    has_room: bool,
    now: Timestamp,
) -> Result<Change, Refusal> {
    if let Some(lease) = &job.lease
        && lease.claim == claim
    {
        // The answer to an earlier try was lost: the claim was won then.
        return Ok(Change { job: job.clone(), event: None, refund: false });
    }
    match job.state {
        State::Queued => {}
        state if state.is_final() => return Err(Refusal::Ended),
        _ => return Err(Refusal::NotQueued),
    }
    if job.cancel_at.is_some() {
        return Err(Refusal::CancelRequested);
    }
    if job.not_before > now {
        return Err(Refusal::NotDue);
    }
    if job.deadline.is_some_and(|deadline| now >= deadline) {
        return Err(Refusal::DeadlinePassed);
    }
    if job.attempt >= MAX_ATTEMPTS {
        return Err(Refusal::NoAttemptsLeft);
    }
    if !has_room {
        return Err(Refusal::NoRoom);
    }
    let mut next = job.clone();
    next.state = State::Preparing;
    next.fence = job.fence.next();
    next.attempt += 1;
    next.lease = Some(Lease { claim, worker: worker.to_owned(), until });
    next.started_at.get_or_insert(now);
    let limit = SignedDuration::from_secs(i64::from(job.request.timeout_seconds));
    next.deadline.get_or_insert(now + limit);
    Ok(stepped(next, now, "claim", Some(format!("attempt {} by {worker}", job.attempt + 1))))
}

fn apply_advance(
    job: &JobRecord,
    claim: ClaimId,
    fence: Fence,
    to: State,
    facts: &Facts,
    now: Timestamp,
) -> Result<Change, Refusal> {
    held_by(job, claim, fence)?;
    if job.cancel_at.is_some() {
        return Err(Refusal::CancelRequested);
    }
    let allowed = matches!(
        (job.state, to),
        (State::Preparing, State::Planning)
            | (State::Planning, State::Executing)
            | (State::Executing, State::Planning | State::Verifying)
            | (State::Verifying, State::Planning | State::Executing | State::Publishing)
    );
    // Told twice because the first answer was lost.
    if job.state == to {
        return Ok(Change { job: job.clone(), event: None, refund: false });
    }
    if !allowed {
        return Err(Refusal::BadTransition { from: job.state, to });
    }
    let mut next = job.clone();
    next.state = to;
    next.facts = facts.clone();
    Ok(stepped(next, now, "advance", None))
}

fn apply_checkpoint(job: &JobRecord, claim: ClaimId, fence: Fence, checkpoint: &Checkpoint) -> Result<Change, Refusal> {
    held_by(job, claim, fence)?;
    if checkpoint.fence != fence {
        return Err(Refusal::LostLease);
    }
    if job.cancel_at.is_some() {
        return Err(Refusal::CancelRequested);
    }
    let number = |checkpoint: &Checkpoint| (checkpoint.fence, checkpoint.number);
    // Told twice because the first answer was lost, or overtaken by a newer one.
    if job.checkpoint.as_ref().is_some_and(|known| number(known) >= number(checkpoint)) {
        return Ok(Change { job: job.clone(), event: None, refund: false });
    }
    let mut next = job.clone();
    next.checkpoint = Some(checkpoint.clone());
    next.version += 1;
    Ok(Change { job: next, event: None, refund: false })
}

fn apply_hand_out(
    job: &JobRecord,
    claim: ClaimId,
    fence: Fence,
    name: &str,
    to: &str,
    now: Timestamp,
) -> Result<Change, Refusal> {
    held_by(job, claim, fence)?;
    if job.cancel_at.is_some() {
        return Err(Refusal::CancelRequested);
    }
    match job.handed_out.get(name) {
        Some(first) if first.to == to && now.duration_since(first.at) <= REPEATABLE => {
            Ok(Change { job: job.clone(), event: None, refund: false })
        }
        Some(_) => Err(Refusal::HandedOut),
        None => {
            let mut next = job.clone();
            next.handed_out.insert(name.to_owned(), HandedOut { to: to.to_owned(), at: now });
            next.version += 1;
            Ok(Change { job: next, event: None, refund: false })
        }
    }
}

/// As if it had not been claimed, but for the fence.
fn apply_unclaim(job: &JobRecord, not_before: Timestamp, note: &str, now: Timestamp) -> Result<Change, Refusal> {
    if job.state != State::Preparing {
        return Err(Refusal::BadTransition { from: job.state, to: State::Queued });
    }
    let mut job = job.clone();
    job.attempt = job.attempt.saturating_sub(1);
    if job.attempt == 0 {
        // Its time has not begun to run.
        job.started_at = None;
        job.deadline = None;
    }
    requeue(&job, not_before, note, now, "unclaim")
}

fn requeue(job: &JobRecord, not_before: Timestamp, note: &str, now: Timestamp, verb: &str) -> Result<Change, Refusal> {
    if job.cancel_at.is_some() {
        return Err(Refusal::CancelRequested);
    }
    if job.deadline.is_some_and(|deadline| now >= deadline) {
        return Err(Refusal::DeadlinePassed);
    }
    if job.attempt >= MAX_ATTEMPTS {
        return Err(Refusal::NoAttemptsLeft);
    }
    let mut next = job.clone();
    next.state = State::Queued;
    next.fence = job.fence.next();
    next.lease = None;
    next.not_before = not_before;
    next.last_fault = Some(note.to_owned());
    // What the lost attempt found out is found out again.
    next.facts = Facts::default();
    next.handed_out.clear();
    Ok(stepped(next, now, verb, Some(note.to_owned())))
}

fn apply_end(
    job: &JobRecord,
    fence: Fence,
    reason: EndReason,
    evidence: Evidence,
    log_end: Cursor,
    now: Timestamp,
) -> Result<Change, Refusal> {
    seen(job, fence)?;
    let over = job.lease.is_none() || lease_is_over(job, evidence, now).is_ok();
    let deadline_passed = job.deadline.is_some_and(|deadline| now >= deadline);
    let holds = match reason {
        EndReason::Cancelled => job.cancel_at.is_some() && over,
        EndReason::Deadline => deadline_passed,
        EndReason::AttemptsExhausted => over && job.attempt >= MAX_ATTEMPTS,
        EndReason::Unclaimed => job.attempt == 0 && now.duration_since(job.created_at) >= UNCLAIMED_LIMIT,
    };
    if !holds {
        return Err(Refusal::ReasonDoesNotHold);
    }
    let outcome = match reason {
        EndReason::Cancelled => cancelled(),
        EndReason::Deadline => timed_out(job),
        EndReason::AttemptsExhausted => Outcome::new(
            OutcomeClass::Infrastructure,
            format!(
                "the job was given up after {} attempts; the last one ended with: {}",
                job.attempt,
                job.last_fault.as_deref().unwrap_or("its worker vanished")
            ),
        )
        .hint("this was not your doing and did not count against your quota; try `ckrv retry`"),
        EndReason::Unclaimed => Outcome::new(OutcomeClass::NoWorker, "no worker took the job within 24 hours")
            .hint("this did not count against your quota; ask the service's operator whether workers are running"),
    };
    let refund = outcome.class.is_infrastructure() || (reason == EndReason::Cancelled && job.state == State::Queued);
    let facts = Facts { usage: job.facts.usage.clone(), base_sha: job.facts.base_sha.clone(), ..Facts::default() };
    let mut change = ended(job, outcome, facts, Vec::new(), log_end, now, "end");
    change.refund = refund;
    Ok(change)
}

fn apply_finish(job: &JobRecord, claim: ClaimId, fence: Fence, finish: &Finish, now: Timestamp) -> Result<Change, Refusal> {
    if job.state.is_final() && job.finished_by == Some(claim) && job.fence == fence {
        // The answer to an earlier try was lost.
        return Ok(Change { job: job.clone(), event: None, refund: false });
    }
    held_by(job, claim, fence)?;
    if finish.outcome.class == OutcomeClass::Success {
        if job.cancel_at.is_some() {
            return Err(Refusal::CancelRequested);
        }
        if job.deadline.is_some_and(|deadline| now >= deadline) {
            return Err(Refusal::DeadlinePassed);
        }
        if job.state != State::Publishing {
            return Err(Refusal::BadTransition { from: job.state, to: State::Succeeded });
        }
    }
    let keeps = finish.outcome.class == OutcomeClass::Success;
    let mut artifacts = finish.artifacts.clone();
    if !keeps {
        // No partial result: only what tells the story is kept of a job that did not succeed.
        artifacts.retain(|artifact| artifact.name != "diff");
    }
    if finish.outcome.class == OutcomeClass::Timeout {
        artifacts.clear();
    }
    let mut change = ended(job, finish.outcome.clone(), finish.facts.clone(), artifacts, finish.log_end, now, "finish");
    change.job.finished_by = Some(claim);
    change.refund = finish.outcome.class.is_infrastructure();
    Ok(change)
}

fn apply_cancel(job: &JobRecord, now: Timestamp) -> Result<Change, Refusal> {
    if job.state.is_final() {
        return Err(Refusal::Ended);
    }
    if job.state == State::Queued {
        // Nobody works on it: the job ends here, and what was never begun is not counted.
        let log_end = job.log_end.unwrap_or(Cursor { fence: job.fence, seq: 0 });
        let mut change = ended(job, cancelled(), Facts::default(), Vec::new(), log_end, now, "cancel");
        change.job.cancel_at.get_or_insert(now);
        change.refund = true;
        return Ok(change);
    }
    let mut next = job.clone();
    if next.cancel_at.is_some() {
        return Ok(Change { job: next, event: None, refund: false });
    }
    next.cancel_at = Some(now);
    Ok(stepped(next, now, "cancel", None))
}

fn apply_notified(job: &JobRecord, attempts: u32, due: Option<Timestamp>, note: &str, now: Timestamp) -> Result<Change, Refusal> {
    if job.notice.as_ref().is_none_or(|notice| notice.attempts != attempts) {
        return Err(Refusal::NoNotice);
    }
    let mut next = job.clone();
    next.notice = due.map(|due| Notice { attempts: attempts + 1, due });
    Ok(stepped(next, now, "notify", Some(note.to_owned())))
}

/// The outcome of a job that was cancelled.
#[must_use]
pub fn cancelled() -> Outcome {
    Outcome::new(OutcomeClass::Cancelled, "the job was cancelled")
}

/// The outcome of a job whose time limit passed.
#[must_use]
pub fn timed_out(job: &JobRecord) -> Outcome {
    Outcome::new(
        OutcomeClass::Timeout,
        format!(
            "the job was terminated at its time limit of {} seconds; partial results are not kept",
            job.request.timeout_seconds
        ),
    )
    .hint("give it longer with `--timeout`, or split the spec into smaller steps")
}

fn seen(job: &JobRecord, fence: Fence) -> Result<(), Refusal> {
    if job.state.is_final() {
        return Err(Refusal::Ended);
    }
    if job.fence != fence {
        return Err(Refusal::LostLease);
    }
    Ok(())
}

fn held_by(job: &JobRecord, claim: ClaimId, fence: Fence) -> Result<(), Refusal> {
    if job.state.is_final() {
        return Err(Refusal::Ended);
    }
    match &job.lease {
        Some(lease) if lease.claim == claim && job.fence == fence => Ok(()),
        _ => Err(Refusal::LostLease),
    }
}

fn lease_is_over(job: &JobRecord, evidence: Evidence, now: Timestamp) -> Result<(), Refusal> {
    let Some(lease) = &job.lease else {
        return Err(Refusal::NotQueued);
    };
    match evidence {
        Evidence::Gone => Ok(()),
        Evidence::Lapsed if lease.until + CLOCK_SKEW < now => Ok(()),
        Evidence::Lapsed => Err(Refusal::LeaseHeld),
    }
}

fn stepped(mut next: JobRecord, now: Timestamp, verb: &str, note: Option<String>) -> Change {
    next.version += 1;
    next.updated_at = now;
    let event = JobEvent { version: next.version, at: now, verb: verb.to_owned(), state: next.state, fence: next.fence, note };
    Change { job: next, event: Some(event), refund: false }
}

fn ended(
    job: &JobRecord,
    outcome: Outcome,
    facts: Facts,
    artifacts: Vec<Artifact>,
    log_end: Cursor,
    now: Timestamp,
    verb: &str,
) -> Change {
    let mut next = job.clone();
    next.state = outcome.class.state();
    next.completed_at = Some(now);
    next.expires_at = Some(now + SignedDuration::from_secs(i64::from(job.retention_seconds)));
    next.lease = None;
    next.handed_out.clear();
    next.facts = facts;
    next.artifacts = artifacts;
    next.log_end = Some(log_end);
    next.notice = job.request.notify_url.is_some().then_some(Notice { attempts: 0, due: now });
    let note = Some(outcome.message.clone());
    next.outcome = Some(outcome);
    stepped(next, now, verb, note)
}
