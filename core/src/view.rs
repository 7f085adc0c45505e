//! From the record to what clients see.

use jiff::{SignedDuration, Timestamp};

use crate::job::{JobRecord, OutcomeClass};
use crate::wire::{Job, UsageInfo};

/// A job as its owner sees it at `now`. `median`: how long such jobs take, in seconds; `result_url`: where its diff is, if it has one.
#[must_use]
pub fn view(job: JobRecord, now: Timestamp, queue_position: Option<u64>, median: Option<f64>, result_url: Option<String>) -> Job {
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
