//! What a session does when it's asked: unpack, collect, take a checkpoint.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::bridge::{reader_from, writer_to};
use crate::checkout::{Snapshot, Unpacked, unpack};
use crate::mux::{MuxStream, Opener};
use crate::protocol::{
    Changed, CollectLimits, Collected, FromShim, MAX_LIST, Prepare, Selection, ShimPaths, Step, StreamHeader, read_frame,
    write_frame,
};
use crate::{changes, placing};

/// What a step leaves behind.
pub enum Done {
    Prepared(ShimPaths, Unpacked),
    Answer(FromShim),
}

pub type StepResult = Result<Done, (Step, io::Error)>;

pub async fn do_prepare(prepare: Prepare, mut checkout: mpsc::Receiver<MuxStream>) -> StepResult {
    let failed = |error| (Step::Prepare, error);
    let stream = checkout.recv().await.ok_or_else(|| failed(io::ErrorKind::UnexpectedEof.into()))?;
    let (reader, feed) = reader_from(stream);
    let paths = prepare.paths.clone();
    let unpacking = tokio::task::spawn_blocking(move || {
        placing::make_folders(&prepare.paths)?;
        unpack(reader, Path::new(&prepare.paths.workspace), prepare.max_entries, prepare.max_bytes)
    });
    let ((), unpacked) = tokio::join!(feed, unpacking);
    let unpacked = unpacked.map_err(io::Error::other).and_then(|unpacked| unpacked).map_err(failed)?;
    Ok(Done::Prepared(paths, unpacked))
}

pub async fn do_collect(limits: CollectLimits, paths: ShimPaths, snapshot: Arc<Snapshot>, opener: Opener) -> StepResult {
    let collected = collect(limits, paths, snapshot, &opener).await.map_err(|error| (Step::Collect, error))?;
    Ok(Done::Answer(FromShim::Collected(collected)))
}

async fn collect(limits: CollectLimits, paths: ShimPaths, snapshot: Arc<Snapshot>, opener: &Opener) -> io::Result<Collected> {
    Ok(give(StreamHeader::Changes, limits, &paths, snapshot, None, opener).await?.0)
}

/// The changes of a workspace that something may be at work in.
pub async fn do_checkpoint(
    id: u32,
    limits: CollectLimits,
    paths: ShimPaths,
    snapshot: Arc<Snapshot>,
    opener: Opener,
) -> FromShim {
    let tmp = Some(paths.tmp.clone());
    match give(StreamHeader::Checkpoint { id }, limits, &paths, snapshot, tmp, &opener).await {
        Ok((collected, left_out)) => FromShim::Checkpointed { id, collected, left_out },
        Err(error) => FromShim::NoCheckpoint { id, message: error.to_string() },
    }
}

/// Sends list and tar; with `living`, a folder for copies, files may change under it.
async fn give(
    header: StreamHeader,
    limits: CollectLimits,
    paths: &ShimPaths,
    snapshot: Arc<Snapshot>,
    living: Option<String>,
    opener: &Opener,
) -> io::Result<(Collected, Vec<u32>)> {
    let root = PathBuf::from(&paths.workspace);
    let walked = root.clone();
    let finding = tokio::task::spawn_blocking(move || changes::find(&walked, &snapshot, limits.max_entries));
    let list = finding.await.map_err(io::Error::other)??;
    let mut stream = opener.open().await?;
    write_frame(&mut stream, &header).await?;
    write_frame(&mut stream, &list).await?;
    let selection: Selection = read_frame(&mut stream, MAX_LIST).await?;
    let (writer, carry) = writer_to(stream);
    let sending = tokio::task::spawn_blocking(move || {
        let take = |changed: &Changed| match &living {
            Some(tmp) => Ok(changes::take_living(&root, changed, Path::new(tmp))),
            None => changes::take(&root, changed).map(Some),
        };
        changes::send(&list, &selection, limits, take, writer)
    });
    let (carried, sent) = tokio::join!(carry, sending);
    // A refusal explains why the stream broke off, so it comes first.
    let sent = sent.map_err(io::Error::other)??;
    tokio::io::AsyncWriteExt::shutdown(&mut carried?).await?;
    Ok(sent)
}
