//! What most agents want after a run.

use crate::text::retry_after;
use crate::{Decision, Job, Outcome, PastRun, Phase, Retry, extra};

/// Runs that are tried again after something that may pass by itself, one after another.
const MAX_RETRIES: usize = 3;
/// Waits before them, in seconds; a wait that the model API names comes first, within bounds.
const BACKOFF: [u32; MAX_RETRIES] = [5, 20, 60];
const LONGEST_WAIT: u32 = 600;
/// Repairs after a failed verification, where the job does not say (`repair-runs`).
const REPAIRS: usize = 2;

/// What a failed verification is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepairRule {
    /// The agent can use the checks' output.
    WithFeedback,
    /// It would only do the same again, unless the job asks for repairs.
    OnRequest,
}

/// Go on after success; run again, a few times, after what may pass by itself; repair after a failed verification; else stop.
pub fn decide(job: &Job, history: &[PastRun], rule: RepairRule) -> Decision {
    let Some(last) = history.last() else {
        return Decision::Advance;
    };
    match (&last.outcome, &last.phase) {
        (Outcome::Success, _) => Decision::Advance,
        (Outcome::Failure(reason), Phase::Verifying) => repair(job, history, rule, reason),
        (Outcome::Retryable(reason), _) => again(history, reason),
        (Outcome::Failure(reason) | Outcome::NeedsInput(reason), _) => Decision::Stop(reason.clone()),
        (Outcome::Other(custom), _) => Decision::Stop(custom.kind.clone()),
    }
}

fn again(history: &[PastRun], reason: &str) -> Decision {
    let tried = history.iter().rev().take_while(|run| matches!(run.outcome, Outcome::Retryable(_))).count();
    let Some(backoff) = BACKOFF.get(tried - 1) else {
        return Decision::Stop(reason.into());
    };
    let delay_seconds = retry_after(reason).map_or(*backoff, |wait| wait.clamp(*backoff, LONGEST_WAIT));
    // A fresh session: the agent's HOME belongs to one run.
    Decision::Retry(Retry { delay_seconds, resume_session: false, reason: reason.into() })
}

fn repair(job: &Job, history: &[PastRun], rule: RepairRule, reason: &str) -> Decision {
    let default = if rule == RepairRule::WithFeedback { REPAIRS } else { 0 };
    let allowed = extra(job, "repair-runs").and_then(|text| text.parse().ok()).unwrap_or(default);
    let failed =
        history.iter().filter(|run| matches!((&run.phase, &run.outcome), (Phase::Verifying, Outcome::Failure(_)))).count();
    if failed <= allowed { Decision::BackTo(Phase::Executing) } else { Decision::Stop(reason.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ExitStatus, KeyValue};

    fn job(repairs: Option<&str>) -> Job {
        Job {
            run_id: "r".into(),
            run_number: 1,
            phase: Phase::Executing,
            prompt: String::new(),
            feedback: None,
            workspace: "/w".into(),
            model: None,
            session_id: None,
            deadline_seconds: 1,
            extra: repairs.map(|value| KeyValue { key: "repair-runs".into(), value: value.into() }).into_iter().collect(),
        }
    }

    fn run(phase: Phase, outcome: Outcome) -> PastRun {
        PastRun { number: 1, phase, exit: ExitStatus::Code(1), outcome }
    }

    #[test]
    fn a_busy_api_is_tried_three_more_times() {
        let busy = || run(Phase::Executing, Outcome::Retryable("429".into()));
        for tried in 1..=3 {
            let history: Vec<_> = (0..tried).map(|_| busy()).collect();
            assert!(matches!(decide(&job(None), &history, RepairRule::WithFeedback), Decision::Retry(_)), "{tried}");
        }
        let history: Vec<_> = (0..4).map(|_| busy()).collect();
        assert_eq!(decide(&job(None), &history, RepairRule::WithFeedback), Decision::Stop("429".into()));
    }

    #[test]
    fn a_named_wait_is_kept_within_bounds() {
        let history = [run(Phase::Executing, Outcome::Retryable("busy, retry after 90000s".into()))];
        let Decision::Retry(retry) = decide(&job(None), &history, RepairRule::WithFeedback) else { panic!("no retry") };
        assert_eq!(retry.delay_seconds, 600);
    }

    #[test]
    fn a_failed_verification_is_repaired_as_often_as_the_job_says() {
        let failed = || run(Phase::Verifying, Outcome::Failure("tests".into()));
        let back = Decision::BackTo(Phase::Executing);
        assert_eq!(decide(&job(None), &[failed()], RepairRule::WithFeedback), back);
        assert_eq!(decide(&job(None), &[failed()], RepairRule::OnRequest), Decision::Stop("tests".into()));
        assert_eq!(decide(&job(Some("1")), &[failed()], RepairRule::OnRequest), back);
        assert_eq!(decide(&job(Some("1")), &[failed(), failed()], RepairRule::OnRequest), Decision::Stop("tests".into()));
    }
}
