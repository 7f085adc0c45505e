//! Brings a job's diff into the user's repository. Nothing here knows the service: a diff, the commit that it is based on, and a place.
//!
//! First the job's tree is built in a temporary index and checked; then it is merged, still without touching anything; only a
//! clean result is written, and only over files that hold nothing unsaved.

mod base;
mod result;
mod target;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use serde::Serialize;

pub use base::ensure_base;

use crate::error::{CliError, Kind};
use crate::git::{Git, NEEDED};

/// A job's result, as far as git is concerned.
#[derive(Clone, Debug)]
pub struct Change {
    /// `git diff --binary --full-index`, checked against the job's manifest.
    pub diff: Vec<u8>,
    /// The commit that the diff is based on.
    pub base: String,
    /// For the commit on a branch.
    pub message: String,
    /// Name of a branch made for this job.
    pub branch: String,
}

/// Where the change goes.
#[derive(Clone, Debug)]
pub enum Target {
    WorkingTree,
    /// Another work tree of the same repository; made if it isn't there.
    Worktree(PathBuf),
    /// A branch with the job's commit on top of its base; nothing else is touched.
    Branch(Option<String>),
}

/// What was done, or with `dry_run` what would be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Paths that changed, with git's letter for how: `A`, `M`, `D`, `T`.
    pub applied: Vec<AppliedPath>,
    /// Paths that hold the job's result already.
    pub skipped: Vec<String>,
    pub already_applied: bool,
    pub dry_run: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worktree: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AppliedPath {
    pub path: String,
    pub change: char,
}

/// Applies a change.
///
/// # Errors
/// A git that is too old; a path that is refused; conflicts (exit 7, paths in `details`); touched files with unsaved changes.
/// After any of these nothing has been touched.
pub fn pull(git: &Git, change: &Change, target: &Target, dry_run: bool) -> Result<Report, CliError> {
    require_version(git.version()?)?;
    let scratch = tempfile::tempdir().map_err(|error| CliError::io("can't make a temporary folder", error))?;
    let tree = result::build(git, change, scratch.path())?;
    let report = match target {
        Target::WorkingTree => target::into_work_tree(git, &change.base, &tree, scratch.path(), dry_run),
        Target::Worktree(folder) => target::into_other_work_tree(git, folder, &change.base, &tree, scratch.path(), dry_run),
        Target::Branch(name) => target::onto_branch(git, change, name.as_deref(), &tree, dry_run),
    }?;
    Ok(Report { dry_run, ..report })
}

/// # Errors
/// A git without `merge-tree --write-tree`.
pub fn require_version(found: (u32, u32)) -> Result<(), CliError> {
    if found >= NEEDED {
        return Ok(());
    }
    let message = format!("git {}.{} is too old: pull needs {}.{} or newer", found.0, found.1, NEEDED.0, NEEDED.1);
    Err(CliError::new(Kind::Other, "git_too_old", message)
        .hint("update git, or take the diff as it is: `ckrv pull JOB --output job.diff`, then `git apply --3way job.diff`"))
}

/// A line of `git diff-tree --raw -z`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    path: Vec<u8>,
    old_mode: String,
    mode: String,
    hash: String,
    change: char,
}

impl Entry {
    fn is_symlink(&self) -> bool {
        self.mode == "120000"
    }

    fn is_submodule(&self) -> bool {
        self.mode == "160000"
    }

    fn is_deletion(&self) -> bool {
        self.change == 'D'
    }
}

/// What differs between two trees.
fn changes(git: &Git, from: &str, to: &str) -> Result<Vec<Entry>, CliError> {
    parse_raw(&git.run(&["diff-tree", "-r", "-z", "--raw", "--no-renames", "--no-abbrev", from, to], None)?)
}

/// `:MODE MODE HASH HASH LETTER NUL PATH NUL`, over and over.
fn parse_raw(raw: &[u8]) -> Result<Vec<Entry>, CliError> {
    let odd = || CliError::other("git_failed", "git diff-tree says something unknown");
    let mut entries = Vec::new();
    let mut fields = raw.split(|byte| *byte == 0).filter(|field| !field.is_empty());
    while let Some(head) = fields.next() {
        let path = fields.next().ok_or_else(odd)?;
        let head = std::str::from_utf8(head).map_err(|_| odd())?.trim_start_matches(':');
        let words: Vec<&str> = head.split(' ').collect();
        let [old_mode, mode, _, hash, letter] = words[..] else { return Err(odd()) };
        entries.push(Entry {
            path: path.to_vec(),
            old_mode: old_mode.to_owned(),
            mode: mode.to_owned(),
            hash: hash.to_owned(),
            change: letter.chars().next().ok_or_else(odd)?,
        });
    }
    Ok(entries)
}
