//! The tree that a job made, built from its diff in a temporary index, and checked: the service may be wrong or hostile, and so may
//! be the agent behind it.

use std::path::Path;

use ckrv_core::tree::{RefusedPath, check_path, check_symlink, display_path};

use super::{Change, changes};
use crate::error::CliError;
use crate::git::{Git, failed};

/// The result's tree.
///
/// # Errors
/// A diff that doesn't apply to its base; a path, link or submodule that is refused, by name.
pub fn build(git: &Git, change: &Change, scratch: &Path) -> Result<String, CliError> {
    let base_tree = format!("{}^{{tree}}", change.base);
    if change.diff.iter().all(u8::is_ascii_whitespace) {
        return git.line(&["rev-parse", "--verify", &base_tree]);
    }
    check_named_paths(&change.diff, scratch)?;
    let index = git.with_index(scratch.join("result.index"));
    index.run(&["read-tree", &base_tree], None)?;
    let args = [
        "-c",
        "apply.whitespace=nowarn",
        "-c",
        "apply.ignoreWhitespace=no",
        "-c",
        "core.safecrlf=false",
        "apply",
        "--cached",
        "--binary",
    ];
    let output = index.output(&args, Some(&change.diff))?;
    if !output.status.success() {
        return Err(CliError::other("bad_diff", "the job's diff doesn't apply to the commit that it is based on")
            .source(failed(&args[7..], &output)));
    }
    let tree = index.line(&["write-tree"])?;
    check_tree(git, &base_tree, &tree)?;
    Ok(tree)
}

/// Before git sees the diff in a repository, so that the refusal is ours, with its reason.
fn check_named_paths(diff: &[u8], scratch: &Path) -> Result<(), CliError> {
    // Out of every repository, or git would leave out what lies beside the folder that it runs in.
    let outside = Git::at(scratch).with_env("GIT_CEILING_DIRECTORIES", scratch.parent().unwrap_or(scratch));
    let args = ["apply", "--numstat", "-z", "--binary", "--unsafe-paths"];
    let output = outside.output(&args, Some(diff))?;
    if !output.status.success() {
        return Err(CliError::other("bad_diff", "the job's diff can't be read").source(failed(&args, &output)));
    }
    for record in output.stdout.split(|byte| *byte == 0).filter(|record| !record.is_empty()) {
        let path = record.splitn(3, |byte| *byte == b'\t').nth(2).unwrap_or_default();
        check_path(path).map_err(refused)?;
    }
    Ok(())
}

fn check_tree(git: &Git, base: &str, tree: &str) -> Result<(), CliError> {
    for entry in changes(git, base, tree)? {
        check_path(&entry.path).map_err(refused)?;
        if entry.is_submodule() {
            return Err(refused(RefusedPath { path: display_path(&entry.path), reason: "it is a submodule" }));
        }
        if entry.is_symlink() {
            let target = git.run(&["cat-file", "blob", &entry.hash], None)?;
            check_symlink(&entry.path, &target).map_err(refused)?;
        }
    }
    Ok(())
}

fn refused(path: RefusedPath) -> CliError {
    CliError::other("refused_path", path.to_string())
        .hint("nothing was touched; look at the job's diff with `ckrv diff JOB` before you trust anything of it")
}
