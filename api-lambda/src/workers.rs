//! `GET /v1/workers`

use axum::extract::State;
use ckrv_core::wire::WorkerList;
use jiff::SignedDuration;

use crate::error::ApiError;
use crate::extract::Caller;
use crate::state::ApiState;

/// A worker tells of itself every fifteen seconds; one that has been silent for so long is not listed.
const SEEN_WITHIN: SignedDuration = SignedDuration::from_secs(60);

/// Where jobs run: region, capacity and load of each dispatcher that is up.
#[utoipa::path(get, path = "/v1/workers", tag = "workers", responses((status = 200, body = WorkerList)))]
pub(crate) async fn list_workers(State(state): State<ApiState>, _: Caller) -> Result<axum::Json<WorkerList>, ApiError> {
    let workers = state.stores.accounts.workers(state.now() - SEEN_WITHIN).await?;
    Ok(axum::Json(WorkerList { workers }))
}
