//! Execute: one agent run after another in one checkout, until its adapter is content or gives up. Output becomes events, events become log
//! entries; at the end the changes become one commit.

use std::time::Duration;

use ckrv_core::job::{Facts, Outcome, OutcomeClass};
use ckrv_core::machine;
use ckrv_core::plan::{Decision, ExitStatus, PastRun, Phase, Resources, RunOutcome};
use tokio::sync::mpsc;

use super::collect::collect;
use super::failure::{Failure, out_of_memory};
use super::output::{Reader, add_usage, over_limit, write_event};
use super::plan::{Agent, Planned, blocking, plan};
use super::prepare::{Prepared, Start};
use super::run_spec::run_spec;
use super::sandbox::{Place, Sandbox};
use super::verify::{describe, exit_status, run_commands};
use super::{Context, checkpoint};
use crate::adapter::Verdict;
use crate::launch::{self, Hung};

/// Agent runs of one execution: the first and its retries.
const MAX_RUNS: u32 = 4;
const MAX_DELAY_SECONDS: u32 = 300;

/// Runs the agent and commits what it changed; gives the commit.
pub async fn execute(
    context: &Context,
    prepared: &Prepared,
    agent: &mut Agent,
    first: &Planned,
    facts: &mut Facts,
) -> Result<String, Failure> {
    let ended = execute_in_one(context, prepared, agent, first, facts).await;
    let out_of_memory = matches!(&ended, Err(Failure::Ends(outcome)) if outcome.class == OutcomeClass::OutOfMemory);
    let had = resources(agent, first).memory_mib;
    let bigger =
        bigger(had, context.view.policy.max_resources.memory_mib).filter(|_| out_of_memory && agent.memory_mib.is_none());
    let Some(memory_mib) = bigger else { return ended };
    context.log.warn(
        "ckrv",
        format!("the agent's container ran out of its {had} MiB of memory; it begins once more, from where it began, with {memory_mib} MiB"),
    );
    agent.memory_mib = Some(memory_mib);
    // The next run has a home of its own, in which there is no session to go on with.
    agent.session = None;
    let again = plan(context, agent, first.job.feedback.clone()).await?;
    execute_in_one(context, prepared, agent, &again, facts).await
}

/// Twice the memory, as far as policy goes; nothing where that is no more than it had, or where there is no limit.
fn bigger(had: u32, allowed: u32) -> Option<u32> {
    let most = if allowed == 0 { u32::MAX } else { allowed };
    Some(had.saturating_mul(2).min(most)).filter(|bigger| *bigger > had)
}

/// What policy granted, with the memory that an earlier run turned out to need.
fn resources(agent: &Agent, planned: &Planned) -> Resources {
    let granted = planned.granted.request.resources;
    Resources { memory_mib: agent.memory_mib.map_or(granted.memory_mib, |needed| needed.max(granted.memory_mib)), ..granted }
}

/// All runs of one execution share one place.
async fn execute_in_one(
    context: &Context,
    prepared: &Prepared,
    agent: &mut Agent,
    first: &Planned,
    facts: &mut Facts,
) -> Result<String, Failure> {
    let start = Start::of(prepared, facts);
    let place = Place {
        name: format!("run{}", agent.run_number),
        image: &first.granted.request.image,
        resources: resources(agent, first),
    };
    agent.image = Some(first.granted.request.image.clone());
    agent.resources = Some(place.resources);
    let mut sandbox = Sandbox::open(context, &prepared.git, &start, &prepared.branch, place).await?;
    if let Some(failed) = run_commands(context, &mut sandbox, "setup", &context.spec.setup).await? {
        return Err(Failure::Ends(
            Outcome::new(OutcomeClass::Agent, format!("the setup command `{}` failed: {}", failed.command, failed.how))
                .hint("see `ckrv logs` for its output"),
        ));
    }
    run_until_content(context, (prepared, &start), agent, first, &mut sandbox, facts).await?;
    let head = collect(context, prepared, &mut sandbox, &start).await;
    if head.is_ok() {
        sandbox.close().await;
    }
    head
}

async fn run_until_content(
    context: &Context,
    from: (&Prepared, &Start),
    agent: &mut Agent,
    first: &Planned,
    sandbox: &mut Sandbox,
    facts: &mut Facts,
) -> Result<(), Failure> {
    let mut again: Option<Planned> = None;
    for _ in 0..MAX_RUNS {
        let planned = again.as_ref().unwrap_or(first);
        let (exit, verdict) = run_once(context, from, agent, planned, sandbox, facts).await?;
        agent.history.push(PastRun {
            number: agent.run_number,
            phase: Phase::Executing,
            exit: exit.clone(),
            outcome: verdict.outcome.clone(),
        });
        let summary = if verdict.summary.is_empty() { String::new() } else { format!(": {}", verdict.summary) };
        context.log.info("ckrv", format!("the agent ended with {}{summary}", describe(&exit)));
        if exit == ExitStatus::Evicted {
            checkpoint::keep_last(context, from.0, from.1, &sandbox.session.checkpointer(), &mut agent.kept).await;
            return Err(sandbox.evicted().await);
        }
        if exit == ExitStatus::OomKilled {
            return Err(Failure::Ends(out_of_memory()));
        }
        let (adapter, job, history) = (std::sync::Arc::clone(&agent.adapter), planned.job.clone(), agent.history.clone());
        match blocking(move || adapter.next(&job, &history)).await? {
            Decision::Advance if verdict.outcome == RunOutcome::Success => return Ok(()),
            Decision::Retry { delay_seconds, resume_session, reason } => {
                context.log.warn("adapter", format!("another run in {delay_seconds} s: {reason}"));
                tokio::time::sleep(Duration::from_secs(u64::from(delay_seconds.min(MAX_DELAY_SECONDS)))).await;
                if !resume_session {
                    agent.session = None;
                }
                again = Some(plan(context, agent, planned.job.feedback.clone()).await?);
            }
            Decision::Stop(reason) => return Err(not_content(&verdict, &reason)),
            _ => return Err(not_content(&verdict, "")),
        }
    }
    Err(Failure::ends(OutcomeClass::Agent, format!("the agent did not succeed in {MAX_RUNS} runs")))
}

fn not_content(verdict: &Verdict, reason: &str) -> Failure {
    let said = match &verdict.outcome {
        RunOutcome::Success => reason,
        RunOutcome::Failure(why) | RunOutcome::Retryable(why) | RunOutcome::NeedsInput(why) => why,
        RunOutcome::Other { kind, .. } => kind,
    };
    let text = if said.is_empty() { verdict.summary.clone() } else { said.to_owned() };
    let outcome = Outcome::new(OutcomeClass::Agent, format!("the agent did not succeed: {text}"));
    Failure::Ends(match &verdict.outcome {
        RunOutcome::NeedsInput(_) => outcome.hint("say in the spec what the agent asks for; nobody is there to answer it"),
        _ => outcome.hint("see `ckrv logs` for what it did"),
    })
}

/// One run to its end, with the adapter's verdict on it.
async fn run_once(
    context: &Context,
    (prepared, start): (&Prepared, &Start),
    agent: &mut Agent,
    planned: &Planned,
    sandbox: &mut Sandbox,
    facts: &mut Facts,
) -> Result<(ExitStatus, Verdict), Failure> {
    let max_cost = context.view.job.request.max_cost_micro_usd;
    if over_limit(&facts.usage, max_cost) {
        return Err(cost_limit(facts, max_cost, "another run was not begun"));
    }
    let spec = run_spec(context, planned, sandbox).await?;
    let adapter = std::sync::Arc::clone(&agent.adapter);
    let job = planned.job.clone();
    let transcript = adapter.transcript(&job);
    let (sender, receiver) = mpsc::channel(16);
    let (cost, over_cost) = tokio::sync::watch::channel(false);
    let reader = Reader {
        log: context.log.clone(),
        file: transcript_file(context)?,
        usage: facts.usage.clone(),
        max_cost,
        over: cost,
        session: None,
        has_result: false,
    };
    let reading = tokio::spawn(reader.read(transcript, receiver));
    let stopper = sandbox.session.stopper();
    let mut watching = over_cost.clone();
    let guard = tokio::spawn(async move {
        if watching.wait_for(|over| *over).await.is_ok() {
            stopper.stop(false).await;
        }
    });
    let checkpointer = sandbox.session.checkpointer();
    let ended = tokio::select! {
        biased;
        ended = sandbox.session.run(spec, &sender) => ended,
        never = checkpoint::keep(context, prepared, start, checkpointer, &mut agent.kept) => match never {},
    };
    drop(sender);
    guard.abort();
    let read = reading.await.map_err(|error| Failure::Infrastructure(format!("reading the output failed: {error}")))??;
    facts.usage = read.usage;
    let ended = match ended {
        Ok(ended) => ended,
        Err(error) => return Err(sandbox.failure(error).await),
    };
    if *over_cost.borrow() {
        return Err(cost_limit(facts, max_cost, "the agent was stopped"));
    }
    if ended.record.status == launch::ExitStatus::Deadline {
        return Err(past_deadline(context));
    }
    if ended.record.leftovers > 0 {
        context.log.info("ckrv", format!("{} processes that the agent left behind were ended", ended.record.leftovers));
    }
    let exit = match ended.hung {
        Some(Hung::FirstOutput) => ExitStatus::Other("no output at all within its limit".to_owned()),
        Some(Hung::Idle) => ExitStatus::Other("silent for longer than its limit".to_owned()),
        None => exit_status(&ended.record.status),
    };
    let (mut transcript, status) = (read.transcript, exit.clone());
    let (verdict, notes) = blocking(move || {
        let verdict = transcript.finish(&status);
        Ok((verdict, transcript.take_notes()))
    })
    .await?;
    for note in notes {
        context.log.warn("adapter", note);
    }
    for event in &verdict.events {
        write_event(&context.log, event.1.clone());
        add_usage(&mut facts.usage, &event.1);
    }
    agent.session = read.session.or(agent.session.take());
    if over_limit(&facts.usage, max_cost) {
        // Agents that watch the limit themselves give up at it, and say the cost with their last word.
        if verdict.outcome != RunOutcome::Success {
            return Err(cost_limit(facts, max_cost, "the agent ended without success"));
        }
        // It has ended by itself: what there is to be saved is its work.
        let (cost, max) = amounts(facts, max_cost);
        context.log.warn("ckrv", format!("the agent cost {cost}, more than the job's limit of {max}; it had ended by then"));
    }
    Ok((exit, verdict))
}

/// A command's time is what is left of the job's: whether the shim or the job runner sees its end first, the job ends by its deadline.
pub fn past_deadline(context: &Context) -> Failure {
    Failure::Ends(machine::timed_out(&context.view.job))
}

fn cost_limit(facts: &Facts, max_cost: Option<u64>, then: &str) -> Failure {
    let (cost, max) = amounts(facts, max_cost);
    let message = format!("the job passed its cost limit: its agent has cost {cost} of at most {max}; {then}");
    Failure::Ends(Outcome::new(OutcomeClass::CostLimit, message).hint(
        "nothing was published; submit it again with a higher `--max-cost`, or a smaller spec (`ckrv retry` keeps the limit)",
    ))
}

fn amounts(facts: &Facts, max_cost: Option<u64>) -> (String, String) {
    let dollars = |micro: u64| format!("${:.4}", micro as f64 / 1e6);
    (dollars(facts.usage.cost_micro_usd.unwrap_or_default()), dollars(max_cost.unwrap_or_default()))
}

fn transcript_file(context: &Context) -> Result<std::fs::File, Failure> {
    use std::os::unix::fs::OpenOptionsExt;
    let path = context.dir.join("transcript.ndjson");
    std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| Failure::infrastructure("the transcript", &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_doubled_once_within_policy() {
        assert_eq!(bigger(512, 8192), Some(1024));
        assert_eq!(bigger(6000, 8192), Some(8192));
        assert_eq!(bigger(8192, 8192), None);
        assert_eq!(bigger(512, 0), Some(1024));
        assert_eq!(bigger(0, 8192), None, "there was no limit");
    }
}
