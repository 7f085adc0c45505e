//! What a month adds up to: jobs beyond the included ones, the agents' cost, the queue's depth.

use ckrv_core::job::{Facts, JobRecord, Outcome, OutcomeClass};
use ckrv_core::log::Cursor;
use ckrv_core::machine::{Finish, Verb};
use tokio::task::JoinSet;

use super::{MONTH, at, claim, finishing, make, new_job, new_user, quota, record};
use crate::account_store::MonthUsage;
use crate::job_store::{Created, NewJob, QueueDepth, QuotaRule};
use crate::{LedgerEntry, Stores};

const PRICE: u64 = 500_000;

fn priced(job: JobRecord, included: u32) -> NewJob {
    NewJob { job, idempotency: None, quota: QuotaRule { included: Some(included), overage_micro_usd: PRICE, ..quota(None) } }
}

async fn make_priced(stores: &Stores, job: JobRecord, included: u32) -> JobRecord {
    let now = job.created_at;
    match stores.jobs.create_job(priced(job, included), now).await.unwrap() {
        Created::New(job) => job,
        Created::Replay(job) => panic!("{} is a replay", job.id),
    }
}

async fn entries_of(stores: &Stores, job: &JobRecord) -> Vec<LedgerEntry> {
    let mut entries = stores.accounts.ledger(MONTH).await.unwrap();
    entries.retain(|entry| entry.owner == job.owner);
    entries
}

pub async fn a_job_beyond_the_included_ones_is_in_the_ledger(stores: &Stores) {
    let owner = new_user();
    let included = make_priced(stores, record(owner, 0), 1).await;
    assert_eq!((included.charge_micro_usd, entries_of(stores, &included).await.len()), (0, 0));
    let beyond = make_priced(stores, record(owner, 5), 1).await;
    assert_eq!(beyond.charge_micro_usd, PRICE);
    assert_eq!(stores.jobs.job(beyond.id).await.unwrap(), Some(beyond.clone()));
    let entry = LedgerEntry { month: MONTH.to_owned(), owner, job: beyond.id, at: at(5), micro_usd: PRICE, voided_at: None };
    assert_eq!(entries_of(stores, &beyond).await, [entry]);
    let usage = MonthUsage { jobs: 2, overage_jobs: 1, overage_micro_usd: PRICE, agent_micro_usd: 0 };
    assert_eq!(stores.accounts.month_usage(owner, MONTH).await.unwrap(), usage);
    assert_eq!(stores.accounts.month_usage(owner, "2027-02").await.unwrap(), MonthUsage::default());
    assert_eq!(stores.accounts.ledger("2027-02").await.unwrap(), []);
}

pub async fn racing_creates_charge_exactly_what_is_beyond(stores: &Stores) {
    let owner = new_user();
    let mut creates = JoinSet::new();
    for _ in 0..24 {
        let jobs = stores.jobs.clone();
        creates.spawn(async move { jobs.create_job(priced(record(owner, 0), 5), at(0)).await.unwrap() });
    }
    let charged =
        creates.join_all().await.into_iter().filter(|made| matches!(made, Created::New(job) if job.charge_micro_usd == PRICE));
    assert_eq!(charged.count(), 19);
    let usage = MonthUsage { jobs: 24, overage_jobs: 19, overage_micro_usd: 19 * PRICE, agent_micro_usd: 0 };
    assert_eq!(stores.accounts.month_usage(owner, MONTH).await.unwrap(), usage);
    assert_eq!(entries_of(stores, &record(owner, 0)).await.len(), 19);
}

pub async fn a_refund_voids_the_ledger_entry_once(stores: &Stores) {
    let job = make_priced(stores, record(new_user(), 0), 0).await;
    stores.jobs.apply(job.id, &Verb::Cancel, at(3)).await.unwrap();
    let _ = stores.jobs.apply(job.id, &Verb::Cancel, at(4)).await;
    let entries = entries_of(stores, &job).await;
    assert_eq!(entries.iter().map(|entry| entry.voided_at).collect::<Vec<_>>(), [Some(at(3))]);
    assert_eq!(stores.accounts.month_usage(job.owner, MONTH).await.unwrap(), MonthUsage::default());
}

pub async fn an_agents_cost_is_counted_at_the_end_of_its_job(stores: &Stores) {
    let job = make(stores, new_user(), 0).await;
    let (job, claim_id) = claim(stores, &job, 1).await;
    let mut facts = Facts::default();
    facts.usage.cost_micro_usd = Some(1_230_000);
    let outcome = Outcome::new(OutcomeClass::Agent, "it gave up");
    let finish = Finish { outcome, facts, artifacts: Vec::new(), log_end: Cursor::default() };
    let verb = Verb::Finish { claim: claim_id, fence: job.fence, finish: Box::new(finish) };
    for _ in 0..2 {
        stores.jobs.apply(job.id, &verb, at(9)).await.unwrap();
    }
    let usage = stores.accounts.month_usage(job.owner, MONTH).await.unwrap();
    assert_eq!(usage, MonthUsage { jobs: 1, agent_micro_usd: 1_230_000, ..MonthUsage::default() });
}

pub async fn the_depth_tells_what_waits_and_runs(stores: &Stores) {
    assert_eq!(stores.jobs.depth().await.unwrap(), QueueDepth::default());
    let owner = new_user();
    let first = make(stores, owner, 0).await;
    for created in [7, 9] {
        stores.jobs.create_job(new_job(record(owner, created)), at(created)).await.unwrap();
    }
    assert_eq!(stores.jobs.depth().await.unwrap(), QueueDepth { queued: 3, oldest: Some(at(0)), running: 0 });
    let (first, claim_id) = claim(stores, &first, 10).await;
    assert_eq!(stores.jobs.depth().await.unwrap(), QueueDepth { queued: 2, oldest: Some(at(7)), running: 1 });
    let verb = finishing(claim_id, first.fence, OutcomeClass::Agent, Cursor::default());
    stores.jobs.apply(first.id, &verb, at(11)).await.unwrap();
    assert_eq!(stores.jobs.depth().await.unwrap(), QueueDepth { queued: 2, oldest: Some(at(7)), running: 0 });
}
