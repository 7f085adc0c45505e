//! `/v1/jobs`

mod batch;
pub(crate) mod change;
pub(crate) mod create;
pub(crate) mod follow;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod read;
mod submit;
mod view;
pub(crate) mod watching;

use axum::http::StatusCode;
use ckrv_core::Timestamp;
use ckrv_core::id::JobId;
use ckrv_core::job::JobRecord;
use ckrv_store::User;

use crate::error::ApiError;
use crate::state::ApiState;

/// The same for a job that does not exist, one of somebody else, and what is no id at all.
pub(crate) fn not_found() -> ApiError {
    ApiError::not_found("job_not_found", "Job not found.").hint("`ckrv list` shows your jobs")
}

/// The caller's own job.
pub(crate) async fn job_of(state: &ApiState, user: &User, id: JobId) -> Result<JobRecord, ApiError> {
    state.stores.jobs.job(id).await?.filter(|job| job.owner == user.id).ok_or_else(not_found)
}

/// 410 from the moment of expiry on, whatever the store still holds.
pub(crate) fn kept(job: JobRecord, now: Timestamp) -> Result<JobRecord, ApiError> {
    if job.is_expired(now) {
        let days = f64::from(job.retention_seconds) / 86_400.0;
        let detail = format!("Results and logs are kept for {days} days after a job's end; these are gone.");
        return Err(ApiError::new(StatusCode::GONE, "expired", detail).hint("run the spec again"));
    }
    Ok(job)
}
