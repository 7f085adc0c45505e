//! What `POST /v1/jobs` writes, without anything around it: the spec as a synced file, and the job's rows in one transaction, by plain
//! `std` and rusqlite. Prints the microseconds that each job took, one a line. `cargo xtask bench` runs it beside the service.
//!
//!     cargo run --release -p ckrv-store --example raw_writes JOBS

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark for people")]

use std::fs::{DirBuilder, File};
use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

use ckrv_core::id::{JobId, UserId};
use ckrv_core::job::{JobEvent, JobRecord};
use ckrv_store::contract::at;
use ckrv_store::{Durability, Signals, SqliteStore};
use rusqlite::{Connection, TransactionBehavior, params};
use uuid::Uuid;

const OWNER: UserId = UserId(Uuid::from_u128(7));
const SPEC: &[u8] = b"---\nagent: script\n---\ntrue\n";

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

/// Temporary file, sync, a link that replaces nothing, and the folders up to the root synced.
fn spec(root: &Path, job: &JobRecord) {
    let path = root.join("blobs").join(&job.spec_key);
    let folder = path.parent().unwrap();
    DirBuilder::new().recursive(true).create(folder).unwrap();
    let mut file = tempfile::NamedTempFile::new_in(root.join("blobs.tmp")).unwrap();
    file.write_all(SPEC).unwrap();
    file.as_file().sync_all().unwrap();
    file.persist_noclobber(&path).unwrap();
    for step in folder.ancestors().take(3) {
        File::open(step).unwrap().sync_all().unwrap();
    }
}

fn rows(connection: &mut Connection, job: &JobRecord) {
    let event = JobEvent { version: 1, at: at(0), verb: "create".to_owned(), state: job.state, fence: job.fence, note: None };
    let (id, owner, micros) = (job.id.to_string(), OWNER.to_string(), job.created_at.as_microsecond());
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    let run = |sql: &str, values: &[&dyn rusqlite::ToSql]| transaction.prepare_cached(sql).unwrap().execute(values).unwrap();
    run("INSERT INTO quota (owner, month, used) VALUES (?1, '2027-01', 0) ON CONFLICT DO NOTHING", params![owner]);
    run("UPDATE quota SET used = used + 1 WHERE owner = ?1 AND month = '2027-01' AND used < ?2", params![owner, u32::MAX]);
    run(
        "INSERT INTO jobs (id, owner, state, fence, attempt, cancelled, version, created_at, not_before, repo, agent, record)
         VALUES (?1, ?2, 'queued', 0, 0, 0, 1, ?3, ?3, ?4, ?5, ?6)",
        params![id, owner, micros, job.request.git_repo_url, job.request.agent, serde_json::to_string(&job).unwrap()],
    );
    run("INSERT INTO events (job, version, record) VALUES (?1, 1, ?2)", params![id, serde_json::to_string(&event).unwrap()]);
    transaction.commit().unwrap();
}

fn main() {
    let jobs: usize = std::env::args().nth(1).unwrap().parse().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    std::fs::create_dir_all(root.join("blobs.tmp")).unwrap();
    let file = root.join("ckrv.db");
    // The schema is the store's own.
    drop(SqliteStore::open(&file, Signals::default(), Durability::PowerCut).unwrap());
    let mut connection = Connection::open(&file).unwrap();
    connection.pragma_update(None, "synchronous", "full").unwrap();
    for _ in 0..jobs {
        let job = queued();
        let began = Instant::now();
        spec(root, &job);
        rows(&mut connection, &job);
        println!("{}", began.elapsed().as_micros());
    }
}
