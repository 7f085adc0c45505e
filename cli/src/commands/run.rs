//! `ckrv run`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ckrv_core::id::JobId;
use ckrv_core::job::State;
use ckrv_core::wire::{CreateJob, Job};
use clap::Args;

use super::{logs, pull, wait};
use crate::App;
use crate::client::{Client, pairs};
use crate::config::{self, RepoConfig};
use crate::error::{CliError, Exit, Kind, Outcome};
use crate::local::{self, LocalOptions};
use crate::origin::{self, Origin};
use crate::pull::Target;
use crate::spec_file::{self, SpecFile};
use crate::{git, job_ref};

/// Start a job from a spec, here or with --cloud at the service
///
/// With --cloud only the spec, the repository's URL, the base branch and the options below leave this machine; the job's id is printed
/// as soon as the service has it. Without --cloud the job runs here, in a container of its own, and its changes are merged into your
/// working tree.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// The spec, a Markdown or YAML file, `-` for stdin; by default the only file in .ckrv/specs/
    pub spec: Option<String>,
    /// Run it at the service
    #[arg(long)]
    pub cloud: bool,
    /// The agent that does it, instead of the spec's [env: CKRV_AGENT]
    #[arg(long)]
    pub agent: Option<String>,
    /// The agent's model [env: CKRV_MODEL]
    #[arg(long)]
    pub model: Option<String>,
    /// The repository; by default `origin`'s URL, without user and password
    #[arg(long, value_name = "URL")]
    pub repo: Option<String>,
    /// The branch to start from; by default the current one, which must be pushed [env: CKRV_BASE]
    #[arg(long, value_name = "REF")]
    pub base: Option<String>,
    /// The stored git credential to clone with [env: CKRV_CREDENTIAL]
    #[arg(long, value_name = "NAME")]
    pub credential: Option<String>,
    /// Fill an agent's secret slot from a stored secret
    #[arg(long = "secret", value_name = "SLOT=NAME")]
    pub secrets: Vec<String>,
    /// Time limit, for example 30m [env: CKRV_TIMEOUT]
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<String>,
    /// A label on the job, for your own use
    #[arg(long = "label", value_name = "NAME=VALUE")]
    pub labels: Vec<String>,
    /// Stop the job when it has cost this much, in US dollars
    #[arg(long, value_name = "USD")]
    pub max_cost: Option<f64>,
    /// Tell this https URL when the job has ended (see `ckrv cloud webhook-secret`)
    #[arg(long, value_name = "URL", requires = "cloud")]
    pub notify: Option<String>,
    /// Makes the same call twice start one job only
    #[arg(long, value_name = "KEY")]
    pub idempotency_key: Option<String>,
    /// Follow the job's log to its end; the exit code is the job's
    #[arg(long)]
    pub follow: bool,
    /// Without --cloud: run the agent as a process of yours, beside your files, in no container
    #[arg(long, conflicts_with = "cloud")]
    pub unsandboxed: bool,
}

/// # Errors
/// A bad spec or option (exit 2); a base that isn't pushed; not logged in (3); quota (8); no service (9).
pub async fn run(args: RunArgs, app: &App) -> Outcome {
    let root = git::work_tree(&git::here()?);
    let request = request(&args, root.as_deref(), app)?;
    if !args.cloud {
        return run_here(&args, request, app).await;
    }
    let client = Client::new(&app.settings)?;
    let job = submit(&args, &request, &client).await?;
    announce(&job, &client, app)?;
    if args.follow { logs::follow(&client, job.id, None, app).await } else { Ok(Exit::OK) }
}

/// Everything that leaves this machine.
fn request(args: &RunArgs, root: Option<&Path>, app: &App) -> Result<CreateJob, CliError> {
    let repository = root.map(|root| app.settings.repository(root)).transpose()?.unwrap_or_default();
    let chosen = |flag: &Option<String>, env: &Option<String>, repository: &Option<String>, user: &Option<String>| {
        [flag, env, repository, user].into_iter().find_map(Clone::clone)
    };
    let (env, user) = (&app.settings.env, &app.settings.user);
    let timeout = chosen(&args.timeout, &env.timeout, &repository.timeout, &user.timeout);
    let timeout = timeout.map(|text| config::duration(&text)).transpose()?;
    if args.max_cost.is_some_and(|cost| !cost.is_finite() || cost <= 0.0) {
        return Err(CliError::usage("--max-cost takes a number of dollars above 0"));
    }
    let secrets = pairs(&args.secrets, "--secret")?;
    let labels = labels(&args.labels, &repository, &user.labels)?;
    let SpecFile { text, name } = spec_file::read(args.spec.as_deref(), root)?;
    let base = chosen(&args.base, &env.base, &repository.base, &user.base);
    let find = if args.cloud { origin::find } else { origin::local };
    let Origin { url, base, stripped } = find(root, args.repo.as_deref(), base.as_deref())?;
    if stripped {
        app.ui.warn(
            "the repository's URL contains a user or password, which stays here; store it with `ckrv cloud credentials add`",
        );
    }
    Ok(CreateJob {
        spec_content: text,
        git_repo_url: url,
        git_base_branch: base,
        git_credential_name: chosen(&args.credential, &env.credential, &repository.credential, &user.credential),
        agent: chosen(&args.agent, &env.agent, &repository.agent, &user.agent),
        model: chosen(&args.model, &env.model, &repository.model, &user.model),
        timeout_seconds: timeout.map(|timeout| u32::try_from(timeout.as_secs().max(1)).unwrap_or(u32::MAX)),
        best_of: None,
        secrets,
        labels,
        push: None,
        max_cost_usd: args.max_cost,
        notify_url: args.notify.clone(),
        spec_name: name,
    })
}

fn labels(
    flags: &[String],
    repository: &RepoConfig,
    user: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, CliError> {
    let mut labels = user.clone();
    labels.extend(repository.labels.clone());
    labels.extend(pairs(flags, "--label")?);
    Ok(labels)
}

async fn submit(args: &RunArgs, request: &CreateJob, client: &Client) -> Result<Job, CliError> {
    let key = args.idempotency_key.clone().unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    client.create_job(request, &key).await
}

/// The id on stdout, what to do with it on stderr; remembered as `@last`.
///
/// # Errors
/// Stdout can't be written.
pub fn announce(job: &Job, client: &Client, app: &App) -> Outcome {
    if app.ui.is_json() {
        app.ui.value(job)?
    } else {
        app.ui.line(&job.id.to_string())?
    }
    app.ui.note(&format!("job {} is {}. Next:\n  ckrv status @last\n  ckrv logs -f @last\n  ckrv pull @last", job.id, job.state));
    // The job is made: that we can't remember it must not look as if it weren't.
    if let Err(error) = job_ref::remember(job.id, client, &app.settings) {
        app.ui.warn(&format!("`@last` will not know this job: {error}"));
    }
    Ok(Exit::OK)
}

async fn run_here(args: &RunArgs, request: CreateJob, app: &App) -> Outcome {
    let data = tempfile::Builder::new()
        .prefix("ckrv-run-")
        .tempdir()
        .map_err(|error| CliError::io("can't make a temporary folder", error))?;
    let spinner = app.ui.spinner("starting the engine");
    let server = local::start(
        LocalOptions { unsandboxed: args.unsandboxed, data_dir: PathBuf::from(data.path()), config: local_config(app) },
        &app.settings.env,
    )
    .await?;
    drop(spinner);
    let outcome = run_at(&server, args, &request, app).await;
    server.engine.end().await;
    outcome
}

/// A local job obeys the policy of the user's own service, where there is one.
fn local_config(app: &App) -> Option<PathBuf> {
    let path = app.settings.env.data_dir.join("server.toml");
    path.exists().then_some(path)
}

async fn run_at(server: &local::LocalServer, args: &RunArgs, request: &CreateJob, app: &App) -> Outcome {
    let client = Client::with_token(&app.settings, &server.url, server.token.clone())?;
    let job = submit(args, request, &client).await?;
    let job = match logs::follow_to_end(&client, job.id, None, app).await {
        Err(error) if error.kind == Kind::Interrupted => {
            // This job lives here: without us nothing goes on.
            let _ = client.cancel(job.id).await;
            until_ended(&client, job.id).await;
            return Err(CliError::new(error.kind, "interrupted", "interrupted; the job was ended"));
        }
        job => job?,
    };
    if job.state != State::Succeeded {
        // The job goes with its engine: there is nothing to look at or to retry by its id.
        let failure = wait::failure(&job);
        let hint = failure.hint.filter(|hint| !hint.contains("`ckrv logs") && !hint.contains("`ckrv retry"));
        return Err(CliError { hint, ..failure });
    }
    let diff = pull::finished_diff(&job, &client).await?;
    pull::apply(job, diff, Target::WorkingTree, false, app).await
}

/// The engine must not go before its agent has.
async fn until_ended(client: &Client, id: JobId) {
    let ended = async {
        while client.job(id).await.is_ok_and(|job| !job.state.is_final()) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(20), ended).await;
}
