//! What only the embedded backend's own files can show: modes, crashes, damaged records, versions.
//!
//! Not tested here: a power cut. The database is opened with `synchronous = FULL`; whether the disk keeps its word can't be seen from here.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use ckrv_core::id::{ClaimId, JobId, UserId};
use ckrv_core::job::{Facts, JobRecord, JobRequest, State};
use ckrv_core::log::{Cursor, Level, LogEntry};
use ckrv_core::machine::Verb;
use ckrv_store::contract::at;
use ckrv_store::{
    AccessToken, AppendError, JobFilter, LocalVault, NewJob, Opener, QuotaRule, SealContext, Sealer, Signal, StoreError, Stores,
    VerbError, open_embedded,
};
use rusqlite::Connection;
use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

const OWNER: UserId = UserId(Uuid::from_u128(7));

fn queued() -> JobRecord {
    let id = JobId(Uuid::now_v7());
    let request: JobRequest = serde_json::from_value(serde_json::json!({
        "git_repo_url": "https://git.example/shop.git", "git_base_branch": "main", "spec_id": "fix", "agent": "script", "timeout_seconds": 60,
    }))
    .unwrap();
    serde_json::from_value(serde_json::json!({
        "id": id, "owner": OWNER, "request": request, "spec_key": format!("jobs/{id}/spec"), "state": State::Queued, "created_at": at(0),
        "updated_at": at(0), "not_before": at(0), "facts": Facts::default(), "retention_seconds": 60, "quota_month": "2027-01",
    }))
    .unwrap()
}

async fn make(stores: &Stores) -> JobRecord {
    let job = queued();
    let quota = QuotaRule { month: "2027-01".to_owned(), included: None, cap: None, overage_micro_usd: 0, resets_at: at(9) };
    stores.jobs.create_job(NewJob { job: job.clone(), idempotency: None, quota }, at(0)).await.unwrap();
    job
}

async fn claim(stores: &Stores, job: &JobRecord) -> (JobRecord, ClaimId) {
    let claim = ClaimId(Uuid::new_v4());
    let verb = Verb::Claim { claim, worker: "w".to_owned(), until: at(60), has_room: true };
    (stores.jobs.apply(job.id, &verb, at(0)).await.unwrap(), claim)
}

fn entry(job: &JobRecord, seq: u64) -> LogEntry {
    let message = "x".repeat(2000);
    LogEntry { timestamp: at(0), level: Level::Info, source: "agent".to_owned(), message, fence: job.fence, seq, event: None }
}

fn damage(folder: &Path, sql: &str) {
    assert_eq!(Connection::open(folder.join("ckrv.db")).unwrap().execute(sql, []).unwrap(), 1, "{sql}");
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_can_not_be_read_is_set_aside_and_the_rest_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let stores = open_embedded(folder.path()).unwrap();
    let mut jobs = Vec::new();
    for _ in 0..6 {
        jobs.push(make(&stores).await);
    }
    drop(stores);
    let of = |index: usize| jobs[index].id;
    damage(folder.path(), &format!("UPDATE jobs SET record = '{{\"id\":' WHERE id = '{}'", of(0)));
    damage(folder.path(), &format!("UPDATE jobs SET record = replace(record, 'queued', 'sleeping') WHERE id = '{}'", of(1)));
    damage(folder.path(), &format!("UPDATE jobs SET record = CAST(x'ff00fe' AS TEXT) WHERE id = '{}'", of(2)));
    damage(
        folder.path(),
        &format!("UPDATE jobs SET record = (SELECT record FROM jobs WHERE id = '{}') WHERE id = '{}'", of(4), of(3)),
    );

    let stores = open_embedded(folder.path()).unwrap();
    stores.jobs.ping().await.unwrap();
    // Met by a verb, by a read, and by the lists.
    let answer = stores.jobs.apply(of(0), &Verb::Cancel, at(1)).await;
    assert!(
        matches!(&answer, Err(VerbError::Store(StoreError::Unreadable { name, .. })) if name.contains(&of(0).to_string())),
        "{answer:?}"
    );
    let answer = stores.jobs.job(of(1)).await;
    assert!(matches!(&answer, Err(StoreError::Unreadable { reason, .. }) if reason.contains("sleeping")), "{answer:?}");
    assert_eq!(stores.jobs.due(at(1), 10).await.unwrap(), jobs[4..]);
    let listed = stores.jobs.jobs_of(OWNER, &JobFilter::default(), 10, None).await.unwrap();
    assert_eq!(listed.items.len(), 2);

    let mut named: Vec<_> = stores.jobs.set_aside().await.unwrap().into_iter().map(|aside| aside.name).collect();
    named.sort();
    let mut expected: Vec<_> = (0..4).map(|index| format!("job {}", of(index))).collect();
    expected.sort();
    assert_eq!(named, expected);
    drop(stores);

    // And it stays so: named, not unknown, with its content kept.
    let stores = open_embedded(folder.path()).unwrap();
    assert!(matches!(stores.jobs.job(of(1)).await, Err(StoreError::Unreadable { .. })));
    assert!(matches!(stores.jobs.apply(of(2), &Verb::Cancel, at(1)).await, Err(VerbError::Store(StoreError::Unreadable { .. }))));
    assert_eq!(claim(&stores, &jobs[5]).await.0.attempt, 1);
    let database = Connection::open(folder.path().join("ckrv.db")).unwrap();
    let kept: Vec<u8> = database
        .query_row("SELECT content FROM set_aside WHERE name = ?1", [format!("job {}", of(0))], |row| row.get(0))
        .unwrap();
    assert_eq!(kept, b"{\"id\":");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_part_of_a_log_is_set_aside_and_the_rest_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let stores = open_embedded(folder.path()).unwrap();
    let (job, claim_id) = claim(&stores, &make(&stores).await).await;
    for seq in 1..=3 {
        stores.jobs.append_log(job.id, claim_id, job.fence, &[entry(&job, seq)]).await.unwrap();
    }
    damage(folder.path(), "UPDATE log_chunks SET data = x'deadbeef' WHERE first = 2");
    for _ in 0..2 {
        let read = stores.jobs.read_log(job.id, Cursor::default(), 10).await.unwrap();
        assert_eq!(read.iter().map(|entry| entry.seq).collect::<Vec<_>>(), [1, 3]);
    }
    assert_eq!(stores.jobs.set_aside().await.unwrap().len(), 1);
    let repeated = stores.jobs.append_log(job.id, claim_id, job.fence, &[entry(&job, 2), entry(&job, 3)]).await;
    assert!(repeated.is_ok(), "its place stays taken");
    let gap = stores.jobs.append_log(job.id, claim_id, job.fence, &[entry(&job, 9)]).await;
    assert!(matches!(gap, Err(AppendError::Gap { expected: 4 })), "{gap:?}");
}

/// The program that the next test kills: makes jobs until it is no more, and names each one once it was acknowledged.
#[test]
#[ignore = "is started by what_was_acknowledged_survives_kill_9"]
fn writer_that_is_killed() {
    let mut folder = String::new();
    std::io::stdin().read_line(&mut folder).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let stores = open_embedded(Path::new(folder.trim())).unwrap();
        let mut writers = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let stores = stores.clone();
            writers.spawn(async move {
                loop {
                    let job = make(&stores).await;
                    let (job, claim_id) = claim(&stores, &job).await;
                    stores.jobs.append_log(job.id, claim_id, job.fence, &[entry(&job, 1)]).await.unwrap();
                    stores.blobs.put(&format!("jobs/{}/1/diff", job.id), job.id.to_string().into()).await.unwrap();
                    writeln!(std::io::stdout(), "acknowledged {}", job.id).unwrap();
                }
            });
        }
        writers.join_next().await;
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_kill_9() {
    for kill_after in [1, 20, 77] {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "writer_that_is_killed", "--ignored", "--nocapture"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        writeln!(writer.stdin.take().unwrap(), "{}", folder.path().display()).unwrap();
        let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
        let mut acknowledged = Vec::new();
        while acknowledged.len() < kill_after {
            let line = lines.next().expect("the writer goes on until it is killed").unwrap();
            acknowledged.extend(line.strip_prefix("acknowledged ").map(|id| id.parse::<JobId>().unwrap()));
        }
        writer.kill().unwrap();
        writer.wait().unwrap();
        // What it said before the kill reached it.
        acknowledged
            .extend(lines.map_while(Result::ok).filter_map(|line| line.strip_prefix("acknowledged ")?.parse::<JobId>().ok()));

        let stores = open_embedded(folder.path()).unwrap();
        for id in &acknowledged {
            let job = stores.jobs.job(*id).await.unwrap().unwrap();
            assert_eq!(job.attempt, 1);
            assert_eq!(stores.jobs.read_log(*id, Cursor::default(), 9).await.unwrap().len(), 1);
            assert_eq!(stores.blobs.get(&format!("jobs/{id}/1/diff")).await.unwrap().unwrap(), id.to_string().as_bytes());
        }
        let all = stores.jobs.jobs_of(OWNER, &JobFilter::default(), 100_000, None).await.unwrap().items;
        assert_eq!(
            u32::try_from(all.len()).unwrap(),
            stores.accounts.quota_used(OWNER, "2027-01").await.unwrap(),
            "counted once each"
        );
        make(&stores).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_the_files_taken_while_writes_go_on_opens() {
    let folder = tempfile::tempdir().unwrap();
    let copy = tempfile::tempdir().unwrap();
    let stores = open_embedded(folder.path()).unwrap();
    let before = make(&stores).await;
    let writing = tokio::spawn({
        let stores = stores.clone();
        // Fewer pages than a checkpoint waits for: the main file stays as it is while the copy is made.
        async move {
            for _ in 0..40 {
                make(&stores).await;
            }
        }
    });
    for name in ["ckrv.db", "ckrv.db-wal", "master.key"] {
        std::fs::copy(folder.path().join(name), copy.path().join(name)).unwrap();
    }
    writing.await.unwrap();
    let copied = open_embedded(copy.path()).unwrap();
    assert_eq!(copied.jobs.job(before.id).await.unwrap(), Some(before));
    let (listed, used) = (
        copied.jobs.jobs_of(OWNER, &JobFilter::default(), 100, None).await.unwrap().items.len(),
        copied.accounts.quota_used(OWNER, "2027-01").await.unwrap(),
    );
    assert_eq!(u32::try_from(listed).unwrap(), used, "no half of a transaction");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_readable_by_its_owner_only() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("made/here");
    let stores = open_embedded(&folder).unwrap();
    make(&stores).await;
    stores.blobs.put("jobs/1/spec", "content".into()).await.unwrap();
    let mut open = vec![folder.clone()];
    let mut files = 0;
    while let Some(path) = open.pop() {
        assert_eq!(mode(&path), 0o700, "{}", path.display());
        for entry in std::fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                assert_eq!(mode(&path), 0o600, "{}", path.display());
                files += 1;
            }
        }
    }
    assert_eq!(files, 5, "database, its two side files, key, blob");
    drop(stores);
    // Opened up by somebody: closed again, but for the key, which may have been read.
    for (path, wide) in [(folder.clone(), 0o755), (folder.join("ckrv.db"), 0o644)] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(wide)).unwrap();
    }
    drop(open_embedded(&folder).unwrap());
    assert_eq!((mode(&folder), mode(&folder.join("ckrv.db"))), (0o700, 0o600));
}

fn text_of(error: &StoreError) -> String {
    let source = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    format!("{error}: {source}")
}

#[test]
fn a_master_key_that_others_may_read_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("master.key");
    drop(LocalVault::open(&file).unwrap());
    for wide in [0o640, 0o604, 0o620, 0o666] {
        std::fs::set_permissions(&file, PermissionsExt::from_mode(wide)).unwrap();
        let text = text_of(&LocalVault::open(&file).unwrap_err());
        assert!(text.contains(&format!("{wide:04o}")) && text.contains("chmod 600"), "{text}");
    }
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    let link = folder.path().join("link.key");
    symlink(&file, &link).unwrap();
    assert!(LocalVault::open(&link).is_err(), "a link is not followed");
    std::fs::write(&file, "not a key\n").unwrap();
    let text = text_of(&LocalVault::open(&file).unwrap_err());
    assert!(text.contains("no key") && !text.contains("not a key"), "{text}");
}

#[tokio::test]
async fn a_lost_master_key_is_said_clearly_and_the_same_one_opens_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("master.key");
    let context = SealContext { owner: "u", kind: "secret", name: "api-key" };
    let sealed = LocalVault::open(&file).unwrap().seal(context, &SecretString::from("sk-0123456789")).await.unwrap();
    let again = LocalVault::open(&file).unwrap();
    assert_eq!(again.open(context, &sealed).await.unwrap().expose_secret(), "sk-0123456789");
    std::fs::remove_file(&file).unwrap();
    let other = LocalVault::open(&file).unwrap();
    let text = other.open(context, &sealed).await.unwrap_err().to_string();
    assert!(text.contains("another master key") && text.contains("master.key"), "{text}");
}

#[tokio::test]
async fn many_who_make_the_master_key_at_once_use_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("master.key");
    let openers: Vec<_> = (0..8)
        .map(|_| {
            std::thread::spawn({
                let file = file.clone();
                move || LocalVault::open(&file).unwrap()
            })
        })
        .collect();
    let vaults: Vec<LocalVault> = openers.into_iter().map(|opener| opener.join().unwrap()).collect();
    let context = SealContext { owner: "u", kind: "secret", name: "s" };
    let sealed = vaults[0].seal(context, &SecretString::from("value")).await.unwrap();
    for vault in &vaults {
        assert_eq!(vault.open(context, &sealed).await.unwrap().expose_secret(), "value");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_data_of_a_newer_version_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    drop(open_embedded(folder.path()).unwrap());
    let file = folder.path().join("ckrv.db");
    Connection::open(&file).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let before = std::fs::read(&file).unwrap();
    let error = open_embedded(folder.path()).unwrap_err();
    assert!(matches!(error, StoreError::TooNew { found: 99, .. }), "{error}");
    assert!(error.to_string().contains("newer version"), "{error}");
    assert_eq!(std::fs::read(&file).unwrap(), before);
}

#[test]
fn a_file_that_is_no_database_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("ckrv.db"),
        "this is somebody's letter, not a database, and it is longer than a header".repeat(9),
    )
    .unwrap();
    let error = open_embedded(folder.path()).unwrap_err();
    assert!(matches!(error, StoreError::Backend { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_is_signalled_after_it_can_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let stores = open_embedded(folder.path()).unwrap();
    let mut signals = stores.signals.subscribe();
    let job = make(&stores).await;
    assert_eq!(signals.recv().await.unwrap(), Signal::Queued(job.id));
    assert_eq!(signals.recv().await.unwrap(), Signal::Changed(job.id));
    let (job, claim_id) = claim(&stores, &job).await;
    assert_eq!(signals.recv().await.unwrap(), Signal::Changed(job.id));
    stores.jobs.append_log(job.id, claim_id, job.fence, &[entry(&job, 1)]).await.unwrap();
    stores.jobs.append_log(job.id, claim_id, job.fence, &[entry(&job, 1)]).await.unwrap();
    assert_eq!(signals.recv().await.unwrap(), Signal::Log(job.id));
    let release = Verb::Release { claim: claim_id, fence: job.fence, not_before: at(0), note: "full".to_owned() };
    stores.jobs.apply(job.id, &release, at(1)).await.unwrap();
    assert_eq!(signals.recv().await.unwrap(), Signal::Changed(job.id));
    assert_eq!(signals.recv().await.unwrap(), Signal::Queued(job.id));
    assert!(stores.jobs.apply(job.id, &release, at(1)).await.is_err());
    assert!(signals.try_recv().is_err(), "neither a repeated append nor a refusal is news");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_expired_is_purged() {
    let folder = tempfile::tempdir().unwrap();
    let accounts = open_embedded(folder.path()).unwrap().accounts;
    let token = |sha256: &str, expires: i64| AccessToken {
        sha256: sha256.to_owned(),
        user: OWNER,
        family: "f".to_owned(),
        expires_at: at(expires),
    };
    for token in [token("aa", 10), token("bb", 100)] {
        accounts.put_access_token(&token).await.unwrap();
    }
    accounts.purge_tokens(at(50)).await.unwrap();
    assert_eq!(accounts.access_token("aa").await.unwrap(), None);
    assert_eq!(accounts.access_token("bb").await.unwrap(), Some(token("bb", 100)));
}
