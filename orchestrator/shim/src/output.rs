//! From a command's pipes to the runner: bytes in numbered frames, gathered for a moment where they come in drops.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::mux::MuxStream;
use crate::protocol::{OUTPUT_CHUNK, Source, write_output};
use crate::spool::Spool;

/// A frame is sent at most this long after its first byte was read.
const GATHER: Duration = Duration::from_millis(50);
/// After the command's end: how long a pipe that something still holds open may stay silent until it's given up.
const HELD_OPEN: Duration = Duration::from_secs(2);

/// The output of one run, numbered. Writing waits for the runner to read, or for the spool to have room where nobody reads for a
/// moment: that is what stops a command that floods.
#[derive(Clone, Debug)]
pub struct OutputSink {
    inner: Arc<Mutex<Inner>>,
    spool: Arc<Spool>,
    /// Set once every process of the run is gone.
    over: CancellationToken,
}

#[derive(Debug)]
struct Inner {
    frames: u64,
    bytes: u64,
    draining: JoinSet<io::Result<()>>,
}

impl OutputSink {
    /// `folder` is for what the stream doesn't take in time.
    pub fn new(stream: MuxStream, folder: &Path) -> Self {
        let spool = Arc::new(Spool::new(folder.to_owned()));
        let (mut draining, carried) = (JoinSet::new(), Arc::clone(&spool));
        draining.spawn(async move { carried.drain(stream).await });
        let inner = Arc::new(Mutex::new(Inner { frames: 0, bytes: 0, draining }));
        Self { inner, spool, over: CancellationToken::new() }
    }

    /// Ends the stream, once everything is in it, and gives the number of frames and bytes.
    pub async fn finish(&self) -> io::Result<(u64, u64)> {
        let mut inner = self.inner.lock().await;
        self.spool.close();
        if let Some(drained) = inner.draining.join_next().await {
            drained.map_err(io::Error::other)??;
        }
        Ok((inner.frames, inner.bytes))
    }

    /// Tells the pumps that no process is left, so that a pipe which stays open is held by a stranger.
    pub fn no_process_left(&self) {
        self.over.cancel();
    }

    /// Carries a pipe to its end.
    pub async fn pump(self, pipe: OwnedFd, source: Source) -> io::Result<()> {
        let mut pipe = Receiver::from_owned_fd(pipe)?;
        let mut buffer = Vec::with_capacity(OUTPUT_CHUNK);
        let mut last_sent: Option<Instant> = None;
        loop {
            let first = self.first_bytes(&mut pipe, &mut buffer).await?;
            if first == 0 {
                return Ok(());
            }
            // What comes after a pause goes at once; a stream of drops is gathered.
            let due = last_sent.map_or_else(Instant::now, |sent| sent + GATHER);
            let mut end = false;
            while buffer.len() < OUTPUT_CHUNK && !end {
                let room = OUTPUT_CHUNK - buffer.len();
                let read = timeout_at(due, (&mut pipe).take(room as u64).read_buf(&mut buffer)).await;
                match read {
                    Ok(n) => end = n? == 0,
                    Err(_elapsed) => break,
                }
            }
            self.send(source, &buffer).await?;
            buffer.clear();
            last_sent = Some(Instant::now());
            if end {
                return Ok(());
            }
        }
    }

    async fn first_bytes(&self, pipe: &mut Receiver, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let mut pipe = pipe.take(OUTPUT_CHUNK as u64);
        tokio::select! {
            read = pipe.read_buf(buffer) => return read,
            () = self.over.cancelled() => {}
        }
        match timeout_at(Instant::now() + HELD_OPEN, pipe.read_buf(buffer)).await {
            Ok(read) => read,
            Err(_elapsed) => Ok(0),
        }
    }

    async fn send(&self, source: Source, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.inner.lock().await;
        inner.frames += 1;
        inner.bytes += bytes.len() as u64;
        let mut record = Vec::with_capacity(bytes.len() + 16);
        write_output(&mut record, inner.frames, source, bytes).await?;
        // With the lock held: records go in by their numbers.
        self.spool.push(&record).await
    }
}
