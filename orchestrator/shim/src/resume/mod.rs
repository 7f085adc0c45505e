//! A reliable, ordered stream of bytes over a *sequence* of connections, each of which may break at any byte.
//!
//! Each end keeps what it has sent until the other says that it has it; on a new connection both say how far they got and go on from
//! there. Bounds: [`state::KEPT`] bytes kept (then writing waits), [`state::WINDOW`] bytes received and not read (then the other end
//! waits). A connection that is dead without saying so is found by the silence on it and replaced.
//!
//! Invariant: the end of the stream is said in so many words. A connection that ends, however politely, is never taken for it.
//! Invariant: what doesn't fit together (a gap, an overlap, an acknowledgement of the unsent) fails the stream; nothing is repaired.
//!
//! Who may connect is not decided here: hand in connections that are authenticated and encrypted.

mod driver;
mod frame;
mod state;
#[cfg(test)]
mod tests;

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use self::state::State;

/// One connection.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}
pub type Connection = Box<dyn Duplex>;

/// One try to connect.
pub type Dialling = Pin<Box<dyn Future<Output = io::Result<Connection>> + Send>>;

/// Where connections come from.
pub enum Source {
    /// They are made. `PermissionDenied` ends the stream; after any other error it's tried again.
    Dial(Box<dyn FnMut() -> Dialling + Send>),
    /// They arrive; a later one replaces an earlier one.
    Accept { first: Option<Connection>, later: mpsc::Receiver<Connection> },
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Dial(_) => "Dial",
            Self::Accept { .. } => "Accept",
        })
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Something is said at least this often.
    pub ping_every: Duration,
    /// A connection on which nothing came for this long is given up.
    pub dead_after: Duration,
    /// The stream fails when nothing came on any connection for this long.
    pub silence: Duration,
}

impl Timing {
    pub fn with_silence(silence: Duration) -> Self {
        Self { ping_every: silence / 15, dead_after: silence / 5, silence }
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self::with_silence(Duration::from_secs(60))
    }
}

struct Shared {
    state: Mutex<State>,
    /// For the driver: something changed.
    changed: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The stream. Shutting it down succeeds once everything has arrived at the other end; dropping it before that gives it up, which the
/// other end is told if it can be reached.
pub struct ResumableStream {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for ResumableStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResumableStream").finish_non_exhaustive()
    }
}

/// Starts a stream, and the task that drives it: it ends soon after the stream is closed or dropped.
pub fn start(source: Source, timing: Timing) -> (ResumableStream, JoinHandle<()>) {
    let shared = Arc::new(Shared { state: Mutex::new(State::new()), changed: Notify::new() });
    let driver = tokio::spawn(driver::drive(Arc::clone(&shared), source, timing));
    (ResumableStream { shared }, driver)
}

impl Drop for ResumableStream {
    fn drop(&mut self) {
        self.shared.lock().drop_handle();
        self.shared.changed.notify_one();
    }
}

impl AsyncRead for ResumableStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.shared.lock();
        let n = state.unread().len().min(buf.remaining());
        if n > 0 {
            buf.put_slice(&state.unread()[..n]);
            state.consume(n);
            if state.must_tell() {
                self.shared.changed.notify_one();
            }
            return Poll::Ready(Ok(()));
        }
        if state.has_ended() || buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if let Some((kind, why)) = &state.failure {
            return Poll::Ready(Err(io::Error::new(*kind, why.clone())));
        }
        state.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for ResumableStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.shared.lock();
        if let Some((kind, why)) = &state.failure {
            return Poll::Ready(Err(io::Error::new(*kind, why.clone())));
        }
        if state.is_closed() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let n = state.put(bytes);
        if n == 0 && !bytes.is_empty() {
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        self.shared.changed.notify_one();
        Poll::Ready(Ok(n))
    }

    /// What is written is on its way; there's nothing to wait for.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.shared.lock();
        if state.is_delivered() {
            return Poll::Ready(Ok(()));
        }
        if let Some((kind, why)) = &state.failure {
            return Poll::Ready(Err(io::Error::new(*kind, why.clone())));
        }
        if !state.is_closed() {
            state.close();
            self.shared.changed.notify_one();
        }
        state.writer = Some(cx.waker().clone());
        Poll::Pending
    }
}
