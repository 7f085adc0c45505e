//! The API and the queue on DynamoDB, each beside the same calls without us: ratios, not times, are what counts. Prints a line for each as
//! `NAME|OURS|BESIDE|RATIO`. Needs the bench's servers (`cargo xtask bench` starts them).

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark for people")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use aws_sdk_dynamodb::types::AttributeValue;
use axum::extract::{Path, State};
use axum::routing::get;
use ckrv_api::{AgentCatalog, ApiConfig, ApiState, OwnerCodes, SystemClock};
use ckrv_core::Timestamp;
use ckrv_core::id::{ClaimId, JobId, UserId};
use ckrv_core::job::JobRecord;
use ckrv_core::machine::Verb;
use ckrv_core::wire::AgentInfo;
use ckrv_store::{AccessToken, NewJob, QuotaRule, RefreshFamily, StoreConfig, Stores};
use ckrv_tests::aws::Aws;
use ckrv_tests::lambda_runtime::Sandbox;
use jiff::SignedDuration;
use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;
use uuid::Uuid;

const REQUESTS: usize = 4_000;
const CLIENTS: usize = 16;
const CLAIMS: usize = 1_000;
const TOKEN: &str = "ckrv_at_bench";
const ROUNDS: usize = 3;

struct NoAgents;

impl AgentCatalog for NoAgents {
    fn agents(&self) -> Vec<AgentInfo> {
        Vec::new()
    }
}

#[tokio::main]
async fn main() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let aws = Aws::make().await.unwrap();
    let mut config = toml::Table::new();
    config.insert("store".to_owned(), aws.store_config().unwrap().into());
    let StoreConfig::Aws(config) = config.remove("store").unwrap().try_into().unwrap() else { panic!("not on AWS") };
    let stores = ckrv_store::open_aws(&config, ckrv_store::Signals::default()).await.unwrap();
    let owner = ckrv_api::ensure_owner(&stores, ckrv_core::wire::Tier::Enterprise, Timestamp::now()).await.unwrap().id;
    api(&aws, &stores, owner).await;
    claims(&aws, &stores, owner).await;
    function(&aws).await;
}

/// The packaged function behind a stub of Lambda's runtime: how long until it asks for work, what it holds after a hundred requests.
async fn function(aws: &Aws) {
    let env = ckrv_tests::lambda_front::environment(aws, "");
    let mut starts = Vec::new();
    for _ in 0..9 {
        starts.push(Sandbox::start(&env).await.unwrap().init);
    }
    starts.sort();
    let sandbox = Sandbox::start(&env).await.unwrap();
    let event = serde_json::json!({
        "version": "2.0", "routeKey": "$default", "rawPath": "/readyz", "rawQueryString": "", "headers": { "host": "localhost" },
        "requestContext": { "http": { "method": "GET", "path": "/readyz", "protocol": "HTTP/1.1", "sourceIp": "127.0.0.1" },
                            "stage": "$default", "requestId": "bench", "timeEpoch": 0 },
        "isBase64Encoded": false,
    });
    for _ in 0..100 {
        let answer = sandbox.invoke(&event, Duration::from_secs(30)).await.unwrap().whole().await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let (now, highest) = sandbox.memory().unwrap();
    let ms = |at: usize| starts[at].as_secs_f64() * 1000.0;
    println!("the function's init|p50 {:.1} ms, worst {:.1} ms (n = 9)|-|-", ms(4), ms(8));
    println!("the function's memory after 100 requests|{:.1} MB, at most {:.1} MB|-|-", mb(now), mb(highest));
}

fn mb(kib: u64) -> f64 {
    kib as f64 * 1024.0 / 1e6
}

/// `GET /v1/jobs/{id}` beside a bare axum handler that reads the same four items.
async fn api(aws: &Aws, stores: &Stores, owner: UserId) {
    // An ended job: of one that waits its place in the queue is looked up too, in sixteen shards.
    let job = make(stores, owner).await;
    stores.jobs.apply(job.id, &Verb::Cancel, Timestamp::now()).await.unwrap();
    let sha256: String = hex::encode(Sha256::digest(TOKEN.as_bytes()));
    let now = Timestamp::now();
    let expires_at = now + SignedDuration::from_hours(1);
    let family = RefreshFamily {
        id: "bench".to_owned(),
        user: owner,
        current_sha256: "x".to_owned(),
        previous: None,
        created_at: now,
        expires_at,
        revoked: false,
    };
    stores.accounts.put_family(&family).await.unwrap();
    let token = AccessToken { sha256: sha256.clone(), user: owner, family: family.id, expires_at };
    stores.accounts.put_access_token(&token).await.unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let config = ApiConfig::embedded(url.parse().unwrap(), "k".repeat(64).into(), owner);
    let codes = Arc::new(OwnerCodes::new(Box::new(drop)));
    let state = ApiState::new(stores.clone(), config, Arc::new(SystemClock), Arc::new(NoAgents), codes);
    tokio::spawn(ckrv_api::serve(listener, state, None, std::future::pending()));
    let bare = bare(aws, owner, sha256).await;
    let path = format!("/v1/jobs/{}", job.id);
    let (mut ours, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(load(&format!("{url}{path}")).await);
        beside.push(load(&format!("{bare}{path}")).await);
    }
    let (ours, beside) = (best(ours), best(beside));
    let shown = |(rate, p99): (f64, Duration)| format!("{rate:.0} requests/s, p99 {:.1} ms", p99.as_secs_f64() * 1000.0);
    let ratio = ours.0 / beside.0;
    println!(
        "`GET /v1/jobs/ID` on DynamoDB Local|{}|a bare axum handler with the same four reads: {}|{ratio:.2}",
        shown(ours),
        shown(beside)
    );
}

fn best(mut rounds: Vec<(f64, Duration)>) -> (f64, Duration) {
    rounds.sort_by(|a, b| b.0.total_cmp(&a.0));
    rounds[0]
}

async fn bare(aws: &Aws, owner: UserId, sha256: String) -> String {
    #[derive(Clone)]
    struct Shared {
        client: aws_sdk_dynamodb::Client,
        table: String,
        owner: UserId,
        sha256: String,
    }
    async fn read(State(shared): State<Shared>, Path(id): Path<String>) -> String {
        let keys = [
            (format!("T#{}", shared.sha256), "META"),
            ("F#bench".to_owned(), "META"),
            (format!("U#{}", shared.owner), "PROFILE"),
            (format!("J#{id}"), "META"),
        ];
        let mut attributes = 0;
        for (partition, sort) in keys {
            let request = shared.client.get_item().table_name(&shared.table).consistent_read(true);
            let request = request.key("PK", AttributeValue::S(partition)).key("SK", AttributeValue::S(sort.to_owned()));
            attributes += request.send().await.unwrap().item.unwrap().len();
        }
        attributes.to_string()
    }
    let shared = Shared { client: aws.dynamodb_client(), table: aws.table.clone(), owner, sha256 };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = axum::Router::new().route("/v1/jobs/{id}", get(read)).with_state(shared);
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

/// Requests per second, and the 99th percentile of one.
async fn load(url: &str) -> (f64, Duration) {
    let client = reqwest::Client::new();
    let left = Arc::new(AtomicUsize::new(REQUESTS));
    let began = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (client, left, url) = (client.clone(), left.clone(), url.to_owned());
        clients.spawn(async move {
            let mut times = Vec::new();
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                let began = Instant::now();
                let answer = client.get(&url).bearer_auth(TOKEN).send().await.unwrap();
                assert!(answer.status().is_success(), "{}", answer.status());
                answer.bytes().await.unwrap();
                times.push(began.elapsed());
            }
            times
        });
    }
    let mut times: Vec<Duration> = clients.join_all().await.into_iter().flatten().collect();
    times.sort();
    (REQUESTS as f64 / began.elapsed().as_secs_f64(), times[times.len() * 99 / 100])
}

/// Claims of jobs beside conditional updates of an item of the same kind.
async fn claims(aws: &Aws, stores: &Stores, owner: UserId) {
    let mut jobs = Vec::new();
    for _ in 0..CLAIMS {
        jobs.push(make(stores, owner).await.id);
    }
    let ours = race(jobs, {
        let stores = stores.clone();
        move |id| {
            let stores = stores.clone();
            async move {
                let now = Timestamp::now();
                let claim = ClaimId(Uuid::now_v7());
                let until = now + SignedDuration::from_secs(60);
                let verb = Verb::Claim { claim, worker: "bench".to_owned(), until, has_room: true };
                stores.jobs.apply(id, &verb, now).await.unwrap();
            }
        }
    })
    .await;
    let mut items = Vec::new();
    for _ in 0..CLAIMS {
        items.push(make(stores, owner).await.id);
    }
    let (client, table) = (aws.dynamodb_client(), aws.table.clone());
    let beside = race(items, move |id: JobId| {
        let (client, table) = (client.clone(), table.clone());
        async move {
            let text = |text: &str| AttributeValue::S(text.to_owned());
            let update = client.update_item().table_name(table).key("PK", text(&format!("J#{id}"))).key("SK", text("META"));
            let update = update
                .update_expression("SET beside = :r, QPK = :q, QSK = :s")
                .condition_expression("attribute_not_exists(beside)");
            let update =
                update.expression_attribute_values(":q", text("RUN#00")).expression_attribute_values(":s", text(&id.to_string()));
            update.expression_attribute_values(":r", text("x")).send().await.unwrap();
        }
    })
    .await;
    println!("claims on DynamoDB Local|{ours:.0} a second|raw conditional writes: {beside:.0} a second|{:.2}", ours / beside);
}

async fn race<F: Future<Output = ()> + Send + 'static>(ids: Vec<JobId>, act: impl Fn(JobId) -> F) -> f64 {
    let (count, began) = (ids.len(), Instant::now());
    let mut running = JoinSet::new();
    for id in ids {
        if running.len() == CLIENTS {
            running.join_next().await.unwrap().unwrap();
        }
        running.spawn(act(id));
    }
    running.join_all().await;
    count as f64 / began.elapsed().as_secs_f64()
}

async fn make(stores: &Stores, owner: UserId) -> JobRecord {
    let (id, now) = (JobId(Uuid::now_v7()), Timestamp::now());
    let job: JobRecord = serde_json::from_value(serde_json::json!({
        "id": id, "owner": owner, "spec_key": format!("jobs/{id}/spec"), "state": "queued", "created_at": now, "updated_at": now,
        "not_before": now, "retention_seconds": 604_800, "quota_month": "2027-01",
        "request": { "git_repo_url": "https://git.example/shop.git", "git_base_branch": "main", "spec_id": "fix", "agent": "script",
                     "timeout_seconds": 1800 },
    }))
    .unwrap();
    let quota = QuotaRule { month: "2027-01".to_owned(), included: None, cap: None, overage_micro_usd: 0, resets_at: now };
    stores.jobs.create_job(NewJob { job: job.clone(), idempotency: None, quota }, now).await.unwrap();
    job
}
