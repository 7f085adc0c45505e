//! Checks on what a shim says has changed, and on what it sends of it.

use std::collections::HashSet;
use std::io;

use ckrv_shim::mux::MuxStream;
use ckrv_shim::path::BytePath;
use ckrv_shim::protocol::{ChangeList, Changed, CollectLimits, Collected, MAX_LIST, Refused, Selection, read_frame, write_frame};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::{Collection, SessionError};

/// Bounds, and paths that stay inside, each once, none of them a git folder's.
fn check_list(list: &ChangeList, limits: CollectLimits) -> Result<(), SessionError> {
    let entries = list.changed.len() + list.deleted.len() + list.refused.len();
    if entries as u64 > limits.max_entries {
        return Err(SessionError::Protocol(format!("{entries} changes, {} were allowed", limits.max_entries)));
    }
    if let Some(changed) = list.changed.iter().find(|changed| changed.path.names_git_folder()) {
        return Err(SessionError::Protocol(format!("a change of {:?}", changed.path)));
    }
    let mut seen = HashSet::new();
    for path in list.changed.iter().map(|changed| &changed.path).chain(&list.deleted) {
        if BytePath::from_entry(path.as_bytes()).is_none_or(|clean| clean != *path || clean.0.is_empty()) {
            return Err(SessionError::Protocol(format!("a change of {path:?}")));
        }
        if !seen.insert(path) {
            return Err(SessionError::Protocol(format!("two changes of {path:?}")));
        }
    }
    Ok(())
}

/// What came over a stream of changes, before its summary was compared.
pub struct Arrived {
    /// In the tar's order, with their places in the shim's list.
    pub kept: Vec<(u32, Changed)>,
    pub refused: Vec<Refused>,
    skipped: Vec<Changed>,
    deleted: Vec<BytePath>,
    bytes: u64,
    sha256: String,
}

impl Arrived {
    /// Compares with what the shim says that it sent.
    pub fn check(self, collected: &Collected) -> Result<Collection, SessionError> {
        let Self { kept, refused, skipped, deleted, bytes, sha256 } = self;
        if *collected != (Collected { entries: kept.len() as u64, tar_bytes: bytes, tar_sha256: sha256.clone() }) {
            return Err(SessionError::Protocol("what arrived of the changes is not what was sent".to_owned()));
        }
        let changed = kept.into_iter().map(|(_, changed)| changed).collect();
        Ok(Collection { changed, skipped, deleted, refused, tar_bytes: bytes, tar_sha256: sha256 })
    }
}

/// Reads the list, asks for what `keep` wants of it, and writes the tar to `writer`.
pub async fn take_changes(
    mut stream: MuxStream,
    limits: CollectLimits,
    mut keep: impl FnMut(&Changed) -> bool,
    writer: &mut (impl AsyncWrite + Unpin),
) -> Result<Arrived, SessionError> {
    let lost = |error: io::Error| SessionError::Lost(error.to_string());
    let list: ChangeList = read_frame(&mut stream, MAX_LIST).await.map_err(lost)?;
    check_list(&list, limits)?;
    let (mut kept, mut skipped, mut skip) = (Vec::new(), Vec::new(), Vec::new());
    for (index, change) in (0..).zip(list.changed) {
        if keep(&change) {
            kept.push((index, change));
        } else {
            skipped.push(change);
            skip.push(index);
        }
    }
    write_frame(&mut stream, &Selection { skip }).await.map_err(lost)?;
    let (bytes, sha256) = receive(stream, writer, most_bytes(limits)).await?;
    Ok(Arrived { kept, refused: list.refused, skipped, deleted: list.deleted, bytes, sha256 })
}

/// Content, and for each entry its header, its padding and two long names at most.
fn most_bytes(limits: CollectLimits) -> u64 {
    limits.max_bytes.saturating_add(limits.max_entries.saturating_mul(16 * 1024)).saturating_add(64 * 1024)
}

/// Bytes and SHA-256 of what came.
async fn receive(
    mut stream: MuxStream,
    writer: &mut (impl AsyncWrite + Unpin),
    most: u64,
) -> Result<(u64, String), SessionError> {
    let (mut hash, mut total, mut chunk) = (Sha256::new(), 0_u64, vec![0; 64 * 1024]);
    loop {
        // A stream that breaks off is short, which the summary or its absence tells.
        let n = stream.read(&mut chunk).await.unwrap_or(0);
        if n == 0 {
            break;
        }
        total += n as u64;
        if total > most {
            return Err(SessionError::Protocol(format!("more than {most} bytes of changes")));
        }
        hash.update(&chunk[..n]);
        writer.write_all(&chunk[..n]).await.map_err(SessionError::Local)?;
    }
    writer.flush().await.map_err(SessionError::Local)?;
    let hex = hex::encode(hash.finalize());
    Ok((total, hex))
}
