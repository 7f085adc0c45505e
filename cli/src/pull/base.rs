//! The commit that a job started from. A clone that is shallow or behind may lack it.

use crate::error::CliError;
use crate::git::Git;

/// Fetches the base commit if the repository doesn't have it.
///
/// # Errors
/// No remote has it.
pub fn ensure_base(git: &Git, base: &str, url: &str, branch: &str) -> Result<(), CliError> {
    if !is_hash(base) {
        return Err(CliError::other("bad_answer", "the service gives a base commit that is no commit id"));
    }
    if has(git, base)? {
        return Ok(());
    }
    let git = git.clone().with_env("GIT_ALLOW_PROTOCOL", "https:http:ssh:git:file");
    let remotes = git.line(&["remote"])?;
    let mut sources: Vec<&str> = Vec::new();
    for remote in remotes.lines() {
        if git.try_line(&["remote", "get-url", remote])?.is_some_and(|found| found == url) {
            sources.insert(0, remote);
        } else if remote == "origin" {
            sources.push(remote);
        }
    }
    if !url.starts_with('-') {
        sources.push(url);
    }
    let mut last = None;
    for source in sources {
        // By its id, which takes least; a server that doesn't allow that gives the branch.
        for what in [base, branch] {
            let args = ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules", "--", source, what];
            let output = git.output(&args, None)?;
            if has(&git, base)? {
                return Ok(());
            }
            last = Some(crate::git::failed(&args, &output));
        }
    }
    let error = CliError::other(
        "no_base",
        format!("this repository doesn't have the job's base commit {base}, nor does a remote give it"),
    )
    .hint("run `ckrv pull` in a clone of the job's repository, or take the diff as it is with --output FILE");
    Err(match last {
        Some(cause) => error.source(cause),
        None => error,
    })
}

fn has(git: &Git, commit: &str) -> Result<bool, CliError> {
    let name = format!("{commit}^{{tree}}");
    Ok(git.clone().with_env("GIT_NO_LAZY_FETCH", "1").output(&["cat-file", "-e", &name], None)?.status.success())
}

fn is_hash(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
