//! `POST /v1/jobs/{id}/cancel` and `/retry`

use axum::extract::State;
use axum::http::StatusCode;
use ckrv_core::job::{JobRecord, JobRequest, State as JobState};
use ckrv_core::machine::{Refusal, Verb};
use ckrv_core::wire::{Job, Problem};
use ckrv_store::VerbError;
use jiff::SignedDuration;

use super::submit::{Submission, submit};
use super::view::Viewer;
use crate::audit::{Who, audit};
use crate::error::{ApiError, chain};
use crate::extract::{Caller, IdempotencyKey, JobPath};
use crate::state::ApiState;

/// Cancels a job: a queued one ends at once, a running one is told to stop.
#[utoipa::path(post, path = "/v1/jobs/{id}/cancel", tag = "jobs", params(("id" = String, Path)),
    responses((status = 200, body = Job), (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The job has already ended", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn cancel_job(
    State(state): State<ApiState>,
    Caller(user): Caller,
    who: Who,
    JobPath(id): JobPath,
) -> Result<axum::Json<Job>, ApiError> {
    super::job_of(&state, &user, id).await?;
    let job = match state.stores.jobs.apply(id, &Verb::Cancel, state.now()).await {
        Ok(job) => {
            if job.state.is_final() {
                state.metrics.cancelled_while_queued();
            }
            ckrv_store::forget_checkpoint(&state.stores, &job).await;
            tell_worker(&state, &job).await;
            audit(&state, &who, "job.cancel", id).await;
            job
        }
        Err(VerbError::Refused { job, refusal: Refusal::Ended }) if job.state == JobState::Cancelled => *job,
        Err(VerbError::Refused { job, refusal: Refusal::Ended }) => {
            let detail = format!("The job has already ended: {}.", job.state);
            return Err(ApiError::new(StatusCode::CONFLICT, "job_ended", detail));
        }
        Err(VerbError::Refused { refusal, .. }) => return Err(ApiError::internal(refusal)),
        Err(VerbError::NotFound) => return Err(super::not_found()),
        Err(VerbError::Store(error)) => return Err(error.into()),
    };
    Ok(axum::Json(Viewer::new(&state).view(job).await?))
}

/// Its next beat tells it anyway; this way it stops within a second or two.
async fn tell_worker(state: &ApiState, job: &JobRecord) {
    if job.state.is_final() {
        return;
    }
    if let Err(error) = state.stores.jobs.watch(job, state.now() + SignedDuration::from_secs(15)).await {
        tracing::warn!(error = chain(&error), job = %job.id, "the worker could not be told of a cancellation");
    }
}

/// Makes a new job of the same spec, base and agent. It counts against the quota.
#[utoipa::path(post, path = "/v1/jobs/{id}/retry", tag = "jobs", params(("id" = String, Path), ("Idempotency-Key" = Option<String>, Header)),
    responses((status = 201, body = Job), (status = 200, description = "Replayed", body = Job),
        (status = 402, body = Problem, content_type = "application/problem+json"), (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The job has not ended", body = Problem, content_type = "application/problem+json"), (status = 410, body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn retry_job(
    State(state): State<ApiState>,
    Caller(user): Caller,
    who: Who,
    JobPath(id): JobPath,
    key: IdempotencyKey,
) -> Result<(StatusCode, axum::Json<Job>), ApiError> {
    let job = super::kept(super::job_of(&state, &user, id).await?, state.now())?;
    if !job.state.is_final() {
        return Err(ApiError::new(StatusCode::CONFLICT, "job_not_ended", "The job has not ended yet.").hint("cancel it first"));
    }
    let spec = state.stores.blobs.get(&job.spec_key).await?;
    let spec = spec.ok_or_else(|| ApiError::internal(format!("the spec of job {id} is missing")))?;
    let request = JobRequest { retry_of: Some(id), ..job.request };
    let submission = Submission { request, spec, idempotency_key: key.0, body: format!("retry {id}").into_bytes() };
    submit(&state, &user, &who, submission).await
}
