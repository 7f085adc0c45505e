//! The queue on DynamoDB where things go wrong: answers that are lost, throttling, transactions in each other's way. And what each verb costs.
//!
//! The faults come from a proxy before DynamoDB Local, which has none of its own.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::Arc;

use ckrv_core::id::{ClaimId, Fence, JobId, UserId};
use ckrv_core::job::{Facts, JobRecord, Outcome, OutcomeClass, State};
use ckrv_core::log::{Cursor, Level, LogEntry};
use ckrv_core::machine::{Evidence, Finish, Refusal, Verb};
use ckrv_store::contract::at;
use ckrv_store::{
    AppendError, AwsConfig, CreateError, Created, Idempotency, JobFilter, MonthUsage, NewJob, QuotaRule, Signals, Stores,
    VerbError, open_aws,
};
use ckrv_tests::aws::Aws;
use ckrv_tests::fault_proxy::{Fault, FaultProxy, On, ServiceError, When};
use tokio::task::JoinSet;
use uuid::Uuid;

const MONTH: &str = "2027-01";
const PRICE: u64 = 500_000;

struct Bench {
    stores: Stores,
    proxy: FaultProxy,
    aws: Aws,
}

async fn bench(seed: u64) -> Bench {
    let aws = Aws::make().await.unwrap();
    let proxy = FaultProxy::start(&aws.dynamodb, seed).await.unwrap();
    let stores = open(&aws, &proxy.url).await;
    Bench { stores, proxy, aws }
}

/// A process of its own, as far as a store can tell: it shares nothing but the table.
async fn open(aws: &Aws, dynamodb: &str) -> Stores {
    let mut table = aws.store_config().unwrap();
    table.remove("backend");
    let mut config: AwsConfig = table.try_into().unwrap();
    config.endpoints.dynamodb = Some(dynamodb.parse().unwrap());
    open_aws(&config, Signals::default()).await.unwrap()
}

fn user() -> UserId {
    UserId(Uuid::new_v4())
}

fn queued(owner: UserId) -> JobRecord {
    let id = JobId(Uuid::now_v7());
    let request = serde_json::json!({
        "git_repo_url": "https://git.example/team/shop.git", "git_base_branch": "main", "git_credential_name": "forge", "spec_id": "fix-cart",
        "spec_name": "fix-cart.md", "agent": "claude", "timeout_seconds": 1800, "secrets": {"api-key": "work"}, "labels": {"team": "shop"},
    });
    serde_json::from_value(serde_json::json!({
        "id": id, "owner": owner, "request": request, "spec_key": format!("jobs/{id}/spec"), "state": State::Queued, "created_at": at(0),
        "updated_at": at(0), "not_before": at(0), "retention_seconds": 604_800, "quota_month": MONTH,
    }))
    .unwrap()
}

fn quota(included: Option<u32>, cap: Option<u32>) -> QuotaRule {
    QuotaRule { month: MONTH.to_owned(), included, cap, overage_micro_usd: PRICE, resets_at: at(9) }
}

fn new(owner: UserId, cap: Option<u32>) -> NewJob {
    NewJob { job: queued(owner), idempotency: None, quota: quota(None, cap) }
}

async fn make(stores: &Stores, owner: UserId) -> JobRecord {
    match stores.jobs.create_job(new(owner, None), at(0)).await.unwrap() {
        Created::New(job) => job,
        Created::Replay(job) => panic!("{} is a replay", job.id),
    }
}

fn claiming() -> (ClaimId, Verb) {
    let claim = ClaimId(Uuid::new_v4());
    (claim, Verb::Claim { claim, worker: "worker-1".to_owned(), until: at(60), has_room: true })
}

async fn claim(stores: &Stores, job: &JobRecord) -> (JobRecord, ClaimId) {
    let (claim, verb) = claiming();
    (stores.jobs.apply(job.id, &verb, at(1)).await.unwrap(), claim)
}

fn beat(claim: ClaimId, fence: Fence, until: i64) -> Verb {
    Verb::Beat { claim, fence, until: at(until) }
}

fn finish(claim: ClaimId, fence: Fence, class: OutcomeClass, cost: Option<u64>) -> Verb {
    let mut facts = Facts::default();
    facts.usage.cost_micro_usd = cost;
    let finish = Finish { outcome: Outcome::new(class, "so it ended"), facts, artifacts: Vec::new(), log_end: Cursor::default() };
    Verb::Finish { claim, fence, finish: Box::new(finish) }
}

fn entries(fence: Fence, range: std::ops::RangeInclusive<u64>) -> Vec<LogEntry> {
    let entry = |seq| LogEntry {
        timestamp: at(0),
        level: Level::Info,
        source: "agent".to_owned(),
        message: format!("line {seq}: reading src/cart/total_{seq}.rs and running its tests"),
        fence,
        seq,
        event: None,
    };
    range.map(entry).collect()
}

/// Every request meets one of these at times, writes and reads alike.
fn trouble(proxy: &FaultProxy) {
    proxy.rule(On::Operation("TransactWriteItems"), When::Chance(0.05), Fault::Fail(ServiceError::TransactionConflict));
    proxy.rule(On::Any, When::Chance(0.05), Fault::CommitThenCut);
    proxy.rule(On::Any, When::Chance(0.02), Fault::Fail(ServiceError::ThroughputExceeded));
    proxy.rule(On::Any, When::Chance(0.01), Fault::Fail(ServiceError::Internal));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_of_1000_jobs_is_claimed_once_by_24_claimers_in_trouble() {
    let bench = bench(1).await;
    let owner = user();
    trouble(&bench.proxy);
    let mut creates = JoinSet::new();
    for _ in 0..8 {
        let jobs = bench.stores.jobs.clone();
        creates.spawn(async move {
            for _ in 0..125 {
                jobs.create_job(new(owner, Some(1000)), at(0)).await.unwrap();
            }
        });
    }
    creates.join_all().await;
    let mut claimers = JoinSet::new();
    for claimer in 0..24 {
        let stores = open(&bench.aws, &bench.proxy.url).await;
        claimers.spawn(async move { claim_all(&stores, claimer).await });
    }
    let mut wins: BTreeMap<JobId, ClaimId> = BTreeMap::new();
    for (id, claim) in claimers.join_all().await.into_iter().flatten() {
        assert_eq!(wins.insert(id, claim), None, "{id} was claimed twice");
    }
    println!("{} requests, {} of them met a fault", bench.proxy.counts().asked(), bench.proxy.counts().faults());
    assert!(bench.proxy.counts().faults() > 100);
    bench.proxy.heal();
    assert_eq!(wins.len(), 1000, "none is lost");
    let running = bench.stores.jobs.running().await.unwrap();
    assert_eq!(running.len(), 1000);
    for job in &running {
        assert_eq!((job.fence, job.attempt, job.version), (Fence(1), 1, 1));
        assert_eq!(job.lease.as_ref().unwrap().claim, wins[&job.id], "who was told `yours` holds it");
    }
    assert_eq!(bench.stores.accounts.quota_used(owner, MONTH).await.unwrap(), 1000, "each is counted once");
}

/// Claims whatever is there. The claimers begin at different places of the same list, so that they meet often but not always.
async fn claim_all(stores: &Stores, claimer: usize) -> Vec<(JobId, ClaimId)> {
    let mut won = Vec::new();
    loop {
        let Ok(mut due) = stores.jobs.due(at(10), 48).await else { continue };
        if due.is_empty() {
            return won;
        }
        let middle = claimer * 2 % due.len();
        due.rotate_left(middle);
        for job in due {
            let (claim, verb) = claiming();
            // An error is a store that gave up: the same claim is asked for again, as a dispatcher does.
            let answer = loop {
                match stores.jobs.apply(job.id, &verb, at(10)).await {
                    Err(VerbError::Store(_)) => {}
                    answer => break answer,
                }
            };
            match answer {
                Ok(job) => won.push((job.id, claim)),
                Err(VerbError::Refused { refusal: Refusal::NotQueued, .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_quota_of_five_lets_exactly_five_of_64_through_in_trouble() {
    let bench = bench(2).await;
    let owner = user();
    bench.proxy.rule(On::Operation("TransactWriteItems"), When::Chance(0.2), Fault::Fail(ServiceError::TransactionConflict));
    bench.proxy.rule(On::Any, When::Chance(0.1), Fault::CommitThenCut);
    let mut creates = JoinSet::new();
    for _ in 0..64 {
        let jobs = bench.stores.jobs.clone();
        creates.spawn(async move { jobs.create_job(new(owner, Some(5)), at(0)).await });
    }
    let (made, refused): (Vec<_>, Vec<_>) = creates.join_all().await.into_iter().partition(Result::is_ok);
    bench.proxy.heal();
    assert_eq!(made.len(), 5, "{refused:?}");
    assert!(refused.iter().all(|answer| matches!(answer, Err(CreateError::QuotaExceeded { cap: 5, .. }))), "{refused:?}");
    assert_eq!(bench.stores.accounts.quota_used(owner, MONTH).await.unwrap(), 5);
    let listed = bench.stores.jobs.jobs_of(owner, &JobFilter::default(), 100, None).await.unwrap();
    assert_eq!(listed.items.len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn overage_and_refunds_are_exact_in_trouble() {
    let bench = bench(3).await;
    let owner = user();
    trouble(&bench.proxy);
    let mut creates = JoinSet::new();
    for _ in 0..16 {
        let jobs = bench.stores.jobs.clone();
        let new = NewJob { job: queued(owner), idempotency: None, quota: quota(Some(4), Some(12)) };
        creates.spawn(async move { jobs.create_job(new, at(0)).await });
    }
    let made: Vec<JobRecord> = creates
        .join_all()
        .await
        .into_iter()
        .filter_map(|answer| match answer {
            Ok(Created::New(job)) => Some(job),
            Err(CreateError::QuotaExceeded { .. }) => None,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(made.len(), 12);
    assert_eq!(made.iter().filter(|job| job.charge_micro_usd == PRICE).count(), 8);
    let mut cancels = JoinSet::new();
    for job in made {
        let jobs = bench.stores.jobs.clone();
        cancels.spawn(async move { jobs.apply(job.id, &Verb::Cancel, at(2)).await.unwrap() });
    }
    cancels.join_all().await;
    bench.proxy.heal();
    assert_eq!(bench.stores.accounts.month_usage(owner, MONTH).await.unwrap(), MonthUsage::default());
    let ledger = bench.stores.accounts.ledger(MONTH).await.unwrap();
    assert_eq!(ledger.iter().filter(|entry| entry.owner == owner && entry.voided_at == Some(at(2))).count(), 8);
}

#[tokio::test]
async fn a_create_whose_answer_was_lost_made_one_job() {
    let bench = bench(4).await;
    let owner = user();
    let keyed = |job: JobRecord| {
        let idempotency = Idempotency { key_sha256: "key".to_owned(), body_sha256: "body".to_owned() };
        NewJob { job, idempotency: Some(idempotency), quota: quota(None, Some(1)) }
    };
    let job = queued(owner);
    // As often as the SDK tries, and once more.
    bench.proxy.rule(On::Operation("TransactWriteItems"), When::Times(4), Fault::CommitThenCut);
    let made = bench.stores.jobs.create_job(keyed(job.clone()), at(0)).await.unwrap();
    assert!(matches!(&made, Created::New(made) if made.id == job.id), "{made:?}");
    let again = bench.stores.jobs.create_job(keyed(queued(owner)), at(0)).await.unwrap();
    assert!(matches!(&again, Created::Replay(earlier) if earlier.id == job.id), "{again:?}");
    assert_eq!(bench.stores.accounts.quota_used(owner, MONTH).await.unwrap(), 1);
}

#[tokio::test]
async fn an_idempotency_key_that_expired_makes_a_new_job_though_its_item_is_still_there() {
    let bench = bench(5).await;
    let owner = user();
    let keyed = || {
        let idempotency = Idempotency { key_sha256: "key".to_owned(), body_sha256: "body".to_owned() };
        NewJob { job: queued(owner), idempotency: Some(idempotency), quota: quota(None, None) }
    };
    bench.stores.jobs.create_job(keyed(), at(0)).await.unwrap();
    let later = at(20 * 24 * 3600);
    let again = bench.stores.jobs.create_job(keyed(), later).await.unwrap();
    assert!(matches!(again, Created::New(_)), "{again:?}");
}

/// Of the write the answer is lost as often as the SDK tries, and once more.
fn lose_answers(bench: &Bench) {
    bench.proxy.rule(On::Operation("UpdateItem"), When::Times(4), Fault::CommitThenCut);
    bench.proxy.rule(On::Operation("TransactWriteItems"), When::Times(4), Fault::CommitThenCut);
    bench.proxy.rule(On::Operation("PutItem"), When::Times(4), Fault::CommitThenCut);
}

/// Of the write one answer is lost: the SDK's own repetition then meets a condition that fails.
fn lose_one(bench: &Bench) {
    bench.proxy.rule(On::Operation("UpdateItem"), When::Times(1), Fault::CommitThenCut);
    bench.proxy.rule(On::Operation("PutItem"), When::Times(1), Fault::CommitThenCut);
}

#[tokio::test]
async fn a_claim_whose_answer_was_lost_is_ours() {
    let bench = bench(6).await;
    for lose in [lose_one, lose_answers] {
        let job = make(&bench.stores, user()).await;
        lose(&bench);
        let (claim, verb) = claiming();
        let claimed = bench.stores.jobs.apply(job.id, &verb, at(1)).await.unwrap();
        bench.proxy.heal();
        assert_eq!((claimed.fence, claimed.version, claimed.lease.as_ref().unwrap().claim), (Fence(1), 1, claim));
        assert_eq!(bench.stores.jobs.job(job.id).await.unwrap().unwrap(), claimed);
        assert_eq!(bench.stores.jobs.events(job.id).await.unwrap().len(), 2);
    }
    assert_eq!(bench.proxy.counts().faults(), 1 + 3, "one, and as often as the SDK tries");
}

#[tokio::test]
async fn a_beat_whose_answer_was_lost_counts_once() {
    let bench = bench(7).await;
    for lose in [lose_one, lose_answers] {
        let job = make(&bench.stores, user()).await;
        let (job, claim) = claim(&bench.stores, &job).await;
        lose(&bench);
        let beaten = bench.stores.jobs.apply(job.id, &beat(claim, job.fence, 80), at(20)).await.unwrap();
        bench.proxy.heal();
        assert_eq!((beaten.version, beaten.lease.as_ref().unwrap().until), (2, at(80)));
        assert_eq!(bench.stores.jobs.job(job.id).await.unwrap().unwrap(), beaten);
    }
}

#[tokio::test]
async fn a_finish_whose_answer_was_lost_ends_and_refunds_once() {
    let bench = bench(8).await;
    for lose in [lose_one, lose_answers] {
        let owner = user();
        for (class, cost) in [(OutcomeClass::Agent, None), (OutcomeClass::Agent, Some(70)), (OutcomeClass::Infrastructure, None)]
        {
            let job = make(&bench.stores, owner).await;
            let (job, claim) = claim(&bench.stores, &job).await;
            lose(&bench);
            let ended = bench.stores.jobs.apply(job.id, &finish(claim, job.fence, class, cost), at(9)).await.unwrap();
            bench.proxy.heal();
            assert_eq!((ended.state, ended.version), (State::Failed, 2));
            assert_eq!(bench.stores.jobs.job(job.id).await.unwrap().unwrap(), ended);
        }
        let usage = bench.stores.accounts.month_usage(owner, MONTH).await.unwrap();
        assert_eq!((usage.jobs, usage.agent_micro_usd), (2, 70));
    }
}

#[tokio::test]
async fn an_append_whose_answer_was_lost_is_stored_once() {
    let bench = bench(9).await;
    for lose in [lose_one, lose_answers] {
        let job = make(&bench.stores, user()).await;
        let (job, claim) = claim(&bench.stores, &job).await;
        bench.stores.jobs.append_log(job.id, claim, job.fence, &entries(job.fence, 1..=3)).await.unwrap();
        lose(&bench);
        bench.stores.jobs.append_log(job.id, claim, job.fence, &entries(job.fence, 4..=6)).await.unwrap();
        bench.proxy.heal();
        bench.stores.jobs.append_log(job.id, claim, job.fence, &entries(job.fence, 7..=7)).await.unwrap();
        let stored = bench.stores.jobs.read_log(job.id, Cursor::default(), 100).await.unwrap();
        assert_eq!(stored, entries(job.fence, 1..=7));
    }
}

/// A holder that was stopped longer than its lease: another process took the job over meanwhile.
#[tokio::test]
async fn a_holder_that_wakes_up_late_is_refused_and_what_it_appends_is_never_read() {
    let bench = bench(10).await;
    let job = make(&bench.stores, user()).await;
    let (old, old_claim) = claim(&bench.stores, &job).await;
    let holder = &bench.stores;
    holder.jobs.append_log(job.id, old_claim, old.fence, &entries(old.fence, 1..=2)).await.unwrap();

    let other = open(&bench.aws, &bench.aws.dynamodb).await;
    let reap = Verb::Reap { fence: old.fence, evidence: Evidence::Lapsed, not_before: at(70), note: "lapsed".to_owned() };
    other.jobs.apply(job.id, &reap, at(66)).await.unwrap();
    // It still believes that the lease is its own: nothing told this process.
    let late = holder.jobs.append_log(job.id, old_claim, old.fence, &entries(old.fence, 3..=4)).await;
    assert!(matches!(late, Err(AppendError::Closed)), "{late:?}");
    let (claim, verb) = claiming();
    let new = other.jobs.apply(job.id, &verb, at(70)).await.unwrap();
    other.jobs.append_log(job.id, claim, new.fence, &entries(new.fence, 1..=1)).await.unwrap();
    for verb in [beat(old_claim, old.fence, 999), finish(old_claim, old.fence, OutcomeClass::Success, None)] {
        let answer = holder.jobs.apply(job.id, &verb, at(71)).await;
        assert!(matches!(answer, Err(VerbError::Refused { refusal: Refusal::LostLease, .. })), "{answer:?}");
    }
    let expected = [entries(old.fence, 1..=2), entries(new.fence, 1..=1)].concat();
    assert_eq!(holder.jobs.read_log(job.id, Cursor::default(), 100).await.unwrap(), expected);
    other.jobs.apply(job.id, &finish(claim, new.fence, OutcomeClass::Agent, None), at(80)).await.unwrap();
    holder.jobs.compact_log(job.id).await.unwrap();
    assert_eq!(other.jobs.read_log(job.id, Cursor::default(), 100).await.unwrap(), expected);
}

#[tokio::test]
async fn a_long_history_moves_out_of_the_jobs_item_and_stays_in_order() {
    let bench = bench(11).await;
    let job = make(&bench.stores, user()).await;
    let (job, claim) = claim(&bench.stores, &job).await;
    let advance = |to| Verb::Advance { claim, fence: job.fence, to, facts: Facts::default() };
    bench.stores.jobs.apply(job.id, &advance(State::Planning), at(2)).await.unwrap();
    let mut expected = vec!["create", "claim", "advance"];
    for round in 0..30 {
        bench.stores.jobs.apply(job.id, &advance(State::Executing), at(3 + round)).await.unwrap();
        bench.stores.jobs.apply(job.id, &advance(State::Planning), at(3 + round)).await.unwrap();
        expected.extend(["advance"; 2]);
        bench.proxy.take_counts();
        bench.stores.jobs.apply(job.id, &beat(claim, job.fence, 100 + round), at(3)).await.unwrap();
        assert_eq!(bench.proxy.counts().write_units(), 1.0, "in round {round}");
    }
    let events = bench.stores.jobs.events(job.id).await.unwrap();
    assert!(events.is_sorted_by(|one, next| one.version < next.version));
    assert_eq!(events.iter().map(|event| event.verb.as_str()).collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn what_each_verb_costs() {
    let bench = bench(12).await;
    let owner = user();
    let mut total = 0.0;
    let mut cost = |verb: &str| {
        let counts = bench.proxy.take_counts();
        let (writes, reads) = (counts.write_units(), counts.read_units());
        println!("{verb}: {writes} write units, {reads} read units, {} requests", counts.asked());
        total += writes;
        writes
    };
    cost("nothing");
    let idempotency = Idempotency { key_sha256: "a".repeat(64), body_sha256: "b".repeat(64) };
    let made =
        bench.stores.jobs.create_job(NewJob { idempotency: Some(idempotency), ..new(owner, Some(100)) }, at(0)).await.unwrap();
    let Created::New(job) = made else { panic!("{made:?}") };
    cost("create (Local counts a transaction's items twice over)");
    assert_eq!(bench.stores.jobs.due(at(1), 16).await.unwrap().len(), 1);
    assert_eq!(cost("due"), 0.0);
    let (job, claim) = claim(&bench.stores, &job).await;
    assert!(cost("claim") <= 3.0, "one for the item, two for the index");
    for to in [State::Planning, State::Executing, State::Verifying, State::Publishing] {
        let facts = Facts {
            base_sha: Some("5f0c2b7d".repeat(5)),
            feature_branch: Some("ckrv/fix-cart-1".to_owned()),
            ..Facts::default()
        };
        bench.stores.jobs.apply(job.id, &Verb::Advance { claim, fence: job.fence, to, facts }, at(2)).await.unwrap();
        assert_eq!(cost("advance"), 1.0);
    }
    for number in 0..30 {
        bench.stores.jobs.apply(job.id, &beat(claim, job.fence, 80 + 20 * number), at(20 * number)).await.unwrap();
        let counts = bench.proxy.counts();
        assert_eq!(counts.asked(), 2, "one read, one write");
        assert_eq!(cost("beat"), 1.0);
    }
    for number in 0..120_u64 {
        let batch = entries(job.fence, number * 8 + 1..=number * 8 + 8);
        bench.stores.jobs.append_log(job.id, claim, job.fence, &batch).await.unwrap();
        if number > 0 {
            assert_eq!(bench.proxy.counts().asked(), 2, "one write, one read");
        }
        assert_eq!(cost("append of 8 entries"), 1.0);
    }
    let ended = bench
        .stores
        .jobs
        .apply(job.id, &finish(claim, job.fence, OutcomeClass::Success, Some(1_000_000)), at(600))
        .await
        .unwrap();
    cost("finish with a cost");
    assert_eq!(ended.state, State::Succeeded);
    bench.stores.jobs.compact_log(job.id).await.unwrap();
    cost("compact");
    assert_eq!(bench.stores.jobs.read_log(job.id, Cursor::default(), 2000).await.unwrap().len(), 960);
    cost("read of the whole log, compacted");
    assert_eq!(bench.stores.jobs.purge_expired(at(600 + 7 * 24 * 3600), 10).await.unwrap(), [job.id]);
    cost("purge");
    println!("{total} write units in all");
    assert!(total <= 300.0);
}

#[tokio::test]
async fn what_nobody_can_read_is_set_aside_and_the_rest_is_served() {
    let bench = bench(13).await;
    let owner = user();
    let (broken, fine) = (make(&bench.stores, owner).await, make(&bench.stores, owner).await);
    let client = bench.aws.dynamodb_client();
    let string = |text: String| aws_sdk_dynamodb::types::AttributeValue::S(text);
    let update = client
        .update_item()
        .table_name(&bench.aws.table)
        .key("PK", string(format!("J#{}", broken.id)))
        .key("SK", string("META".to_owned()));
    let update = update.update_expression("SET r = :r").expression_attribute_values(":r", string("no record".to_owned()));
    update.send().await.unwrap();

    assert_eq!(bench.stores.jobs.due(at(1), 9).await.unwrap().iter().map(|job| job.id).collect::<Vec<_>>(), [fine.id]);
    let listed = bench.stores.jobs.jobs_of(owner, &JobFilter::default(), 9, None).await.unwrap();
    assert_eq!(listed.items.iter().map(|job| job.id).collect::<Vec<_>>(), [fine.id]);
    let told = bench.stores.jobs.job(broken.id).await.unwrap_err().to_string();
    assert!(told.contains(&broken.id.to_string()), "{told}");
    let aside = bench.stores.jobs.set_aside().await.unwrap();
    assert_eq!(aside.iter().map(|aside| aside.name.as_str()).collect::<Vec<_>>(), [format!("job {}", broken.id)]);
    assert_eq!(bench.stores.jobs.depth().await.unwrap().queued, 1, "it does not come up again");
}

#[tokio::test]
async fn a_followed_log_is_noted_for_its_worker_once_in_ten_seconds() {
    let bench = bench(14).await;
    let job = make(&bench.stores, user()).await;
    bench.stores.jobs.watch(&job, at(30)).await.unwrap();
    let (job, _) = claim(&bench.stores, &job).await;
    bench.proxy.take_counts();
    for until in 30..50 {
        bench.stores.jobs.watch(&job, at(until)).await.unwrap();
    }
    assert_eq!(bench.proxy.counts().of("PutItem").asked, 2, "at second 30 and at second 40");
    let other = open(&bench.aws, &bench.aws.dynamodb).await;
    assert_eq!(other.jobs.watched("worker-1", at(39)).await.unwrap(), [job.id]);
    assert_eq!(other.jobs.watched("worker-1", at(40)).await.unwrap(), [], "though its item is still there");
    assert_eq!(other.jobs.watched("worker-2", at(1)).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_throttled_table_slows_a_store_and_loses_nothing() {
    let bench = bench(15).await;
    let owner = user();
    let job = make(&bench.stores, owner).await;
    let (job, claim) = claim(&bench.stores, &job).await;
    bench.proxy.rule(On::Any, When::Chance(0.5), Fault::Fail(ServiceError::ThroughputExceeded));
    let jobs = Arc::clone(&bench.stores.jobs);
    let mut next = 1;
    while next <= 30 {
        match jobs.append_log(job.id, claim, job.fence, &entries(job.fence, next..=next + 2)).await {
            Ok(()) => next += 3,
            Err(AppendError::Store(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    bench.proxy.heal();
    assert_eq!(jobs.read_log(job.id, Cursor::default(), 100).await.unwrap(), entries(job.fence, 1..=30));
}
