//! A gateway on a unix socket with the embedded store, asked by job runners' own clients.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ckrv_core::id::{ClaimId, JobId};
use ckrv_core::job::{Facts, JobRecord, Outcome, OutcomeClass};
use ckrv_core::log::Cursor;
use ckrv_core::machine::{Evidence, Finish, Refusal, Verb};
use ckrv_core::policy::Policy;
use ckrv_store::{Blobs, NewJob, PutBlobError, QuotaRule, StoreError, Stores, open_embedded};
use jiff::Timestamp;
use secrecy::SecretString;
use serde_json::json;
use uuid::Uuid;

use super::*;
use crate::launch_choice::LauncherChoice;
use crate::settings::{Checkpoints, Pace, Settings};

const MIB: usize = 1 << 20;

/// Blobs that say how many bytes are being stored at once, and that can take a lease away in the middle.
struct Watched {
    blobs: Arc<dyn Blobs>,
    now: AtomicU64,
    most: AtomicU64,
    in_the_middle: Mutex<Option<tokio::sync::oneshot::Sender<tokio::sync::oneshot::Sender<()>>>>,
    is_damaged: AtomicBool,
}

impl Watched {
    fn most(&self) -> u64 {
        self.most.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Blobs for Watched {
    async fn put(&self, key: &str, content: Bytes) -> Result<(), PutBlobError> {
        let length = content.len() as u64;
        let now = self.now.fetch_add(length, Ordering::SeqCst) + length;
        self.most.fetch_max(now, Ordering::SeqCst);
        // Whoever else may come has come by then.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let stored = self.blobs.put(key, content).await;
        let told = self.in_the_middle.lock().unwrap().take();
        if let Some(told) = told {
            let (go_on, wait) = tokio::sync::oneshot::channel();
            told.send(go_on).unwrap();
            wait.await.unwrap();
        }
        self.now.fetch_sub(length, Ordering::SeqCst);
        stored
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        if self.is_damaged.load(Ordering::SeqCst) {
            return Err(StoreError::Unreadable { name: key.to_owned(), reason: "its SHA-256 is another".to_owned() });
        }
        self.blobs.get(key).await
    }

    async fn get_range(&self, key: &str, range: std::ops::Range<u64>) -> Result<Option<Bytes>, StoreError> {
        self.blobs.get_range(key, range).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.blobs.delete(key).await
    }

    async fn delete_prefix(&self, prefix: &str) -> Result<(), StoreError> {
        self.blobs.delete_prefix(prefix).await
    }

    async fn presign(&self, key: &str, valid: Duration) -> Result<Option<SecretString>, StoreError> {
        self.blobs.presign(key, valid).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.blobs.ping().await
    }
}

struct Scene {
    gateway: Arc<GatewayServer>,
    stores: Stores,
    blobs: Arc<Watched>,
    folder: tempfile::TempDir,
}

impl Scene {
    async fn start(upload_memory_mib: u32) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let mut stores = open_embedded(&folder.path().join("data")).unwrap();
        let blobs = Arc::new(Watched {
            blobs: Arc::clone(&stores.blobs),
            now: AtomicU64::default(),
            most: AtomicU64::default(),
            in_the_middle: Mutex::default(),
            is_damaged: AtomicBool::default(),
        });
        stores.blobs = blobs.clone();
        let socket = folder.path().join("gateway");
        let settings = Arc::new(settings(folder.path(), upload_memory_mib));
        let gateway = GatewayServer::new(stores.clone(), settings, SecretString::from("k"), Timestamp::now);
        let (serving, at) = (Arc::clone(&gateway), socket.clone());
        tokio::spawn(async move { serve_unix(serving, &at, std::future::pending()).await });
        while tokio::net::UnixStream::connect(&socket).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Self { gateway, stores, blobs, folder }
    }

    async fn job(&self) -> JobId {
        let (id, now) = (JobId(Uuid::now_v7()), Timestamp::now());
        let job: JobRecord = serde_json::from_value(json!({
            "id": id, "owner": Uuid::new_v4(), "spec_key": "k", "state": "queued", "created_at": now, "updated_at": now,
            "not_before": now, "retention_seconds": 60, "quota_month": "2026-01",
            "request": { "git_repo_url": "/r", "git_base_branch": "main", "spec_id": "s", "agent": "script", "timeout_seconds": 600 },
        }))
        .unwrap();
        let quota = QuotaRule { month: "2026-01".to_owned(), included: None, cap: None, overage_micro_usd: 0, resets_at: now };
        self.stores.jobs.create_job(NewJob { job, idempotency: None, quota }, now).await.unwrap();
        id
    }

    /// Takes the lease; the client of who holds it.
    async fn claim(&self, job: JobId) -> (Gateway, JobRecord) {
        let (claim, now) = (ClaimId(Uuid::new_v4()), Timestamp::now());
        let verb =
            Verb::Claim { claim, worker: "w".to_owned(), until: now + jiff::SignedDuration::from_secs(60), has_room: true };
        let record = self.stores.jobs.apply(job, &verb, now).await.unwrap();
        let gateway = self.gateway.address(job, record.fence, claim);
        let task = Task { job, fence: record.fence, claim, gateway, trace: None };
        (Gateway::new(&task, Arc::new(|_| {})).unwrap(), record)
    }

    async fn reap(&self, record: &JobRecord) {
        reap(&self.stores, record).await;
    }

    /// What is stored of a job's checkpoints.
    fn checkpoints(&self, job: JobId) -> Vec<String> {
        let folder = self.folder.path().join("data/blobs/jobs").join(job.to_string()).join("checkpoints");
        let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

async fn reap(stores: &Stores, record: &JobRecord) {
    let verb =
        Verb::Reap { fence: record.fence, evidence: Evidence::Gone, not_before: Timestamp::now(), note: "gone".to_owned() };
    stores.jobs.apply(record.id, &verb, Timestamp::now()).await.unwrap();
}

fn settings(folder: &Path, upload_memory_mib: u32) -> Settings {
    Settings {
        worker: "w".to_owned(),
        pace: Pace::EMBEDDED,
        runs: folder.join("runs"),
        socket: folder.join("gateway"),
        program: "ckrv".into(),
        policy: Policy::default(),
        launcher: LauncherChoice::Process { path: String::new(), shim: None },
        allow_paths: true,
        ca_file: None,
        cache: None,
        capacity: 1,
        max_running: 8,
        upload_memory_mib,
        checkpoints: Checkpoints { every_seconds: 5, max_mib: 2 },
        operator_secrets: Default::default(),
        adapters: Default::default(),
        link_span: crate::trace::UNLINKED,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parallel_uploads_hold_no_more_memory_than_there_is_room_for_and_all_arrive() {
    let scene = Scene::start(3).await;
    let mut uploads = tokio::task::JoinSet::new();
    for index in 0..10_u8 {
        let (gateway, _) = scene.claim(scene.job().await).await;
        uploads.spawn(async move { gateway.artifact("diff", Bytes::from(vec![index; MIB])).await });
    }
    let keys: Vec<String> = uploads.join_all().await.into_iter().map(|stored| stored.unwrap().key).collect();
    for key in keys {
        assert_eq!(scene.blobs.get(&key).await.unwrap().unwrap().len(), MIB);
    }
    let most = scene.blobs.most();
    assert!(most >= 2 * MIB as u64, "{most} bytes: they were never side by side");
    assert!(most <= 3 * MIB as u64, "{most} bytes were held at once");
    let (gateway, _) = scene.claim(scene.job().await).await;
    assert_eq!(gateway.artifact("transcript", Bytes::new()).await.unwrap().bytes, 0);
    // One that is larger than all the room there is gets all of it.
    let (gateway, _) = scene.claim(scene.job().await).await;
    gateway.artifact("diff", Bytes::from(vec![0; 5 * MIB])).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_is_refused_for_good() {
    let scene = Scene::start(128).await;
    let (gateway, _) = scene.claim(scene.job().await).await;
    let large = Bytes::from(vec![0; LARGEST_ARTIFACT as usize + 1]);
    let refused = gateway.artifact("diff", large).await;
    assert!(matches!(refused, Err(GatewayError::Denied(Denial::TooLarge(100)))), "{refused:?}");
    let refused = gateway.checkpoint(1, Bytes::from(vec![0; 2 * MIB + 1])).await;
    assert!(matches!(refused, Err(GatewayError::Denied(Denial::TooLarge(2)))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_checkpoint_goes_to_the_next_attempt_and_with_the_job() {
    let scene = Scene::start(128).await;
    let job = scene.job().await;
    let (first, record) = scene.claim(job).await;
    assert!(first.newest_checkpoint().await.unwrap().is_none());
    for (number, content) in [(1, "one"), (2, "two"), (2, "two")] {
        first.checkpoint(number, Bytes::from(content)).await.unwrap();
    }
    assert_eq!(scene.checkpoints(job), [format!("{}-2", record.fence)], "one for each job");
    scene.reap(&record).await;

    let (second, record) = scene.claim(job).await;
    assert_eq!(second.newest_checkpoint().await.unwrap().unwrap(), "two");
    for late in [first.checkpoint(3, Bytes::from("late")).await, first.newest_checkpoint().await.map(drop)] {
        assert!(matches!(late, Err(GatewayError::Denied(Denial::Refused(Refusal::LostLease)))), "{late:?}");
    }
    assert_eq!(second.newest_checkpoint().await.unwrap().unwrap(), "two", "who is late changes nothing");
    scene.blobs.is_damaged.store(true, Ordering::SeqCst);
    assert!(second.newest_checkpoint().await.unwrap().is_none(), "a damaged one is none, and nobody waits for it");
    scene.blobs.is_damaged.store(false, Ordering::SeqCst);
    second.checkpoint(1, Bytes::from("three")).await.unwrap();
    assert_eq!(scene.checkpoints(job), [format!("{}-1", record.fence)]);

    let outcome = Outcome::new(OutcomeClass::Agent, "so it ended");
    let finish = Finish { outcome, facts: Facts::default(), artifacts: Vec::new(), log_end: Cursor::default() };
    second.finish(&finish).await.unwrap();
    let gone = async {
        while !scene.checkpoints(job).is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.expect("an ended job has no checkpoint");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_loses_its_lease_while_it_uploads_leaves_nothing() {
    let scene = Scene::start(128).await;
    let job = scene.job().await;
    let (first, record) = scene.claim(job).await;
    first.checkpoint(1, Bytes::from("one")).await.unwrap();
    let (told, in_the_middle) = tokio::sync::oneshot::channel();
    *scene.blobs.in_the_middle.lock().unwrap() = Some(told);
    let late = tokio::spawn(async move { first.checkpoint(2, Bytes::from("late")).await });
    let go_on = in_the_middle.await.unwrap();
    scene.reap(&record).await;
    let (second, _) = scene.claim(job).await;
    go_on.send(()).unwrap();
    let late = late.await.unwrap();
    assert!(matches!(late, Err(GatewayError::Denied(Denial::Refused(Refusal::LostLease)))), "{late:?}");
    assert_eq!(scene.checkpoints(job), [format!("{}-1", record.fence)]);
    assert_eq!(second.newest_checkpoint().await.unwrap().unwrap(), "one");
}
