//! Logs.

use ckrv_core::id::{ClaimId, Fence};
use ckrv_core::job::{JobRecord, OutcomeClass};
use ckrv_core::log::{Cursor, LogEntry};
use ckrv_core::machine::{Evidence, Verb};
use tokio::task::JoinSet;

use super::{at, claim, entries, finishing, make, new_claim, new_user};
use crate::Stores;
use crate::error::AppendError;

async fn running(stores: &Stores) -> (JobRecord, ClaimId) {
    let job = make(stores, new_user(), 0).await;
    claim(stores, &job, 1).await
}

async fn reap(stores: &Stores, job: &JobRecord) {
    let verb = Verb::Reap { fence: job.fence, evidence: Evidence::Gone, not_before: at(0), note: "gone".to_owned() };
    stores.jobs.apply(job.id, &verb, at(2)).await.unwrap();
}

async fn all(stores: &Stores, job: &JobRecord) -> Vec<LogEntry> {
    stores.jobs.read_log(job.id, Cursor::default(), usize::MAX).await.unwrap()
}

pub async fn entries_come_back_in_order_across_attempts(stores: &Stores) {
    let (first, claim_id) = running(stores).await;
    assert_eq!(stores.jobs.log_tail(first.id).await.unwrap(), Cursor::default());
    let told = [entries(first.fence, 1..=3), entries(first.fence, 4..=4)];
    for batch in &told {
        stores.jobs.append_log(first.id, claim_id, first.fence, batch).await.unwrap();
    }
    reap(stores, &first).await;
    let (second, claim_id) = claim(stores, &first, 3).await;
    let later = entries(second.fence, 1..=2);
    stores.jobs.append_log(second.id, claim_id, second.fence, &later).await.unwrap();
    assert_eq!(all(stores, &first).await, [told.concat(), later].concat());
    assert_eq!(stores.jobs.log_tail(first.id).await.unwrap(), Cursor { fence: second.fence, seq: 2 });
}

pub async fn repeated_entries_are_stored_once(stores: &Stores) {
    let (job, claim_id) = running(stores).await;
    for range in [1..=3, 1..=3, 2..=5, 1..=1, 5..=5, 1..=6] {
        stores.jobs.append_log(job.id, claim_id, job.fence, &entries(job.fence, range)).await.unwrap();
    }
    stores.jobs.append_log(job.id, claim_id, job.fence, &[]).await.unwrap();
    assert_eq!(all(stores, &job).await, entries(job.fence, 1..=6));
}

pub async fn a_gap_is_refused_and_says_where_to_go_on(stores: &Stores) {
    let (job, claim_id) = running(stores).await;
    let append = |batch: Vec<LogEntry>| async move { stores.jobs.append_log(job.id, claim_id, Fence(1), &batch).await };
    assert!(matches!(append(entries(Fence(1), 2..=3)).await, Err(AppendError::Gap { expected: 1 })));
    append(entries(Fence(1), 1..=2)).await.unwrap();
    assert!(matches!(append(entries(Fence(1), 5..=6)).await, Err(AppendError::Gap { expected: 3 })));
    let mut holed = entries(Fence(1), 2..=6);
    holed.remove(2);
    assert!(matches!(append(holed).await, Err(AppendError::Gap { expected: 4 })));
    assert_eq!(
        stores.jobs.log_tail(job.id).await.unwrap(),
        Cursor { fence: Fence(1), seq: 2 },
        "of a refused batch nothing is stored"
    );
}

pub async fn only_the_holder_of_the_lease_appends(stores: &Stores) {
    let (job, claim_id) = running(stores).await;
    let closed = [
        (new_claim(), job.fence, entries(job.fence, 1..=1)),
        (claim_id, Fence(0), entries(Fence(0), 1..=1)),
        (claim_id, job.fence.next(), entries(job.fence.next(), 1..=1)),
        (claim_id, job.fence, entries(job.fence.next(), 1..=1)),
    ];
    for (who, fence, batch) in closed {
        let answer = stores.jobs.append_log(job.id, who, fence, &batch).await;
        assert!(matches!(answer, Err(AppendError::Closed)), "{answer:?}");
    }
    reap(stores, &job).await;
    let answer = stores.jobs.append_log(job.id, claim_id, job.fence, &entries(job.fence, 1..=1)).await;
    assert!(matches!(answer, Err(AppendError::Closed)), "{answer:?}");
    assert!(all(stores, &job).await.is_empty());
}

pub async fn an_ended_job_takes_no_more_entries(stores: &Stores) {
    let (job, claim_id) = running(stores).await;
    stores.jobs.append_log(job.id, claim_id, job.fence, &entries(job.fence, 1..=2)).await.unwrap();
    let end = Cursor { fence: job.fence, seq: 2 };
    stores.jobs.apply(job.id, &finishing(claim_id, job.fence, OutcomeClass::Agent, end), at(3)).await.unwrap();
    let answer = stores.jobs.append_log(job.id, claim_id, job.fence, &entries(job.fence, 3..=3)).await;
    assert!(matches!(answer, Err(AppendError::Closed)), "{answer:?}");
    assert_eq!(all(stores, &job).await.len(), 2);
}

pub async fn a_page_starts_behind_its_cursor(stores: &Stores) {
    let (job, claim_id) = running(stores).await;
    for start in [1, 11, 21] {
        stores.jobs.append_log(job.id, claim_id, job.fence, &entries(job.fence, start..=start + 9)).await.unwrap();
    }
    // Pages that end inside a batch, on its edge, and behind it.
    for limit in [1, 4, 10, 13, 30, 100] {
        let (mut cursor, mut seen) = (Cursor::default(), Vec::new());
        loop {
            let page = stores.jobs.read_log(job.id, cursor, limit).await.unwrap();
            let Some(last) = page.last() else { break };
            assert!(page.len() <= limit);
            cursor = last.cursor();
            seen.extend(page);
        }
        assert_eq!(seen, entries(job.fence, 1..=30), "in pages of {limit}");
    }
    let behind = Cursor { fence: job.fence.next(), seq: 0 };
    assert!(stores.jobs.read_log(job.id, behind, 10).await.unwrap().is_empty());
    let before = Cursor { fence: Fence(0), seq: 99 };
    assert_eq!(stores.jobs.read_log(job.id, before, 1).await.unwrap(), entries(job.fence, 1..=1));
}

pub async fn a_big_batch_comes_back_whole(stores: &Stores) {
    let (job, claim_id) = running(stores).await;
    let mut batch = entries(job.fence, 1..=500);
    for entry in &mut batch {
        entry.message = format!("{} \u{1f980}\n\u{0}\u{7f}\"\\ {}", entry.seq, "x".repeat(1000));
    }
    stores.jobs.append_log(job.id, claim_id, job.fence, &batch).await.unwrap();
    assert_eq!(all(stores, &job).await, batch);
}

pub async fn the_end_names_the_last_stored_entry(stores: &Stores) {
    let (job, claim_id) = running(stores).await;
    stores.jobs.append_log(job.id, claim_id, job.fence, &entries(job.fence, 1..=7)).await.unwrap();
    // Whoever ends it may have looked at the log before the last append.
    let stale = Cursor { fence: job.fence, seq: 4 };
    let reason = ckrv_core::machine::EndReason::Deadline;
    let verb = Verb::End { fence: job.fence, reason, evidence: Evidence::Lapsed, log_end: stale };
    let ended = stores.jobs.apply(job.id, &verb, at(4000)).await.unwrap();
    assert_eq!(ended.log_end, Some(Cursor { fence: job.fence, seq: 7 }));

    let (job, _) = running(stores).await;
    reap(stores, &job).await;
    let ended = stores.jobs.apply(job.id, &Verb::Cancel, at(5)).await.unwrap();
    assert_eq!(ended.log_end, Some(Cursor::default()), "an empty log ends where it begins");
}

pub async fn a_compacted_log_reads_the_same(stores: &Stores) {
    let (first, claim_id) = running(stores).await;
    let mut long = entries(first.fence, 1..=700);
    for entry in &mut long {
        entry.message = format!("{} {}", entry.message, "\u{1f980} and what it did ".repeat(40));
    }
    for batch in long.chunks(90) {
        stores.jobs.append_log(first.id, claim_id, first.fence, batch).await.unwrap();
    }
    stores.jobs.compact_log(first.id).await.unwrap();
    assert_eq!(all(stores, &first).await, long, "a running job's log stays as it is");
    reap(stores, &first).await;
    let (second, claim_id) = claim(stores, &first, 3).await;
    stores.jobs.append_log(first.id, claim_id, second.fence, &entries(second.fence, 1..=5)).await.unwrap();
    let end = Cursor { fence: second.fence, seq: 5 };
    stores.jobs.apply(first.id, &finishing(claim_id, second.fence, OutcomeClass::Agent, end), at(4)).await.unwrap();

    let before = all(stores, &first).await;
    assert_eq!(before.len(), 705);
    for _ in 0..2 {
        stores.jobs.compact_log(first.id).await.unwrap();
        assert_eq!(all(stores, &first).await, before);
    }
    for place in [0, 1, 89, 90, 333, 699, 700, 704] {
        let cursor = before[place].cursor();
        for limit in [1, 3, 1000] {
            let page = stores.jobs.read_log(first.id, cursor, limit).await.unwrap();
            let rest = &before[place + 1..];
            assert_eq!(page, rest[..rest.len().min(limit)], "{limit} behind {cursor}");
        }
    }
    assert_eq!(stores.jobs.log_tail(first.id).await.unwrap(), end);
}

pub async fn racing_repeats_leave_one_copy(stores: &Stores) {
    let (job, claim_id) = running(stores).await;
    let mut senders = JoinSet::new();
    for _ in 0..8 {
        let (jobs, id, fence) = (stores.jobs.clone(), job.id, job.fence);
        senders.spawn(async move {
            let mut next = 1;
            while next <= 40 {
                match jobs.append_log(id, claim_id, fence, &entries(fence, next..=next + 3)).await {
                    Ok(()) => next += 4,
                    Err(AppendError::Gap { expected }) => next = expected,
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }
    senders.join_all().await;
    assert_eq!(all(stores, &job).await, entries(job.fence, 1..=40));
}
