//! Usage, the ledger, webhooks.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Job;
use crate::id::{JobId, UserId};

/// A month of one user.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UsageReport {
    /// `yyyy-mm`, UTC.
    pub month: String,
    pub jobs_used: u32,
    /// By the tier that the user has now.
    pub jobs_included: u32,
    pub overage_jobs: u32,
    /// As charged when the jobs were made.
    pub overage_cost_usd: f64,
    /// What the agents of the jobs that ended said they cost at their model's API. Not charged by this service.
    #[serde(default)]
    pub agent_cost_usd: f64,
    #[schema(value_type = String, format = DateTime)]
    pub quota_resets_at: Timestamp,
}

/// A job beyond the included ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LedgerLine {
    /// `yyyy-mm`, UTC.
    pub month: String,
    #[schema(value_type = String)]
    pub owner: UserId,
    pub job: JobId,
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    pub cost_usd: f64,
    /// Given back; not to be billed.
    pub voided: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub voided_at: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Ledger {
    pub month: String,
    /// Ordered by owner and job.
    pub entries: Vec<LedgerLine>,
    /// What is to be billed: voided entries left out.
    pub total_usd: f64,
}

/// What a user's webhook deliveries are signed with.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct WebhookSecret {
    pub secret: String,
}

impl std::fmt::Debug for WebhookSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebhookSecret").finish_non_exhaustive()
    }
}

/// The body of a webhook delivery.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Delivery {
    /// The same when it is delivered again.
    pub id: String,
    /// `job.ended`.
    #[serde(rename = "type")]
    pub kind: String,
    pub job: Job,
}
