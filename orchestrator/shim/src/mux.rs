//! Many streams over one: yamux, driven by a task, and streams that both sides of tokio understand.
//!
//! Each stream has its own flow control, so a reader who is slow with one (a flood of output) never delays another (a ping).

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt as _};
use yamux::{Config, Connection, Mode};

/// Streams open at the same time, over all purposes.
pub const MAX_STREAMS: usize = 512;
/// Total receive window: the smallest that yamux accepts for [`MAX_STREAMS`], so that a hostile peer can't make us hold more.
const RECEIVE_WINDOW: usize = MAX_STREAMS * yamux::DEFAULT_CREDIT as usize;

/// One stream. Shutting it down ends the writing half only. The peer sees it with its first written byte.
pub type MuxStream = Compat<yamux::Stream>;

/// Which end of the connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Runner,
    Shim,
}

enum Ask {
    Open(oneshot::Sender<io::Result<MuxStream>>),
    Close,
}

/// Opens streams towards the other side.
#[derive(Clone, Debug)]
pub struct Opener {
    asks: mpsc::Sender<Ask>,
}

impl Opener {
    /// # Errors
    /// When the connection has ended.
    pub async fn open(&self) -> io::Result<MuxStream> {
        let (answer, opened) = oneshot::channel();
        self.asks.send(Ask::Open(answer)).await.map_err(|_| ended())?;
        opened.await.map_err(|_| ended())?
    }

    /// Says goodbye after everything that was written. Await the driver to know that it's done.
    pub async fn close(&self) {
        let _ = self.asks.send(Ask::Close).await;
    }
}

fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the multiplexed connection has ended")
}

/// Streams that the other side opened; `None` when the connection has ended.
pub type Incoming = mpsc::UnboundedReceiver<MuxStream>;

/// Starts the task that drives a connection.
pub fn start<R, W>(read: R, write: W, side: Side) -> (Opener, Incoming, JoinHandle<io::Result<()>>)
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let mut config = Config::default();
    config
        .set_max_num_streams(MAX_STREAMS)
        .set_max_connection_receive_window(Some(RECEIVE_WINDOW))
        .set_split_send_size(64 * 1024);
    let mode = if side == Side::Runner { Mode::Server } else { Mode::Client };
    let connection = Connection::new(tokio::io::join(read, write).compat(), config, mode);
    let (asks, asked) = mpsc::channel(16);
    // Bounded by yamux itself, which resets what goes beyond MAX_STREAMS.
    let (arrived, incoming) = mpsc::unbounded_channel();
    let driver = tokio::spawn(drive(connection, asked, arrived));
    (Opener { asks }, incoming, driver)
}

async fn drive<T>(
    mut connection: Connection<T>,
    mut asked: mpsc::Receiver<Ask>,
    arrived: mpsc::UnboundedSender<MuxStream>,
) -> io::Result<()>
where
    T: futures::io::AsyncRead + futures::io::AsyncWrite + Unpin,
{
    let mut pending: Option<oneshot::Sender<io::Result<MuxStream>>> = None;
    let mut closing = false;
    poll_fn(|cx| {
        loop {
            if closing {
                return connection.poll_close(cx).map(|end| end.map_err(io::Error::other));
            }
            if pending.is_none() {
                match asked.poll_recv(cx) {
                    Poll::Ready(Some(Ask::Open(answer))) => pending = Some(answer),
                    Poll::Ready(Some(Ask::Close) | None) => {
                        closing = true;
                        continue;
                    }
                    Poll::Pending => {}
                }
            }
            if let Some(answer) = pending.take() {
                match connection.poll_new_outbound(cx) {
                    Poll::Ready(opened) => {
                        let _ = answer.send(opened.map(FuturesAsyncReadCompatExt::compat).map_err(io::Error::other));
                        continue;
                    }
                    Poll::Pending => pending = Some(answer),
                }
            }
            match connection.poll_next_inbound(cx) {
                Poll::Ready(Some(Ok(stream))) => {
                    let _ = arrived.send(stream.compat());
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(io::Error::other(error))),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await
}
