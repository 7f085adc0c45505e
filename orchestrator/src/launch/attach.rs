//! The attached stdin and stdout of a container as plain streams.

use std::io;

use bollard::container::{AttachContainerResults, LogOutput};
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::StreamReader;

use super::Tail;

type Halves = (Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>);

/// stdout is the stream; what comes on stderr goes into `said`.
pub fn streams(attached: AttachContainerResults, said: Tail) -> Halves {
    let AttachContainerResults { output, input } = attached;
    let stdout = output.filter_map(move |item| {
        let kept = match item {
            Ok(LogOutput::StdOut { message }) => Some(Ok::<Bytes, io::Error>(message)),
            // Without a terminal an engine never sends anything but these two.
            Ok(LogOutput::StdErr { message } | LogOutput::Console { message } | LogOutput::StdIn { message }) => {
                said.push(&message);
                None
            }
            Err(error) => Some(Err(io::Error::other(error))),
        };
        std::future::ready(kept)
    });
    (Box::new(StreamReader::new(stdout)), Box::new(input))
}
