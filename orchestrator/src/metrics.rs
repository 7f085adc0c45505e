//! What dispatcher and gateway count. Whoever runs them registers these and serves them: see `docs/observability.md`, which lists each.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ckrv_core::job::{JobRecord, OutcomeClass};
use ckrv_core::machine::Refusal;
use ckrv_store::{JobStore, StoreError};
use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// How often the queue is looked at for metrics, however often somebody asks: where the store is a cloud's, a look is paid for.
const SAMPLE_EVERY: Duration = Duration::from_secs(10);
const ATTEMPTS: [f64; 4] = [1.0, 2.0, 3.0, 4.0];
const LAGS: [f64; 10] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];
const WAITS: [f64; 9] = [0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0];

const CLASSES: [OutcomeClass; 15] = [
    OutcomeClass::Success,
    OutcomeClass::Agent,
    OutcomeClass::Verification,
    OutcomeClass::Adapter,
    OutcomeClass::Policy,
    OutcomeClass::Repository,
    OutcomeClass::SecretInResult,
    OutcomeClass::Result,
    OutcomeClass::CostLimit,
    OutcomeClass::OutOfMemory,
    OutcomeClass::DiskFull,
    OutcomeClass::Timeout,
    OutcomeClass::Cancelled,
    OutcomeClass::NoWorker,
    OutcomeClass::Infrastructure,
];
const REFUSALS: [&str; 8] =
    ["ended", "not-queued", "not-due", "cancel-requested", "no-room", "deadline-passed", "no-attempts-left", "other"];

type Label = [(&'static str, String); 1];

/// What came of one try to deliver a webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    Delivered,
    /// It failed and is tried again.
    Retried,
    /// It failed for the last time, or its receiver wants no more.
    GivenUp,
}

impl Delivery {
    const ALL: [Self; 3] = [Self::Delivered, Self::Retried, Self::GivenUp];

    fn name(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Retried => "retried",
            Self::GivenUp => "given_up",
        }
    }
}

/// Which part met a failing store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Dispatcher,
    Gateway,
    Notifier,
    Sampler,
}

impl Part {
    const ALL: [Self; 4] = [Self::Dispatcher, Self::Gateway, Self::Notifier, Self::Sampler];

    fn name(self) -> &'static str {
        match self {
            Self::Dispatcher => "dispatcher",
            Self::Gateway => "gateway",
            Self::Notifier => "notifier",
            Self::Sampler => "sampler",
        }
    }
}

/// Shared by its clones. No label holds an id or free text: agents are those on offer, all else is bounded by the code.
#[derive(Clone, Debug)]
pub struct Metrics {
    queued: Gauge,
    oldest: Gauge<f64, AtomicU64>,
    leased: Gauge,
    sampled: Arc<Mutex<Option<Instant>>>,
    running: Family<Label, Gauge>,
    running_known: Arc<Mutex<BTreeMap<String, i64>>>,
    claims: Counter,
    claims_refused: Family<Label, Counter>,
    launch_failures: Counter,
    reaps: Counter,
    releases: Counter,
    ended: Family<Label, Counter>,
    attempts: Histogram,
    wait: Histogram,
    log_lag: Histogram,
    cost: Family<Label, Counter<f64, AtomicU64>>,
    webhooks: Family<Label, Counter>,
    store_errors: Family<Label, Counter>,
    pods_created: Counter,
    pods_swept: Counter,
    pod_watch_current: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            queued: Gauge::default(),
            oldest: Gauge::default(),
            leased: Gauge::<i64, AtomicI64>::default(),
            sampled: Arc::default(),
            running: Family::default(),
            running_known: Arc::default(),
            claims: Counter::default(),
            claims_refused: Family::default(),
            launch_failures: Counter::default(),
            reaps: Counter::default(),
            releases: Counter::default(),
            ended: Family::default(),
            attempts: Histogram::new(ATTEMPTS),
            wait: Histogram::new(WAITS),
            log_lag: Histogram::new(LAGS),
            cost: Family::default(),
            webhooks: Family::default(),
            store_errors: Family::default(),
            pods_created: Counter::default(),
            pods_swept: Counter::default(),
            pod_watch_current: Gauge::default(),
        }
    }
}

impl Metrics {
    /// `registry` puts `ckrv_` before each name.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("jobs_queued", "Jobs that wait for a worker, in the whole store", self.queued.clone());
        let text = "Age of the job that has waited longest, in the whole store";
        registry.register_with_unit("jobs_queued_oldest_age", text, Unit::Seconds, self.oldest.clone());
        registry.register("jobs_leased", "Jobs that a worker holds, in the whole store", self.leased.clone());
        registry.register("jobs_running", "Jobs that this dispatcher holds", self.running.clone());
        registry.register("claims", "Jobs that this dispatcher took", self.claims.clone());
        registry.register("claims_refused", "Claims that came too late or too early", self.claims_refused.clone());
        registry.register("launch_failures", "Job runners that could not be started", self.launch_failures.clone());
        registry.register("reaps", "Jobs taken back from a worker that is no more", self.reaps.clone());
        registry.register("releases", "Jobs given back after a fault that was not theirs", self.releases.clone());
        registry.register("jobs_ended", "Jobs that ended under this dispatcher", self.ended.clone());
        registry.register("job_attempts", "Attempts that a job took to its end", self.attempts.clone());
        registry.register_with_unit("job_wait", "Time from a job's making to its first claim", Unit::Seconds, self.wait.clone());
        let text = "Time from a log entry to its place in the store, of the oldest entry of each append";
        registry.register_with_unit("log_append_lag", text, Unit::Seconds, self.log_lag.clone());
        registry.register("agent_cost_usd", "What agents reported as their cost, in US dollars", self.cost.clone());
        registry.register("webhook_deliveries", "Tries to deliver a webhook", self.webhooks.clone());
        registry.register("worker_store_errors", "Calls that failed because a store did", self.store_errors.clone());
        registry.register("job_pods_created", "Job pods that this dispatcher made", self.pods_created.clone());
        registry.register(
            "pods_swept",
            "Pods that this dispatcher removed since no attempt needed them",
            self.pods_swept.clone(),
        );
        let text = "1 while what is known of the cluster's pods is up to date";
        registry.register("pod_watch_current", text, self.pod_watch_current.clone());
        self.begin_at_zero();
    }

    /// A count that appears only with its first event hides that event from `rate()`.
    fn begin_at_zero(&self) {
        let zero = |family: &Family<Label, Counter>, name, value| drop(family.get_or_create(&label(name, value)));
        CLASSES.iter().for_each(|class| zero(&self.ended, "class", class_name(*class)));
        REFUSALS.iter().for_each(|refusal| zero(&self.claims_refused, "refusal", refusal));
        Delivery::ALL.iter().for_each(|delivery| zero(&self.webhooks, "outcome", delivery.name()));
        Part::ALL.iter().for_each(|part| zero(&self.store_errors, "part", part.name()));
    }

    pub(crate) fn claimed(&self, job: &JobRecord, now: Timestamp) {
        self.claims.inc();
        // A job may begin and end between two looks at what runs; its agent is shown all the same.
        let mut known = self.running_known.lock().unwrap_or_else(PoisonError::into_inner);
        known.entry(job.request.agent.clone()).or_insert_with(|| self.show_agent(&job.request.agent));
        drop(known);
        if job.attempt == 1 {
            self.wait.observe(seconds(job.created_at, now));
        }
    }

    pub(crate) fn claim_refused(&self, refusal: &Refusal) {
        self.claims_refused.get_or_create(&label("refusal", refusal_name(refusal))).inc();
    }

    pub(crate) fn launch_failed(&self) {
        self.launch_failures.inc();
    }

    pub(crate) fn pod_created(&self) {
        self.pods_created.inc();
    }

    pub(crate) fn pod_swept(&self) {
        self.pods_swept.inc();
    }

    pub(crate) fn pod_watch(&self, is_current: bool) {
        self.pod_watch_current.set(i64::from(is_current));
    }

    pub(crate) fn reaped(&self) {
        self.reaps.inc();
    }

    pub(crate) fn released(&self) {
        self.releases.inc();
    }

    /// Counts the end of a job once: told again, since the first answer was lost, it ended earlier than `now`.
    pub(crate) fn ended(&self, job: &JobRecord, now: Timestamp) {
        let Some(outcome) = job.outcome.as_ref().filter(|_| job.completed_at == Some(now)) else { return };
        self.ended.get_or_create(&label("class", class_name(outcome.class))).inc();
        self.attempts.observe(f64::from(job.attempt));
        if let Some(micros) = job.facts.usage.cost_micro_usd {
            let cost = std::time::Duration::from_micros(micros).as_secs_f64();
            self.cost.get_or_create(&label("agent", &job.request.agent)).inc_by(cost);
        }
    }

    pub(crate) fn log_appended(&self, oldest: Option<Timestamp>, now: Timestamp) {
        if let Some(oldest) = oldest {
            self.log_lag.observe(seconds(oldest, now));
        }
    }

    /// The jobs that this dispatcher holds now.
    pub(crate) fn running<'a>(&self, jobs: impl Iterator<Item = &'a JobRecord>) {
        let mut known = self.running_known.lock().unwrap_or_else(PoisonError::into_inner);
        known.values_mut().for_each(|count| *count = 0);
        for job in jobs {
            *known.entry(job.request.agent.clone()).or_insert_with(|| self.show_agent(&job.request.agent)) += 1;
        }
        for (agent, count) in known.iter() {
            self.running.get_or_create(&label("agent", agent)).set(*count);
        }
    }

    /// Its figures begin at zero.
    fn show_agent(&self, agent: &str) -> i64 {
        drop(self.running.get_or_create(&label("agent", agent)));
        drop(self.cost.get_or_create(&label("agent", agent)));
        0
    }

    pub fn webhook(&self, delivery: Delivery) {
        self.webhooks.get_or_create(&label("outcome", delivery.name())).inc();
    }

    pub fn store_failed(&self, part: Part) {
        self.store_errors.get_or_create(&label("part", part.name())).inc();
    }

    /// Looks at the queue, unless somebody did within the last ten seconds.
    ///
    /// # Errors
    /// When the store fails; the gauges then stay as they were.
    pub async fn sample(&self, jobs: &dyn JobStore, now: Timestamp) -> Result<(), StoreError> {
        {
            let mut sampled = self.sampled.lock().unwrap_or_else(PoisonError::into_inner);
            if sampled.is_some_and(|at| at.elapsed() < SAMPLE_EVERY) {
                return Ok(());
            }
            *sampled = Some(Instant::now());
        }
        let depth = jobs.depth().await.inspect_err(|_| self.store_failed(Part::Sampler))?;
        self.queued.set(i64::try_from(depth.queued).unwrap_or(i64::MAX));
        self.leased.set(i64::try_from(depth.running).unwrap_or(i64::MAX));
        self.oldest.set(depth.oldest.map_or(0.0, |oldest| seconds(oldest, now)));
        Ok(())
    }
}

fn label(name: &'static str, value: &str) -> Label {
    [(name, value.to_owned())]
}

/// Never negative: two clocks may differ.
fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64().max(0.0)
}

fn refusal_name(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::Ended => "ended",
        Refusal::NotQueued => "not-queued",
        Refusal::NotDue => "not-due",
        Refusal::CancelRequested => "cancel-requested",
        Refusal::NoRoom => "no-room",
        Refusal::DeadlinePassed => "deadline-passed",
        Refusal::NoAttemptsLeft => "no-attempts-left",
        _ => "other",
    }
}

fn class_name(class: OutcomeClass) -> &'static str {
    match class {
        OutcomeClass::Success => "success",
        OutcomeClass::Agent => "agent",
        OutcomeClass::Verification => "verification",
        OutcomeClass::Adapter => "adapter",
        OutcomeClass::Policy => "policy",
        OutcomeClass::Repository => "repository",
        OutcomeClass::SecretInResult => "secret-in-result",
        OutcomeClass::Result => "result",
        OutcomeClass::CostLimit => "cost-limit",
        OutcomeClass::OutOfMemory => "out-of-memory",
        OutcomeClass::DiskFull => "disk-full",
        OutcomeClass::Timeout => "timeout",
        OutcomeClass::Cancelled => "cancelled",
        OutcomeClass::NoWorker => "no-worker",
        OutcomeClass::Infrastructure => "infrastructure",
    }
}
