//! What goes over one connection of a resumable stream. Positions count the bytes of one direction from its beginning; the end of a
//! direction takes one position of its own, so that it is acknowledged like a byte.
//!
//! ```text
//! kind (u8)   1 hello: magic, received, credit     first on every connection, from both ends
//!             2 data:  position, length (u32), bytes
//!             3 ack:   received, credit            also sent without need, as a sign of life
//!             4 end:   position                    nothing follows in this direction
//!             5 abort:                             the sender gives the stream up
//! ```

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Most bytes in one data frame. Small, since a connection that breaks within a frame has carried nothing of it.
pub const MAX_DATA: usize = 16 * 1024;
/// Raised with every change of the frames: a peer of another version is an error, not a guess.
const MAGIC: [u8; 8] = *b"ckrv-rs1";

const HELLO: u8 = 1;
const DATA: u8 = 2;
const ACK: u8 = 3;
const END: u8 = 4;
const ABORT: u8 = 5;

/// How far the sender of this has received, and up to where it takes more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub received: u64,
    pub credit: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    Hello(Progress),
    Data { position: u64, bytes: Vec<u8> },
    Ack(Progress),
    End { position: u64 },
    Abort,
}

pub fn put_hello(out: &mut Vec<u8>, progress: Progress) {
    out.push(HELLO);
    out.extend_from_slice(&MAGIC);
    put_progress(out, progress);
}

pub fn put_ack(out: &mut Vec<u8>, progress: Progress) {
    out.push(ACK);
    put_progress(out, progress);
}

/// In two parts, as a ring buffer has them.
pub fn put_data(out: &mut Vec<u8>, position: u64, parts: [&[u8]; 2]) {
    let length = u32::try_from(parts[0].len() + parts[1].len()).unwrap_or(u32::MAX);
    out.push(DATA);
    out.extend_from_slice(&position.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(parts[0]);
    out.extend_from_slice(parts[1]);
}

pub fn put_end(out: &mut Vec<u8>, position: u64) {
    out.push(END);
    out.extend_from_slice(&position.to_be_bytes());
}

pub fn put_abort(out: &mut Vec<u8>) {
    out.push(ABORT);
}

fn put_progress(out: &mut Vec<u8>, progress: Progress) {
    out.extend_from_slice(&progress.received.to_be_bytes());
    out.extend_from_slice(&progress.credit.to_be_bytes());
}

/// Why a connection gives nothing more.
#[derive(Debug)]
pub enum Fault {
    /// It broke: another one may go on.
    Broken(io::Error),
    /// What was said doesn't fit: nothing goes on. Kept apart from `InvalidData`, which a TLS layer says of bytes that a stranger forged.
    Violation(Violation),
    /// The other end gives the stream up.
    Aborted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation(pub &'static str);

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

impl From<Violation> for Fault {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

pub async fn read(input: &mut (impl AsyncRead + Unpin)) -> Result<Frame, Fault> {
    Ok(match input.read_u8().await? {
        HELLO => {
            let mut magic = [0; MAGIC.len()];
            input.read_exact(&mut magic).await?;
            if magic != MAGIC {
                return Err(Violation("the other end speaks another version of the stream").into());
            }
            Frame::Hello(read_progress(input).await?)
        }
        DATA => {
            let position = input.read_u64().await?;
            let length = input.read_u32().await? as usize;
            if length == 0 || length > MAX_DATA {
                return Err(Violation("a data frame of an impossible length").into());
            }
            let mut bytes = vec![0; length];
            input.read_exact(&mut bytes).await?;
            Frame::Data { position, bytes }
        }
        ACK => Frame::Ack(read_progress(input).await?),
        END => Frame::End { position: input.read_u64().await? },
        ABORT => Frame::Abort,
        _ => return Err(Violation("a frame of an unknown kind").into()),
    })
}

async fn read_progress(input: &mut (impl AsyncRead + Unpin)) -> io::Result<Progress> {
    Ok(Progress { received: input.read_u64().await?, credit: input.read_u64().await? })
}
