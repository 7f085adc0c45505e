//! Jobs made per second: through the store, and by plain rusqlite with the same SQL writes. A ratio, not a time, is what counts.
//!
//!     cargo run --release -p ckrv-store --example bench_store [JOBS]

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark for people")]

use std::path::Path;
use std::time::{Duration, Instant};

use ckrv_core::id::{JobId, UserId};
use ckrv_core::job::{JobEvent, JobRecord};
use ckrv_store::contract::at;
use ckrv_store::{Durability, JobStore, NewJob, QuotaRule, Signals, SqliteStore};
use rusqlite::{Connection, TransactionBehavior, params};
use uuid::Uuid;

const OWNER: UserId = UserId(Uuid::from_u128(7));
const CONCURRENT: usize = 16;

fn queued() -> JobRecord {
    let id = JobId(Uuid::now_v7());
    serde_json::from_value(serde_json::json!({
        "id": id, "owner": OWNER, "spec_key": format!("jobs/{id}/spec"), "state": "queued", "created_at": at(0), "updated_at": at(0),
        "not_before": at(0), "retention_seconds": 604_800, "quota_month": "2027-01",
        "request": { "git_repo_url": "https://git.example/shop.git", "git_base_branch": "main", "spec_id": "fix", "agent": "script",
                     "timeout_seconds": 1800 },
    }))
    .unwrap()
}

fn new_job(job: JobRecord) -> NewJob {
    NewJob {
        job,
        idempotency: None,
        quota: QuotaRule {
            month: "2027-01".to_owned(),
            included: None,
            cap: Some(u32::MAX),
            overage_micro_usd: 0,
            resets_at: at(9),
        },
    }
}

/// The store's writes for one job, without anything around them.
fn raw(file: &Path, jobs: usize) -> Duration {
    let mut connection = Connection::open(file).unwrap();
    connection.pragma_update(None, "synchronous", "full").unwrap();
    let owner = OWNER.to_string();
    let start = Instant::now();
    for _ in 0..jobs {
        let job = queued();
        let event = JobEvent { version: 0, at: at(0), verb: "create".to_owned(), state: job.state, fence: job.fence, note: None };
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
        transaction
            .prepare_cached("INSERT INTO quota (owner, month, used) VALUES (?1, '2027-01', 0) ON CONFLICT DO NOTHING")
            .unwrap()
            .execute([&owner])
            .unwrap();
        transaction
            .prepare_cached("UPDATE quota SET used = used + 1 WHERE owner = ?1 AND month = '2027-01' AND used < ?2")
            .unwrap()
            .execute(params![owner, u32::MAX])
            .unwrap();
        let id = job.id.to_string();
        let micros = job.created_at.as_microsecond();
        transaction
            .prepare_cached(
                "INSERT INTO jobs (id, owner, state, fence, attempt, cancelled, version, created_at, not_before, repo, agent, record)
                 VALUES (?1, ?2, 'queued', 0, 0, 0, 0, ?3, ?3, ?4, ?5, ?6)",
            )
            .unwrap()
            .execute(params![id, owner, micros, job.request.git_repo_url, job.request.agent, serde_json::to_string(&job).unwrap()])
            .unwrap();
        transaction
            .prepare_cached("INSERT INTO events (job, version, record) VALUES (?1, 0, ?2)")
            .unwrap()
            .execute(params![id, serde_json::to_string(&event).unwrap()])
            .unwrap();
        transaction.commit().unwrap();
    }
    start.elapsed()
}

async fn through_the_store(file: &Path, durability: Durability, jobs: usize, concurrent: usize) -> Duration {
    let store = std::sync::Arc::new(SqliteStore::open(file, Signals::default(), durability).unwrap());
    let start = Instant::now();
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..concurrent {
        let store = store.clone();
        callers.spawn(async move {
            for _ in 0..jobs / concurrent {
                store.create_job(new_job(queued()), at(0)).await.unwrap();
            }
        });
    }
    callers.join_all().await;
    start.elapsed()
}

#[tokio::main]
async fn main() {
    let jobs: usize = std::env::args().nth(1).map_or(2000, |count| count.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    // The schema is the store's own.
    drop(SqliteStore::open(&file("raw"), Signals::default(), Durability::PowerCut).unwrap());
    let base = raw(&file("raw"), jobs);
    let told = |what: &str, took: Duration| {
        let rate = jobs as f64 / took.as_secs_f64();
        println!("{what:<44} {rate:>9.0} jobs/s   {:>5.2} x raw", took.as_secs_f64() / base.as_secs_f64());
    };
    told("plain rusqlite, one after the other", base);
    told("store, one after the other", through_the_store(&file("one"), Durability::PowerCut, jobs, 1).await);
    told("store, 16 callers", through_the_store(&file("many"), Durability::PowerCut, jobs, CONCURRENT).await);
    told("store, one after the other, sync normal", through_the_store(&file("normal"), Durability::ProcessKill, jobs, 1).await);
    told(
        "store, 16 callers, sync normal",
        through_the_store(&file("many-normal"), Durability::ProcessKill, jobs, CONCURRENT).await,
    );
}
