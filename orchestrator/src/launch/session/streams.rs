//! The tasks of a session: they read what comes, each stream for itself, and take it where it belongs.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ckrv_shim::mux::{self, MuxStream};
use ckrv_shim::protocol::{FromShim, MAX_FRAME, OutputFrame, StreamHeader, ToShim, read_frame, read_output, write_frame};
use tokio::io::ReadHalf;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Control;
use crate::launch::proxy::{ProxyClient, RulesSlot};

/// A task of its own, since a record half read can't be given up and taken up again.
pub fn frames_of(mut stream: MuxStream) -> mpsc::Receiver<io::Result<OutputFrame>> {
    let (sender, frames) = mpsc::channel(4);
    tokio::spawn(async move {
        while let Some(frame) = read_output(&mut stream).await.transpose() {
            let last = frame.is_err();
            if sender.send(frame).await.is_err() || last {
                return;
            }
        }
    });
    frames
}

pub async fn read_answers(
    mut read: ReadHalf<MuxStream>,
    answers: mpsc::Sender<FromShim>,
    checkpoints: mpsc::Sender<FromShim>,
    silence: Duration,
    lost: Arc<OnceLock<String>>,
) {
    loop {
        let reason = match timeout(silence, read_frame(&mut read, MAX_FRAME)).await {
            Ok(Ok(FromShim::Pong)) => continue,
            Ok(Ok(answer @ (FromShim::Checkpointed { .. } | FromShim::NoCheckpoint { .. }))) => {
                // Full of answers that nobody waits for any more: one more is no loss.
                let _ = checkpoints.try_send(answer);
                continue;
            }
            Ok(Ok(answer)) => match answers.send(answer).await {
                Ok(()) => continue,
                Err(_) => return,
            },
            Ok(Err(error)) => error.to_string(),
            Err(_elapsed) => format!("it has been silent for {} s", silence.as_secs()),
        };
        let _ = lost.set(reason);
        return;
    }
}

pub async fn ping(control: Control, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        if write_frame(&mut *control.lock().await, &ToShim::Ping).await.is_err() {
            return;
        }
    }
}

/// Where the shim's streams are taken to.
#[derive(Clone)]
pub struct Desk {
    pub outputs: mpsc::Sender<(u32, MuxStream)>,
    pub changes: mpsc::Sender<MuxStream>,
    pub checkpoints: mpsc::Sender<(u32, MuxStream)>,
    pub rules: RulesSlot,
    pub proxy: ProxyClient,
}

pub async fn accept(mut incoming: mux::Incoming, desk: Desk) {
    let mut streams = JoinSet::new();
    while let Some(stream) = incoming.recv().await {
        streams.spawn(desk.clone().receive(stream));
        while streams.try_join_next().is_some() {}
    }
}

impl Desk {
    async fn receive(self, mut stream: MuxStream) {
        let header = timeout(Duration::from_secs(30), read_frame(&mut stream, 1024)).await;
        match header {
            Ok(Ok(StreamHeader::Output { run })) => drop(self.outputs.send((run, stream)).await),
            Ok(Ok(StreamHeader::Changes)) => drop(self.changes.send(stream).await),
            Ok(Ok(StreamHeader::Checkpoint { id })) => drop(self.checkpoints.try_send((id, stream))),
            Ok(Ok(StreamHeader::Route { run, index })) => self.rules.serve_route(run, index, stream, &self.proxy).await,
            Ok(Ok(StreamHeader::Proxy { run })) => self.rules.serve_connect(run, stream).await,
            _ => tracing::debug!("a stream of the shim without a header was dropped"),
        }
    }
}
