//! The one way into the queue, for a new job and for a retry.

use axum::http::StatusCode;
use ckrv_core::event::Usage;
use ckrv_core::id::{Fence, JobId};
use ckrv_core::job::{Facts, JobRecord, JobRequest, State};
use ckrv_core::wire::Job;
use ckrv_store::{CreateError, Created, Idempotency, NewJob, PutBlobError, User};

use super::view::Viewer;
use crate::audit::{Who, audit};
use crate::auth::keys::sha256_hex;
use crate::error::{ApiError, chain};
use crate::state::ApiState;

pub(crate) struct Submission {
    pub request: JobRequest,
    pub spec: axum::body::Bytes,
    pub idempotency_key: Option<String>,
    /// What the same key must come with again.
    pub body: Vec<u8>,
}

/// Stores the spec, then makes the job. 201, or 200 for a replay.
pub(crate) async fn submit(
    state: &ApiState,
    user: &User,
    who: &Who,
    submission: Submission,
) -> Result<(StatusCode, axum::Json<Job>), ApiError> {
    let now = state.now();
    let quota = state.config.tiers.quota(user.tier, now);
    let id = JobId(uuid::Uuid::now_v7());
    let job = JobRecord {
        id,
        owner: user.id,
        spec_key: format!("jobs/{id}/spec"),
        request: submission.request,
        state: State::Queued,
        created_at: now,
        updated_at: now,
        started_at: None,
        completed_at: None,
        fence: Fence::default(),
        attempt: 0,
        lease: None,
        not_before: now,
        deadline: None,
        cancel_at: None,
        outcome: None,
        facts: Facts { usage: Usage::default(), ..Facts::default() },
        artifacts: Vec::new(),
        log_end: None,
        finished_by: None,
        last_fault: None,
        version: 1,
        retention_seconds: state.config.retention_seconds,
        expires_at: None,
        quota_month: quota.month.clone(),
        charge_micro_usd: 0,
        checkpoint: None,
        handed_out: std::collections::BTreeMap::new(),
        notice: None,
        trace: crate::middleware::current_trace(),
    };
    let put = state.stores.blobs.put(&job.spec_key, submission.spec).await;
    put.map_err(|error| match error {
        PutBlobError::Store(error) => error.into(),
        conflict @ PutBlobError::Conflict(_) => ApiError::internal(conflict),
    })?;
    let idempotency = submission
        .idempotency_key
        .map(|key| Idempotency { key_sha256: sha256_hex(key.as_bytes()), body_sha256: sha256_hex(&submission.body) });
    let (status, job) = match state.stores.jobs.create_job(NewJob { job, idempotency, quota }, now).await {
        Ok(Created::New(job)) => {
            tracing::info!(job = %job.id, agent = job.request.agent, "a job was submitted");
            let action = if job.request.retry_of.is_some() { "job.retry" } else { "job.create" };
            audit(state, who, action, job.id).await;
            (StatusCode::CREATED, job)
        }
        Ok(Created::Replay(job)) => {
            forget_spec(state, id).await;
            (StatusCode::OK, job)
        }
        // After an ambiguous failure the job may exist, so its spec stays.
        Err(CreateError::Store(error)) => return Err(error.into()),
        Err(CreateError::QuotaExceeded { cap, resets_at }) => {
            forget_spec(state, id).await;
            return Err(ApiError::quota_exceeded(cap, resets_at, &state.config.upgrade_url));
        }
        Err(CreateError::IdempotencyMismatch) => {
            forget_spec(state, id).await;
            return Err(ApiError::invalid("idempotency_mismatch", "This `Idempotency-Key` was used for a different request."));
        }
    };
    Ok((status, axum::Json(Viewer::new(state).view(job).await?)))
}

/// Of a job that was not made.
async fn forget_spec(state: &ApiState, id: JobId) {
    if let Err(error) = state.stores.blobs.delete_prefix(&format!("jobs/{id}")).await {
        tracing::warn!(error = chain(&error), job = %id, "the spec of a job that was not made could not be deleted");
    }
}
