//! Webhooks that are due.

use ckrv_core::id::JobId;
use ckrv_core::job::{JobRecord, Notice};
use ckrv_core::machine::{Refusal, Verb};
use tokio::task::JoinSet;

use super::{at, make, new_job, new_user, record, refusal};
use crate::Stores;

/// A job with a webhook that was cancelled at second 1.
async fn ended(stores: &Stores) -> JobRecord {
    let mut job = record(new_user(), 0);
    job.request.notify_url = Some("https://hooks.example/done".to_owned());
    stores.jobs.create_job(new_job(job.clone()), at(0)).await.unwrap();
    assert_eq!(stores.jobs.to_notify(at(0), 10).await.unwrap(), [], "not before it ended");
    stores.jobs.apply(job.id, &Verb::Cancel, at(1)).await.unwrap()
}

async fn due(stores: &Stores, now: i64) -> Vec<JobId> {
    stores.jobs.to_notify(at(now), 10).await.unwrap().into_iter().map(|job| job.id).collect()
}

pub async fn an_ended_job_is_to_be_notified_until_it_was(stores: &Stores) {
    let job = ended(stores).await;
    assert_eq!(job.notice, Some(Notice { attempts: 0, due: at(1) }));
    assert_eq!(due(stores, 1).await, [job.id]);
    let later = Verb::Notified { attempts: 0, next: Some(at(60)), note: "503".to_owned() };
    let told = stores.jobs.apply(job.id, &later, at(2)).await.unwrap();
    assert_eq!(told.notice, Some(Notice { attempts: 1, due: at(60) }));
    assert_eq!((due(stores, 59).await, due(stores, 60).await), (vec![], vec![job.id]));
    let done = Verb::Notified { attempts: 1, next: None, note: "204".to_owned() };
    assert_eq!(stores.jobs.apply(job.id, &done, at(61)).await.unwrap().notice, None);
    assert_eq!(due(stores, 10_000).await, []);
    let verbs: Vec<_> = stores.jobs.events(job.id).await.unwrap().into_iter().map(|event| event.verb).collect();
    assert_eq!(verbs, ["create", "cancel", "notify", "notify"]);
}

pub async fn one_of_many_notifiers_counts(stores: &Stores) {
    let job = ended(stores).await;
    let mut tries = JoinSet::new();
    for _ in 0..8 {
        let jobs = stores.jobs.clone();
        let verb = Verb::Notified { attempts: 0, next: Some(at(60)), note: "503".to_owned() };
        tries.spawn(async move { jobs.apply(job.id, &verb, at(2)).await });
    }
    let (counted, refused): (Vec<_>, Vec<_>) = tries.join_all().await.into_iter().partition(Result::is_ok);
    assert_eq!(counted.len(), 1);
    for answer in refused {
        assert_eq!(refusal(answer), Refusal::NoNotice);
    }
}

pub async fn a_job_without_a_url_is_never_notified(stores: &Stores) {
    let job = make(stores, new_user(), 0).await;
    let ended = stores.jobs.apply(job.id, &Verb::Cancel, at(1)).await.unwrap();
    assert_eq!((ended.notice, due(stores, 10_000).await), (None, vec![]));
    let verb = Verb::Notified { attempts: 0, next: None, note: String::new() };
    assert_eq!(refusal(stores.jobs.apply(job.id, &verb, at(2)).await), Refusal::NoNotice);
}
