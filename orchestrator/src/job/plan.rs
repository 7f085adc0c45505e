//! Plan: load the adapter, ask it for one container run, hold what it asks for against policy, and fetch the keys of the routes that were granted.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use ckrv_core::job::{Outcome, OutcomeClass};
use ckrv_core::plan::{AdapterJob, Descriptor, PastRun, Phase, Resources};
use ckrv_core::policy::{Granted, clamp_for};
use secrecy::{ExposeSecret, SecretString};

use super::Context;
use super::checkpoint::Kept;
use super::failure::Failure;
use super::prepare::Prepared;
use crate::adapter::{Adapter, AdapterHost, Limits, builtin, builtin_names};

/// Where an agent sees its checkout. Where a launcher has it elsewhere, the plan's paths are put right before the run.
pub const WORKSPACE: &str = "/ckrv/workspace";

/// The adapter with what it did so far in this attempt.
pub struct Agent {
    pub adapter: Arc<Adapter>,
    pub descriptor: Descriptor,
    pub history: Vec<PastRun>,
    /// For the next run, where the adapter wants to go on with it.
    pub session: Option<String>,
    pub run_number: u32,
    /// Image and resources of the last run: what checks are made in, and with.
    pub image: Option<String>,
    pub resources: Option<Resources>,
    /// What its containers get since one ran out of memory. That happens once in an attempt.
    pub memory_mib: Option<u32>,
    /// The attempt's checkpoints.
    pub kept: Kept,
    /// The repository's own instructions for this agent, where it has some: a path below the workspace.
    context_file: Option<String>,
}

impl Agent {
    /// What the adapter is told of the job now.
    pub fn job(&self, context: &Context) -> AdapterJob {
        adapter_job(context, self, None)
    }
}

/// One run as it will be.
pub struct Planned {
    pub job: AdapterJob,
    pub granted: Granted,
    /// Slot to key, for the routes and for what policy grants into the environment.
    pub secrets: BTreeMap<String, SecretString>,
}

/// An adapter that is ready to be asked, and what it says of itself.
pub type Loaded = (Adapter, Descriptor);

/// Compiles the agent's adapter: in a pod nothing is left of the last time. It needs no checkout, so that is made meanwhile.
pub async fn load(context: &Context) -> Result<Loaded, Failure> {
    let bytes = component(context, &context.view.job.request.agent)?;
    let cache = context.view.cache.clone();
    blocking(move || {
        let host = AdapterHost::new(Limits::default(), cache)?;
        let adapter = host.load(&bytes)?;
        let descriptor = adapter.describe()?;
        Ok((adapter, descriptor))
    })
    .await
}

/// The agent before its first run.
pub async fn begin(context: &Context, prepared: &Prepared, (adapter, descriptor): Loaded) -> Result<Agent, Failure> {
    let name = &context.view.job.request.agent;
    context.log.info("adapter", format!("{} {} decides how `{name}` runs", descriptor.id, descriptor.version));
    let context_file = look_at_repository(context, prepared, &descriptor).await?;
    Ok(Agent {
        adapter: Arc::new(adapter),
        descriptor,
        history: Vec::new(),
        session: None,
        run_number: 0,
        image: None,
        resources: None,
        memory_mib: None,
        kept: Kept::default(),
        context_file,
    })
}

/// The operator's own adapter of that name, else the built-in one.
fn component(context: &Context, name: &str) -> Result<Cow<'static, [u8]>, Failure> {
    if let Some(path) = &context.view.adapter {
        let read = std::fs::read(path).map(Cow::Owned);
        return read.map_err(|error| Failure::infrastructure(&format!("the adapter of `{name}`"), &error));
    }
    builtin(name).map(Cow::Borrowed).ok_or_else(|| {
        Failure::Ends(
            Outcome::new(OutcomeClass::Policy, format!("there is no agent `{name}` here"))
                .hint(format!("the agents are: {}", builtin_names().collect::<Vec<_>>().join(", "))),
        )
    })
}

/// Finds the repository's instructions for the agent, and says which of its files the agent is kept from.
async fn look_at_repository(context: &Context, prepared: &Prepared, descriptor: &Descriptor) -> Result<Option<String>, Failure> {
    let named = |key: &str| {
        descriptor
            .extra
            .get(key)
            .map(|names| names.split(',').map(|name| name.trim().to_owned()).collect::<Vec<_>>())
            .unwrap_or_default()
    };
    let (wanted, refused) = (named("context-files"), named("refused-files"));
    let mut args = vec![
        "ls-tree".to_owned(),
        "-z".to_owned(),
        "--name-only".to_owned(),
        "--full-tree".to_owned(),
        prepared.base.clone(),
        "--".to_owned(),
    ];
    args.extend(wanted.iter().chain(&refused).cloned());
    if args.len() == 6 {
        return Ok(None);
    }
    let listing = prepared.git.run(&args).await?;
    let present: Vec<String> = listing
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect();
    for name in refused.iter().filter(|name| present.contains(name)) {
        context.log.warn(
            "adapter",
            format!(
                "refused: the repository's `{name}` is not used; it could run programs or send the model's requests elsewhere"
            ),
        );
    }
    Ok(wanted.into_iter().find(|name| present.contains(name)))
}

pub async fn plan(context: &Context, agent: &mut Agent, feedback: Option<String>) -> Result<Planned, Failure> {
    agent.run_number += 1;
    let job = adapter_job(context, agent, feedback);
    let adapter = Arc::clone(&agent.adapter);
    let asked = job.clone();
    let request = blocking(move || adapter.plan(&asked)).await?;
    let granted = clamp_for(&request, &agent.descriptor, &context.view.policy, context.spec.image.as_deref())?;
    for clamped in &granted.clamped {
        context.log.info("adapter", format!("policy: {clamped}"));
    }
    let secrets = fetch_secrets(context, agent, &granted).await?;
    Ok(Planned { job, granted, secrets })
}

fn adapter_job(context: &Context, agent: &Agent, feedback: Option<String>) -> AdapterJob {
    let job = &context.view.job;
    let mut extra = BTreeMap::new();
    if let Some(command) = &context.spec.command {
        extra.insert("command".to_owned(), command.clone());
    }
    if let Some(file) = &agent.context_file {
        extra.insert("context-file".to_owned(), format!("{WORKSPACE}/{file}"));
    }
    if let Some(micro_usd) = job.request.max_cost_micro_usd {
        extra.insert("max-cost-usd".to_owned(), format!("{}.{:06}", micro_usd / 1_000_000, micro_usd % 1_000_000));
    }
    AdapterJob {
        run_id: job.id.to_string(),
        run_number: agent.run_number,
        phase: Phase::Executing,
        prompt: context.spec.task.clone(),
        feedback,
        workspace: WORKSPACE.to_owned(),
        model: job.request.model.clone(),
        session_id: agent.session.clone(),
        deadline_seconds: seconds_left(context),
        extra,
    }
}

/// Until the job's deadline, at least one.
pub fn seconds_left(context: &Context) -> u32 {
    let Some(deadline) = context.view.job.deadline else {
        return context.view.job.request.timeout_seconds;
    };
    u32::try_from(deadline.duration_since(crate::clock::now()).as_secs().max(1)).unwrap_or(u32::MAX)
}

async fn fetch_secrets(context: &Context, agent: &Agent, granted: &Granted) -> Result<BTreeMap<String, SecretString>, Failure> {
    let mut secrets = BTreeMap::new();
    let routes = granted.routes.iter().map(|granted| granted.route.slot.clone());
    let slots: Vec<String> = routes.chain(granted.request.secrets.iter().map(|secret| secret.slot.clone())).collect();
    for slot in slots {
        if secrets.contains_key(&slot) {
            continue;
        }
        let required = agent.descriptor.secrets.iter().any(|known| known.name == slot && known.required);
        match context.secret(&slot).await? {
            Some(value) => {
                context.log.hide(value.expose_secret());
                secrets.insert(slot, value);
            }
            None if required => {
                return Err(Failure::Ends(
                    Outcome::new(
                        OutcomeClass::Policy,
                        format!("the agent `{}` needs the secret `{slot}`, and there is none", agent.descriptor.id),
                    )
                    .hint(format!("store it: `ckrv cloud secrets add {slot}`")),
                ));
            }
            None => {}
        }
    }
    Ok(secrets)
}

/// Adapter calls are synchronous and bounded in time; they run beside the async tasks.
pub async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, crate::adapter::AdapterError> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(call).await {
        Ok(answer) => Ok(answer?),
        Err(error) => Err(Failure::Infrastructure(format!("an adapter's call ended badly: {error}"))),
    }
}
