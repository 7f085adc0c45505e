//! Between the interface's types and the host's own. Each version of the interface is converted here, once, so that policy never
//! sees a version.

use std::collections::BTreeMap;

use ckrv_core::event::{AgentEvent, Usage};
use ckrv_core::plan as core;
use serde_json::Value;

use super::bindings::ckrv::agent::types as wit;
use super::error::AdapterError;

fn map(entries: Vec<wit::KeyValue>) -> BTreeMap<String, String> {
    entries.into_iter().map(|entry| (entry.key, entry.value)).collect()
}

/// JSON of an adapter's; what is none is kept as text.
fn json(text: String) -> Value {
    serde_json::from_str(&text).unwrap_or(Value::String(text))
}

impl From<core::Phase> for wit::Phase {
    fn from(phase: core::Phase) -> Self {
        match phase {
            core::Phase::Planning => Self::Planning,
            core::Phase::Executing => Self::Executing,
            core::Phase::Verifying => Self::Verifying,
        }
    }
}

/// `None` for a phase that this host does not have.
fn phase(phase: &wit::Phase) -> Option<core::Phase> {
    match phase {
        wit::Phase::Planning => Some(core::Phase::Planning),
        wit::Phase::Executing => Some(core::Phase::Executing),
        wit::Phase::Verifying => Some(core::Phase::Verifying),
        wit::Phase::Other(_) => None,
    }
}

impl From<&core::AdapterJob> for wit::Job {
    fn from(job: &core::AdapterJob) -> Self {
        Self {
            run_id: job.run_id.clone(),
            run_number: job.run_number,
            phase: job.phase.into(),
            prompt: job.prompt.clone(),
            feedback: job.feedback.clone(),
            workspace: job.workspace.clone(),
            model: job.model.clone(),
            session_id: job.session_id.clone(),
            deadline_seconds: job.deadline_seconds,
            extra: job.extra.iter().map(|(key, value)| wit::KeyValue { key: key.clone(), value: value.clone() }).collect(),
        }
    }
}

impl From<wit::Resources> for core::Resources {
    fn from(from: wit::Resources) -> Self {
        Self { cpu_millis: from.cpu_millis, memory_mib: from.memory_mib, disk_mib: from.disk_mib }
    }
}

impl From<wit::EgressRule> for core::EgressRule {
    fn from(from: wit::EgressRule) -> Self {
        Self { host: from.host, port: from.port }
    }
}

impl From<wit::ModelRoute> for core::ModelRoute {
    fn from(from: wit::ModelRoute) -> Self {
        Self {
            base_url_env: from.base_url_env,
            path: from.path,
            upstream: from.upstream.into(),
            slot: from.slot,
            header: from.header,
            prefix: from.prefix,
            placeholder_env: from.placeholder_env,
        }
    }
}

impl From<wit::File> for core::PlanFile {
    fn from(from: wit::File) -> Self {
        let place = match from.place {
            wit::Place::Home => core::Place::Home,
            wit::Place::Context => core::Place::Context,
        };
        Self { place, path: from.path, content: from.content, executable: from.executable }
    }
}

fn all<A, B: From<A>>(items: Vec<A>) -> Vec<B> {
    items.into_iter().map(B::from).collect()
}

impl TryFrom<wit::ContainerSpec> for core::ContainerRequest {
    type Error = AdapterError;

    fn try_from(from: wit::ContainerSpec) -> Result<Self, AdapterError> {
        let count = from.env.len();
        let env = map(from.env);
        if env.len() != count {
            return Err(AdapterError::Malformed("the plan sets a variable twice".to_owned()));
        }
        let signal = match from.stop.signal {
            wit::StopSignal::Term => core::StopSignal::Term,
            wit::StopSignal::Int => core::StopSignal::Int,
            wit::StopSignal::Hup => core::StopSignal::Hup,
        };
        Ok(Self {
            image: from.image,
            command: from.command,
            args: from.args,
            env,
            files: all(from.files),
            routes: all(from.routes),
            secrets: from.secrets.into_iter().map(|secret| core::SecretRef { slot: secret.slot, env: secret.env }).collect(),
            resources: from.resources.into(),
            egress: all(from.egress),
            stdin: from.stdin,
            stop: core::Stop { signal, grace_seconds: from.stop.grace_seconds },
            watchdog: core::Watchdog {
                first_output_seconds: from.watchdog.first_output_seconds,
                idle_seconds: from.watchdog.idle_seconds,
            },
            extra: map(from.extra),
        })
    }
}

impl From<wit::Descriptor> for core::Descriptor {
    fn from(from: wit::Descriptor) -> Self {
        let slot =
            |slot: wit::SecretSlot| core::SecretSlot { name: slot.name, description: slot.description, required: slot.required };
        Self {
            id: from.id,
            version: from.version,
            display_name: from.display_name,
            phases: from.phases.iter().filter_map(phase).collect(),
            images: from.images,
            egress: all(from.egress),
            routes: all(from.routes),
            secrets: from.secrets.into_iter().map(slot).collect(),
            max_resources: from.max_resources.into(),
            config_schema: from.config_schema,
            extra: map(from.extra),
        }
    }
}

impl From<&core::OutputLine> for wit::OutputLine {
    fn from(line: &core::OutputLine) -> Self {
        let source = match line.source {
            core::Source::Stdout => wit::Source::Stdout,
            core::Source::Stderr => wit::Source::Stderr,
        };
        Self { seq: line.seq, source, text: line.text.clone(), truncated: line.truncated }
    }
}

/// An event with the line that it came from.
pub fn event(from: wit::Event) -> (u32, AgentEvent) {
    let body = match from.body {
        wit::EventBody::Message(message) => AgentEvent::Message { role: message.role, text: message.text },
        wit::EventBody::ToolCall(call) => AgentEvent::ToolCall { id: call.id, name: call.name, input: json(call.input_json) },
        wit::EventBody::ToolResult(result) => {
            AgentEvent::ToolResult { id: result.id, is_error: result.is_error, output: result.output }
        }
        wit::EventBody::Usage(usage) => AgentEvent::Usage(Usage {
            model: usage.model,
            input_tokens: usage.input_tokens.into(),
            output_tokens: usage.output_tokens.into(),
            cache_read_tokens: usage.cache_read_tokens.into(),
            cache_write_tokens: usage.cache_write_tokens.into(),
            cost_micro_usd: usage.cost_micro_usd.map(Into::into),
            turns: usage.turns.into(),
        }),
        wit::EventBody::RunResult(result) => {
            AgentEvent::RunResult { text: result.text, is_error: result.is_error, session_id: result.session_id }
        }
        wit::EventBody::Other(custom) => AgentEvent::Other { kind: custom.kind, data: json(custom.json) },
    };
    (from.seq, body)
}

impl From<&core::ExitStatus> for wit::ExitStatus {
    fn from(exit: &core::ExitStatus) -> Self {
        match exit {
            core::ExitStatus::Code(code) => Self::Code(*code),
            core::ExitStatus::Signal(signal) => Self::Signal(*signal),
            core::ExitStatus::OomKilled => Self::OomKilled,
            core::ExitStatus::Deadline => Self::Deadline,
            core::ExitStatus::Evicted => Self::Evicted,
            core::ExitStatus::Other(why) => Self::Other(why.clone()),
        }
    }
}

impl From<wit::Outcome> for core::RunOutcome {
    fn from(outcome: wit::Outcome) -> Self {
        match outcome {
            wit::Outcome::Success => Self::Success,
            wit::Outcome::Failure(reason) => Self::Failure(reason),
            wit::Outcome::Retryable(reason) => Self::Retryable(reason),
            wit::Outcome::NeedsInput(what) => Self::NeedsInput(what),
            wit::Outcome::Other(custom) => Self::Other { kind: custom.kind, json: custom.json },
        }
    }
}

impl From<&core::PastRun> for wit::PastRun {
    fn from(run: &core::PastRun) -> Self {
        let outcome = match run.outcome.clone() {
            core::RunOutcome::Success => wit::Outcome::Success,
            core::RunOutcome::Failure(reason) => wit::Outcome::Failure(reason),
            core::RunOutcome::Retryable(reason) => wit::Outcome::Retryable(reason),
            core::RunOutcome::NeedsInput(what) => wit::Outcome::NeedsInput(what),
            core::RunOutcome::Other { kind, json } => wit::Outcome::Other(wit::Custom { kind, json }),
        };
        Self { number: run.number, phase: run.phase.into(), exit: (&run.exit).into(), outcome }
    }
}

impl From<wit::Decision> for core::Decision {
    fn from(decision: wit::Decision) -> Self {
        match decision {
            wit::Decision::Advance => Self::Advance,
            wit::Decision::Retry(retry) => {
                Self::Retry { delay_seconds: retry.delay_seconds, resume_session: retry.resume_session, reason: retry.reason }
            }
            wit::Decision::BackTo(to) => match phase(&to) {
                Some(phase) => Self::BackTo(phase),
                None => Self::Stop("the adapter wants a phase that this host does not have".to_owned()),
            },
            wit::Decision::Stop(reason) => Self::Stop(reason),
            wit::Decision::Other(custom) => Self::Other { kind: custom.kind, json: custom.json },
        }
    }
}
