//! From the record to what clients see, with what only the store can tell.

use std::collections::BTreeMap;

use ckrv_core::job::{JobRecord, State};
use ckrv_core::view::view;
use ckrv_core::wire::Job;

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

#[cfg(test)]
mod tests {
    #[test]
    fn an_estimate_is_the_median_of_earlier_jobs() {
        assert_eq!(super::median(vec![]), None);
        assert_eq!(super::median(vec![9.0, 1.0, 5.0]), Some(5.0));
        assert_eq!(super::median(vec![9.0, 1.0, 5.0, 7.0, f64::NAN]), Some(6.0));
    }
}
