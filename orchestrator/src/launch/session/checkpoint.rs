//! The changes so far, while a run is going on: what an attempt that loses its place can be taken up from.

use std::sync::{Arc, OnceLock};

use ckrv_shim::mux::MuxStream;
use ckrv_shim::protocol::{Changed, CollectLimits, FromShim, Refused, ToShim, write_frame};
use tokio::io::AsyncWrite;
use tokio::sync::{Mutex, mpsc};

use super::changes::take_changes;
use super::{Collection, Control, SessionError, unexpected};

/// Takes checkpoints, from anywhere. One is taken at a time; further callers wait.
#[derive(Clone, Debug)]
pub struct Checkpointer {
    pub(super) control: Control,
    pub(super) inbox: Arc<Mutex<Inbox>>,
    pub(super) lost: Arc<OnceLock<String>>,
}

/// What the session's tasks bring. An answer of an earlier checkpoint, which its caller gave up, is passed over.
#[derive(Debug)]
pub(super) struct Inbox {
    pub last: u32,
    pub streams: mpsc::Receiver<(u32, MuxStream)>,
    pub answers: mpsc::Receiver<FromShim>,
}

impl Checkpointer {
    /// As [`collect`](super::ShimSession::collect), at any time after `prepare`. Files that change while they are read are left out of
    /// the tar, and stand among the refused. It may be given up by dropping it, and fails without harm to the run.
    pub async fn take(
        &self,
        limits: CollectLimits,
        keep: impl FnMut(&Changed) -> bool,
        writer: &mut (impl AsyncWrite + Unpin),
    ) -> Result<Collection, SessionError> {
        let mut inbox = self.inbox.lock().await;
        inbox.last += 1;
        let id = inbox.last;
        let asked = write_frame(&mut *self.control.lock().await, &ToShim::Checkpoint { id, limits }).await;
        asked.map_err(|error| self.lost(&error))?;
        let stream = loop {
            let inbox = &mut *inbox;
            tokio::select! {
                stream = inbox.streams.recv() => match stream {
                    Some((of, stream)) if of == id => break stream,
                    Some(_) => {}
                    None => return Err(self.lost(&"the stream ended")),
                },
                answer = inbox.answers.recv() => match answer {
                    Some(FromShim::NoCheckpoint { id: of, message }) if of == id => return Err(SessionError::Failed(message)),
                    Some(_) => {}
                    None => return Err(self.lost(&"the stream ended")),
                },
            }
        };
        let mut arrived = take_changes(stream, limits, keep, writer).await?;
        let (collected, left_out) = loop {
            match inbox.answers.recv().await {
                Some(FromShim::Checkpointed { id: of, collected, left_out }) if of == id => break (collected, left_out),
                Some(FromShim::NoCheckpoint { id: of, message }) if of == id => return Err(SessionError::Failed(message)),
                Some(FromShim::Checkpointed { .. } | FromShim::NoCheckpoint { .. }) => {}
                Some(other) => return Err(unexpected(&other)),
                None => return Err(self.lost(&"the stream ended")),
            }
        };
        for index in left_out {
            let at = arrived.kept.iter().position(|(of, _)| *of == index);
            let (_, changed) = at.map(|at| arrived.kept.remove(at)).ok_or_else(|| no_such(index))?;
            arrived.refused.push(Refused { path: changed.path, reason: "changing".to_owned() });
        }
        arrived.check(&collected)
    }

    fn lost(&self, fallback: &dyn std::fmt::Display) -> SessionError {
        SessionError::Lost(self.lost.get().cloned().unwrap_or_else(|| fallback.to_string()))
    }
}

fn no_such(index: u32) -> SessionError {
    SessionError::Protocol(format!("change {index} was left out, but is not in the list, or twice"))
}
