//! The queue's verbs.

use std::collections::BTreeMap;

use ckrv_core::id::Fence;
use ckrv_core::job::{Checkpoint, Facts, JobRecord, OutcomeClass, State};
use ckrv_core::log::Cursor;
use ckrv_core::machine::{EndReason, Evidence, Refusal, Verb};
use tokio::task::JoinSet;

use super::{
    MONTH, advance_to_publishing, at, bytes_of, claim, claiming, entries, finishing, make, new_claim, new_user, record, refusal,
};
use crate::Stores;
use crate::error::{AppendError, VerbError};

fn release(claim: ckrv_core::id::ClaimId, fence: Fence, not_before: i64) -> Verb {
    Verb::Release { claim, fence, not_before: at(not_before), note: "node lost".to_owned() }
}

fn reap(fence: Fence, evidence: Evidence) -> Verb {
    Verb::Reap { fence, evidence, not_before: at(0), note: "worker vanished".to_owned() }
}

fn end(fence: Fence, reason: EndReason) -> Verb {
    Verb::End { fence, reason, evidence: Evidence::Lapsed, log_end: Cursor::default() }
}

async fn used(stores: &Stores, job: &JobRecord) -> u32 {
    stores.accounts.quota_used(job.owner, MONTH).await.unwrap()
}

pub async fn each_of_200_jobs_is_claimed_once_by_24_claimers(stores: &Stores) {
    let owner = new_user();
    for second in 0..200 {
        make(stores, owner, second / 50).await;
    }
    let mut claimers = JoinSet::new();
    for _ in 0..24 {
        let jobs = stores.jobs.clone();
        claimers.spawn(async move {
            let mut won = Vec::new();
            loop {
                let due = jobs.due(at(10), 16).await.unwrap();
                if due.is_empty() {
                    return won;
                }
                for job in due {
                    match jobs.apply(job.id, &claiming(new_claim(), 10), at(10)).await {
                        Ok(job) => won.push(job.id),
                        Err(VerbError::Refused { refusal: Refusal::NotQueued, job: found }) => assert!(found.lease.is_some()),
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        });
    }
    let mut wins = BTreeMap::new();
    for id in claimers.join_all().await.into_iter().flatten() {
        *wins.entry(id).or_insert(0) += 1;
    }
    assert_eq!(wins.len(), 200);
    assert!(wins.values().all(|count| *count == 1), "{wins:?}");
    for job in stores.jobs.running().await.unwrap() {
        assert_eq!((job.fence, job.attempt, job.version), (Fence(1), 1, 1));
    }
    assert_eq!(stores.jobs.running_of(owner).await.unwrap(), 200);
}

pub async fn a_claim_whose_answer_was_lost_is_told_again(stores: &Stores) {
    let job = make(stores, new_user(), 0).await;
    let id = new_claim();
    let first = stores.jobs.apply(job.id, &claiming(id, 1), at(1)).await.unwrap();
    let again = stores.jobs.apply(job.id, &claiming(id, 2), at(2)).await.unwrap();
    assert_eq!(first, again);
    assert_eq!(stores.jobs.events(job.id).await.unwrap().len(), 2, "create and claim");
    assert_eq!(refusal(stores.jobs.apply(job.id, &claiming(new_claim(), 2), at(2)).await), Refusal::NotQueued);
}

pub async fn a_stale_holder_is_refused_and_changes_nothing(stores: &Stores) {
    let job = make(stores, new_user(), 0).await;
    let (old, old_claim) = claim(stores, &job, 1).await;
    stores.jobs.append_log(job.id, old_claim, old.fence, &entries(old.fence, 1..=2)).await.unwrap();
    stores.jobs.apply(job.id, &reap(old.fence, Evidence::Gone), at(2)).await.unwrap();
    let (new, new_claim_id) = claim(stores, &job, 3).await;
    assert!(new.fence > old.fence);

    let before = bytes_of(&*stores.jobs, job.id).await;
    // Each in three shapes: the old pair, the old claim with the new fence, the new claim with the old fence.
    for (who, fence) in [(old_claim, old.fence), (old_claim, new.fence), (new_claim_id, old.fence), (new_claim(), new.fence)] {
        let verbs = [
            Verb::Beat { claim: who, fence, until: at(999) },
            Verb::Advance { claim: who, fence, to: State::Planning, facts: Facts::default() },
            release(who, fence, 9),
            finishing(who, fence, OutcomeClass::Agent, Cursor::default()),
            finishing(who, fence, OutcomeClass::Success, Cursor::default()),
        ];
        for verb in verbs {
            assert_eq!(refusal(stores.jobs.apply(job.id, &verb, at(4)).await), Refusal::LostLease, "{verb:?}");
            assert_eq!(bytes_of(&*stores.jobs, job.id).await, before, "{verb:?}");
        }
        let appended = stores.jobs.append_log(job.id, who, fence, &entries(fence, 3..=3)).await;
        assert!(matches!(appended, Err(AppendError::Closed)), "{appended:?}");
    }
    for verb in [reap(old.fence, Evidence::Gone), end(old.fence, EndReason::Deadline)] {
        assert_eq!(refusal(stores.jobs.apply(job.id, &verb, at(4)).await), Refusal::LostLease, "{verb:?}");
    }
    assert_eq!(bytes_of(&*stores.jobs, job.id).await, before);
    assert_eq!(stores.jobs.read_log(job.id, Cursor::default(), 10).await.unwrap().len(), 2);
    assert_eq!(stores.jobs.events(job.id).await.unwrap().len(), 4, "create, claim, reap, claim");
}

pub async fn a_job_goes_through_every_phase_to_success(stores: &Stores) {
    let job = make(stores, new_user(), 0).await;
    let (job, claim_id) = claim(stores, &job, 5).await;
    assert_eq!((job.state, job.started_at, job.deadline), (State::Preparing, Some(at(5)), Some(at(1805))));
    let job = advance_to_publishing(stores, &job, claim_id, 6).await;
    let Verb::Finish { claim: by, fence, mut finish } = finishing(claim_id, job.fence, OutcomeClass::Success, Cursor::default())
    else {
        unreachable!()
    };
    finish.artifacts.push(ckrv_core::job::Artifact {
        name: "diff".to_owned(),
        key: format!("jobs/{}/1/diff", job.id),
        bytes: 3,
        sha256: "c".repeat(64),
    });
    finish.facts.feature_branch = Some("ckrv/fix-cart-1".to_owned());
    let ended = stores.jobs.apply(job.id, &Verb::Finish { claim: by, fence, finish: finish.clone() }, at(9)).await.unwrap();
    assert_eq!((ended.state, ended.completed_at, ended.lease.clone()), (State::Succeeded, Some(at(9)), None));
    assert_eq!((&ended.artifacts, &ended.facts), (&finish.artifacts, &finish.facts));
    assert_eq!(stores.jobs.job(job.id).await.unwrap(), Some(ended.clone()));
    assert_eq!(used(stores, &ended).await, 1);
}

pub async fn a_repeated_finish_is_told_the_first_answer(stores: &Stores) {
    let job = make(stores, new_user(), 0).await;
    let (job, claim_id) = claim(stores, &job, 1).await;
    let verb = finishing(claim_id, job.fence, OutcomeClass::Infrastructure, Cursor::default());
    let first = stores.jobs.apply(job.id, &verb, at(2)).await.unwrap();
    let again = stores.jobs.apply(job.id, &verb, at(3)).await.unwrap();
    assert_eq!(first, again);
    assert_eq!(used(stores, &first).await, 0, "given back once");
    let other = finishing(new_claim(), job.fence, OutcomeClass::Agent, Cursor::default());
    assert_eq!(refusal(stores.jobs.apply(job.id, &other, at(3)).await), Refusal::Ended);
}

pub async fn a_refused_verb_is_stored_nowhere(stores: &Stores) {
    let job = make(stores, new_user(), 0).await;
    let (job, claim_id) = claim(stores, &job, 1).await;
    let before = bytes_of(&*stores.jobs, job.id).await;
    let verbs = [
        (Verb::Advance { claim: claim_id, fence: job.fence, to: State::Publishing, facts: Facts::default() }, 2),
        (Verb::Advance { claim: claim_id, fence: job.fence, to: State::Succeeded, facts: Facts::default() }, 2),
        (finishing(claim_id, job.fence, OutcomeClass::Success, Cursor::default()), 2),
        (reap(job.fence, Evidence::Lapsed), 2),
        (end(job.fence, EndReason::Cancelled), 200),
        (end(job.fence, EndReason::Deadline), 200),
        (end(job.fence, EndReason::AttemptsExhausted), 200),
        (end(job.fence, EndReason::Unclaimed), 200),
        (claiming(new_claim(), 2), 2),
    ];
    for (verb, now) in verbs {
        match stores.jobs.apply(job.id, &verb, at(now)).await {
            Err(VerbError::Refused { job: found, .. }) => assert_eq!(*found, job, "the record as it was found"),
            other => panic!("{verb:?}: {other:?}"),
        }
        assert_eq!(bytes_of(&*stores.jobs, job.id).await, before, "{verb:?}");
    }
    assert_eq!(stores.jobs.events(job.id).await.unwrap().len(), 2);
    assert_eq!(used(stores, &job).await, 1);
}

pub async fn an_unknown_job_is_not_found(stores: &Stores) {
    let unknown = record(new_user(), 0).id;
    assert!(matches!(stores.jobs.apply(unknown, &Verb::Cancel, at(0)).await, Err(VerbError::NotFound)));
    let appended = stores.jobs.append_log(unknown, new_claim(), Fence(0), &entries(Fence(0), 1..=1)).await;
    assert!(matches!(appended, Err(AppendError::Closed)));
}

pub async fn a_released_job_waits_and_is_claimed_with_a_higher_fence(stores: &Stores) {
    let job = make(stores, new_user(), 0).await;
    let (first, claim_id) = claim(stores, &job, 1).await;
    let waiting = stores.jobs.apply(job.id, &release(claim_id, first.fence, 30), at(2)).await.unwrap();
    assert_eq!((waiting.state, waiting.lease.clone(), waiting.last_fault.as_deref()), (State::Queued, None, Some("node lost")));
    assert!(stores.jobs.due(at(29), 9).await.unwrap().is_empty());
    assert_eq!(refusal(stores.jobs.apply(job.id, &claiming(new_claim(), 29), at(29)).await), Refusal::NotDue);
    let (second, _) = claim(stores, &job, 30).await;
    assert!(second.fence > waiting.fence && waiting.fence > first.fence);
    assert_eq!((second.attempt, second.deadline), (2, first.deadline), "the deadline never moves");
}

pub async fn a_lapsed_lease_is_reaped_and_not_before(stores: &Stores) {
    let job = make(stores, new_user(), 0).await;
    let (job, claim_id) = claim(stores, &job, 0).await;
    assert_eq!(refusal(stores.jobs.apply(job.id, &reap(job.fence, Evidence::Lapsed), at(65)).await), Refusal::LeaseHeld);
    let beat = Verb::Beat { claim: claim_id, fence: job.fence, until: at(90) };
    stores.jobs.apply(job.id, &beat, at(65)).await.unwrap();
    assert_eq!(refusal(stores.jobs.apply(job.id, &reap(job.fence, Evidence::Lapsed), at(66)).await), Refusal::LeaseHeld);
    let reaped = stores.jobs.apply(job.id, &reap(job.fence, Evidence::Lapsed), at(96)).await.unwrap();
    assert_eq!(reaped.state, State::Queued);
    assert_eq!(used(stores, &reaped).await, 1, "it will be tried again");
}

pub async fn infrastructure_faults_give_the_quota_back(stores: &Stores) {
    let mut job = make(stores, new_user(), 0).await;
    for attempt in 1..=4 {
        job = claim(stores, &job, attempt * 100).await.0;
        if attempt < 4 {
            job = stores.jobs.apply(job.id, &reap(job.fence, Evidence::Gone), at(attempt * 100 + 1)).await.unwrap();
        }
    }
    assert_eq!(refusal(stores.jobs.apply(job.id, &reap(job.fence, Evidence::Gone), at(470)).await), Refusal::NoAttemptsLeft);
    let ended = stores.jobs.apply(job.id, &end(job.fence, EndReason::AttemptsExhausted), at(470)).await.unwrap();
    assert_eq!((ended.state, ended.outcome.as_ref().unwrap().class), (State::Failed, OutcomeClass::Infrastructure));
    assert_eq!(used(stores, &ended).await, 0);
}

pub async fn a_job_cancelled_while_queued_gives_the_quota_back(stores: &Stores) {
    let job = make(stores, new_user(), 0).await;
    let ended = stores.jobs.apply(job.id, &Verb::Cancel, at(1)).await.unwrap();
    assert_eq!((ended.state, used(stores, &job).await), (State::Cancelled, 0));
    assert_eq!(refusal(stores.jobs.apply(job.id, &Verb::Cancel, at(2)).await), Refusal::Ended);
    assert_eq!(used(stores, &job).await, 0);
}

pub async fn a_running_job_that_is_cancelled_is_told_and_keeps_its_count(stores: &Stores) {
    let job = make(stores, new_user(), 0).await;
    let (job, claim_id) = claim(stores, &job, 1).await;
    let told = stores.jobs.apply(job.id, &Verb::Cancel, at(2)).await.unwrap();
    assert_eq!((told.state, told.cancel_at), (State::Preparing, Some(at(2))));
    let again = stores.jobs.apply(job.id, &Verb::Cancel, at(3)).await.unwrap();
    assert_eq!(again, told, "once is enough");
    let beat = Verb::Beat { claim: claim_id, fence: job.fence, until: at(70) };
    assert_eq!(stores.jobs.apply(job.id, &beat, at(4)).await.unwrap().cancel_at, Some(at(2)), "the beat's answer carries it");
    assert_eq!(refusal(stores.jobs.apply(job.id, &release(claim_id, job.fence, 9), at(5)).await), Refusal::CancelRequested);
    let ended = stores
        .jobs
        .apply(job.id, &finishing(claim_id, job.fence, OutcomeClass::Cancelled, Cursor::default()), at(6))
        .await
        .unwrap();
    assert_eq!((ended.state, used(stores, &job).await), (State::Cancelled, 1));
}

pub async fn a_deadline_ends_a_job_under_a_lease(stores: &Stores) {
    let job = make(stores, new_user(), 0).await;
    let (job, claim_id) = claim(stores, &job, 0).await;
    let job = advance_to_publishing(stores, &job, claim_id, 1).await;
    let beat = Verb::Beat { claim: claim_id, fence: job.fence, until: at(5000) };
    stores.jobs.apply(job.id, &beat, at(1)).await.unwrap();
    let late = finishing(claim_id, job.fence, OutcomeClass::Success, Cursor::default());
    assert_eq!(refusal(stores.jobs.apply(job.id, &late, at(1800)).await), Refusal::DeadlinePassed);
    let ended = stores.jobs.apply(job.id, &end(job.fence, EndReason::Deadline), at(1800)).await.unwrap();
    assert_eq!((ended.state, ended.artifacts.len(), used(stores, &job).await), (State::Timeout, 0, 1));
    assert_eq!(refusal(stores.jobs.apply(job.id, &late, at(1801)).await), Refusal::Ended);
}

pub async fn a_job_that_nobody_claims_ends_after_a_day(stores: &Stores) {
    let job = make(stores, new_user(), 0).await;
    let verb = end(job.fence, EndReason::Unclaimed);
    assert_eq!(refusal(stores.jobs.apply(job.id, &verb, at(24 * 3600 - 1)).await), Refusal::ReasonDoesNotHold);
    let ended = stores.jobs.apply(job.id, &verb, at(24 * 3600)).await.unwrap();
    assert_eq!((ended.outcome.unwrap().class, used(stores, &job).await), (OutcomeClass::NoWorker, 0));
}

pub async fn a_refund_never_goes_below_zero(stores: &Stores) {
    let job = make(stores, new_user(), 0).await;
    let other = make(stores, job.owner, 0).await;
    for id in [job.id, other.id, job.id, other.id] {
        let _ = stores.jobs.apply(id, &Verb::Cancel, at(1)).await;
    }
    assert_eq!(used(stores, &job).await, 0);
}

pub async fn one_of_many_ends_wins(stores: &Stores) {
    let job = make(stores, new_user(), 0).await;
    let (job, claim_id) = claim(stores, &job, 0).await;
    stores.jobs.apply(job.id, &Verb::Cancel, at(1)).await.unwrap();
    let mut contenders = JoinSet::new();
    for index in 0..24 {
        let (jobs, id, fence) = (stores.jobs.clone(), job.id, job.fence);
        let verb = match index % 3 {
            0 => finishing(claim_id, fence, OutcomeClass::Infrastructure, Cursor::default()),
            1 => end(fence, EndReason::Deadline),
            _ => end(fence, EndReason::Cancelled),
        };
        contenders.spawn(async move { jobs.apply(id, &verb, at(1900)).await });
    }
    let winners: Vec<JobRecord> = contenders.join_all().await.into_iter().filter_map(Result::ok).collect();
    let stored = stores.jobs.job(job.id).await.unwrap().unwrap();
    assert!(
        !winners.is_empty() && winners.iter().all(|winner| *winner == stored),
        "all who were told `done` were told the same end"
    );
    let refunded = stored.outcome.as_ref().unwrap().class == OutcomeClass::Infrastructure;
    assert_eq!(used(stores, &job).await, u32::from(!refunded));
    assert_eq!(stores.jobs.events(job.id).await.unwrap().len(), 4, "create, claim, cancel, one end");
}

pub async fn every_step_is_an_event(stores: &Stores) {
    let job = make(stores, new_user(), 0).await;
    let (job, claim_id) = claim(stores, &job, 1).await;
    stores.jobs.apply(job.id, &Verb::Beat { claim: claim_id, fence: job.fence, until: at(99) }, at(2)).await.unwrap();
    stores.jobs.apply(job.id, &finishing(claim_id, job.fence, OutcomeClass::Agent, Cursor::default()), at(3)).await.unwrap();
    let events = stores.jobs.events(job.id).await.unwrap();
    let told: Vec<_> = events.iter().map(|event| (event.verb.as_str(), event.state, event.at)).collect();
    let expected = [("create", State::Queued, at(0)), ("claim", State::Preparing, at(1)), ("finish", State::Failed, at(3))];
    assert_eq!(told, expected, "a beat is not worth telling");
    assert!(events.is_sorted_by(|one, next| one.version < next.version));
}

pub async fn the_newest_checkpoint_of_a_holder_is_kept_for_the_next_attempt(stores: &Stores) {
    let job = make(stores, new_user(), 0).await;
    let (job, first) = claim(stores, &job, 1).await;
    let of = |fence, number| Checkpoint { fence, attempt: fence.0, number, at: at(2), bytes: 10, sha256: "5".repeat(64) };
    let naming = |claim, fence, number| Verb::Checkpoint { claim, fence, checkpoint: of(fence, number) };
    let old = job.fence;
    for number in [1, 2, 2, 1] {
        stores.jobs.apply(job.id, &naming(first, old, number), at(3)).await.unwrap();
    }
    stores.jobs.apply(job.id, &Verb::Beat { claim: first, fence: old, until: at(70) }, at(4)).await.unwrap();
    let kept = async || stores.jobs.job(job.id).await.unwrap().unwrap();
    assert_eq!(kept().await.checkpoint, Some(of(old, 2)), "also after a beat");
    let steps = stores.jobs.events(job.id).await.unwrap().len();
    assert_eq!(steps, 2, "create and claim: a checkpoint is no event");

    stores.jobs.apply(job.id, &reap(old, Evidence::Gone), at(5)).await.unwrap();
    assert_eq!(refusal(stores.jobs.apply(job.id, &naming(first, old, 3), at(6)).await), Refusal::LostLease);
    let (job, second) = claim(stores, &job, 7).await;
    assert_eq!(job.checkpoint, Some(of(old, 2)), "the next attempt goes on from it");
    let before = bytes_of(&*stores.jobs, job.id).await;
    assert_eq!(refusal(stores.jobs.apply(job.id, &naming(first, old, 3), at(8)).await), Refusal::LostLease);
    let foreign = Verb::Checkpoint { claim: second, fence: job.fence, checkpoint: of(old, 9) };
    assert_eq!(refusal(stores.jobs.apply(job.id, &foreign, at(8)).await), Refusal::LostLease);
    assert_eq!(bytes_of(&*stores.jobs, job.id).await, before, "what is refused changes nothing");
    stores.jobs.apply(job.id, &naming(second, job.fence, 1), at(9)).await.unwrap();
    assert_eq!(kept().await.checkpoint, Some(of(job.fence, 1)), "an attempt's first is newer than an older one's last");
}

pub async fn a_secret_is_handed_out_once_in_an_attempt(stores: &Stores) {
    let job = make(stores, new_user(), 0).await;
    let (job, claim_id) = claim(stores, &job, 1).await;
    let hand_out =
        |fence, name: &str, to: &str| Verb::HandOut { claim: claim_id, fence, name: name.to_owned(), to: to.to_owned() };
    let first = stores.jobs.apply(job.id, &hand_out(job.fence, "git", "a"), at(2)).await.unwrap();
    // As another process would find it.
    let stored = stores.jobs.job(job.id).await.unwrap().unwrap();
    assert_eq!((&stored, stored.handed_out["git"].to.as_str()), (&first, "a"));
    let again = stores.jobs.apply(job.id, &hand_out(job.fence, "git", "a"), at(62)).await.unwrap();
    assert_eq!(again, first, "the answer may have been lost");
    let late = stores.jobs.apply(job.id, &hand_out(job.fence, "git", "a"), at(63)).await;
    assert_eq!(refusal(late), Refusal::HandedOut);
    let other = stores.jobs.apply(job.id, &hand_out(job.fence, "git", "b"), at(3)).await;
    assert_eq!(refusal(other), Refusal::HandedOut, "another asker");
    stores.jobs.apply(job.id, &hand_out(job.fence, "key", "b"), at(3)).await.unwrap();
    assert_eq!(stores.jobs.events(job.id).await.unwrap().len(), 2, "it is no step of the job");
    let waiting = stores.jobs.apply(job.id, &release(claim_id, job.fence, 0), at(4)).await.unwrap();
    assert_eq!(refusal(stores.jobs.apply(job.id, &hand_out(job.fence, "git", "a"), at(5)).await), Refusal::LostLease);
    assert!(waiting.handed_out.is_empty());
    let (next, claim_id) = claim(stores, &job, 6).await;
    let verb = Verb::HandOut { claim: claim_id, fence: next.fence, name: "git".to_owned(), to: "b".to_owned() };
    stores.jobs.apply(job.id, &verb, at(7)).await.unwrap();
}

pub async fn one_of_many_askers_is_given_a_secret(stores: &Stores) {
    let job = make(stores, new_user(), 0).await;
    let (job, claim_id) = claim(stores, &job, 1).await;
    let mut askers = JoinSet::new();
    for asker in 0..16 {
        let (jobs, id, fence) = (stores.jobs.clone(), job.id, job.fence);
        let verb = Verb::HandOut { claim: claim_id, fence, name: "git".to_owned(), to: format!("{asker}") };
        askers.spawn(async move { jobs.apply(id, &verb, at(2)).await });
    }
    let (given, refused): (Vec<_>, Vec<_>) = askers.join_all().await.into_iter().partition(Result::is_ok);
    assert_eq!((given.len(), refused.len()), (1, 15));
    assert!(refused.into_iter().all(|answer| refusal(answer) == Refusal::HandedOut));
}

pub async fn a_claim_that_is_undone_is_no_attempt(stores: &Stores) {
    let job = make(stores, new_user(), 0).await;
    let undo = |claim, fence| Verb::Unclaim { claim, fence, not_before: at(30), note: "no room".to_owned() };
    // Far more often than a job has attempts.
    let mut fence = job.fence;
    for time in 1..=6 {
        let (claimed, claim_id) = claim(stores, &job, time * 100).await;
        assert_eq!(claimed.attempt, 1);
        let waiting = stores.jobs.apply(job.id, &undo(claim_id, claimed.fence), at(time * 100 + 1)).await.unwrap();
        assert_eq!((waiting.state, waiting.attempt, &waiting.lease), (State::Queued, 0, &None));
        assert_eq!((waiting.started_at, waiting.deadline), (None, None), "its time has not begun to run");
        assert!(waiting.fence > claimed.fence && claimed.fence > fence);
        fence = waiting.fence;
    }
    // Though its first claim was made more than its time limit ago.
    assert_eq!(stores.jobs.due(at(5000), 9).await.unwrap().len(), 1);
    let (begun, claim_id) = claim(stores, &job, 5000).await;
    let facts = Facts::default();
    let advance = Verb::Advance { claim: claim_id, fence: begun.fence, to: State::Planning, facts };
    stores.jobs.apply(job.id, &advance, at(5001)).await.unwrap();
    let late = stores.jobs.apply(job.id, &undo(claim_id, begun.fence), at(5002)).await;
    assert!(matches!(refusal(late), Refusal::BadTransition { .. }), "it has begun");
}
