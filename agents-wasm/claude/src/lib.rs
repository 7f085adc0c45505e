//! Claude Code, headless. Flags and events as measured with 2.1.330.
//!
//! A repository can be hostile to its own agent: `.claude/settings.json` may run hooks and send the key elsewhere, `.mcp.json` may
//! start programs. `--setting-sources user --strict-mcp-config` closes both, and the key is not in the container anyway.

mod transcript;
mod usage;

use ckrv_adapter_sdk::{
    Adapter, ContainerSpec, Descriptor, EgressRule, Error, Job, KeyValue, ModelRoute, Phase, Resources, SecretSlot, Stop,
    StopSignal, Watchdog, config_number, env, export_adapter, extra, image, number, prompt_with_feedback,
};
use transcript::ClaudeTranscript;

const IMAGE: &str = "localhost/ckrv/claude:2.1.330";
const REPOSITORY: &str = "localhost/ckrv/claude";
const SLOT: &str = "anthropic-api-key";
/// A cap against a loop without end; real tasks stay far below.
const MAX_TURNS: u32 = 200;
/// What Claude Code would read as its user's memory; the first that the repository has.
const CONTEXT_FILES: &str = "CLAUDE.md";
/// What a repository could take the agent over with; the flags of [`args`] keep Claude Code from it, and the host tells of it.
const REFUSED_FILES: &str = ".claude/settings.json,.claude/settings.local.json,.mcp.json";
const CONFIG_SCHEMA: &str = r#"{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object","additionalProperties":false,"properties":{
"image":{"type":"string","description":"Image that has the claude command"},
"model":{"type":"string","description":"Model where a job names none"},
"max-turns":{"type":"string","pattern":"^[1-9][0-9]*$","description":"Turns of the model in a run"}}}"#;

/// The adapter.
#[derive(Debug)]
pub struct Claude;

fn route() -> ModelRoute {
    ModelRoute {
        base_url_env: "ANTHROPIC_BASE_URL".into(),
        path: String::new(),
        upstream: EgressRule { host: "api.anthropic.com".into(), port: 443 },
        slot: SLOT.into(),
        header: "x-api-key".into(),
        prefix: String::new(),
        placeholder_env: Some("ANTHROPIC_API_KEY".into()),
    }
}

fn args(job: &Job) -> Result<Vec<String>, Error> {
    let mut args: Vec<String> =
        ["-p", "--output-format", "stream-json", "--verbose", "--permission-mode", "bypassPermissions"].map(String::from).into();
    if let Some(model) = job.model.clone().or_else(|| ckrv_adapter_sdk::config::get("model")) {
        args.extend(["--model".into(), model]);
    }
    args.extend(["--max-turns".into(), number(job, "max-turns", MAX_TURNS)?.to_string()]);
    if let Some(dollars) = extra(job, "max-cost-usd") {
        args.extend(["--max-budget-usd".into(), dollars.into()]);
    }
    if let Some(session) = &job.session_id {
        args.extend(["--resume".into(), session.clone()]);
    }
    args.extend(["--setting-sources", "user", "--strict-mcp-config"].map(String::from));
    // Without project settings Claude Code reads no CLAUDE.md either, so it is handed over.
    if let Some(path) = extra(job, "context-file") {
        args.extend(["--append-system-prompt-file".into(), path.into()]);
    }
    Ok(args)
}

impl Adapter for Claude {
    type Transcript = ClaudeTranscript;

    fn describe() -> Descriptor {
        Descriptor {
            id: "claude".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            display_name: "Claude Code".into(),
            phases: vec![Phase::Executing],
            images: vec![REPOSITORY.into()],
            egress: vec![],
            routes: vec![route()],
            secrets: vec![SecretSlot { name: SLOT.into(), description: "API key for api.anthropic.com".into(), required: true }],
            max_resources: Resources { cpu_millis: 4000, memory_mib: 16384, disk_mib: 51200 },
            config_schema: CONFIG_SCHEMA.into(),
            extra: [("context-files", CONTEXT_FILES), ("refused-files", REFUSED_FILES)]
                .map(|(key, value)| KeyValue { key: key.into(), value: value.into() })
                .into(),
        }
    }

    fn validate_config() -> Result<(), Error> {
        config_number("max-turns").map(|_| ())
    }

    fn plan(job: &Job) -> Result<ContainerSpec, Error> {
        if job.phase != Phase::Executing {
            return Err(Error::Unsupported("claude plans runs for the executing phase only".into()));
        }
        Ok(ContainerSpec {
            image: image(IMAGE),
            command: vec!["claude".into()],
            args: args(job)?,
            env: vec![
                env("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"),
                env("CLAUDE_CODE_MAX_RETRIES", "4"),
                env("DISABLE_AUTOUPDATER", "1"),
                // It refuses bypassPermissions to root without this; the container is the sandbox.
                env("IS_SANDBOX", "1"),
            ],
            files: vec![],
            routes: vec![route()],
            secrets: vec![],
            resources: Resources { cpu_millis: 2000, memory_mib: 4096, disk_mib: 10240 },
            egress: vec![],
            stdin: Some(prompt_with_feedback(job)),
            stop: Stop { signal: StopSignal::Term, grace_seconds: 10 },
            // One shell command of the agent may be silent for ten minutes.
            watchdog: Watchdog { first_output_seconds: 120, idle_seconds: 900 },
            extra: vec![],
        })
    }
}

export_adapter!(Claude);
