//! How a shim makes itself known on a new connection, before anything else: the ticket it was launched with, and a key of its own
//! choice. A ticket belongs to the first key that it's shown with; from then on it is worth nothing without that key. So an answer
//! that got lost costs nothing, and a ticket that was seen by others is of no use to them.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

const MAGIC: [u8; 8] = *b"ckrvshm1";
pub const KEY: usize = 32;
const LONGEST_TICKET: usize = 128;

/// What a shim shows.
#[derive(Clone)]
pub struct Credentials {
    pub ticket: Vec<u8>,
    pub key: [u8; KEY],
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

/// What it's told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Welcome,
    /// Never: the ticket is unknown, over, or somebody else's.
    Refused,
    /// Not now.
    Later,
}

pub async fn show(out: &mut (impl AsyncWrite + Unpin), credentials: &Credentials) -> io::Result<()> {
    let length = u8::try_from(credentials.ticket.len()).ok().filter(|length| usize::from(*length) <= LONGEST_TICKET);
    let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the ticket is too long"))?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&credentials.key);
    bytes.push(length);
    bytes.extend_from_slice(&credentials.ticket);
    out.write_all(&bytes).await?;
    out.flush().await
}

/// # Errors
/// `InvalidData` for anything else than credentials.
pub async fn examine(input: &mut (impl AsyncRead + Unpin)) -> io::Result<Credentials> {
    let mut magic = [0; MAGIC.len()];
    input.read_exact(&mut magic).await?;
    if magic != MAGIC {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no shim of this version"));
    }
    let mut key = [0; KEY];
    input.read_exact(&mut key).await?;
    let length = usize::from(input.read_u8().await?);
    if length > LONGEST_TICKET {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a ticket that is too long"));
    }
    let mut ticket = vec![0; length];
    input.read_exact(&mut ticket).await?;
    Ok(Credentials { ticket, key })
}

pub async fn answer(out: &mut (impl AsyncWrite + Unpin), verdict: Verdict) -> io::Result<()> {
    let byte = match verdict {
        Verdict::Welcome => 0,
        Verdict::Refused => 1,
        Verdict::Later => 2,
    };
    out.write_u8(byte).await?;
    out.flush().await
}

pub async fn hear_verdict(input: &mut (impl AsyncRead + Unpin)) -> io::Result<Verdict> {
    match input.read_u8().await? {
        0 => Ok(Verdict::Welcome),
        1 => Ok(Verdict::Refused),
        2 => Ok(Verdict::Later),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "an answer of an unknown kind")),
    }
}
