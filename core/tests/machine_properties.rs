//! What holds for every change that the state machine allows, tried with random verbs on random records.
//!
//! Not tested here: how the verbs play together over time (`queue_simulation`), and that a store writes what was decided (the store's
//! contract suite).

#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeSet;

use ckrv_core::id::{ClaimId, Fence};
use ckrv_core::job::{Artifact, Checkpoint, Facts, JobRecord, Lease, Notice, Outcome, OutcomeClass, State};
use ckrv_core::log::Cursor;
use ckrv_core::machine::{CLOCK_SKEW, Change, EndReason, Evidence, Finish, MAX_ATTEMPTS, Refusal, UNCLAIMED_LIMIT, Verb, apply};
use jiff::Timestamp;
use proptest::prelude::*;
use proptest::sample::select;

use common::{TIMEOUT_SECONDS, at, claim_id, queued};

const CLASSES: [OutcomeClass; 15] = [
    OutcomeClass::Success,
    OutcomeClass::Agent,
    OutcomeClass::Verification,
    OutcomeClass::Adapter,
    OutcomeClass::Policy,
    OutcomeClass::Repository,
    OutcomeClass::SecretInResult,
    OutcomeClass::Result,
    OutcomeClass::CostLimit,
    OutcomeClass::OutOfMemory,
    OutcomeClass::DiskFull,
    OutcomeClass::Timeout,
    OutcomeClass::Cancelled,
    OutcomeClass::NoWorker,
    OutcomeClass::Infrastructure,
];
const REASONS: [EndReason; 4] = [EndReason::Cancelled, EndReason::Deadline, EndReason::AttemptsExhausted, EndReason::Unclaimed];
const CURSOR: Cursor = Cursor { fence: Fence(1), seq: 3 };

/// Whom a verb says it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Holder,
    /// The holder's claim with an older fence.
    OldFence,
    /// Another claim with the present fence.
    OtherClaim,
}

#[derive(Clone, Debug)]
enum Step {
    Claim {
        number: u32,
        has_room: bool,
    },
    Beat,
    Checkpoint(u32),
    Advance(State),
    /// To the phase that comes next on the way to success.
    Next,
    Reap(Evidence, i64),
    Release(i64),
    Unclaim(i64),
    /// A secret of this name, to this asker.
    HandOut(&'static str, &'static str),
    End(EndReason, Evidence),
    Finish(OutcomeClass),
    Cancel,
    /// The webhook's next try comes after this time, or never.
    Notified(Option<i64>),
}

fn a_step() -> impl Strategy<Value = Step> {
    let evidence = || select(vec![Evidence::Lapsed, Evidence::Gone]);
    prop_oneof![
        4 => (0..6_u32, prop::bool::weighted(0.9)).prop_map(|(number, has_room)| Step::Claim { number, has_room }),
        2 => Just(Step::Beat),
        2 => (1..4_u32).prop_map(Step::Checkpoint),
        4 => select(State::ALL.to_vec()).prop_map(Step::Advance),
        8 => Just(Step::Next),
        2 => (evidence(), 0..100_i64).prop_map(|(evidence, wait)| Step::Reap(evidence, wait)),
        1 => (0..100_i64).prop_map(Step::Release),
        1 => (0..100_i64).prop_map(Step::Unclaim),
        2 => (select(vec!["git", "key"]), select(vec!["a", "b"])).prop_map(|(name, to)| Step::HandOut(name, to)),
        1 => (select(REASONS.to_vec()), evidence()).prop_map(|(reason, evidence)| Step::End(reason, evidence)),
        1 => select(CLASSES.to_vec()).prop_map(Step::Finish),
        2 => Just(Step::Finish(OutcomeClass::Success)),
        1 => Just(Step::Cancel),
        2 => prop::option::of(0..100_i64).prop_map(Step::Notified),
    ]
}

fn who() -> impl Strategy<Value = Who> {
    prop_oneof![6 => Just(Who::Holder), 1 => Just(Who::OldFence), 1 => Just(Who::OtherClaim)]
}

/// How much time passes before a step: mostly seconds, sometimes past a lease, a deadline, a day.
fn a_while() -> impl Strategy<Value = i64> {
    prop_oneof![12 => 0..30_i64, 3 => 30..200_i64, 1 => 1500..2000_i64, 1 => 80_000..100_000_i64]
}

fn a_moment() -> impl Strategy<Value = i64> {
    prop_oneof![8 => 0..4000_i64, 1 => 0..100_000_i64]
}

fn any_record() -> impl Strategy<Value = JobRecord> {
    let lease = prop::option::of((0..6_u32, 0..4000_i64));
    let times = (0..3000_i64, prop::option::of(0..4000_i64), prop::option::weighted(0.2, 0..3000_i64));
    let notice = (any::<bool>(), prop::option::of(0..4_u32));
    (select(State::ALL.to_vec()), 0..6_u32, 0..=MAX_ATTEMPTS, lease, times, prop::option::of(0..6_u32), 0..50_u64, notice)
        .prop_map(|(state, fence, attempt, lease, (not_before, deadline, cancel), finished_by, version, (has_url, notice))| {
            let mut job = watched(has_url);
            job.notice = notice.filter(|_| has_url && state.is_final()).map(|attempts| Notice { attempts, due: at(0) });
            job.state = state;
            job.fence = Fence(fence);
            job.attempt = attempt;
            job.lease = lease.map(|(claim, until)| Lease { claim: claim_id(claim), worker: "w".to_owned(), until: at(until) });
            job.not_before = at(not_before);
            job.deadline = deadline.map(at);
            job.cancel_at = cancel.map(at);
            job.finished_by = finished_by.map(claim_id);
            job.version = version;
            if !state.is_running() {
                job.lease = None;
            }
            job
        })
}

/// A queued job, whose owner asked to be told of its end or did not.
fn watched(has_url: bool) -> JobRecord {
    let mut job = queued(1, 0);
    job.request.notify_url = has_url.then(|| "https://hooks.example/done".to_owned());
    job
}

fn verb_of(step: &Step, who: Who, job: &JobRecord, now: i64) -> Verb {
    let holder = job.lease.as_ref().map(|lease| lease.claim).or(job.finished_by).unwrap_or(claim_id(0));
    let (claim, fence) = match who {
        Who::Holder => (holder, job.fence),
        Who::OldFence => (holder, Fence(job.fence.0.wrapping_sub(1))),
        Who::OtherClaim => (claim_id(99), job.fence),
    };
    match step.clone() {
        Step::Claim { number, has_room } => {
            Verb::Claim { claim: claim_id(number), worker: "w".to_owned(), until: at(now + 60), has_room }
        }
        Step::Beat => Verb::Beat { claim, fence, until: at(now + 60) },
        Step::Checkpoint(number) => Verb::Checkpoint { claim, fence, checkpoint: checkpoint(fence, number) },
        Step::Advance(to) => {
            Verb::Advance { claim, fence, to, facts: Facts { base_sha: Some("b".to_owned()), ..Facts::default() } }
        }
        Step::Next => {
            let next = State::ALL[(State::ALL.iter().position(|state| *state == job.state).unwrap() + 1).min(5)];
            Verb::Advance { claim, fence, to: next, facts: Facts::default() }
        }
        Step::Reap(evidence, wait) => Verb::Reap { fence, evidence, not_before: at(now + wait), note: "gone".to_owned() },
        Step::Release(wait) => Verb::Release { claim, fence, not_before: at(now + wait), note: "full".to_owned() },
        Step::Unclaim(wait) => Verb::Unclaim { claim, fence, not_before: at(now + wait), note: "no room".to_owned() },
        Step::HandOut(name, to) => Verb::HandOut { claim, fence, name: name.to_owned(), to: to.to_owned() },
        Step::End(reason, evidence) => Verb::End { fence, reason, evidence, log_end: CURSOR },
        Step::Finish(class) => {
            let artifact =
                |name: &str| Artifact { name: name.to_owned(), key: format!("k/{name}"), bytes: 1, sha256: "s".to_owned() };
            let artifacts = vec![artifact("diff"), artifact("log")];
            let finish = Finish { outcome: Outcome::new(class, "ended"), facts: Facts::default(), artifacts, log_end: CURSOR };
            Verb::Finish { claim, fence, finish: Box::new(finish) }
        }
        Step::Cancel => Verb::Cancel,
        Step::Notified(wait) => {
            let tried = job.notice.as_ref().map_or(0, |notice| notice.attempts);
            let attempts = match who {
                Who::Holder => tried,
                Who::OldFence => tried.wrapping_sub(1),
                Who::OtherClaim => tried + 1,
            };
            Verb::Notified { attempts, next: wait.map(|wait| at(now + wait)), note: "503".to_owned() }
        }
    }
}

fn checkpoint(fence: Fence, number: u32) -> Checkpoint {
    Checkpoint { fence, attempt: 1, number, at: at(0), bytes: 1, sha256: "s".to_owned() }
}

/// The claim and fence that a verb needs to hold the lease with.
fn credentials(verb: &Verb) -> Option<(ClaimId, Fence)> {
    match verb {
        Verb::Beat { claim, fence, .. }
        | Verb::Advance { claim, fence, .. }
        | Verb::Checkpoint { claim, fence, .. }
        | Verb::HandOut { claim, fence, .. }
        | Verb::Release { claim, fence, .. }
        | Verb::Unclaim { claim, fence, .. }
        | Verb::Finish { claim, fence, .. } => Some((*claim, *fence)),
        _ => None,
    }
}

fn check(before: &JobRecord, verb: &Verb, now: Timestamp, answer: &Result<Change, Refusal>) {
    let holds = |(claim, fence): (ClaimId, Fence)| {
        !before.state.is_final() && before.fence == fence && before.lease.as_ref().is_some_and(|lease| lease.claim == claim)
    };
    if let Verb::Notified { attempts, .. } = verb {
        let is_next = before.notice.as_ref().is_some_and(|notice| notice.attempts == *attempts);
        assert_eq!(answer.is_ok(), is_next, "of two notifiers only one counts");
    }
    let Ok(change) = answer else { return };
    let after = &change.job;
    if let Verb::Notified { attempts, next, .. } = verb {
        let told = JobRecord {
            notice: next.map(|due| Notice { attempts: attempts + 1, due }),
            version: before.version + 1,
            updated_at: now,
            ..before.clone()
        };
        assert_eq!(*after, told, "nothing else of an ended job changes");
        assert!(before.state.is_final() && !change.refund);
        let event = change.event.as_ref().expect("it is told");
        assert_eq!((event.verb.as_str(), event.version, event.state), ("notify", after.version, before.state));
        return;
    }
    if let Some((claim, fence)) = credentials(verb)
        && !holds((claim, fence))
    {
        let repeated = matches!(verb, Verb::Finish { .. }) && before.finished_by == Some(claim) && before.fence == fence;
        assert!(repeated && before.state.is_final(), "accepted from somebody who does not hold the lease");
        assert_eq!(after, before);
    }
    if let Verb::Reap { fence, .. } | Verb::End { fence, .. } = verb {
        assert_eq!(*fence, before.fence, "judged by an old view");
    }
    if after == before {
        assert!(change.event.is_none() && !change.refund, "nothing changed, so nothing is told or given back");
        return;
    }
    assert!(!before.state.is_final(), "a final state is final");
    assert_eq!(after.version, before.version + 1);
    assert!(after.fence == before.fence || after.fence == before.fence.next(), "the fence never falls and never jumps");
    check_fixed(before, after, verb);
    check_lease(before, after, verb, now);
    if after.state.is_final() {
        check_end(before, change, verb, now);
    } else {
        assert!(!change.refund, "what goes on is not given back");
    }
    if let Some(event) = &change.event {
        assert_eq!((event.version, event.state, event.fence, event.at), (after.version, after.state, after.fence, now));
        assert_eq!(event.verb, verb.name());
    } else {
        let is_quiet = matches!(verb, Verb::Beat { .. } | Verb::Checkpoint { .. } | Verb::HandOut { .. });
        assert!(is_quiet, "only these are not worth telling");
    }
}

/// What no verb may change, and what only one may.
fn check_fixed(before: &JobRecord, after: &JobRecord, verb: &Verb) {
    assert_eq!(
        (after.id, after.owner, &after.request, &after.spec_key),
        (before.id, before.owner, &before.request, &before.spec_key)
    );
    assert_eq!((after.created_at, &after.quota_month), (before.created_at, &before.quota_month));
    assert_eq!(after.retention_seconds, before.retention_seconds);
    let claimed = matches!(verb, Verb::Claim { .. });
    let unclaimed = matches!(verb, Verb::Unclaim { .. });
    if unclaimed && after.attempt == 0 {
        assert_eq!((after.started_at, after.deadline), (None, None), "its time has not begun to run");
    } else {
        if before.deadline.is_some() || !claimed {
            assert_eq!(after.deadline, before.deadline, "the deadline never moves");
        }
        if before.started_at.is_some() || !claimed {
            assert_eq!(after.started_at, before.started_at);
        }
    }
    if before.cancel_at.is_some() || !matches!(verb, Verb::Cancel) {
        assert_eq!(after.cancel_at, before.cancel_at);
    }
    assert_eq!(after.attempt, (before.attempt + u32::from(claimed)).saturating_sub(u32::from(unclaimed)));
    check_handed_out(before, after, verb);
    assert_eq!(before.notice, None, "there is nothing to tell before the end");
    if let Verb::Checkpoint { checkpoint, .. } = verb {
        let place = |checkpoint: &Checkpoint| (checkpoint.fence, checkpoint.number);
        assert!(before.checkpoint.as_ref().is_none_or(|old| place(old) < place(checkpoint)), "the newest one stays");
        assert_eq!(*after, JobRecord { checkpoint: Some(checkpoint.clone()), version: after.version, ..before.clone() });
    } else {
        assert_eq!(after.checkpoint, before.checkpoint, "another attempt goes on from it");
    }
}

fn check_handed_out(before: &JobRecord, after: &JobRecord, verb: &Verb) {
    if let Verb::HandOut { name, to, .. } = verb {
        assert!(!before.handed_out.contains_key(name), "once in an attempt");
        assert_eq!(after.handed_out[name].to, *to);
        let handed_out = after.handed_out.clone();
        assert_eq!(*after, JobRecord { handed_out, version: after.version, ..before.clone() });
    } else if after.lease.is_none() {
        assert!(after.handed_out.is_empty(), "another attempt asks anew");
    } else {
        assert_eq!(after.handed_out, before.handed_out);
    }
}

fn check_lease(before: &JobRecord, after: &JobRecord, verb: &Verb, now: Timestamp) {
    let holder = |job: &JobRecord| job.lease.as_ref().map(|lease| lease.claim);
    match verb {
        Verb::Claim { until, .. } => {
            assert_eq!((before.state, after.state), (State::Queued, State::Preparing));
            assert!(before.cancel_at.is_none() && before.not_before <= now && after.attempt <= MAX_ATTEMPTS);
            assert!(after.fence > before.fence, "every lease has a fence of its own");
            assert!(after.deadline.is_some_and(|deadline| now < deadline));
            assert_eq!(after.lease.as_ref().unwrap().until, *until);
        }
        Verb::Beat { .. } => {
            assert_eq!((holder(after), after.state), (holder(before), before.state));
            assert!(after.lease.as_ref().unwrap().until >= before.lease.as_ref().unwrap().until);
        }
        Verb::Reap { evidence, .. } => {
            let lapsed = before.lease.as_ref().is_some_and(|lease| lease.until + CLOCK_SKEW < now);
            assert!(lapsed || (*evidence == Evidence::Gone && before.lease.is_some()), "taken from somebody who holds it");
        }
        _ => {}
    }
    if let Verb::Unclaim { .. } = verb {
        assert_eq!((before.state, after.state, &after.lease), (State::Preparing, State::Queued, &None));
        assert!(after.fence > before.fence && before.cancel_at.is_none());
    }
    if let Verb::Reap { .. } | Verb::Release { .. } = verb {
        assert_eq!((after.state, &after.lease), (State::Queued, &None));
        assert!(after.fence > before.fence, "so that the old holder is refused at once");
        assert!(before.cancel_at.is_none() && before.attempt < MAX_ATTEMPTS);
        assert!(before.deadline.is_none_or(|deadline| now < deadline));
    }
}

fn check_end(before: &JobRecord, change: &Change, verb: &Verb, now: Timestamp) {
    let after = &change.job;
    let outcome = after.outcome.as_ref().expect("an end has an outcome");
    assert_eq!(outcome.class.state(), after.state);
    assert_eq!((&after.lease, after.completed_at), (&None, Some(now)));
    assert!(after.log_end.is_some() && after.expires_at.is_some_and(|expires| expires > now));
    let asked = before.request.notify_url.is_some();
    assert_eq!(after.notice, asked.then_some(Notice { attempts: 0, due: now }), "who asked is told, once it has ended");
    let passed = before.deadline.is_some_and(|deadline| now >= deadline);
    match verb {
        Verb::Finish { claim, .. } => assert_eq!(after.finished_by, Some(*claim)),
        Verb::Cancel => assert_eq!(before.state, State::Queued, "a running job ends when its holder says so"),
        Verb::End { reason, evidence, .. } => {
            let free = before.lease.as_ref().is_none_or(|lease| *evidence == Evidence::Gone || lease.until + CLOCK_SKEW < now);
            match reason {
                EndReason::Cancelled => assert!(before.cancel_at.is_some() && free),
                EndReason::Deadline => assert!(passed),
                EndReason::AttemptsExhausted => assert!(before.attempt >= MAX_ATTEMPTS && free),
                EndReason::Unclaimed => assert!(before.attempt == 0 && now.duration_since(before.created_at) >= UNCLAIMED_LIMIT),
            }
        }
        other => panic!("{other:?} ended a job"),
    }
    if after.state == State::Succeeded {
        assert!(
            matches!(verb, Verb::Finish { .. }) && before.state == State::Publishing && !passed && before.cancel_at.is_none()
        );
        assert!(before.lease.is_some());
    } else {
        assert!(after.artifacts.iter().all(|artifact| artifact.name != "diff"), "no partial result");
    }
    if after.state == State::Timeout {
        assert!(after.artifacts.is_empty());
    }
    let cancelled_in_queue = after.state == State::Cancelled && before.state == State::Queued;
    assert_eq!(change.refund, outcome.class.is_infrastructure() || cancelled_in_queue);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_change_of_a_life_keeps_the_rules(
        has_url in any::<bool>(), steps in prop::collection::vec((a_step(), who(), a_while()), 1..60),
    ) {
        let (mut job, mut now) = (watched(has_url), 0);
        for (step, who, wait) in steps {
            now += wait;
            let verb = verb_of(&step, who, &job, now);
            let answer = apply(&job, &verb, at(now));
            check(&job, &verb, at(now), &answer);
            if let Ok(change) = answer {
                job = change.job;
            }
            assert_eq!(job.state.is_running(), job.lease.is_some(), "who runs has a lease, and nobody else");
        }
    }

    #[test]
    fn every_change_of_any_record_keeps_the_rules(
        job in any_record(), step in a_step(), who in who(), now in a_moment(),
    ) {
        let verb = verb_of(&step, who, &job, now);
        check(&job, &verb, at(now), &apply(&job, &verb, at(now)));
    }

    #[test]
    fn a_stale_fence_or_claim_is_refused(job in any_record(), step in a_step(), old in any::<bool>(), now in a_moment()) {
        let job = JobRecord { fence: job.fence.next(), ..job };
        let verb = verb_of(&step, if old { Who::OldFence } else { Who::OtherClaim }, &job, now);
        if credentials(&verb).is_some() {
            let refusal = apply(&job, &verb, at(now)).unwrap_err();
            prop_assert_eq!(refusal, if job.state.is_final() { Refusal::Ended } else { Refusal::LostLease });
        }
    }

    #[test]
    fn an_answer_that_was_lost_is_given_again(job in any_record(), step in a_step(), now in a_moment()) {
        let verb = verb_of(&step, Who::Holder, &job, now);
        // A repeated beat is one more beat, and a repeated reap, release, end or note of a delivery is refused.
        if matches!(verb, Verb::Claim { .. } | Verb::Advance { .. } | Verb::Checkpoint { .. } | Verb::HandOut { .. } | Verb::Finish { .. })
            && let Ok(first) = apply(&job, &verb, at(now)) {
            let again = apply(&first.job, &verb, at(now + 1)).unwrap();
            prop_assert_eq!(&again.job, &first.job);
            prop_assert!(!again.refund && again.event.is_none());
        }
    }
}

#[test]
fn every_state_is_reached() {
    let mut seen: BTreeSet<State> = BTreeSet::new();
    let mut open = vec![queued(1, 0)];
    for _ in 0..6 {
        let mut next: Vec<JobRecord> = Vec::new();
        for job in &open {
            seen.insert(job.state);
            let mut steps =
                vec![Step::Claim { number: 1, has_room: true }, Step::Cancel, Step::End(EndReason::Deadline, Evidence::Gone)];
            steps.extend(State::ALL.map(Step::Advance));
            steps.extend([OutcomeClass::Success, OutcomeClass::Agent].map(Step::Finish));
            for now in [10, i64::from(TIMEOUT_SECONDS) + 20] {
                let changed = steps.iter().filter_map(|step| apply(job, &verb_of(step, Who::Holder, job, now), at(now)).ok());
                next.extend(changed.map(|change| change.job));
            }
        }
        next.sort_by_key(|job| (job.state, job.cancel_at));
        next.dedup_by_key(|job| (job.state, job.cancel_at));
        open = next;
    }
    seen.extend(open.iter().map(|job| job.state));
    assert_eq!(seen, State::ALL.into_iter().collect());
}
