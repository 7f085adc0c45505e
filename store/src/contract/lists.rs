//! Lists: an owner's jobs, the queue, what runs, what is stuck, what expired.

use std::collections::BTreeSet;

use ckrv_core::id::JobId;
use ckrv_core::job::State;
use ckrv_core::log::Cursor;
use ckrv_core::machine::Verb;

use super::{advance_to_publishing, at, claim, entries, make, new_job, new_user, record, succeed};
use crate::error::StoreError;
use crate::{JobFilter, Stores};

const DAY: i64 = 24 * 3600;

fn ids(jobs: &[ckrv_core::job::JobRecord]) -> Vec<JobId> {
    jobs.iter().map(|job| job.id).collect()
}

pub async fn pages_give_every_job_once_newest_first(stores: &Stores) {
    let owner = new_user();
    let mut made = Vec::new();
    for index in 0..25 {
        // Three jobs in each moment: the id decides between them.
        made.push(make(stores, owner, index / 3).await);
    }
    made.sort_by_key(|job| std::cmp::Reverse((job.created_at, job.id)));
    let (mut seen, mut cursor) = (Vec::new(), None);
    loop {
        let page = stores.jobs.jobs_of(owner, &JobFilter::default(), 7, cursor.as_deref()).await.unwrap();
        assert!(page.items.len() == 7 || page.next.is_none(), "a short page is the last");
        seen.extend(page.items);
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
        // A job that is made meanwhile is newer than every cursor.
        make(stores, owner, 1000).await;
    }
    assert_eq!(ids(&seen), ids(&made));
    let exact = stores.jobs.jobs_of(new_user(), &JobFilter::default(), 7, None).await.unwrap();
    assert_eq!((exact.items.len(), exact.next), (0, None));
}

pub async fn a_filter_by_state_holds_over_pages(stores: &Stores) {
    let owner = new_user();
    let mut done = BTreeSet::new();
    for second in 0..12 {
        let job = make(stores, owner, second).await;
        if second % 2 == 0 {
            done.insert(succeed(stores, &job, second, second + 1).await.id);
        }
    }
    let filter = JobFilter { states: vec![State::Succeeded, State::Failed] };
    let first = stores.jobs.jobs_of(owner, &filter, 4, None).await.unwrap();
    let second = stores.jobs.jobs_of(owner, &filter, 4, first.next.as_deref()).await.unwrap();
    assert_eq!((first.items.len(), second.items.len(), second.next), (4, 2, None));
    assert_eq!(first.items.iter().chain(&second.items).map(|job| job.id).collect::<BTreeSet<_>>(), done);
}

pub async fn a_made_up_cursor_is_refused(stores: &Stores) {
    for cursor in ["", "x", "12", "12_34", "' OR 1=1 --"] {
        let answer = stores.jobs.jobs_of(new_user(), &JobFilter::default(), 7, Some(cursor)).await;
        assert!(matches!(answer, Err(StoreError::BadCursor)), "{cursor}: {answer:?}");
    }
}

pub async fn lists_of_users_do_not_mix(stores: &Stores) {
    let (one, other) = (new_user(), new_user());
    let job = make(stores, one, 0).await;
    make(stores, other, 0).await;
    assert_eq!(ids(&stores.jobs.jobs_of(one, &JobFilter::default(), 10, None).await.unwrap().items), [job.id]);
    claim(stores, &job, 1).await;
    assert_eq!((stores.jobs.running_of(one).await.unwrap(), stores.jobs.running_of(other).await.unwrap()), (1, 0));
}

pub async fn due_gives_what_may_start_oldest_first(stores: &Stores) {
    let owner = new_user();
    let late = make(stores, owner, 20).await;
    let early = make(stores, owner, 10).await;
    let mut waiting = record(owner, 5);
    waiting.not_before = at(100);
    stores.jobs.create_job(new_job(waiting.clone()), at(5)).await.unwrap();
    let taken = make(stores, owner, 1).await;
    claim(stores, &taken, 20).await;
    let cancelled = make(stores, owner, 2).await;
    stores.jobs.apply(cancelled.id, &Verb::Cancel, at(20)).await.unwrap();
    assert_eq!(ids(&stores.jobs.due(at(20), 10).await.unwrap()), [early.id, late.id]);
    assert_eq!(ids(&stores.jobs.due(at(20), 1).await.unwrap()), [early.id]);
    assert_eq!(ids(&stores.jobs.due(at(100), 10).await.unwrap()), [waiting.id, early.id, late.id]);
}

pub async fn queue_position_counts_who_came_earlier(stores: &Stores) {
    let first = make(stores, new_user(), 0).await;
    let second = make(stores, new_user(), 1).await;
    let third = make(stores, new_user(), 2).await;
    assert_eq!(stores.jobs.queue_position(&third).await.unwrap(), 2);
    claim(stores, &first, 3).await;
    assert_eq!(stores.jobs.queue_position(&third).await.unwrap(), 1);
    assert_eq!(stores.jobs.queue_position(&second).await.unwrap(), 0);
}

pub async fn running_gives_jobs_under_a_lease(stores: &Stores) {
    let owner = new_user();
    make(stores, owner, 0).await;
    let job = make(stores, owner, 1).await;
    let (claimed, claim_id) = claim(stores, &job, 2).await;
    assert_eq!(stores.jobs.running().await.unwrap(), std::slice::from_ref(&claimed));
    let beat = Verb::Beat { claim: claim_id, fence: claimed.fence, until: at(500) };
    let beaten = stores.jobs.apply(job.id, &beat, at(10)).await.unwrap();
    assert_eq!(stores.jobs.running().await.unwrap(), [beaten], "with the lease as it stands");
    let job = advance_to_publishing(stores, &claimed, claim_id, 3).await;
    assert_eq!(stores.jobs.running_of(owner).await.unwrap(), 1);
    stores
        .jobs
        .apply(job.id, &super::finishing(claim_id, job.fence, super::OutcomeClass::Success, Cursor::default()), at(4))
        .await
        .unwrap();
    assert!(stores.jobs.running().await.unwrap().is_empty());
    assert_eq!(stores.jobs.running_of(owner).await.unwrap(), 0);
}

pub async fn stuck_gives_what_will_never_be_due(stores: &Stores) {
    let owner = new_user();
    let unclaimed = make(stores, owner, 0).await;
    let job = make(stores, owner, 1).await;
    let (claimed, claim_id) = claim(stores, &job, 2).await;
    let release = Verb::Release { claim: claim_id, fence: claimed.fence, not_before: at(3), note: "node lost".to_owned() };
    stores.jobs.apply(job.id, &release, at(3)).await.unwrap();
    assert!(stores.jobs.stuck(at(1801), 10).await.unwrap().is_empty());
    assert_eq!(ids(&stores.jobs.stuck(at(1802), 10).await.unwrap()), [job.id], "its deadline passed while it waited");
    assert!(!ids(&stores.jobs.due(at(1802), 10).await.unwrap()).contains(&job.id));
    assert_eq!(ids(&stores.jobs.stuck(at(DAY), 10).await.unwrap()), [unclaimed.id, job.id]);
}

pub async fn durations_are_of_successes_newest_first(stores: &Stores) {
    let owner = new_user();
    for (start, end) in [(0, 10), (100, 130), (200, 220)] {
        let job = make(stores, owner, start).await;
        succeed(stores, &job, start, end).await;
    }
    let failed = make(stores, owner, 300).await;
    let (failed, claim_id) = claim(stores, &failed, 300).await;
    let verb = super::finishing(claim_id, failed.fence, super::OutcomeClass::Agent, Cursor::default());
    stores.jobs.apply(failed.id, &verb, at(301)).await.unwrap();
    let other = make(stores, new_user(), 400).await;
    succeed(stores, &other, 400, 401).await;

    let repo = &failed.request.git_repo_url;
    assert_eq!(stores.jobs.durations(owner, repo, "claude", 2).await.unwrap(), [20.0, 30.0]);
    assert_eq!(stores.jobs.durations(owner, repo, "claude", 10).await.unwrap(), [20.0, 30.0, 10.0]);
    assert!(stores.jobs.durations(owner, repo, "gemini", 10).await.unwrap().is_empty());
    assert!(stores.jobs.durations(owner, "https://git.example/other", "claude", 10).await.unwrap().is_empty());
}

pub async fn an_expired_job_is_purged_once_and_can_still_be_named(stores: &Stores) {
    let owner = new_user();
    let job = make(stores, owner, 0).await;
    let (job, claim_id) = claim(stores, &job, 0).await;
    stores.jobs.append_log(job.id, claim_id, job.fence, &entries(job.fence, 1..=3)).await.unwrap();
    let verb = super::finishing(claim_id, job.fence, super::OutcomeClass::Agent, Cursor { fence: job.fence, seq: 3 });
    let ended = stores.jobs.apply(job.id, &verb, at(10)).await.unwrap();
    assert_eq!(ended.expires_at, Some(at(10 + 7 * DAY)));
    let queued = make(stores, owner, 1).await;

    assert!(stores.jobs.purge_expired(at(9 + 7 * DAY), 10).await.unwrap().is_empty());
    assert_eq!(stores.jobs.read_log(job.id, Cursor::default(), 10).await.unwrap().len(), 3);
    assert_eq!(stores.jobs.purge_expired(at(10 + 7 * DAY), 10).await.unwrap(), [job.id]);
    assert!(stores.jobs.read_log(job.id, Cursor::default(), 10).await.unwrap().is_empty());
    assert_eq!(ids(&stores.jobs.jobs_of(owner, &JobFilter::default(), 10, None).await.unwrap().items), [queued.id]);
    assert!(stores.jobs.purge_expired(at(10 + 7 * DAY), 10).await.unwrap().is_empty());
    let named = stores.jobs.job(job.id).await.unwrap().unwrap();
    assert!(named.is_expired(at(10 + 7 * DAY)), "so that its owner is told that it is gone, not that it never was");
}
