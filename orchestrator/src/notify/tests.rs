//! Deliveries over real connections on loopback: 127.0.0.1 stands for what must never be reached, 127.0.0.2 for the public internet.

mod receiver;

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};

use ckrv_core::event::Usage;
use ckrv_core::id::{Fence, JobId, UserId};
use ckrv_core::job::{Facts, JobRecord, JobRequest, State};
use ckrv_core::webhook::webhook_key;
use ckrv_store::{NewJob, QuotaRule};
use jiff::SignedDuration;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::sender::redirected;
use super::*;
use receiver::{Got, Receiver, Reply};

const OPEN: NotifyPolicy = NotifyPolicy { allow_http: true, allow_private: true };
const HTTP: NotifyPolicy = NotifyPolicy { allow_http: true, allow_private: false };

fn all(_: IpAddr) -> bool {
    true
}

/// In these tests only 127.0.0.2 is out in the internet.
fn only_two(address: IpAddr) -> bool {
    address == IpAddr::from([127, 0, 0, 2])
}

/// Answers each lookup with the next of these addresses, and in the end always with the last one.
struct Scripted(Mutex<VecDeque<IpAddr>>);

impl Scripted {
    fn new(addresses: &[&str]) -> Arc<Self> {
        Arc::new(Self(Mutex::new(addresses.iter().map(|address| address.parse().unwrap()).collect())))
    }
}

#[async_trait::async_trait]
impl Lookup for Scripted {
    async fn lookup(&self, name: &str) -> std::io::Result<Vec<IpAddr>> {
        if name == "inner.example" {
            return Ok(vec![IpAddr::from([127, 0, 0, 1])]);
        }
        let mut left = self.0.lock().unwrap();
        let next = if left.len() > 1 { left.pop_front() } else { left.front().copied() };
        Ok(next.into_iter().collect())
    }
}

/// Stores with one ended job, and a clock that the test moves.
struct Scene {
    stores: Stores,
    clock: Arc<AtomicI64>,
    notifier: Arc<Notifier>,
    owner: UserId,
    _folder: tempfile::TempDir,
}

impl Scene {
    async fn new() -> Self {
        Self::with(OPEN, Arc::new(SystemLookup), all).await
    }

    async fn with(policy: NotifyPolicy, lookup: Arc<dyn Lookup>, allowed: fn(IpAddr) -> bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let stores = tokio::task::spawn_blocking(move || ckrv_store::open_embedded(&path).unwrap()).await.unwrap();
        let clock = Arc::new(AtomicI64::new(1_800_000_000));
        let notifier = Arc::new(Self::notifier(&stores, &clock, policy, lookup, allowed));
        Self { stores, clock, notifier, owner: UserId(uuid::Uuid::now_v7()), _folder: folder }
    }

    fn notifier(
        stores: &Stores,
        clock: &Arc<AtomicI64>,
        policy: NotifyPolicy,
        lookup: Arc<dyn Lookup>,
        allowed: fn(IpAddr) -> bool,
    ) -> Notifier {
        let settings = NotifierSettings {
            policy,
            ca_file: None,
            public_url: Some("https://ckrv.example/".parse().unwrap()),
            key: SecretString::from(webhook_key(b"server")),
            pace: Duration::from_millis(1),
        };
        let clock = Arc::clone(clock);
        let now = move || Timestamp::from_second(clock.load(Ordering::SeqCst)).unwrap();
        Notifier::with(stores.clone(), settings, now, lookup, allowed).unwrap()
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_second(self.clock.load(Ordering::SeqCst)).unwrap()
    }

    fn pass(&self, by: SignedDuration) {
        self.clock.fetch_add(by.as_secs(), Ordering::SeqCst);
    }

    async fn ended(&self, url: &str) -> JobId {
        let id = JobId(uuid::Uuid::now_v7());
        let job = queued(id, self.owner, url, self.now());
        let quota =
            QuotaRule { month: "2027-01".to_owned(), included: None, cap: None, overage_micro_usd: 0, resets_at: Timestamp::MAX };
        self.stores.jobs.create_job(NewJob { job, idempotency: None, quota }, self.now()).await.unwrap();
        self.stores.jobs.apply(id, &Verb::Cancel, self.now()).await.unwrap();
        id
    }

    /// One look, and all that comes of it.
    async fn turn(&self) {
        turn(&self.notifier).await;
    }

    async fn notice(&self, id: JobId) -> Option<Notice> {
        self.stores.jobs.job(id).await.unwrap().unwrap().notice
    }

    async fn last_note(&self, id: JobId) -> String {
        self.stores.jobs.events(id).await.unwrap().pop().unwrap().note.unwrap()
    }
}

async fn turn(notifier: &Arc<Notifier>) {
    let mut flight = Flight::default();
    notifier.start_due(&mut flight).await.unwrap();
    flight.landed().await;
}

fn queued(id: JobId, owner: UserId, url: &str, now: Timestamp) -> JobRecord {
    let request: JobRequest = serde_json::from_value(serde_json::json!({
        "git_repo_url": "https://git.example/o/r.git", "git_base_branch": "main", "spec_id": "s", "agent": "script",
        "timeout_seconds": 60, "notify_url": url,
    }))
    .unwrap();
    let facts = Facts { usage: Usage::default(), ..Facts::default() };
    let mut record = serde_json::json!({
        "id": id, "owner": owner, "spec_key": "jobs/x/spec", "state": State::Queued, "created_at": now, "updated_at": now,
        "not_before": now, "fence": Fence::default(), "version": 1, "retention_seconds": 3600, "quota_month": "2027-01",
    });
    record["request"] = serde_json::to_value(request).unwrap();
    record["facts"] = serde_json::to_value(facts).unwrap();
    serde_json::from_value(record).unwrap()
}

/// HMAC-SHA256 by its definition (RFC 2104), written without the code that signs.
fn hmac_sha256(key: &[u8], message: &[u8]) -> String {
    let mut block = [0_u8; 64];
    if key.len() > 64 {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let pad = |byte: u8| block.map(|b| b ^ byte).to_vec();
    let inner = Sha256::digest([pad(0x36), message.to_vec()].concat());
    let outer = Sha256::digest([pad(0x5c), inner.to_vec()].concat());
    hex::encode(outer)
}

fn check_signature(got: &Got, secret: &str) {
    let header = got.header("ckrv-signature");
    let (time, hex) = header.strip_prefix("t=").unwrap().split_once(",v1=").unwrap();
    assert_eq!(hex, hmac_sha256(secret.as_bytes(), &[time.as_bytes(), b".", &got.body].concat()));
}

#[tokio::test]
async fn a_delivery_is_repeated_with_the_same_id_until_it_is_taken() {
    let scene = Scene::new().await;
    let mut receiver = Receiver::start("127.0.0.1", 0, vec![Reply::status(500), Reply::Cut, Reply::status(204)]).await;
    let id = scene.ended(&receiver.url("/hook?x=1")).await;
    scene.turn().await;
    scene.turn().await;
    let mut got = receiver.got();
    assert_eq!(got.len(), 1, "not before it is due again");
    assert_eq!(scene.notice(id).await.unwrap().attempts, 1);
    for attempts in [2, 3] {
        scene.pass(SignedDuration::from_secs(31));
        scene.turn().await;
        got.extend(receiver.got());
        assert_eq!(got.len(), attempts);
    }
    assert_eq!((scene.notice(id).await, scene.last_note(id).await.as_str()), (None, "delivered: 204 No Content"));
    scene.pass(SignedDuration::from_hours(48));
    scene.turn().await;
    assert_eq!(receiver.got().len(), 0);
    let secret = signing_secret(webhook_key(b"server").as_bytes(), scene.owner);
    for one in &got {
        assert_eq!((one.line.as_str(), one.header("content-type")), ("POST /hook?x=1 HTTP/1.1", "application/json"));
        assert_eq!(one.body, got[0].body, "a repeat says the same");
        check_signature(one, &secret);
    }
    let body: Value = serde_json::from_slice(&got[0].body).unwrap();
    assert_eq!((&body["id"], &body["type"]), (&format!("job.ended:{id}").into(), &"job.ended".into()));
    let job = &body["job"];
    assert_eq!((&job["id"], &job["state"], &job["status"]), (&id.to_string().into(), &"cancelled".into(), &"failed".into()));
    assert!(job.get("notify_url").is_none() && job.get("owner").is_none(), "{job}");
}

#[tokio::test]
async fn a_receiver_that_is_gone_is_left_alone() {
    let scene = Scene::new().await;
    let mut receiver = Receiver::start("127.0.0.1", 0, vec![Reply::status(410)]).await;
    let id = scene.ended(&receiver.url("/")).await;
    scene.turn().await;
    assert_eq!(scene.notice(id).await, None);
    assert!(scene.last_note(id).await.contains("410"));
    assert_eq!(receiver.got().len(), 1);
}

#[tokio::test]
async fn after_twelve_tries_it_is_given_up() {
    let scene = Scene::new().await;
    let mut receiver = Receiver::start("127.0.0.1", 0, vec![Reply::status(503)]).await;
    let id = scene.ended(&receiver.url("/")).await;
    for _ in 0..14 {
        scene.turn().await;
        scene.pass(SignedDuration::from_hours(7));
    }
    assert_eq!((receiver.got().len(), scene.notice(id).await), (12, None));
    assert!(scene.last_note(id).await.contains("given up after 12 deliveries: the receiver answered 503"));
}

#[tokio::test]
async fn of_several_notifiers_one_delivers() {
    let scene = Scene::new().await;
    let mut receiver = Receiver::start("127.0.0.1", 0, vec![Reply::status(200)]).await;
    for _ in 0..3 {
        scene.ended(&receiver.url("/")).await;
    }
    let others = (0..4).map(|_| Arc::new(Scene::notifier(&scene.stores, &scene.clock, OPEN, Arc::new(SystemLookup), all)));
    let others: Vec<_> = others.collect();
    futures::future::join_all(others.iter().map(turn)).await;
    assert_eq!(receiver.got().len(), 3);
}

#[tokio::test]
async fn a_delivery_that_is_never_noted_is_sent_again() {
    let scene = Scene::new().await;
    let mut receiver = Receiver::start("127.0.0.1", 0, vec![Reply::Hold, Reply::status(200)]).await;
    let id = scene.ended(&receiver.url("/")).await;
    let mut flight = Flight::default();
    scene.notifier.start_due(&mut flight).await.unwrap();
    receiver.next().await;
    // As when the server is killed while the receiver thinks.
    drop(flight);
    scene.pass(SignedDuration::from_secs(11));
    scene.turn().await;
    assert_eq!(receiver.got().len(), 1, "the second one");
    assert_eq!(scene.notice(id).await, None);
}

#[tokio::test]
async fn no_forbidden_address_is_reached_by_a_name_or_by_itself() {
    for address in [
        "127.0.0.1",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "0.0.0.0",
        "::1",
        "::",
        "fe80::1",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::127.0.0.1",
        "2002:7f00:1::",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "2001::1",
    ] {
        let sender = Sender::new(HTTP, None, Scripted::new(&[address]), ckrv_core::address::is_public).unwrap();
        let Answer::Failed(why) = sender.post("http://hook.example/", Bytes::new(), "").await else { panic!("{address}") };
        assert!(why.contains("`hook.example` has no public address"), "{address}: {why}");
        let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
        let Answer::Failed(why) = sender.post(&format!("http://{host}/"), Bytes::new(), "").await else { panic!("{address}") };
        assert!(why.contains("is a private address"), "{address}: {why}");
    }
}

#[tokio::test]
async fn a_name_that_turns_inward_is_not_followed_there() {
    let mut outside = Receiver::start("127.0.0.2", 0, vec![Reply::status(200)]).await;
    let mut inside = Receiver::start("127.0.0.1", outside.port(), vec![Reply::status(200)]).await;
    // Public when it is looked at first, private from then on.
    let sender = Sender::new(HTTP, None, Scripted::new(&["127.0.0.2", "127.0.0.1"]), only_two).unwrap();
    let url = format!("http://hook.example:{}/", outside.port());
    assert!(matches!(sender.post(&url, Bytes::from("one"), "s").await, Answer::Delivered(_)));
    let Answer::Failed(why) = sender.post(&url, Bytes::from("two"), "s").await else { panic!("delivered") };
    assert!(why.contains("has no public address"), "{why}");
    assert_eq!((outside.got().len(), inside.got().len()), (1, 0));
}

#[tokio::test]
async fn a_redirect_does_not_lead_inward() {
    let mut inside = Receiver::start("127.0.0.1", 0, vec![Reply::status(200)]).await;
    let port = inside.port();
    for (location, reason) in [
        (format!("http://127.0.0.1:{port}/"), "is a private address"),
        (format!("http://[::ffff:127.0.0.1]:{port}/"), "is a private address"),
        (format!("http://inner.example:{port}/"), "`inner.example` has no public address"),
        (format!("http://user:pw@hook.example:{port}/"), "user name or password"),
        ("gopher://hook.example/".to_owned(), "must be an https URL"),
    ] {
        let outside = Receiver::start("127.0.0.2", 0, vec![Reply::redirect(307, &location)]).await;
        let sender = Sender::new(HTTP, None, Scripted::new(&["127.0.0.2"]), only_two).unwrap();
        let url = format!("http://hook.example:{}/", outside.port());
        let Answer::Failed(why) = sender.post(&url, Bytes::from("x"), "s").await else { panic!("{location}") };
        assert!(why.contains(reason), "{location}: {why}");
    }
    assert_eq!(inside.got().len(), 0);
    let from: Url = "https://hook.example/a".parse().unwrap();
    assert_eq!(redirected(&from, "http://hook.example/b", OPEN).unwrap_err(), "it leads away from https");
    assert_eq!(redirected(&from, "b", OPEN).unwrap().as_str(), "https://hook.example/b");
}

#[tokio::test]
async fn three_redirects_are_followed_and_no_more() {
    let sender = || Sender::new(OPEN, None, Arc::new(SystemLookup), all).unwrap();
    let onward = |count| vec![Reply::redirect(308, "/next"); count];
    let mut three = Receiver::start("127.0.0.1", 0, [onward(3), vec![Reply::status(200)]].concat()).await;
    assert!(matches!(sender().post(&three.url("/"), Bytes::from("body"), "s").await, Answer::Delivered(_)));
    assert!(three.got().iter().all(|got| got.body == b"body" && got.header("ckrv-signature") == "s"));
    let mut four = Receiver::start("127.0.0.1", 0, onward(4)).await;
    let Answer::Failed(why) = sender().post(&four.url("/"), Bytes::from("body"), "s").await else { panic!("delivered") };
    assert_eq!((why.as_str(), four.got().len()), ("more than 3 redirects", 4));
}

#[tokio::test]
async fn an_endless_answer_is_not_read_to_its_end() {
    let sender = Sender::new(OPEN, None, Arc::new(SystemLookup), all).unwrap();
    let mut receiver = Receiver::start("127.0.0.1", 0, vec![Reply::Endless]).await;
    assert!(matches!(sender.post(&receiver.url("/"), Bytes::from("x"), "s").await, Answer::Delivered(_)));
    receiver.hung_up().await;
}
