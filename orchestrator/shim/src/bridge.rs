//! Between the tar crate, which blocks, and streams, which don't: a bounded channel with a blocking end.

use std::io::{self, Read, Write};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;

const CHUNK: usize = 64 * 1024;
/// Chunks under way: with [`CHUNK`], half a megabyte.
const DEPTH: usize = 8;

/// Blocking reader of what the async side sends. Use it on a blocking thread only.
#[derive(Debug)]
pub struct ChannelReader {
    chunks: mpsc::Receiver<io::Result<Vec<u8>>>,
    current: Vec<u8>,
    at: usize,
}

impl Read for ChannelReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.at == self.current.len() {
            match self.chunks.blocking_recv() {
                Some(chunk) => {
                    self.current = chunk?;
                    self.at = 0;
                }
                None => return Ok(0),
            }
        }
        let rest = &self.current[self.at..];
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        self.at += n;
        Ok(n)
    }
}

/// Blocking writer towards the async side. Use it on a blocking thread only; flush it at the end.
#[derive(Debug)]
pub struct ChannelWriter {
    chunks: mpsc::Sender<Vec<u8>>,
    current: Vec<u8>,
}

impl Write for ChannelWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = buf.len().min(CHUNK - self.current.len());
        self.current.extend_from_slice(&buf[..n]);
        if self.current.len() == CHUNK {
            self.flush()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.current.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.current, Vec::with_capacity(CHUNK));
        self.chunks.blocking_send(chunk).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// A blocking reader of `source`, and the future that feeds it: poll both.
pub fn reader_from<R: AsyncRead + Unpin>(mut source: R) -> (ChannelReader, impl Future<Output = ()>) {
    let (sender, chunks) = mpsc::channel(DEPTH);
    let feed = async move {
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            let read = source.read_buf(&mut chunk).await;
            let end = matches!(read, Ok(0) | Err(_));
            let item = match read {
                Ok(0) => return,
                Ok(_) => Ok(chunk),
                Err(error) => Err(error),
            };
            if sender.send(item).await.is_err() || end {
                return;
            }
        }
    };
    (ChannelReader { chunks, current: Vec::new(), at: 0 }, feed)
}

/// A blocking writer into `sink`, and the future that carries it there and gives the sink back: poll both.
pub fn writer_to<W: AsyncWrite + Unpin>(mut sink: W) -> (ChannelWriter, impl Future<Output = io::Result<W>>) {
    let (chunks, mut receiver) = mpsc::channel::<Vec<u8>>(DEPTH);
    let carry = async move {
        while let Some(chunk) = receiver.recv().await {
            sink.write_all(&chunk).await?;
        }
        sink.flush().await?;
        Ok(sink)
    };
    (ChannelWriter { chunks, current: Vec::with_capacity(CHUNK) }, carry)
}
