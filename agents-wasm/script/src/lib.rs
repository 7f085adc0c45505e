//! A command instead of an agent: for demos, tests, and tasks that need no model. It needs no key and runs in any image with `/bin/sh`.
//!
//! The command is the job's extra `command`; where there is none, the prompt is the script. Exit 0 is success, 75 (EX_TEMPFAIL) asks for
//! another run, anything else is a failure. A repair run gets the checks' output on standard input.

use ckrv_adapter_sdk::text::{Tail, shorten};
use ckrv_adapter_sdk::{
    Adapter, ContainerSpec, Decision, Descriptor, Error, Events, ExitStatus, Job, KeyValue, Outcome, OutputLine, PastRun, Phase,
    RepairRule, Resources, Source, Stop, StopSignal, Transcript, Watchdog, decide, env, export_adapter, extra, image,
    stopped_by_host,
};

const IMAGE: &str = "localhost/ckrv/script:1";
const REPOSITORY: &str = "localhost/ckrv/script";
/// Linux takes no argument above 128 KiB.
const MAX_SCRIPT: usize = 120 * 1024;
/// sysexits.h: "temporary failure, user is invited to retry".
const EX_TEMPFAIL: i32 = 75;
const CONFIG_SCHEMA: &str = r#"{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object","additionalProperties":false,"properties":{
"image":{"type":"string","description":"Image that has /bin/sh, where a job names none"}}}"#;

/// The adapter.
#[derive(Debug)]
pub struct Script;

impl Adapter for Script {
    type Transcript = ScriptTranscript;

    fn describe() -> Descriptor {
        Descriptor {
            id: "script".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            display_name: "Script".into(),
            phases: vec![Phase::Executing],
            images: vec![REPOSITORY.into()],
            egress: vec![],
            routes: vec![],
            secrets: vec![],
            max_resources: Resources { cpu_millis: 4000, memory_mib: 16384, disk_mib: 51200 },
            config_schema: CONFIG_SCHEMA.into(),
            extra: vec![KeyValue { key: "any-image".into(), value: "true".into() }],
        }
    }

    fn plan(job: &Job) -> Result<ContainerSpec, Error> {
        if job.phase != Phase::Executing {
            return Err(Error::Unsupported("script plans runs for the executing phase only".into()));
        }
        let (script, prompt) = match extra(job, "command") {
            Some(command) => (command, Some(job.prompt.as_str())),
            None => (job.prompt.as_str(), None),
        };
        if script.trim().is_empty() {
            return Err(Error::InvalidConfig(
                "there is nothing to run: give `command` in the spec, or a script as its text".into(),
            ));
        }
        if script.len() > MAX_SCRIPT {
            return Err(Error::Unsupported(format!("the script has {} bytes; at most {MAX_SCRIPT} can be passed", script.len())));
        }
        let stdin = job.feedback.as_deref().or(prompt).map(String::from);
        Ok(ContainerSpec {
            image: image(IMAGE),
            command: vec!["/bin/sh".into()],
            args: vec!["-c".into(), script.into()],
            env: vec![
                env("JOB_RUN_ID", &job.run_id),
                env("JOB_RUN_NUMBER", &job.run_number.to_string()),
                env("JOB_WORKSPACE", &job.workspace),
            ],
            files: vec![],
            routes: vec![],
            secrets: vec![],
            resources: Resources { cpu_millis: 1000, memory_mib: 1024, disk_mib: 10240 },
            egress: vec![],
            stdin,
            stop: Stop { signal: StopSignal::Term, grace_seconds: 5 },
            // A build may be silent for long: the job's deadline is the limit.
            watchdog: Watchdog { first_output_seconds: job.deadline_seconds.max(1), idle_seconds: job.deadline_seconds.max(1) },
            extra: vec![],
        })
    }

    fn next(job: &Job, history: &[PastRun]) -> Result<Decision, Error> {
        Ok(decide(job, history, RepairRule::OnRequest))
    }
}

/// Every line is a message.
#[derive(Debug, Default)]
pub struct ScriptTranscript {
    stdout: Tail,
    stderr: Tail,
    last_seq: u32,
}

impl Transcript for ScriptTranscript {
    fn start(_job: Job, _checkpoint: Option<Vec<u8>>) -> Self {
        Self::default()
    }

    fn line(&mut self, line: OutputLine, events: &mut Events) {
        self.last_seq = line.seq;
        let (role, tail) = match line.source {
            Source::Stdout => ("stdout", &mut self.stdout),
            Source::Stderr => ("stderr", &mut self.stderr),
        };
        tail.push(&line.text);
        events.message(role, &line.text);
    }

    fn finish(&mut self, exit: &ExitStatus, events: &mut Events) -> (Outcome, String) {
        let said = if self.stderr.is_empty() { self.stdout.last() } else { self.stderr.last() };
        let ended = |code: i32| match said {
            "" => format!("the command ended with exit code {code}"),
            said => format!("the command ended with exit code {code}: {}", shorten(said, 300)),
        };
        let outcome = stopped_by_host(exit).unwrap_or_else(|| match exit {
            ExitStatus::Code(0) => Outcome::Success,
            ExitStatus::Code(EX_TEMPFAIL) => Outcome::Retryable(ended(EX_TEMPFAIL)),
            ExitStatus::Code(code) => Outcome::Failure(ended(*code)),
            _ => Outcome::Failure("the run ended in a way that is not known".into()),
        });
        let summary = match &outcome {
            Outcome::Failure(reason) | Outcome::Retryable(reason) => reason.clone(),
            _ => self.stdout.last().to_owned(),
        };
        events.at(self.last_seq);
        events.run_result(&summary, !matches!(outcome, Outcome::Success), None);
        (outcome, summary)
    }
}

export_adapter!(Script);
