//! `GET /v1/jobs`

use axum::extract::State;
use ckrv_core::job::{State as JobState, Status};
use ckrv_core::wire::{JobList, Problem};
use ckrv_store::JobFilter;
use serde::Deserialize;
use utoipa::IntoParams;

use super::view::Viewer;
use crate::error::ApiError;
use crate::extract::{Caller, Query};
use crate::state::ApiState;

const DEFAULT_LIMIT: usize = 20;
const MAX_LIMIT: usize = 100;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListParams {
    /// Only jobs of this status.
    status: Option<Status>,
    /// 1 to 100; 20 by default.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<usize>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// The caller's jobs, newest first.
#[utoipa::path(get, path = "/v1/jobs", tag = "jobs", params(ListParams),
    responses((status = 200, body = JobList), (status = 422, body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn list_jobs(
    State(state): State<ApiState>,
    Caller(user): Caller,
    Query(params): Query<ListParams>,
) -> Result<axum::Json<JobList>, ApiError> {
    let limit = params.limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        return Err(ApiError::invalid("invalid_query", format!("`limit` must be 1 to {MAX_LIMIT}.")));
    }
    let states = params
        .status
        .map_or_else(Vec::new, |status| JobState::ALL.into_iter().filter(|state| state.status() == status).collect());
    let page = state.stores.jobs.jobs_of(user.id, &JobFilter { states }, limit, params.cursor.as_deref()).await?;
    let mut viewer = Viewer::new(&state);
    let mut jobs = Vec::with_capacity(page.items.len());
    // An expired job can only be named; its own address says that it is gone.
    for job in page.items.into_iter().filter(|job| !job.is_expired(state.now())) {
        jobs.push(viewer.view(job).await?);
    }
    Ok(axum::Json(JobList { jobs, next_cursor: page.next }))
}
