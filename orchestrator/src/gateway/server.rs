//! The gateway's server side.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{DefaultBodyLimit, Path as UrlPath, Query, State as AxumState};
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post, put};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ckrv_core::id::{ClaimId, Fence, JobId};
use ckrv_core::job::JobRecord;
use ckrv_core::machine::{Finish, Refusal, Verb};
use ckrv_store::{AppendError, Signal, Stores};
use hmac::{Hmac, KeyInit, Mac};
use jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use super::denied::Denied;
use super::intake::{Intake, weigh_artifact, weigh_message};
use super::wire::*;
use super::{secrets, uploads};
use crate::dispatch::compact_log;
use crate::launch_choice::LauncherChoice;
use crate::metrics::Metrics;
use crate::settings::Settings;
use crate::trace;

/// How long a follower counts as watching after its last sign.
const WATCH_MEMORY: Duration = Duration::from_secs(15);
const LONG_POLL: Duration = Duration::from_secs(20);

pub struct GatewayServer {
    stores: Stores,
    settings: Arc<Settings>,
    key: SecretString,
    clock: fn() -> Timestamp,
    watched: Mutex<HashMap<JobId, Instant>>,
    intake: Intake,
    metrics: Metrics,
}

impl std::fmt::Debug for GatewayServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GatewayServer").finish_non_exhaustive()
    }
}

pub(super) type Shared = AxumState<Arc<GatewayServer>>;
pub(super) type Attempt = UrlPath<(JobId, Fence, ClaimId)>;

impl GatewayServer {
    /// `key` makes the attempts' tokens; it must be the same after a restart, since job runners live on.
    #[must_use]
    pub fn new(stores: Stores, settings: Arc<Settings>, key: SecretString, clock: fn() -> Timestamp) -> Arc<Self> {
        Arc::new(Self {
            intake: Intake::new(settings.upload_memory_mib),
            stores,
            settings,
            key,
            clock,
            watched: Mutex::default(),
            metrics: Metrics::default(),
        })
    }

    /// What this gateway and its dispatcher count.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Where the job runner of one attempt finds this gateway, and what proves that it is the one.
    #[must_use]
    pub fn address(&self, job: JobId, fence: Fence, claim: ClaimId) -> GatewayAddress {
        match &self.settings.launcher {
            LauncherChoice::Kubernetes(cluster) => GatewayAddress::in_pod(cluster.gateway_url.clone()),
            _ => GatewayAddress::Socket {
                path: self.settings.socket.clone(),
                token: SecretString::from(hex::encode(self.mac(job, fence, claim).finalize().into_bytes())),
            },
        }
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn stores(&self) -> &Stores {
        &self.stores
    }

    pub(super) fn intake(&self) -> &Intake {
        &self.intake
    }

    pub(super) fn now(&self) -> Timestamp {
        (self.clock)()
    }

    pub(super) fn signals(&self) -> tokio::sync::broadcast::Receiver<Signal> {
        self.stores.signals.subscribe()
    }

    /// Whether this is the token of that attempt.
    pub(super) fn has_token(&self, token: &str, job: JobId, fence: Fence, claim: ClaimId) -> bool {
        hex::decode(token).is_ok_and(|token| self.mac(job, fence, claim).verify_slice(&token).is_ok())
    }

    fn mac(&self, job: JobId, fence: Fence, claim: ClaimId) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.key.expose_secret().as_bytes())
            .unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"));
        mac.update(format!("attempt|{job}|{fence}|{claim}").as_bytes());
        mac
    }

    fn is_watched(&self, job: JobId) -> bool {
        let watched = self.watched.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        watched.get(&job).is_some_and(|at| at.elapsed() < WATCH_MEMORY)
    }

    pub(super) fn note_watched(&self, job: JobId) {
        let mut watched = self.watched.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        watched.retain(|_, at| at.elapsed() < WATCH_MEMORY);
        watched.insert(job, Instant::now());
    }

    /// The record, if this attempt still holds it.
    pub(super) async fn held(&self, job: JobId, fence: Fence, claim: ClaimId) -> Result<JobRecord, Denied> {
        let record = self.stores.jobs.job(job).await?.ok_or_else(|| Denied(Denial::Missing("the job".to_owned())))?;
        if record.state.is_final() {
            return Err(Denied(Denial::Refused(Refusal::Ended)));
        }
        match &record.lease {
            Some(lease) if lease.claim == claim && record.fence == fence => {
                trace::note_attempt(record.attempt);
                Ok(record)
            }
            _ => Err(Denied(Denial::Refused(Refusal::LostLease))),
        }
    }
}

/// What a job runner may ask, each of it for one attempt.
pub(super) fn attempt_routes(gateway: &Arc<GatewayServer>) -> axum::Router<Arc<GatewayServer>> {
    let uploading = axum::Router::new()
        .route("/artifacts/{name}", put(uploads::artifact))
        .route("/checkpoints/{number}", put(uploads::put_checkpoint))
        .layer(from_fn_with_state(Arc::clone(gateway), weigh_artifact));
    axum::Router::new()
        .route("/job", get(job))
        .route("/beat", post(beat))
        .route("/attention", get(attention))
        .route("/advance", post(advance))
        .route("/log", post(log))
        .route("/credential", post(secrets::credential))
        .route("/secrets/{slot}", post(secrets::secret))
        .route("/release", post(release))
        .route("/finish", post(finish))
        .route("/checkpoint", get(uploads::newest_checkpoint))
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state(Arc::clone(gateway), weigh_message))
        .merge(uploading)
}

async fn job(AxumState(gateway): Shared, UrlPath((job, fence, claim)): Attempt) -> Result<Json<JobView>, Denied> {
    let record = gateway.held(job, fence, claim).await?;
    let spec = gateway.stores.blobs.get(&record.spec_key).await?.ok_or_else(|| Denied(Denial::Missing("the spec".to_owned())))?;
    let settings = &gateway.settings;
    let view = JobView {
        adapter: settings.adapters.get(&record.request.agent).cloned(),
        job: record,
        spec: String::from_utf8_lossy(&spec).into_owned(),
        policy: settings.policy.clone(),
        launcher: settings.launcher.clone(),
        allow_paths: settings.allow_paths,
        ca_file: settings.ca_file.clone(),
        cache: settings.cache.clone(),
        log_pace: settings.pace.log,
        checkpoints: settings.checkpoints,
        files: OperatorFiles::default(),
    };
    let view = for_pods(view).await.map_err(|error| {
        tracing::error!(%error, "a file that the operator gives each job can't be read");
        Denied(Denial::Fault)
    })?;
    Ok(Json(view))
}

/// A pod shares no folder with this server.
async fn for_pods(mut view: JobView) -> std::io::Result<JobView> {
    let LauncherChoice::Kubernetes(cluster) = &mut view.launcher else { return Ok(view) };
    cluster.kubeconfig = None;
    view.cache = None;
    if let Some(path) = view.ca_file.take() {
        view.files.ca = Some(tokio::fs::read_to_string(path).await?);
    }
    if let Some(path) = view.adapter.take() {
        view.files.adapter = Some(BASE64.encode(tokio::fs::read(path).await?));
    }
    Ok(view)
}

async fn beat(AxumState(gateway): Shared, UrlPath((job, fence, claim)): Attempt) -> Result<Json<BeatAnswer>, Denied> {
    let now = gateway.now();
    let until = now + crate::settings::LEASE;
    let record = gateway.stores.jobs.apply(job, &Verb::Beat { claim, fence, until }, now).await?;
    Ok(Json(BeatAnswer { cancel: record.cancel_at.is_some(), deadline: record.deadline }))
}

/// Answers at once when the job is cancelled or lost, or when the log is watched and the job runner believes otherwise (or the other way
/// round); else after the long poll's time.
async fn attention(
    AxumState(gateway): Shared,
    UrlPath((job, fence, claim)): Attempt,
    Query(AttentionQuery { watched: was_watched }): Query<AttentionQuery>,
) -> Result<Json<Attention>, Denied> {
    let mut signals = gateway.stores.signals.subscribe_to(job);
    let until = tokio::time::Instant::now() + LONG_POLL;
    loop {
        let record = gateway.held(job, fence, claim).await?;
        let cancel = record.cancel_at.is_some();
        let watched = gateway.is_watched(job);
        if cancel || watched != was_watched || tokio::time::Instant::now() >= until {
            return Ok(Json(Attention { cancel, watched }));
        }
        loop {
            match tokio::time::timeout_at(until, signals.recv()).await {
                Err(_) | Ok(None | Some(Signal::Changed(_))) => break,
                Ok(Some(Signal::Watched(_))) => {
                    gateway.note_watched(job);
                    if !was_watched {
                        break;
                    }
                }
                Ok(Some(Signal::Queued(_) | Signal::Log(_))) => {}
            }
        }
    }
}

async fn advance(
    AxumState(gateway): Shared,
    UrlPath((job, fence, claim)): Attempt,
    Json(body): Json<AdvanceRequest>,
) -> Result<StatusCode, Denied> {
    let verb = Verb::Advance { claim, fence, to: body.to, facts: body.facts };
    let record = gateway.stores.jobs.apply(job, &verb, gateway.now()).await?;
    trace::note_attempt(record.attempt);
    tracing::debug!(state = %record.state, "a job went on");
    Ok(StatusCode::NO_CONTENT)
}

async fn log(
    AxumState(gateway): Shared,
    UrlPath((job, fence, claim)): Attempt,
    Json(body): Json<LogRequest>,
) -> Result<StatusCode, Denied> {
    match gateway.stores.jobs.append_log(job, claim, fence, &body.entries).await {
        Ok(()) => {
            gateway.metrics.log_appended(body.entries.first().map(|entry| entry.timestamp), gateway.now());
            Ok(StatusCode::NO_CONTENT)
        }
        Err(AppendError::Closed) => Err(Denied(Denial::LogClosed)),
        Err(AppendError::Gap { expected }) => Err(Denied(Denial::LogGap(expected))),
        Err(AppendError::Store(error)) => Err(error.into()),
    }
}

async fn release(
    AxumState(gateway): Shared,
    UrlPath((job, fence, claim)): Attempt,
    Json(body): Json<ReleaseRequest>,
) -> Result<StatusCode, Denied> {
    let now = gateway.now();
    let not_before = now + SignedDuration::from_secs(i64::from(body.not_before_seconds.min(3600)));
    let record = gateway.stores.jobs.apply(job, &Verb::Release { claim, fence, not_before, note: body.note }, now).await?;
    trace::note_attempt(record.attempt);
    gateway.metrics.released();
    tracing::warn!("a job runner gave its job back");
    Ok(StatusCode::NO_CONTENT)
}

async fn finish(
    AxumState(gateway): Shared,
    UrlPath((job, fence, claim)): Attempt,
    Json(body): Json<Finish>,
) -> Result<StatusCode, Denied> {
    let prefix = format!("jobs/{job}/{fence}/");
    if body.artifacts.iter().any(|artifact| !artifact.key.starts_with(&prefix)) {
        return Err(Denied(Denial::Invalid("an artifact of another attempt can't be published".to_owned())));
    }
    let now = gateway.now();
    let record = gateway.stores.jobs.apply(job, &Verb::Finish { claim, fence, finish: Box::new(body) }, now).await?;
    trace::note_attempt(record.attempt);
    gateway.metrics.ended(&record, now);
    tracing::info!(state = %record.state, class = ?record.outcome.as_ref().map(|outcome| outcome.class), "a job ended");
    let stores = gateway.stores.clone();
    // The job runner need not wait for it.
    tokio::spawn(async move {
        compact_log(&stores, job).await;
        ckrv_store::forget_checkpoint(&stores, &record).await;
    });
    Ok(StatusCode::NO_CONTENT)
}

/// SHA-256, hexadecimal.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}
