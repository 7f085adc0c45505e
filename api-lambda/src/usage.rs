//! `GET /v1/usage`

use axum::extract::State;
use ckrv_core::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::config::{Overage, month_of};
use crate::error::ApiError;
use crate::extract::Caller;
use crate::state::ApiState;

/// The running month.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UsageReport {
    /// `yyyy-mm`, UTC.
    pub month: String,
    pub jobs_used: u32,
    pub jobs_included: u32,
    pub overage_jobs: u32,
    pub overage_cost_usd: f64,
    #[schema(value_type = String, format = DateTime)]
    pub quota_resets_at: Timestamp,
}

/// This month's jobs, overage and cost.
#[utoipa::path(get, path = "/v1/usage", tag = "users", responses((status = 200, body = UsageReport)))]
pub(crate) async fn get_usage(State(state): State<ApiState>, Caller(user): Caller) -> Result<axum::Json<UsageReport>, ApiError> {
    let (month, quota_resets_at) = month_of(state.now());
    let jobs_used = state.stores.accounts.quota_used(user.id, &month).await?;
    let rule = state.config.tiers.rule(user.tier);
    let overage_jobs = jobs_used.saturating_sub(rule.included);
    let price = match rule.overage {
        Overage::Blocked => 0.0,
        Overage::UpTo { usd_per_job, .. } | Overage::Unlimited { usd_per_job } => usd_per_job,
    };
    Ok(axum::Json(UsageReport {
        month,
        jobs_used,
        jobs_included: rule.included,
        overage_jobs,
        overage_cost_usd: f64::from(overage_jobs) * price,
        quota_resets_at,
    }))
}
