//! Collect: what the agent changed comes out of its sandbox and becomes one commit.

use std::path::Path;

use super::Context;
use super::failure::Failure;
use super::log::names;
use super::prepare::{Prepared, Start};
use super::sandbox::Sandbox;
use crate::git::{CommitInfo, ResultLimits, commit_result};
use crate::launch::CollectLimits;

/// Takes the changes out of the sandbox and commits them.
pub async fn collect(context: &Context, prepared: &Prepared, sandbox: &mut Sandbox, start: &Start) -> Result<String, Failure> {
    let path = context.dir.join("changes.tar");
    let head = commit(context, prepared, sandbox, start, &path).await;
    // Whatever came of it: what is refused for the secret in it must not stay here either.
    let _ = std::fs::remove_file(&path);
    head
}

async fn commit(
    context: &Context,
    prepared: &Prepared,
    sandbox: &mut Sandbox,
    start: &Start,
    path: &Path,
) -> Result<String, Failure> {
    let limits = ResultLimits::default();
    let ignored = crate::git::Ignored::of(&prepared.git, &start.head).await?;
    let mut file = tokio::fs::File::create(path).await.map_err(|error| Failure::infrastructure("the changes", &error))?;
    let bounds = CollectLimits { max_entries: 2_000_000, max_bytes: limits.max_bytes };
    let collected =
        sandbox.session.collect(bounds, |change| !(change.added && ignored.matches(change.path.as_bytes())), &mut file).await;
    let collection = match collected {
        Ok(collection) => collection,
        Err(error) => return Err(sandbox.failure(error).await),
    };
    for refused in &collection.refused {
        context.log.warn("ckrv", format!("`{}` is refused: {}", names([refused.path.as_bytes()]), refused.reason));
    }
    if !collection.skipped.is_empty() {
        context.log.info("ckrv", format!("{} new files that .gitignore names were left out", collection.skipped.len()));
    }
    let info = CommitInfo {
        parent: start.tree.clone(),
        branch: prepared.branch.clone(),
        subject: format!("ckrv: {}", context.spec.id),
        at: crate::clock::now(),
    };
    let deleted = collection.deleted.iter().map(|path| path.as_bytes().to_vec()).collect();
    let committed = commit_result(&prepared.git, &info, path.to_owned(), deleted, context.log.needles(), limits).await?;
    for refused in &committed.refused {
        context.log.warn("ckrv", refused.to_string());
    }
    Ok(committed.sha)
}
