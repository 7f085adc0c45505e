//! `GET /v1/usage`

use axum::extract::State;
use ckrv_core::Timestamp;
use ckrv_core::wire::{Problem, UsageReport};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::config::month_of;
use crate::error::ApiError;
use crate::extract::{Caller, Query};
use crate::state::ApiState;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct MonthParams {
    /// `yyyy-mm`, UTC; the running month by default.
    #[param(pattern = r"^[0-9]{4}-(0[1-9]|1[0-2])$")]
    month: Option<String>,
}

/// A month's jobs, overage and cost.
#[utoipa::path(get, path = "/v1/usage", tag = "users", params(MonthParams),
    responses((status = 200, body = UsageReport), (status = 422, body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn get_usage(
    State(state): State<ApiState>,
    Caller(user): Caller,
    Query(params): Query<MonthParams>,
) -> Result<axum::Json<UsageReport>, ApiError> {
    let (month, quota_resets_at) = chosen_month(params.month.as_deref(), state.now())?;
    let usage = state.stores.accounts.month_usage(user.id, &month).await?;
    Ok(axum::Json(UsageReport {
        month,
        jobs_used: usage.jobs,
        jobs_included: state.config.tiers.rule(user.tier).included,
        overage_jobs: usage.overage_jobs,
        overage_cost_usd: usd(usage.overage_micro_usd),
        agent_cost_usd: usd(usage.agent_micro_usd),
        quota_resets_at,
    }))
}

/// The month that was asked for, and when the next one begins.
pub(crate) fn chosen_month(asked: Option<&str>, now: Timestamp) -> Result<(String, Timestamp), ApiError> {
    let Some(asked) = asked else { return Ok(month_of(now)) };
    let first = format!("{asked}-01T00:00:00Z").parse().ok().filter(|_| asked.len() == "yyyy-mm".len());
    match first.map(month_of) {
        // What another spelling of a month would be read as.
        Some(found) if found.0 == asked => Ok(found),
        _ => Err(ApiError::invalid("invalid_month", "`month` must be `yyyy-mm`, for example 2026-03.")),
    }
}

pub(crate) fn usd(micro: u64) -> f64 {
    micro as f64 / 1e6
}
