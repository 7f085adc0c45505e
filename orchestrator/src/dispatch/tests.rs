//! The dispatcher on an embedded store, with job runners that do as a test says.

use std::cell::Cell;

use ckrv_core::id::UserId;
use ckrv_core::job::{OutcomeClass, State};
use ckrv_core::machine::Verb;
use jiff::SignedDuration;
use secrecy::SecretString;

use super::*;
use crate::fixture;

thread_local! {
    static SECONDS: Cell<i64> = const { Cell::new(0) };
}

fn clock() -> Timestamp {
    Timestamp::from_second(1_800_000_000 + SECONDS.get()).unwrap()
}

fn wait(seconds: i64) {
    SECONDS.set(SECONDS.get() + seconds);
}

/// How the next starts go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Starts {
    Well,
    NoRoom,
    Badly,
}

struct Scripted {
    stores: Stores,
    starts: Mutex<Starts>,
    liveness: Mutex<Liveness>,
    started: Mutex<Vec<JobId>>,
    cleared: Mutex<Vec<JobId>>,
    /// Another replica takes one of these whenever this one starts a job.
    rivals: Mutex<Vec<JobId>>,
    of_rivals: Mutex<usize>,
}

#[async_trait]
impl Runners for Scripted {
    async fn start(&self, job: &JobRecord, _: &Task) -> Result<(), StartError> {
        match *self.starts.lock().unwrap() {
            Starts::NoRoom => return Err(StartError::NoRoom("the cluster's quota has no room".to_owned())),
            Starts::Badly => return Err(std::io::Error::other("no such program").into()),
            Starts::Well => self.started.lock().unwrap().push(job.id),
        }
        let rival = self.rivals.lock().unwrap().pop();
        if let Some(rival) = rival {
            fixture::claim(&self.stores, rival, clock()).await;
            *self.of_rivals.lock().unwrap() += 1;
        }
        Ok(())
    }

    async fn liveness(&self, _: &JobRecord) -> Liveness {
        self.liveness.lock().unwrap().clone()
    }

    async fn running(&self) -> usize {
        self.started.lock().unwrap().len() + *self.of_rivals.lock().unwrap()
    }

    async fn clear(&self, job: &JobRecord) {
        self.cleared.lock().unwrap().push(job.id);
    }

    async fn sweep(&self, _: &[(JobId, Fence)]) {}
}

struct Bench {
    stores: Stores,
    runners: Arc<Scripted>,
    dispatcher: Dispatcher,
    _folder: tempfile::TempDir,
}

async fn bench(capacity: usize, max_running: u32) -> Bench {
    let (stores, folder) = fixture::stores().await;
    let settings = Arc::new(Settings { capacity, max_running, ..fixture::settings() });
    let gateway = GatewayServer::new(stores.clone(), Arc::clone(&settings), SecretString::from("a key"), clock);
    let runners = Arc::new(Scripted {
        stores: stores.clone(),
        starts: Mutex::new(Starts::Well),
        liveness: Mutex::new(Liveness::Alive),
        started: Mutex::default(),
        cleared: Mutex::default(),
        rivals: Mutex::default(),
        of_rivals: Mutex::default(),
    });
    let dispatcher = Dispatcher::new(stores.clone(), settings, gateway, runners.clone(), clock);
    Bench { stores, runners, dispatcher, _folder: folder }
}

impl Bench {
    async fn submit(&self, owner: UserId) -> JobId {
        let new = fixture::new_job(owner, clock());
        let id = new.job.id;
        self.stores.jobs.create_job(new, clock()).await.unwrap();
        id
    }

    async fn job(&self, id: JobId) -> JobRecord {
        self.stores.jobs.job(id).await.unwrap().unwrap()
    }

    async fn turn(&self) {
        self.dispatcher.turn().await.unwrap();
    }

    fn starts(&self, starts: Starts) {
        *self.runners.starts.lock().unwrap() = starts;
    }

    fn is(&self, liveness: Liveness) {
        *self.runners.liveness.lock().unwrap() = liveness;
    }
}

fn somebody() -> UserId {
    UserId(uuid::Uuid::now_v7())
}

#[tokio::test]
async fn a_job_for_which_there_is_no_room_waits_and_keeps_its_attempts_and_its_time() {
    let bench = bench(4, 4).await;
    let id = bench.submit(somebody()).await;
    bench.starts(Starts::NoRoom);
    for _ in 0..8 {
        bench.turn().await;
        let job = bench.job(id).await;
        assert_eq!((job.state, job.attempt, job.deadline), (State::Queued, 0, None));
        assert!(job.not_before > clock() && job.last_fault.is_some_and(|fault| fault.contains("quota")));
        wait(600);
    }
    bench.starts(Starts::Well);
    bench.turn().await;
    let job = bench.job(id).await;
    assert_eq!((job.state, job.attempt, job.deadline), (State::Preparing, 1, Some(clock() + SignedDuration::from_secs(600))));
}

#[tokio::test]
async fn a_job_runner_that_can_not_be_started_uses_up_the_attempts() {
    let bench = bench(4, 4).await;
    let id = bench.submit(somebody()).await;
    bench.starts(Starts::Badly);
    for _ in 0..4 {
        bench.turn().await;
        wait(65);
    }
    bench.is(Liveness::Gone("it never was".to_owned()));
    bench.turn().await;
    assert_eq!(bench.job(id).await.outcome.unwrap().class, OutcomeClass::Infrastructure);
}

#[tokio::test]
async fn a_cancel_reaches_a_job_whose_pod_is_pending() {
    let bench = bench(4, 4).await;
    let id = bench.submit(somebody()).await;
    bench.is(Liveness::Starting);
    bench.turn().await;
    bench.stores.jobs.apply(id, &Verb::Cancel, clock()).await.unwrap();
    bench.turn().await;
    assert_eq!(bench.job(id).await.state, State::Cancelled);
    assert_eq!(*bench.runners.cleared.lock().unwrap(), [id], "its pod is removed");
}

#[tokio::test]
async fn the_lease_of_a_pod_on_its_way_is_kept_for_it() {
    let bench = bench(4, 4).await;
    let id = bench.submit(somebody()).await;
    bench.is(Liveness::Starting);
    bench.turn().await;
    for _ in 0..20 {
        wait(25);
        bench.turn().await;
        let job = bench.job(id).await;
        assert_eq!((job.state, job.attempt), (State::Preparing, 1));
        assert!(job.lease.is_some_and(|lease| lease.until > clock()));
    }
}

#[tokio::test]
async fn capacity_is_passed_by_no_more_than_what_is_started_side_by_side() {
    let bench = bench(40, 1000).await;
    for _ in 0..60 {
        bench.submit(somebody()).await;
    }
    let mut rivals = Vec::new();
    for _ in 0..60 {
        rivals.push(bench.submit(somebody()).await);
    }
    *bench.runners.rivals.lock().unwrap() = rivals;
    bench.turn().await;
    // 16 each, then 8 for which there was room when it looked.
    assert_eq!(bench.runners.started.lock().unwrap().len(), 24);
    bench.turn().await;
    assert_eq!(bench.runners.started.lock().unwrap().len(), 24);
}

#[tokio::test]
async fn so_is_the_number_of_jobs_of_one_owner() {
    let bench = bench(1000, 20).await;
    let owner = somebody();
    for _ in 0..30 {
        bench.submit(owner).await;
    }
    let mut rivals = Vec::new();
    for _ in 0..30 {
        rivals.push(bench.submit(owner).await);
    }
    *bench.runners.rivals.lock().unwrap() = rivals;
    bench.turn().await;
    assert_eq!(bench.runners.started.lock().unwrap().len(), 16);
}
