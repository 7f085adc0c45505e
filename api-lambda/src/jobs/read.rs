//! `GET /v1/jobs/{id}`

use axum::extract::State;
use ckrv_core::wire::{Job, Problem};

use super::view::Viewer;
use crate::error::ApiError;
use crate::extract::{Caller, JobPath};
use crate::state::ApiState;

/// One job, until its results are gone.
#[utoipa::path(get, path = "/v1/jobs/{id}", tag = "jobs", params(("id" = String, Path)),
    responses((status = 200, body = Job), (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 410, body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn get_job(
    State(state): State<ApiState>,
    Caller(user): Caller,
    JobPath(id): JobPath,
) -> Result<axum::Json<Job>, ApiError> {
    let job = super::kept(super::job_of(&state, &user, id).await?, state.now())?;
    Ok(axum::Json(Viewer::new(&state).view(job).await?))
}
