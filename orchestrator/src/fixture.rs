//! What tests of several parts begin with.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ckrv_core::id::{ClaimId, JobId, UserId};
use ckrv_core::job::JobRecord;
use ckrv_core::machine::Verb;
use ckrv_core::policy::Policy;
use ckrv_store::{NewJob, QuotaRule, Stores};
use jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;

use crate::launch_choice::LauncherChoice;
use crate::settings::{Checkpoints, LEASE, Pace, Settings};

pub(crate) async fn stores() -> (Stores, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    (tokio::task::spawn_blocking(move || ckrv_store::open_embedded(&path).unwrap()).await.unwrap(), folder)
}

/// Of a worker `w`.
pub(crate) fn settings() -> Settings {
    Settings {
        worker: "w".to_owned(),
        pace: Pace::EMBEDDED,
        runs: PathBuf::new(),
        socket: PathBuf::new(),
        program: PathBuf::new(),
        policy: Policy::default(),
        launcher: LauncherChoice::Process { path: String::new(), shim: None },
        allow_paths: true,
        ca_file: None,
        cache: None,
        capacity: 1,
        max_running: 1,
        upload_memory_mib: 1,
        checkpoints: Checkpoints::default(),
        operator_secrets: BTreeMap::new(),
        adapters: BTreeMap::new(),
        link_span: crate::trace::UNLINKED,
    }
}

pub(crate) fn record(owner: UserId, now: Timestamp) -> JobRecord {
    let request =
        json!({ "git_repo_url": "u", "git_base_branch": "main", "spec_id": "s", "agent": "script", "timeout_seconds": 600 });
    let job = json!({ "id": Uuid::now_v7(), "owner": owner, "request": request, "spec_key": "s", "state": "queued", "created_at": now,
        "updated_at": now, "not_before": now, "retention_seconds": 60, "quota_month": "2027-01" });
    serde_json::from_value(job).unwrap()
}

pub(crate) fn new_job(owner: UserId, now: Timestamp) -> NewJob {
    let quota = QuotaRule { month: "2027-01".to_owned(), included: None, cap: None, overage_micro_usd: 0, resets_at: now };
    NewJob { job: record(owner, now), idempotency: None, quota }
}

/// Takes a lease for the worker `w`.
pub(crate) async fn claim(stores: &Stores, job: JobId, now: Timestamp) -> JobRecord {
    let verb = Verb::Claim { claim: ClaimId(Uuid::now_v7()), worker: "w".to_owned(), until: now + LEASE, has_room: true };
    stores.jobs.apply(job, &verb, now).await.unwrap()
}
