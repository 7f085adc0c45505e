//! Gemini CLI, headless. Flags and events as measured with 0.61.0.
//!
//! A trusted repository can be hostile: its `.gemini/settings.json` may run hooks and start MCP servers, and its `.env` may send the
//! key elsewhere. The agent's own settings and flags close these, and its base URL is always set, so that no `.env` can set it.

mod transcript;

use ckrv_adapter_sdk::{
    Adapter, ContainerSpec, Descriptor, EgressRule, Error, File, Job, KeyValue, ModelRoute, Phase, Place, Resources, SecretSlot,
    Stop, StopSignal, Watchdog, config_number, env, export_adapter, image, number, prompt_with_feedback,
};
use serde_json::json;
use transcript::GeminiTranscript;

const IMAGE: &str = "localhost/ckrv/gemini:0.61.0";
const REPOSITORY: &str = "localhost/ckrv/gemini";
const SLOT: &str = "gemini-api-key";
const MAX_TURNS: u32 = 200;
/// What a repository could take the agent over with; settings, flags and environment below keep Gemini CLI from it, and the host tells
/// of it. GEMINI.md it reads by itself.
const REFUSED_FILES: &str = ".gemini/settings.json,.gemini/.env,.env";
const CONFIG_SCHEMA: &str = r#"{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object","additionalProperties":false,"properties":{
"image":{"type":"string","description":"Image that has the gemini command"},
"model":{"type":"string","description":"Model where a job names none"},
"max-turns":{"type":"string","pattern":"^[1-9][0-9]*$","description":"Turns of the model in a run"}}}"#;

/// The adapter.
#[derive(Debug)]
pub struct Gemini;

fn route() -> ModelRoute {
    ModelRoute {
        // Plain http is accepted for loopback addresses only, which is what a route is.
        base_url_env: "GOOGLE_GEMINI_BASE_URL".into(),
        path: String::new(),
        upstream: EgressRule { host: "generativelanguage.googleapis.com".into(), port: 443 },
        slot: SLOT.into(),
        header: "x-goog-api-key".into(),
        prefix: String::new(),
        placeholder_env: Some("GEMINI_API_KEY".into()),
    }
}

fn settings(job: &Job) -> Result<String, Error> {
    let settings = json!({
        // Required with a base URL of one's own: otherwise the CLI takes itself to be behind a gateway, and refuses.
        "security": { "auth": { "selectedType": "gemini-api-key" } },
        "privacy": { "usageStatisticsEnabled": false },
        "telemetry": { "enabled": false },
        "general": { "enableAutoUpdate": false, "enableAutoUpdateNotification": false, "maxAttempts": 4 },
        "model": { "maxSessionTurns": number(job, "max-turns", MAX_TURNS)? },
        "hooksConfig": { "enabled": false },
    });
    Ok(settings.to_string())
}

fn args(job: &Job) -> Vec<String> {
    let mut args: Vec<String> = ["--output-format", "stream-json"].map(String::from).into();
    if let Some(model) = job.model.clone().or_else(|| ckrv_adapter_sdk::config::get("model")) {
        args.extend(["-m".into(), model]);
    }
    if let Some(session) = &job.session_id {
        args.extend(["--resume".into(), session.clone()]);
    }
    args.extend(["--approval-mode", "yolo", "--allowed-mcp-server-names", "none", "-e", "none"].map(String::from));
    args
}

impl Adapter for Gemini {
    type Transcript = GeminiTranscript;

    fn describe() -> Descriptor {
        Descriptor {
            id: "gemini".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            display_name: "Gemini CLI".into(),
            phases: vec![Phase::Executing],
            images: vec![REPOSITORY.into()],
            egress: vec![],
            routes: vec![route()],
            secrets: vec![SecretSlot {
                name: SLOT.into(),
                description: "API key for generativelanguage.googleapis.com".into(),
                required: true,
            }],
            max_resources: Resources { cpu_millis: 4000, memory_mib: 16384, disk_mib: 51200 },
            config_schema: CONFIG_SCHEMA.into(),
            extra: vec![KeyValue { key: "refused-files".into(), value: REFUSED_FILES.into() }],
        }
    }

    fn validate_config() -> Result<(), Error> {
        config_number("max-turns").map(|_| ())
    }

    fn plan(job: &Job) -> Result<ContainerSpec, Error> {
        if job.phase != Phase::Executing {
            return Err(Error::Unsupported("gemini plans runs for the executing phase only".into()));
        }
        Ok(ContainerSpec {
            image: image(IMAGE),
            command: vec!["gemini".into()],
            args: args(job),
            env: vec![
                // As a child of itself it would swallow the signal that ends it.
                env("GEMINI_CLI_NO_RELAUNCH", "true"),
                env("GEMINI_CLI_TRUST_WORKSPACE", "true"),
            ],
            files: vec![File {
                place: Place::Home,
                path: ".gemini/settings.json".into(),
                content: settings(job)?,
                executable: false,
            }],
            routes: vec![route()],
            secrets: vec![],
            resources: Resources { cpu_millis: 2000, memory_mib: 4096, disk_mib: 10240 },
            egress: vec![],
            stdin: Some(prompt_with_feedback(job)),
            stop: Stop { signal: StopSignal::Term, grace_seconds: 10 },
            watchdog: Watchdog { first_output_seconds: 180, idle_seconds: 900 },
            extra: vec![],
        })
    }
}

export_adapter!(Gemini);
