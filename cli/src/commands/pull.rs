//! `ckrv pull`

use std::path::{Path, PathBuf};

use ckrv_core::job::State;
use ckrv_core::wire::Job;
use clap::Args;
use owo_colors::OwoColorize as _;
use serde_json::json;
use tokio::task::spawn_blocking;

use super::wait;
use crate::App;
use crate::args::JobArg;
use crate::client::{Client, Diff};
use crate::error::{CliError, Exit, Kind, Outcome};
use crate::git::{Git, here, work_tree};
use crate::pull::{Change, Report, Target, ensure_base, pull, require_version};
use crate::text::{clean, clean_lines};
use crate::{job_ref, render};

/// Merge a job's changes into your working tree, another worktree, or onto a branch
///
/// The changes are merged as a cherry-pick would, and tried first without touching anything. In the working tree they are staged,
/// not committed, so that `git diff --cached` shows them, new files too; other local changes stay as they are. A conflict touches
/// nothing and exits 7; so does (exit 1) a file that the job changes and in which you have unsaved changes. Hooks don't run.
#[derive(Debug, Args)]
pub struct PullArgs {
    #[command(flatten)]
    pub job: JobArg,
    /// Merge into another worktree of this repository, which is made if it isn't there
    #[arg(long, value_name = "DIR", group = "target")]
    pub worktree: Option<PathBuf>,
    /// Make a branch with the job's commit on top of its base, and touch nothing else
    #[arg(long, value_name = "NAME", num_args = 0..=1, group = "target")]
    pub branch: Option<Option<String>>,
    /// Write the diff to a file, and touch nothing else
    #[arg(long, value_name = "FILE", group = "target")]
    pub output: Option<PathBuf>,
    /// Write the diff to standard output, and touch nothing else
    #[arg(long, group = "target", conflicts_with = "json")]
    pub stdout: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// # Errors
/// A job that failed (exit 5), runs (6) or is not found (4); conflicts (7); unsaved changes.
pub async fn run(args: PullArgs, app: &App) -> Outcome {
    let client = Client::new(&app.settings)?;
    let job = job_ref::fetch(&args.job.job, &client, &app.settings).await?;
    let diff = finished_diff(&job, &client).await?;
    if args.stdout {
        app.ui.bytes(&diff.bytes)?;
        return Ok(Exit::OK);
    }
    if let Some(path) = &args.output {
        return to_file(path, &job, &diff, args.dry_run, app);
    }
    let target = match (args.worktree, args.branch) {
        (Some(folder), _) => {
            Target::Worktree(std::path::absolute(folder).map_err(|error| CliError::io("can't find the worktree", error))?)
        }
        (_, Some(name)) => Target::Branch(name),
        _ => Target::WorkingTree,
    };
    apply(job, diff, target, args.dry_run, app).await
}

/// The diff of a job that succeeded.
///
/// # Errors
/// Exit 5 or 6 for a job that has none.
pub async fn finished_diff(job: &Job, client: &Client) -> Result<Diff, CliError> {
    match job.state {
        State::Succeeded => client.diff(job.id).await,
        state if state.is_final() => {
            let failure = wait::failure(job);
            Err(CliError { message: format!("no successful output exists: {}", failure.message), ..failure })
        }
        _ => Err(wait::not_finished(job)),
    }
}

fn to_file(path: &Path, job: &Job, diff: &Diff, dry_run: bool, app: &App) -> Outcome {
    if !dry_run {
        std::fs::write(path, &diff.bytes).map_err(|error| CliError::io(format!("can't write {}", path.display()), error))?;
    }
    if app.ui.is_json() {
        app.ui.value(
            &json!({ "job": job.id, "output": path, "bytes": diff.bytes.len(), "sha256": diff.sha256, "dry_run": dry_run }),
        )?;
    } else {
        app.ui.note(&format!("wrote {} bytes to {}", diff.bytes.len(), path.display()));
    }
    Ok(Exit::OK)
}

/// Brings a finished job's diff to its target and says what happened.
///
/// # Errors
/// As [`run`].
pub async fn apply(job: Job, diff: Diff, target: Target, dry_run: bool, app: &App) -> Outcome {
    let root = work_tree(&here()?).ok_or_else(|| {
        CliError::new(Kind::Usage, "no_repository", "there is no git repository here")
            .hint("run this in a clone of the job's repository, or take the diff as it is with --output FILE")
    })?;
    let spinner = app.ui.spinner("merging");
    let verification = job.verification;
    let id = job.id;
    let report = spawn_blocking(move || {
        let git = Git::at(root);
        require_version(git.version()?)?;
        let change = change(&job, diff)?;
        ensure_base(&git, &change.base, &job.git_repo_url, &job.git_base_branch)?;
        pull(&git, &change, &target, dry_run)
    });
    let report = report.await.map_err(|error| CliError::io("pull stopped in the middle", error))?;
    drop(spinner);
    let report = report.map_err(|error| for_job(error, &id.to_string()))?;
    if app.ui.is_json() {
        let mut value = serde_json::to_value(&report).map_err(|error| CliError::io("can't write JSON", error))?;
        value["job"] = json!(id);
        value["verification"] = json!(verification);
        value["conflicts"] = json!([]);
        app.ui.value(&value)?;
        return Ok(Exit::OK);
    }
    print(&report, app)?;
    app.ui.note(&format!("verification: {}", render::verification(verification, State::Succeeded)));
    Ok(Exit::OK)
}

fn change(job: &Job, diff: Diff) -> Result<Change, CliError> {
    let base = job
        .base_sha
        .clone()
        .ok_or_else(|| CliError::other("bad_answer", "the service doesn't say which commit the job is based on"))?;
    let summary = job.result_summary.as_deref().map(clean_lines).filter(|summary| !summary.trim().is_empty());
    let subject = format!("ckrv: {}", clean(&job.spec_id));
    Ok(Change {
        diff: diff.bytes,
        base,
        message: format!("{subject}\n\n{}\n\nCkrv-Job: {}\n", summary.unwrap_or_default(), job.id).replace("\n\n\n\n", "\n\n"),
        branch: job.feature_branch_name.clone().unwrap_or_else(|| format!("ckrv/{}", job.id.short())),
    })
}

/// Hints that name JOB name this one.
fn for_job(error: CliError, id: &str) -> CliError {
    CliError { hint: error.hint.map(|hint| hint.replace("JOB", id)), ..error }
}

fn print(report: &Report, app: &App) -> Result<(), CliError> {
    for path in &report.applied {
        let letter = match path.change {
            'A' => path.change.green().to_string(),
            'D' => path.change.red().to_string(),
            _ => path.change.yellow().to_string(),
        };
        app.ui.line(&format!("{letter} {}", clean(&path.path)))?;
    }
    for path in &report.skipped {
        app.ui.note(&format!("= {} (is so already)", clean(path)));
    }
    let count = match report.applied.len() {
        1 => "1 path".to_owned(),
        count => format!("{count} paths"),
    };
    let place = match (&report.branch, &report.worktree) {
        (Some(branch), _) => format!("on branch {branch}"),
        (_, Some(worktree)) => format!("in {}, staged", worktree.display()),
        _ => "in your working tree, staged".to_owned(),
    };
    let sentence = match (report.already_applied, report.dry_run) {
        (true, _) => format!("already applied: there is nothing left to do {place}").replace(", staged", ""),
        (_, true) => format!("would change {count} {place}; nothing was touched"),
        _ => format!("changed {count} {place}"),
    };
    app.ui.note(&sentence);
    Ok(())
}
