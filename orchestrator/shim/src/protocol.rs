//! What job runner and shim say to each other. Both sides of the code use these types, and nothing else knows them.
//!
//! The runner opens a *control* stream; frames go both ways on it. Everything bulky has a stream of its own. Each stream, whoever
//! opens it, begins with one frame: its [`StreamHeader`]. A frame is a length (u32, big endian) and that much JSON.
//!
//! ```text
//! runner: Hello, Prepare + a Checkout stream, Run*, Collect, Bye        (Stop, Ping and Checkpoint at any time)
//! shim:   Hello, Prepared,                    Started, Exited + an Output stream, Collected + a Changes stream
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::path::BytePath;

/// Raised whenever an older peer would misread a newer one.
pub const PROTOCOL: u32 = 2;
/// A control frame's limit: a run's files and stdin are in it.
pub const MAX_FRAME: u32 = 32 * 1024 * 1024;
/// A list of changes' limit.
pub const MAX_LIST: u32 = 128 * 1024 * 1024;
/// Most bytes of output in one frame.
pub const OUTPUT_CHUNK: usize = 64 * 1024;

/// What a stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "stream", rename_all = "snake_case")]
pub enum StreamHeader {
    /// Runner to shim, frames both ways.
    Control,
    /// Runner to shim: the tar of the checkout.
    Checkout,
    /// Shim to runner: [`write_output`] records, in order, until end of file.
    Output { run: u32 },
    /// Shim to runner: a [`ChangeList`]; then runner to shim: a [`Selection`]; then shim to runner: a tar until end of file.
    Changes,
    /// As `Changes`, for a checkpoint.
    Checkpoint { id: u32 },
    /// Shim to runner: one connection that the agent made to a model route.
    Route { run: u32, index: u32 },
    /// Shim to runner: one connection that the agent made to the CONNECT proxy.
    Proxy { run: u32 },
}

/// Job runner to shim.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToShim {
    /// First. The shim ends itself when it has heard nothing for `silence_seconds`.
    Hello {
        protocol: u32,
        silence_seconds: u64,
    },
    /// Once; the runner opens a Checkout stream with it.
    Prepare(Prepare),
    Run(Box<Run>),
    /// `now` skips the run's stop signal and grace.
    Stop {
        run: u32,
        now: bool,
    },
    Ping,
    Collect(CollectLimits),
    /// As `Collect`, but also while a run is going on, and then as well as that can be done. One at a time; `id` is new each time.
    Checkpoint {
        id: u32,
        limits: CollectLimits,
    },
    Bye,
}

/// Shim to job runner.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromShim {
    Hello {
        protocol: u32,
        version: String,
    },
    Prepared {
        entries: u64,
        bytes: u64,
    },
    Started {
        run: u32,
    },
    /// After every byte of the run's output was handed to its stream.
    Exited {
        run: u32,
        record: ExitRecord,
    },
    Collected(Collected),
    /// `left_out` are places in [`ChangeList::changed`], of files that were not whole any more when they were read.
    Checkpointed {
        id: u32,
        collected: Collected,
        left_out: Vec<u32>,
    },
    /// Nothing else is affected.
    NoCheckpoint {
        id: u32,
        message: String,
    },
    /// The step that was asked for could not be done; the shim goes on.
    Failed {
        step: Step,
        message: String,
    },
    Pong,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Prepare,
    Run,
    Collect,
}

/// Folders of a session, absolute. They are made where missing; `workspace` must be empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimPaths {
    pub workspace: String,
    pub home: String,
    pub context: String,
    pub tmp: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Prepare {
    pub paths: ShimPaths,
    pub max_entries: u64,
    pub max_bytes: u64,
}

/// One command. Its environment is the shim's own (what the launcher gave: an image's variables, or a `PATH`), then HOME and TMPDIR,
/// then `env`, then what the routes and the proxy need.
#[derive(Clone, Serialize, Deserialize)]
pub struct Run {
    /// Given by the runner; any number that no earlier run of the session had.
    pub id: u32,
    /// Program (looked up in PATH) and its arguments; at least one.
    pub argv: Vec<String>,
    /// May hold a secret, where policy grants that.
    pub env: BTreeMap<String, String>,
    /// Relative to the workspace; empty for the workspace itself.
    pub cwd: BytePath,
    pub files: Vec<PlacedFile>,
    /// Written, then end of file.
    pub stdin: Option<String>,
    pub stop_signal: StopSignal,
    pub grace_seconds: u32,
    /// From the start of the command.
    pub deadline_seconds: u32,
    pub routes: Vec<Route>,
    /// Opens a CONNECT proxy and points `HTTPS_PROXY` to it.
    pub proxy: bool,
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run")
            .field("id", &self.id)
            .field("program", &self.argv.first())
            .field("env", &self.env.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// A file that must be there before the command starts. `path` is relative, without `..`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlacedFile {
    pub place: Place,
    pub path: String,
    pub content: String,
    pub executable: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    Home,
    /// Written anew for each run, then made read-only.
    Context,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopSignal {
    Term,
    Int,
    Hup,
}

/// A loopback listener. Its base URL (`http://127.0.0.1:PORT` + `path`) goes into `base_url_env`.
#[derive(Clone, Serialize, Deserialize)]
pub struct Route {
    pub base_url_env: String,
    pub path: String,
    /// Variable and per-run token: what the agent takes for its key. The runner's proxy knows it again.
    pub placeholder: Option<(String, String)>,
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Route").field("base_url_env", &self.base_url_env).finish_non_exhaustive()
    }
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", content = "value", rename_all = "snake_case")]
pub enum ExitStatus {
    Code(i32),
    Signal(i32),
    /// Killed by the kernel for want of memory, as the container's own counter says.
    OomKilled,
    /// The run's deadline passed, whatever the command then did.
    Deadline,
    /// The shim was told to end (SIGTERM: eviction, a drained node, a deleted pod), whatever the command then did.
    Evicted,
    /// It never ran; the text says why (no such program, not executable, a file that couldn't be placed).
    NotStarted(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    pub status: ExitStatus,
    /// The runner asked for the end before it came.
    pub stopped: bool,
    pub duration_ms: u64,
    /// Largest resident set of any process so far in this session.
    pub max_rss_kib: u64,
    /// Output frames sent; the last one's `seq`.
    pub output_frames: u64,
    pub output_bytes: u64,
    /// Processes that were still there when the command had ended, and were killed.
    pub leftovers: u32,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct CollectLimits {
    /// Changed, deleted and refused paths together.
    pub max_entries: u64,
    /// Content of the selected files together.
    pub max_bytes: u64,
}

/// Everything that differs from what was unpacked. Never `.git` at the top; a `.git` deeper down is refused.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeList {
    pub changed: Vec<Changed>,
    pub deleted: Vec<BytePath>,
    pub refused: Vec<Refused>,
}

/// A path that is new, or has other content, another mode, another target or another kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    pub path: BytePath,
    pub kind: ChangeKind,
    /// Bytes; of a symlink, its target's length.
    pub size: u64,
    pub added: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    File,
    Executable,
    Symlink,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    pub path: BytePath,
    /// `fifo`, `socket`, `device`, `git folder`, `unreadable`.
    pub reason: String,
}

/// Which of the changed paths to leave out, by their place in [`ChangeList::changed`].
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Selection {
    pub skip: Vec<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    pub entries: u64,
    /// Size and SHA-256 (hex) of the tar as sent.
    pub tar_bytes: u64,
    pub tar_sha256: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    Stdout,
    Stderr,
}

/// Bytes as they came, not lines. `seq` counts the frames of a run from 1, over both sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputFrame {
    pub seq: u64,
    pub source: Source,
    pub bytes: Vec<u8>,
}

pub async fn write_frame<W: AsyncWrite + Unpin, T: Serialize>(out: &mut W, frame: &T) -> io::Result<()> {
    let json = serde_json::to_vec(frame)?;
    let length = u32::try_from(json.len()).map_err(|_| too_long())?;
    let mut bytes = Vec::with_capacity(json.len() + 4);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&json);
    out.write_all(&bytes).await?;
    out.flush().await
}

/// # Errors
/// `UnexpectedEof` at the end of the stream; `InvalidData` for a frame beyond `limit` or one that isn't `T`.
pub async fn read_frame<R: AsyncRead + Unpin, T: DeserializeOwned>(input: &mut R, limit: u32) -> io::Result<T> {
    let length = input.read_u32().await?;
    if length > limit {
        return Err(too_long());
    }
    // Grows with what really comes, so that a length alone costs nothing.
    let mut json = Vec::new();
    input.take(u64::from(length)).read_to_end(&mut json).await?;
    if json.len() < length as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_slice(&json).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a frame is longer than its limit")
}

/// An output record: source (u8: 1 stdout, 2 stderr), seq (u64), length (u32), bytes; big endian.
pub async fn write_output<W: AsyncWrite + Unpin>(out: &mut W, seq: u64, source: Source, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(|_| too_long())?;
    let mut record = Vec::with_capacity(bytes.len() + 13);
    record.push(if source == Source::Stdout { 1 } else { 2 });
    record.extend_from_slice(&seq.to_be_bytes());
    record.extend_from_slice(&length.to_be_bytes());
    record.extend_from_slice(bytes);
    out.write_all(&record).await?;
    out.flush().await
}

/// The next output record; `None` at the end of the stream.
pub async fn read_output<R: AsyncRead + Unpin>(input: &mut R) -> io::Result<Option<OutputFrame>> {
    let source = match input.read_u8().await {
        Ok(1) => Source::Stdout,
        Ok(2) => Source::Stderr,
        Ok(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, "an output record of neither stdout nor stderr")),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    let seq = input.read_u64().await?;
    let length = input.read_u32().await? as usize;
    if length > OUTPUT_CHUNK {
        return Err(too_long());
    }
    let mut bytes = vec![0; length];
    input.read_exact(&mut bytes).await?;
    Ok(Some(OutputFrame { seq, source, bytes }))
}
