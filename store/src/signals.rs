//! Hints within one process: "this job changed", "there is work". A reader that misses one finds out by polling.

use ckrv_core::id::JobId;
use tokio::sync::broadcast;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// A job was queued.
    Queued(JobId),
    /// A job's record changed.
    Changed(JobId),
    /// Log entries were appended.
    Log(JobId),
    /// Somebody follows this job's log.
    Watched(JobId),
}

#[derive(Clone, Debug)]
pub struct Signals(broadcast::Sender<Signal>);

impl Default for Signals {
    fn default() -> Self {
        Self(broadcast::channel(1024).0)
    }
}

impl Signals {
    pub fn send(&self, signal: Signal) {
        // No receiver is no error: nobody waits.
        let _ = self.0.send(signal);
    }

    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Signal> {
        self.0.subscribe()
    }
}
