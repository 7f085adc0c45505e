//! Verify: the spec's checks on a fresh checkout of the result, without secrets and without network. The adapter's verdict is advice; this is not.

use std::time::Duration;

use ckrv_core::job::{Facts, Outcome, OutcomeClass, Verification};
use ckrv_core::log::Level;
use ckrv_core::plan::{Decision, ExitStatus, PastRun, Phase, RunOutcome};
use tokio::sync::mpsc;

use super::Context;
use super::egress;
use super::execute::past_deadline;
use super::failure::Failure;
use super::plan::{Agent, blocking, seconds_left};
use super::prepare::{Prepared, Start};
use super::sandbox::{Place, Sandbox};
use crate::launch::{self, LineSplitter, RunSpec};

/// Repair runs after the first.
const MAX_REPAIRS: u32 = 2;
/// What of a check's output the agent gets to see.
const FEEDBACK_BYTES: usize = 32 * 1024;

pub enum Verified {
    Done,
    /// The checks failed and the adapter asks for another run, with their output.
    Repair(String),
}

pub async fn verify(
    context: &Context,
    prepared: &Prepared,
    agent: &mut Agent,
    head: &str,
    repairs: u32,
    facts: &mut Facts,
) -> Result<Verified, Failure> {
    if context.spec.verify.is_empty() {
        facts.verification = Verification::None;
        return Ok(Verified::Done);
    }
    let image = agent.image.clone().unwrap_or_default();
    let place = Place { name: format!("verify{}", repairs + 1), image: &image, resources: agent.resources.unwrap_or_default() };
    let mut sandbox = Sandbox::open(context, &prepared.git, &Start::at(head), &prepared.branch, place).await?;
    let checked = run_commands(context, &mut sandbox, "verify", &context.spec.verify).await;
    sandbox.close().await;
    match checked? {
        None => {
            facts.verification = Verification::Passed;
            context.log.info("verify", "the checks passed");
            Ok(Verified::Done)
        }
        Some(failed) => {
            facts.verification = Verification::Failed;
            context.log.warn("verify", format!("`{}` failed: {}", failed.command, failed.how));
            if repairs < MAX_REPAIRS && wants_repair(context, agent, &failed).await? {
                // The next run has a home of its own, in which there is no session to go on with.
                agent.session = None;
                context.log.info("verify", format!("repair run {} of {MAX_REPAIRS}", repairs + 1));
                return Ok(Verified::Repair(failed.output));
            }
            Err(Failure::Ends(
                Outcome::new(
                    OutcomeClass::Verification,
                    format!("the check `{}` failed on the result: {}", failed.command, failed.how),
                )
                .hint("see `ckrv logs` for its output; nothing was published"),
            ))
        }
    }
}

/// A command that did not pass.
pub struct FailedCommand {
    pub command: String,
    /// `exit code 1`
    pub how: String,
    /// The end of its output, masked.
    pub output: String,
    exit: ExitStatus,
}

/// Runs shell commands one after another until one fails. `source` names them in the log.
pub async fn run_commands(
    context: &Context,
    sandbox: &mut Sandbox,
    source: &str,
    commands: &[String],
) -> Result<Option<FailedCommand>, Failure> {
    for command in commands {
        context.log.info(source, format!("$ {command}"));
        let (sender, receiver) = mpsc::channel(16);
        let tail = tokio::spawn(follow(context.log.clone(), source.to_owned(), receiver));
        let mut spec = RunSpec::plain(vec!["/bin/sh".to_owned(), "-c".to_owned(), command.clone()], seconds_left(context));
        spec.egress = egress::proxy(context, "the command", &[], false);
        let ended = sandbox.session.run(spec, &sender).await;
        drop(sender);
        let output = tail.await.unwrap_or_default();
        let ended = match ended {
            Ok(ended) => ended,
            Err(error) => return Err(sandbox.failure(error).await),
        };
        let exit = exit_status(&ended.record.status);
        if exit == ExitStatus::Evicted {
            return Err(sandbox.evicted().await);
        }
        if ended.record.status == launch::ExitStatus::Deadline {
            return Err(past_deadline(context));
        }
        if exit != ExitStatus::Code(0) {
            return Ok(Some(FailedCommand { command: command.clone(), how: describe(&exit), output, exit }));
        }
    }
    Ok(None)
}

async fn follow(log: super::log::JobLog, source: String, mut frames: mpsc::Receiver<launch::OutputFrame>) -> String {
    let mut lines = LineSplitter::default();
    let mut tail = String::new();
    let needles = log.needles();
    let mut say = |line: &launch::Line| {
        log.write(Level::Info, &source, &line.text, None);
        tail.push_str(&needles.mask(&line.text));
        tail.push('\n');
        if tail.len() > 2 * FEEDBACK_BYTES {
            let cut = tail.ceil_char_boundary(tail.len() - FEEDBACK_BYTES);
            tail.drain(..cut);
        }
    };
    while let Some(frame) = frames.recv().await {
        for line in lines.push(&frame) {
            say(&line);
        }
        log.room().await;
    }
    for line in lines.finish() {
        say(&line);
    }
    let cut = tail.ceil_char_boundary(tail.len().saturating_sub(FEEDBACK_BYTES));
    tail.split_off(cut)
}

async fn wants_repair(context: &Context, agent: &mut Agent, failed: &FailedCommand) -> Result<bool, Failure> {
    agent.history.push(PastRun {
        number: agent.run_number,
        phase: Phase::Verifying,
        exit: failed.exit.clone(),
        outcome: RunOutcome::Failure(format!("`{}`: {}", failed.command, failed.how)),
    });
    let mut job = agent.job(context);
    job.phase = Phase::Verifying;
    job.feedback = Some(failed.output.clone());
    let (adapter, history) = (std::sync::Arc::clone(&agent.adapter), agent.history.clone());
    match blocking(move || adapter.next(&job, &history)).await? {
        Decision::BackTo(_) => Ok(true),
        Decision::Retry { delay_seconds, .. } => {
            tokio::time::sleep(Duration::from_secs(u64::from(delay_seconds.min(60)))).await;
            Ok(true)
        }
        _ => Ok(false),
    }
}

pub fn exit_status(status: &launch::ExitStatus) -> ExitStatus {
    match status {
        launch::ExitStatus::Code(code) => ExitStatus::Code(*code),
        launch::ExitStatus::Signal(signal) => ExitStatus::Signal(*signal),
        launch::ExitStatus::OomKilled => ExitStatus::OomKilled,
        launch::ExitStatus::Deadline => ExitStatus::Deadline,
        launch::ExitStatus::Evicted => ExitStatus::Evicted,
        launch::ExitStatus::NotStarted(why) => ExitStatus::Other(why.clone()),
    }
}

pub fn describe(exit: &ExitStatus) -> String {
    match exit {
        ExitStatus::Code(code) => format!("exit code {code}"),
        ExitStatus::Signal(signal) => format!("ended by signal {signal}"),
        ExitStatus::OomKilled => "out of memory".to_owned(),
        ExitStatus::Deadline => "time limit".to_owned(),
        ExitStatus::Evicted => "evicted".to_owned(),
        ExitStatus::Other(why) => why.clone(),
    }
}
