//! Checkpoints: what the agent has changed so far is kept while it is at work, and an attempt whose place was taken away is followed by one
//! that goes on from there.
//!
//! A checkpoint is a line of JSON (the base, what is gone) and a tar of whole files: a result that isn't one yet. It is searched for
//! secrets and its paths are checked as a result's are, when it is made and again when it is taken up.

use std::convert::Infallible;
use std::io::{BufRead as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use ckrv_core::job::Checkpoint;
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use super::Context;
use super::prepare::{Prepared, Start};
use crate::gateway::sha256_hex;
use crate::git::{CommitInfo, Git, ResultLimits, commit_result, write_changes};
use crate::launch::{Checkpointer, CollectLimits, SessionError};

/// The branch of commits that are no result.
const BRANCH: &str = "ckrv-checkpoint";
/// For the gateway to take a checkpoint, or to give one: an agent's start does not wait for it longer.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Serialize, Deserialize)]
struct Head {
    version: u32,
    /// The commit that the job started from.
    base: String,
    /// Paths, base64: they may be any bytes.
    deleted: Vec<String>,
}

/// What this attempt has kept so far.
#[derive(Debug, Default)]
pub struct Kept {
    number: u32,
    sha256: String,
    /// Why the last one was not kept: said once.
    said: String,
}

/// Keeps a checkpoint every now and then, until it is dropped. What fails here does the run no harm.
pub async fn keep(
    context: &Context,
    prepared: &Prepared,
    start: &Start,
    checkpointer: Checkpointer,
    kept: &mut Kept,
) -> Infallible {
    let pace = context.view.checkpoints;
    if pace.every_seconds == 0 {
        return std::future::pending().await;
    }
    let at_work = context.leaving.at_work();
    loop {
        tokio::select! {
            () = sleep(Duration::from_secs(pace.every_seconds.into())) => {}
            () = context.leaving.asked() => break,
        }
        keep_one(context, prepared, start, &checkpointer, kept).await;
    }
    keep_one(context, prepared, start, &checkpointer, kept).await;
    drop(at_work);
    std::future::pending().await
}

/// The last one of a run whose place was taken away: its shim stays for a moment.
pub async fn keep_last(context: &Context, prepared: &Prepared, start: &Start, checkpointer: &Checkpointer, kept: &mut Kept) {
    if context.view.checkpoints.every_seconds > 0 {
        keep_one(context, prepared, start, checkpointer, kept).await;
    }
}

/// Keeps one now, and says so in the job's log, or why not.
async fn keep_one(context: &Context, prepared: &Prepared, start: &Start, checkpointer: &Checkpointer, kept: &mut Kept) {
    match try_keep(context, prepared, start, checkpointer, kept).await {
        Ok(Some(line)) => {
            kept.said.clear();
            context.log.info("ckrv", line);
        }
        Ok(None) => {}
        Err(why) if kept.said == why => {}
        Err(why) => {
            context.log.warn("ckrv", format!("no checkpoint was kept: {why}; another attempt would not go on from here"));
            kept.said = why;
        }
    }
}

/// `None`: there is nothing new, or the attempt is over and says why elsewhere.
async fn try_keep(
    context: &Context,
    prepared: &Prepared,
    start: &Start,
    checkpointer: &Checkpointer,
    kept: &mut Kept,
) -> Result<Option<String>, String> {
    let folder = tempfile::Builder::new().prefix("checkpoint-").tempdir_in(&context.dir).map_err(text)?;
    let Some(taken) = take(context, prepared, start, checkpointer, folder.path()).await? else { return Ok(None) };
    let most = context.view.checkpoints.max_mib;
    if taken.content.len() as u64 > u64::from(most) << 20 {
        return Err(format!("it has more than {most} MiB"));
    }
    let sha256 = sha256_hex(&taken.content);
    if sha256 == kept.sha256 || (taken.files == 0 && kept.number == 0 && context.view.job.checkpoint.is_none()) {
        return Ok(None);
    }
    kept.number += 1;
    let bytes = taken.content.len();
    match timeout(PATIENCE, context.gateway.checkpoint(kept.number, taken.content)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) if error.is_lost() => return Ok(None),
        Ok(Err(error)) => return Err(text(error)),
        Err(_elapsed) => return Err("the gateway did not take it in time".to_owned()),
    }
    kept.sha256 = sha256;
    let left_out = if taken.changing == 0 { String::new() } else { format!("; {} that change are left out", taken.changing) };
    Ok(Some(format!("checkpoint {} is kept: {} files, {bytes} bytes{left_out}", kept.number, taken.files)))
}

/// A checkpoint as it would be stored.
struct Taken {
    content: Bytes,
    files: usize,
    /// Files that were being written just then.
    changing: usize,
}

async fn take(
    context: &Context,
    prepared: &Prepared,
    start: &Start,
    checkpointer: &Checkpointer,
    folder: &Path,
) -> Result<Option<Taken>, String> {
    let limits = limits(context);
    let ignored = crate::git::Ignored::of(&prepared.git, &start.head).await.map_err(text)?;
    let archive = folder.join("changes.tar");
    let mut file = tokio::fs::File::create(&archive).await.map_err(text)?;
    let bounds = CollectLimits { max_entries: 2_000_000, max_bytes: limits.max_bytes };
    let keep = |change: &crate::launch::Changed| !(change.added && ignored.matches(change.path.as_bytes()));
    let collection = match checkpointer.take(bounds, keep, &mut file).await {
        Ok(collection) => collection,
        // The run itself ends by this, and says so.
        Err(SessionError::Lost(_)) => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let changing = collection.refused.iter().filter(|refused| refused.reason == "changing").count();
    // In a repository of its own: the objects of a checkpoint have no place among those that an agent gets to see.
    let scratch = prepared.git.borrowing(folder.join("scratch.git")).await.map_err(text)?;
    let deleted = collection.deleted.iter().map(|path| path.as_bytes().to_vec()).collect();
    let commit = commit(context, &scratch, &start.tree, archive, deleted).await?.0;
    // Of the base, whatever this run started from.
    let path = folder.join("checkpoint");
    let out = std::io::BufWriter::new(std::fs::File::create(&path).map_err(text)?);
    let (out, changes) = write_changes(&scratch, &prepared.base, &commit, out).await.map_err(text)?;
    out.into_inner().map_err(|error| text(error.into_error()))?;
    let files = changes.files + changes.deleted.len();
    let head = Head {
        version: 1,
        base: prepared.base.clone(),
        deleted: changes.deleted.iter().map(|path| BASE64.encode(path)).collect(),
    };
    let mut content = serde_json::to_vec(&head).map_err(text)?;
    content.push(b'\n');
    let size = std::fs::metadata(&path).map_err(text)?.len() + content.len() as u64;
    if size > u64::from(context.view.checkpoints.max_mib) << 20 {
        return Err(format!("it has more than {} MiB", context.view.checkpoints.max_mib));
    }
    content.extend(std::fs::read(&path).map_err(text)?);
    Ok(Some(Taken { content: content.into(), files, changing }))
}

fn limits(context: &Context) -> ResultLimits {
    ResultLimits { max_bytes: u64::from(context.view.checkpoints.max_mib) << 20, ..ResultLimits::default() }
}

/// The commit, and what a result would have left out.
async fn commit(
    context: &Context,
    git: &Git,
    parent: &str,
    archive: PathBuf,
    deleted: Vec<Vec<u8>>,
) -> Result<(String, Vec<String>), String> {
    let info = CommitInfo {
        parent: parent.to_owned(),
        branch: BRANCH.to_owned(),
        subject: "checkpoint".to_owned(),
        at: crate::clock::now(),
    };
    let committed = commit_result(git, &info, archive, deleted, context.log.needles(), limits(context)).await.map_err(text)?;
    Ok((committed.sha, committed.refused.iter().map(ToString::to_string).collect()))
}

/// What an earlier attempt has left, as it was fetched.
pub struct Fetched {
    of: Checkpoint,
    /// The commit that the job started from.
    pub base: String,
    deleted: Vec<Vec<u8>>,
    archive: PathBuf,
}

/// Fetches the newest checkpoint. What is wrong with it is said in the log, and then there is none.
pub async fn fetch(context: &Context) -> Option<Fetched> {
    let of = context.view.job.checkpoint.clone()?;
    let fetched = match timeout(PATIENCE, context.gateway.newest_checkpoint()).await {
        Ok(Ok(Some(content))) => open(&content, &of, &context.dir.join("checkpoint.tar")),
        Ok(Ok(None)) => Err("it is not there, or damaged".to_owned()),
        // The next step finds out as well.
        Ok(Err(error)) if error.is_lost() => return None,
        Ok(Err(error)) => Err(text(error)),
        Err(_elapsed) => Err("the gateway did not give it in time".to_owned()),
    };
    fetched.map_err(|why| refuse(context, &of, &why)).ok()
}

fn open(content: &[u8], of: &Checkpoint, archive: &Path) -> Result<Fetched, String> {
    if content.len() as u64 != of.bytes || sha256_hex(content) != of.sha256 {
        return Err("its content is not what was stored".to_owned());
    }
    let mut rest = content;
    let mut head = Vec::new();
    rest.read_until(b'\n', &mut head).map_err(text)?;
    let head: Head = serde_json::from_slice(&head).map_err(|_| "it can't be read".to_owned())?;
    let is_commit = matches!(head.base.len(), 40 | 64) && head.base.bytes().all(|byte| byte.is_ascii_hexdigit());
    if head.version != 1 || !is_commit {
        return Err("it can't be read".to_owned());
    }
    let deleted = head.deleted.iter().map(|path| BASE64.decode(path)).collect::<Result<_, _>>();
    let deleted = deleted.map_err(|_| "it can't be read".to_owned())?;
    let mut file = std::fs::File::create(archive).map_err(text)?;
    file.write_all(rest).map_err(text)?;
    Ok(Fetched { of: of.clone(), base: head.base, deleted, archive: archive.to_owned() })
}

/// Puts a checkpoint onto the base, in the job runner's own repository; gives the commit that the attempt goes on from.
pub async fn restore(context: &Context, git: &Git, base: &str, fetched: Fetched) -> Option<String> {
    let Fetched { of, base: made_on, deleted, archive } = fetched;
    let restored = async {
        if made_on != base {
            return Err("the base branch has gone on since, and its old commit can't be fetched".to_owned());
        }
        let (commit, refused) = commit(context, git, base, archive.clone(), deleted).await?;
        // Ours have nothing of that kind.
        refused.into_iter().next().map_or(Ok(commit), Err)
    };
    let restored = restored.await;
    let _ = std::fs::remove_file(&archive);
    match restored {
        Ok(commit) => {
            context.log.info("ckrv", format!("goes on from the checkpoint of attempt {}, made at {:.0}", of.attempt, of.at));
            Some(commit)
        }
        Err(why) => {
            refuse(context, &of, &why);
            None
        }
    }
}

fn refuse(context: &Context, of: &Checkpoint, why: &str) {
    let said = format!("the checkpoint of attempt {} is not used: {why}; this attempt begins at the base", of.attempt);
    context.log.warn("ckrv", said);
}

/// What an agent that goes on is told. A script of the user's own reads its task there instead.
pub fn hint(context: &Context, prepared: &Prepared) -> Option<String> {
    let told = prepared.resumed.is_some() && context.spec.command.is_none();
    told.then(|| "It was interrupted before it had ended, and not by a fault of its own. Go on from where it was.".to_owned())
}

fn text(error: impl std::error::Error) -> String {
    ckrv_store::chain(&error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(content: &[u8]) -> Checkpoint {
        let (bytes, sha256) = (content.len() as u64, sha256_hex(content));
        Checkpoint { fence: ckrv_core::id::Fence(1), attempt: 1, number: 1, at: jiff::Timestamp::UNIX_EPOCH, bytes, sha256 }
    }

    #[test]
    fn what_is_not_what_was_stored_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let archive = folder.path().join("tar");
        let base = "b".repeat(40);
        let content = format!("{{\"version\":1,\"base\":\"{base}\",\"deleted\":[\"Z29uZQ==\"]}}\nthe tar\nand more").into_bytes();
        let opened = open(&content, &stored(&content), &archive).unwrap();
        assert_eq!((opened.base.as_str(), opened.deleted), (base.as_str(), vec![b"gone".to_vec()]));
        assert_eq!(std::fs::read(&archive).unwrap(), b"the tar\nand more");

        let mut tampered = content.clone();
        tampered[content.len() - 1] ^= 1;
        assert!(open(&tampered, &stored(&content), &archive).is_err_and(|why| why.contains("not what was stored")));
        for bad in ["", "{}", "{\"version\":1,\"base\":\"--upload-pack=x\",\"deleted\":[]}\n", "{\"version\":2"] {
            assert!(open(bad.as_bytes(), &stored(bad.as_bytes()), &archive).is_err(), "{bad}");
        }
    }
}
