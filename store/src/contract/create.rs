//! Making jobs: idempotency, quota.

use tokio::task::JoinSet;

use super::{MONTH, at, keyed, make, new_job, new_user, quota, record};
use crate::error::CreateError;
use crate::job_store::{Created, NewJob, QuotaRule};
use crate::{JobFilter, Stores};

pub async fn a_new_job_can_be_read_at_once(stores: &Stores) {
    let job = record(new_user(), 0);
    let made = stores.jobs.create_job(new_job(job.clone()), at(0)).await.unwrap();
    assert_eq!(made, Created::New(job.clone()));
    assert_eq!(stores.jobs.job(job.id).await.unwrap(), Some(job.clone()));
    assert_eq!(stores.jobs.job(record(job.owner, 0).id).await.unwrap(), None);
    assert_eq!(stores.accounts.quota_used(job.owner, MONTH).await.unwrap(), 1);
}

pub async fn the_same_key_and_body_give_the_same_job_even_at_full_quota(stores: &Stores) {
    let owner = new_user();
    let first = record(owner, 0);
    stores.jobs.create_job(keyed(first.clone(), "key", "body", Some(1)), at(0)).await.unwrap();
    let again = stores.jobs.create_job(keyed(record(owner, 5), "key", "body", Some(1)), at(5)).await.unwrap();
    assert_eq!(again, Created::Replay(first));
    assert_eq!(stores.accounts.quota_used(owner, MONTH).await.unwrap(), 1);
}

pub async fn the_same_key_with_another_body_is_refused(stores: &Stores) {
    let owner = new_user();
    stores.jobs.create_job(keyed(record(owner, 0), "key", "body", None), at(0)).await.unwrap();
    let other = record(owner, 1);
    let answer = stores.jobs.create_job(keyed(other.clone(), "key", "another", None), at(1)).await;
    assert!(matches!(answer, Err(CreateError::IdempotencyMismatch)), "{answer:?}");
    assert_eq!(stores.jobs.job(other.id).await.unwrap(), None);
    assert_eq!(stores.accounts.quota_used(owner, MONTH).await.unwrap(), 1);
}

pub async fn keys_of_users_do_not_mix(stores: &Stores) {
    stores.jobs.create_job(keyed(record(new_user(), 0), "key", "body", None), at(0)).await.unwrap();
    let other = stores.jobs.create_job(keyed(record(new_user(), 0), "key", "another", None), at(0)).await.unwrap();
    assert!(matches!(other, Created::New(_)), "{other:?}");
}

pub async fn one_of_many_equal_requests_makes_the_job(stores: &Stores) {
    let owner = new_user();
    let mut requests = JoinSet::new();
    for _ in 0..32 {
        let jobs = stores.jobs.clone();
        requests.spawn(async move { jobs.create_job(keyed(record(owner, 0), "key", "body", Some(5)), at(0)).await.unwrap() });
    }
    let answers = requests.join_all().await;
    let (mut made, mut ids) = (0, Vec::new());
    for answer in answers {
        match answer {
            Created::New(job) => {
                made += 1;
                ids.push(job.id);
            }
            Created::Replay(job) => ids.push(job.id),
        }
    }
    ids.dedup();
    assert_eq!((made, ids.len()), (1, 1));
    assert_eq!(stores.accounts.quota_used(owner, MONTH).await.unwrap(), 1);
}

pub async fn a_quota_of_five_lets_exactly_five_of_64_through(stores: &Stores) {
    let owner = new_user();
    let mut requests = JoinSet::new();
    for _ in 0..64 {
        let jobs = stores.jobs.clone();
        let new = NewJob { job: record(owner, 0), idempotency: None, quota: quota(Some(5)) };
        requests.spawn(async move { jobs.create_job(new, at(0)).await });
    }
    let (made, refused): (Vec<_>, Vec<_>) = requests.join_all().await.into_iter().partition(Result::is_ok);
    assert_eq!(made.len(), 5);
    for refusal in refused {
        assert!(
            matches!(refusal, Err(CreateError::QuotaExceeded { cap: 5, resets_at }) if resets_at == at(1_000_000)),
            "{refusal:?}"
        );
    }
    assert_eq!(stores.accounts.quota_used(owner, MONTH).await.unwrap(), 5);
    assert_eq!(stores.jobs.jobs_of(owner, &JobFilter::default(), 100, None).await.unwrap().items.len(), 5);
}

pub async fn a_refused_job_leaves_nothing_behind(stores: &Stores) {
    let owner = new_user();
    make(stores, owner, 0).await;
    let refused = record(owner, 1);
    let answer = stores.jobs.create_job(keyed(refused.clone(), "key", "body", Some(1)), at(1)).await;
    assert!(matches!(answer, Err(CreateError::QuotaExceeded { .. })), "{answer:?}");
    assert_eq!(stores.jobs.job(refused.id).await.unwrap(), None);
    assert!(stores.jobs.events(refused.id).await.unwrap().is_empty());
    // The key is free: with room, it makes a job.
    let later = stores.jobs.create_job(keyed(record(owner, 2), "key", "another", Some(2)), at(2)).await.unwrap();
    assert!(matches!(later, Created::New(_)), "{later:?}");
}

pub async fn a_quota_of_zero_lets_nothing_through_and_no_cap_lets_everything_through(stores: &Stores) {
    let owner = new_user();
    let none = NewJob { job: record(owner, 0), idempotency: None, quota: quota(Some(0)) };
    assert!(matches!(stores.jobs.create_job(none, at(0)).await, Err(CreateError::QuotaExceeded { cap: 0, .. })));
    for second in 0..12 {
        make(stores, owner, second).await;
    }
    assert_eq!(stores.accounts.quota_used(owner, MONTH).await.unwrap(), 12);
}

pub async fn months_are_counted_apart(stores: &Stores) {
    let owner = new_user();
    make(stores, owner, 0).await;
    let next = QuotaRule { month: "2027-02".to_owned(), cap: Some(1), ..quota(None) };
    let made = stores.jobs.create_job(NewJob { job: record(owner, 1), idempotency: None, quota: next }, at(1)).await.unwrap();
    let Created::New(made) = made else { panic!("{made:?}") };
    assert_eq!(made.quota_month, "2027-02", "what is given back later must be given back to this month");
    assert_eq!(stores.accounts.quota_used(owner, MONTH).await.unwrap(), 1);
    assert_eq!(stores.accounts.quota_used(owner, "2027-02").await.unwrap(), 1);
    assert_eq!(stores.accounts.quota_used(owner, "2027-03").await.unwrap(), 0);
}

pub async fn a_record_that_is_not_queued_is_not_made(stores: &Stores) {
    let mut job = record(new_user(), 0);
    job.state = ckrv_core::job::State::Executing;
    assert!(matches!(stores.jobs.create_job(new_job(job.clone()), at(0)).await, Err(CreateError::Store(_))));
    assert_eq!(stores.jobs.job(job.id).await.unwrap(), None);
    assert_eq!(stores.accounts.quota_used(job.owner, MONTH).await.unwrap(), 0);
}
