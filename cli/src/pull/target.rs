//! From the job's tree to where the user wants it.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use ckrv_core::tree::display_path;
use serde_json::json;

use super::{AppliedPath, Change, Entry, Report, changes, parse_raw};
use crate::error::{CliError, Kind};
use crate::git::{Git, failed};

/// A fixed name and time, so that the commits of a preview are the same every time and need no identity of the user's.
const PREVIEW: [(&str, &str); 6] = [
    ("GIT_AUTHOR_NAME", "ckrv"),
    ("GIT_AUTHOR_EMAIL", "ckrv@localhost"),
    ("GIT_AUTHOR_DATE", "@0 +0000"),
    ("GIT_COMMITTER_NAME", "ckrv"),
    ("GIT_COMMITTER_EMAIL", "ckrv@localhost"),
    ("GIT_COMMITTER_DATE", "@0 +0000"),
];

/// Merges into the work tree that `git` runs in, and stages what changed there; nothing is committed.
pub fn into_work_tree(git: &Git, base: &str, tree: &str, scratch: &Path, dry_run: bool) -> Result<Report, CliError> {
    let head = git.try_line(&["rev-parse", "--verify", "--quiet", "HEAD^{tree}"])?.ok_or_else(|| {
        CliError::other("no_commit", "this branch has no commit yet")
            .hint("use `--branch NAME` to get the job's result as a branch")
    })?;
    let merged = merge(git, &format!("{base}^{{tree}}"), &head, tree)?;
    let wanted = changes(git, &head, &merged)?;
    let (todo, done) = unsaved(git, &head, &merged, wanted, scratch)?;
    let report = Report {
        applied: todo.iter().map(applied).collect(),
        skipped: done.iter().map(|entry| display_path(&entry.path)).collect(),
        already_applied: todo.is_empty(),
        ..Report::default()
    };
    if !dry_run && !todo.is_empty() {
        write(git, &merged, &todo, scratch)?;
    }
    Ok(report)
}

/// The same in another work tree, which is made from HEAD if it isn't there.
pub fn into_other_work_tree(
    git: &Git,
    folder: &Path,
    base: &str,
    tree: &str,
    scratch: &Path,
    dry_run: bool,
) -> Result<Report, CliError> {
    let exists = folder.join(".git").exists();
    if !exists {
        if fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) {
            let message = format!("{} is neither a work tree of this repository nor empty", folder.display());
            return Err(CliError::usage(message));
        }
        if dry_run {
            let report = into_clean(git, base, tree)?;
            return Ok(Report { worktree: Some(folder.to_owned()), ..report });
        }
        into_clean(git, base, tree)?;
        let args = [
            OsStr::new("worktree"),
            OsStr::new("add"),
            OsStr::new("--quiet"),
            OsStr::new("--detach"),
            OsStr::new("--"),
            folder.as_os_str(),
        ];
        git.run(&args, None)?;
    }
    let other = Git::at(folder);
    let common = |git: &Git| git.line(&["rev-parse", "--path-format=absolute", "--git-common-dir"]);
    if common(&other)? != common(git)? {
        return Err(CliError::usage(format!("{} is a work tree of another repository", folder.display())));
    }
    let other = Git::at(other.line(&["rev-parse", "--show-toplevel"])?);
    let report = into_work_tree(&other, base, tree, scratch, dry_run)?;
    Ok(Report { worktree: Some(folder.to_owned()), ..report })
}

/// What a merge into a fresh checkout of HEAD would change.
fn into_clean(git: &Git, base: &str, tree: &str) -> Result<Report, CliError> {
    let merged = merge(git, &format!("{base}^{{tree}}"), "HEAD^{tree}", tree)?;
    let todo = changes(git, "HEAD^{tree}", &merged)?;
    Ok(Report { applied: todo.iter().map(applied).collect(), already_applied: todo.is_empty(), ..Report::default() })
}

/// A branch whose one new commit has the job's base as its parent.
pub fn onto_branch(git: &Git, change: &Change, name: Option<&str>, tree: &str, dry_run: bool) -> Result<Report, CliError> {
    let name = name.unwrap_or(&change.branch);
    if !git.output(&["check-ref-format", "--branch", name], None)?.status.success() || name.starts_with('-') {
        return Err(CliError::usage(format!("`{name}` can't be the name of a branch")));
    }
    let reference = format!("refs/heads/{name}");
    let todo = changes(git, &format!("{}^{{tree}}", change.base), tree)?;
    let mut report = Report { applied: todo.iter().map(applied).collect(), branch: Some(name.to_owned()), ..Report::default() };
    let shape = git.try_line(&["log", "-1", "--no-show-signature", "--format=%H %T %P", &reference, "--"])?;
    if let Some(shape) = shape {
        let (commit, shape) = shape.split_once(' ').unwrap_or_default();
        if shape != format!("{tree} {}", change.base) {
            return Err(CliError::other("branch_exists", format!("there is a branch `{name}` already, and it is another"))
                .hint("choose a name with `--branch NAME`"));
        }
        return Ok(Report { already_applied: true, applied: Vec::new(), commit: Some(commit.to_owned()), ..report });
    }
    if !dry_run {
        let commit = commit(git, change, tree)?;
        let zero = "0".repeat(commit.len());
        git.run(&["update-ref", "-m", "ckrv pull", &reference, &commit, &zero], None)?;
        report.commit = Some(commit);
    }
    Ok(report)
}

fn commit(git: &Git, change: &Change, tree: &str) -> Result<String, CliError> {
    let mut git = git.clone();
    if git.try_line(&["var", "GIT_COMMITTER_IDENT"])?.is_none() || git.try_line(&["var", "GIT_AUTHOR_IDENT"])?.is_none() {
        for (name, value) in PREVIEW.into_iter().filter(|(name, _)| !name.ends_with("DATE")) {
            git = git.with_env(name, value);
        }
    }
    let commit = git.run(&["commit-tree", "-p", &change.base, "-F", "-", tree], Some(change.message.as_bytes()))?;
    Ok(String::from_utf8_lossy(&commit).trim().to_owned())
}

/// Merges two trees over a common base, touching nothing. Wrapped in commits of their own, so that the base is the job's base in any
/// case: also in a shallow clone, and where HEAD is behind it (only the job's own changes are wanted, as in a cherry-pick).
fn merge(git: &Git, base: &str, ours: &str, theirs: &str) -> Result<String, CliError> {
    let preview = PREVIEW.into_iter().fold(git.clone(), |git, (name, value)| git.with_env(name, value));
    let base = preview.line(&["commit-tree", "-m", "base", base])?;
    let ours = preview.line(&["commit-tree", "-p", &base, "-m", "ours", ours])?;
    let theirs = preview.line(&["commit-tree", "-p", &base, "-m", "job", theirs])?;
    let args = ["merge-tree", "--write-tree", "-z", "--name-only", "--no-messages", &ours, &theirs];
    let output = preview.output(&args, None)?;
    let mut fields = output.stdout.split(|byte| *byte == 0).filter(|field| !field.is_empty());
    let tree = fields.next().map(|tree| String::from_utf8_lossy(tree).trim().to_owned());
    match (output.status.code(), tree) {
        (Some(0), Some(tree)) => Ok(tree),
        (Some(1), Some(_)) => Err(conflicts(fields)),
        _ => Err(failed(&args, &output)),
    }
}

fn conflicts<'a>(paths: impl Iterator<Item = &'a [u8]>) -> CliError {
    let paths: Vec<String> = paths.map(display_path).collect();
    let list = paths.iter().map(|path| format!("\n  {path}")).collect::<String>();
    CliError::new(Kind::Conflict, "conflicts", format!("the job's changes conflict with yours, so nothing was touched:{list}"))
        .hint("get them as a branch, and merge as you like: `ckrv pull JOB --branch`")
        .details(json!({ "conflicts": paths }))
}

/// Splits the changes into those to make and those already made. Files that hold anything else than HEAD's content are refused.
fn unsaved(
    git: &Git,
    head: &str,
    merged: &str,
    wanted: Vec<Entry>,
    scratch: &Path,
) -> Result<(Vec<Entry>, Vec<Entry>), CliError> {
    let mut dirty: Vec<String> = wanted
        .iter()
        .filter(|entry| is_obstructed(git.folder(), entry, &wanted))
        .map(|entry| display_path(&entry.path))
        .collect();
    if dirty.is_empty() {
        // What is there now, hashed as `git add` would: through the user's filters.
        let current = git.with_index(scratch.join("current.index"));
        current.run(&["read-tree", head], None)?;
        let (hidden, plain): (Vec<&Entry>, Vec<&Entry>) = wanted.iter().partition(|entry| is_hidden(git.folder(), &entry.path));
        let gone = joined(hidden.into_iter().filter(|entry| entry.is_deletion()));
        current.run(&["update-index", "--force-remove", "-z", "--stdin"], Some(&gone))?;
        current.run(&["update-index", "--add", "--remove", "--replace", "-z", "--stdin"], Some(&joined(plain.into_iter())))?;
        let current = current.line(&["write-tree"])?;
        let changed = changes(git, head, &current)?;
        let missing = changes(git, &current, merged)?;
        let staged = parse_raw(&git.run(&["diff-index", "--cached", "--raw", "-z", "--no-renames", "--no-abbrev", head], None)?)?;
        let set = |list: Vec<Entry>| list.into_iter().map(|entry| entry.path).collect::<HashSet<_>>();
        let (changed, missing) = (set(changed), set(missing));
        let staged: HashMap<Vec<u8>, Entry> = staged.into_iter().map(|entry| (entry.path.clone(), entry)).collect();
        let (mut todo, mut done) = (Vec::new(), Vec::new());
        for entry in wanted {
            let staged_otherwise =
                staged.get(&entry.path).is_some_and(|other| other.hash != entry.hash || other.mode != entry.mode);
            if staged_otherwise || (changed.contains(&entry.path) && missing.contains(&entry.path)) {
                dirty.push(display_path(&entry.path));
            } else if missing.contains(&entry.path) {
                todo.push(entry);
            } else {
                done.push(entry);
            }
        }
        if dirty.is_empty() {
            return Ok((todo, done));
        }
    }
    let list = dirty.iter().map(|path| format!("\n  {path}")).collect::<String>();
    Err(CliError::other(
        "unsaved_changes",
        format!("the job changes files in which you have unsaved changes, so nothing was touched:{list}"),
    )
    .hint("commit or stash them first, or get the result as a branch: `ckrv pull JOB --branch`")
    .details(json!({ "unsaved": dirty })))
}

/// Whether something of another kind stands in a path's way: a folder where a file goes, a file or link where a folder goes.
fn is_obstructed(root: &Path, entry: &Entry, wanted: &[Entry]) -> bool {
    let path = Path::new(OsStr::from_bytes(&entry.path));
    let goes_away = |path: &Path| wanted.iter().any(|other| other.is_deletion() && other.path == path.as_os_str().as_bytes());
    let comes = |path: &Path| wanted.iter().any(|other| !other.is_deletion() && other.path == path.as_os_str().as_bytes());
    for parent in path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
        match fs::symlink_metadata(root.join(parent)) {
            Ok(found) if found.is_dir() => {}
            // The job replaces this file by a folder, or has replaced this folder by a file.
            Ok(_) => return !(goes_away(parent) || (entry.is_deletion() && comes(parent))),
            Err(_) => {}
        }
    }
    match fs::symlink_metadata(root.join(path)) {
        Ok(found) if found.is_dir() => !entry.is_deletion() && !only_holds(&root.join(path), root, &goes_away),
        Ok(found) => !found.is_file() && !found.is_symlink(),
        Err(_) => false,
    }
}

/// Whether there is no file of this path although something is there: a folder, or a file where the path has a folder.
fn is_hidden(root: &Path, path: &[u8]) -> bool {
    let path = Path::new(OsStr::from_bytes(path));
    let is_folder = |path: &Path| fs::symlink_metadata(root.join(path)).map(|found| found.is_dir());
    is_folder(path).unwrap_or(false)
        || path.ancestors().skip(1).any(|parent| !parent.as_os_str().is_empty() && matches!(is_folder(parent), Ok(false)))
}

fn only_holds(folder: &Path, root: &Path, goes_away: &impl Fn(&Path) -> bool) -> bool {
    fs::read_dir(folder).is_ok_and(|entries| {
        entries.flatten().all(|entry| {
            let path = entry.path();
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_dir { only_holds(&path, root, goes_away) } else { path.strip_prefix(root).is_ok_and(goes_away) }
        })
    })
}

/// Deletes, then writes, then stages. What is interrupted can be pulled again: finished paths are recognised.
fn write(git: &Git, merged: &str, todo: &[Entry], scratch: &Path) -> Result<(), CliError> {
    let lock = PathBuf::from(git.line(&["rev-parse", "--path-format=absolute", "--git-path", "index.lock"])?);
    if lock.exists() {
        return Err(
            CliError::other("index_locked", format!("another git is at work here: {} exists", lock.display())).retryable()
        );
    }
    for entry in todo.iter().filter(|entry| entry.is_deletion()) {
        remove(git.folder(), Path::new(OsStr::from_bytes(&entry.path)))?;
    }
    let source = git.with_index(scratch.join("merged.index"));
    source.run(&["read-tree", merged], None)?;
    let written = joined(todo.iter().filter(|entry| !entry.is_deletion()));
    source.run(&["checkout-index", "--force", "-z", "--stdin"], Some(&written))?;
    let mut lines = Vec::new();
    for entry in todo {
        let mode = if entry.is_deletion() { "0" } else { &entry.mode };
        lines.extend_from_slice(format!("{mode} {}\t", entry.hash).as_bytes());
        lines.extend_from_slice(&entry.path);
        lines.push(0);
    }
    git.run(&["update-index", "-z", "--index-info"], Some(&lines))?;
    // Only so that the next `git status` is quick; it fails where something else is not up to date.
    git.output(&["update-index", "-q", "--refresh"], None)?;
    Ok(())
}

fn remove(root: &Path, path: &Path) -> Result<(), CliError> {
    let full = root.join(path);
    match fs::remove_file(&full) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(CliError::io(format!("can't remove {}", display_path(path.as_os_str().as_bytes())), error)),
    }
    // Git knows no empty folders. The first that isn't empty ends this.
    for parent in path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
        if fs::remove_dir(root.join(parent)).is_err() {
            break;
        }
    }
    Ok(())
}

fn joined<'a>(entries: impl Iterator<Item = &'a Entry>) -> Vec<u8> {
    let mut paths = Vec::new();
    for entry in entries {
        paths.extend_from_slice(&entry.path);
        paths.push(0);
    }
    paths
}

fn applied(entry: &Entry) -> AppliedPath {
    AppliedPath { path: display_path(&entry.path), change: entry.change }
}
