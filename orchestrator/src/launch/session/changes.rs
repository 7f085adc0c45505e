//! Checks on what a shim says has changed, and on what it sends of it.

use std::collections::HashSet;

use ckrv_shim::mux::MuxStream;
use ckrv_shim::path::BytePath;
use ckrv_shim::protocol::{ChangeList, CollectLimits};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::SessionError;

/// Bounds, and paths that stay inside, each once, none of them a git folder's.
pub fn check_list(list: &ChangeList, limits: CollectLimits) -> Result<(), SessionError> {
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

/// Content, and for each entry its header, its padding and two long names at most.
pub fn most_bytes(limits: CollectLimits) -> u64 {
    limits.max_bytes.saturating_add(limits.max_entries.saturating_mul(16 * 1024)).saturating_add(64 * 1024)
}

/// Bytes and SHA-256 of what came.
pub async fn receive(
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
    let hex = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((total, hex))
}
