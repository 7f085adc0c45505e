//! From the record to what clients see.

use std::collections::BTreeMap;

use ckrv_core::Timestamp;
use ckrv_core::job::{JobRecord, OutcomeClass, State};
use ckrv_core::wire::{Job, UsageInfo};
use jiff::SignedDuration;

use crate::error::ApiError;
use crate::state::ApiState;

/// How many earlier jobs an estimate looks at.
const EARLIER: usize = 20;

/// Makes views. Asks the store for the same earlier jobs once, however many jobs are shown.
pub(crate) struct Viewer<'a> {
    state: &'a ApiState,
    medians: BTreeMap<(String, String), Option<f64>>,
}

impl<'a> Viewer<'a> {
    pub(crate) fn new(state: &'a ApiState) -> Self {
        Self { state, medians: BTreeMap::new() }
    }

    pub(crate) async fn view(&mut self, job: JobRecord) -> Result<Job, ApiError> {
        let now = self.state.now();
        let queue_position = match job.state {
            State::Queued => Some(self.state.stores.jobs.queue_position(&job).await?),
            _ => None,
        };
        let median = if job.state.is_running() { self.median(&job).await? } else { None };
        let has_diff = job.artifacts.iter().any(|artifact| artifact.name == "diff") && !job.is_expired(now);
        let result_url = has_diff.then(|| self.state.config.url(&format!("/v1/jobs/{}/artifacts/diff", job.id)));
        Ok(view(job, now, queue_position, median, result_url))
    }

    async fn median(&mut self, job: &JobRecord) -> Result<Option<f64>, ApiError> {
        let key = (job.request.git_repo_url.clone(), job.request.agent.clone());
        if let Some(known) = self.medians.get(&key) {
            return Ok(*known);
        }
        let found = median(self.state.stores.jobs.durations(job.owner, &key.0, &key.1, EARLIER).await?);
        self.medians.insert(key, found);
        Ok(found)
    }
}

fn median(mut seconds: Vec<f64>) -> Option<f64> {
    seconds.retain(|value| value.is_finite() && *value >= 0.0);
    seconds.sort_by(f64::total_cmp);
    let middle = seconds.len() / 2;
    match seconds.len() {
        0 => None,
        count if count % 2 == 1 => Some(seconds[middle]),
        _ => Some(f64::midpoint(seconds[middle - 1], seconds[middle])),
    }
}

fn view(job: JobRecord, now: Timestamp, queue_position: Option<u64>, median: Option<f64>, result_url: Option<String>) -> Job {
    let status = job.state.status();
    let elapsed = job.started_at.map_or(SignedDuration::ZERO, |began| job.completed_at.unwrap_or(now).duration_since(began));
    let expected = |began: Timestamp, seconds: f64| began.checked_add(SignedDuration::try_from_secs_f64(seconds).ok()?).ok();
    let estimated_completion_at =
        job.started_at.zip(median).and_then(|(began, seconds)| expected(began, seconds)).map(|at| at.max(now));
    let succeeded = job.outcome.as_ref().is_some_and(|outcome| outcome.class == OutcomeClass::Success);
    let message = job.outcome.as_ref().map(|outcome| outcome.message.clone());
    let usage = &job.facts.usage;
    Job {
        id: job.id,
        status,
        git_repo_url: job.request.git_repo_url,
        git_base_branch: job.request.git_base_branch,
        feature_branch_name: job.facts.feature_branch,
        created_at: job.created_at,
        started_at: job.started_at,
        completed_at: job.completed_at,
        result_status: job.state.is_final().then_some(status),
        result_summary: message.clone().filter(|_| succeeded),
        error_message: message.filter(|_| !succeeded),
        spec_id: job.request.spec_id,
        state: job.state,
        phase: job.state.is_running().then_some(job.state),
        updated_at: job.updated_at,
        elapsed_seconds: elapsed.as_secs_f64().max(0.0),
        estimated_completion_at,
        queue_position,
        base_sha: job.facts.base_sha,
        head_sha: job.facts.head_sha,
        agent: job.request.agent,
        model: job.request.model.or_else(|| usage.model.clone()),
        attempt: job.attempt,
        retry_of: job.request.retry_of,
        verification: job.facts.verification,
        result_url,
        usage: UsageInfo {
            input_tokens: usage.input_tokens,
            output_tokens: usage.output_tokens,
            cost_usd: usage.cost_micro_usd.map(|micro| micro as f64 / 1e6),
            turns: usage.turns,
        },
        diff_stat: job.facts.diff_stat,
        labels: job.request.labels,
        hint: job.outcome.as_ref().and_then(|outcome| outcome.hint.clone()),
        outcome: job.outcome.map(|outcome| outcome.class),
        cancel_requested: job.cancel_at.is_some(),
        deadline: job.deadline,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_estimate_is_the_median_of_earlier_jobs() {
        assert_eq!(super::median(vec![]), None);
        assert_eq!(super::median(vec![9.0, 1.0, 5.0]), Some(5.0));
        assert_eq!(super::median(vec![9.0, 1.0, 5.0, 7.0, f64::NAN]), Some(6.0));
    }
}
