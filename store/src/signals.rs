//! Hints within one process: "this job changed", "there is work". A reader that misses one finds out by polling.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ckrv_core::id::JobId;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::broadcast::{self, Receiver, Sender};

/// Of one job; its own reader has little to do with each.
const OF_JOB: usize = 16;

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

impl Signal {
    #[must_use]
    pub const fn job(self) -> JobId {
        let (Self::Queued(job) | Self::Changed(job) | Self::Log(job) | Self::Watched(job)) = self;
        job
    }
}

/// With ten thousand jobs that each have somebody who waits, a signal wakes only who waits for that job.
#[derive(Clone, Debug)]
pub struct Signals {
    all: Sender<Signal>,
    jobs: Arc<Mutex<HashMap<JobId, Sender<Signal>>>>,
}

impl Default for Signals {
    fn default() -> Self {
        Self { all: broadcast::channel(1024).0, jobs: Arc::default() }
    }
}

impl Signals {
    pub fn send(&self, signal: Signal) {
        // No receiver is no error: nobody waits.
        let _ = self.all.send(signal);
        if let Some(job) = self.jobs().get(&signal.job()) {
            let _ = job.send(signal);
        }
    }

    /// Of all jobs.
    #[must_use]
    pub fn subscribe(&self) -> Receiver<Signal> {
        self.all.subscribe()
    }

    /// Of one job.
    #[must_use]
    pub fn subscribe_to(&self, job: JobId) -> JobSignals {
        let mut jobs = self.jobs();
        let receiver = jobs.entry(job).or_insert_with(|| broadcast::channel(OF_JOB).0).subscribe();
        drop(jobs);
        JobSignals { signals: self.clone(), job, receiver }
    }

    fn jobs(&self) -> MutexGuard<'_, HashMap<JobId, Sender<Signal>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is said of one job.
#[derive(Debug)]
pub struct JobSignals {
    signals: Signals,
    job: JobId,
    receiver: Receiver<Signal>,
}

impl JobSignals {
    /// `None`: some were missed, so anything may have happened.
    pub async fn recv(&mut self) -> Option<Signal> {
        match self.receiver.recv().await {
            Ok(signal) => Some(signal),
            Err(RecvError::Lagged(_)) => None,
            // Its sender stays for as long as it has a receiver.
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

impl Drop for JobSignals {
    fn drop(&mut self) {
        let mut jobs = self.signals.jobs();
        // This one still counts.
        if jobs.get(&self.job).is_some_and(|sender| sender.receiver_count() <= 1) {
            jobs.remove(&self.job);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> JobId {
        JobId(uuid::Uuid::now_v7())
    }

    #[tokio::test]
    async fn who_waits_for_a_job_hears_of_no_other() {
        let (signals, ours, other) = (Signals::default(), job(), job());
        let (mut first, mut second, mut all) = (signals.subscribe_to(ours), signals.subscribe_to(ours), signals.subscribe());
        signals.send(Signal::Log(other));
        signals.send(Signal::Changed(ours));
        assert_eq!(first.recv().await, Some(Signal::Changed(ours)));
        drop(first);
        signals.send(Signal::Watched(ours));
        assert_eq!((second.recv().await, second.recv().await), (Some(Signal::Changed(ours)), Some(Signal::Watched(ours))));
        assert_eq!((all.recv().await, all.recv().await), (Ok(Signal::Log(other)), Ok(Signal::Changed(ours))));
        (0..=OF_JOB).for_each(|_| signals.send(Signal::Log(ours)));
        assert_eq!((second.recv().await, second.recv().await), (None, Some(Signal::Log(ours))));
    }

    #[test]
    fn nothing_is_kept_of_a_job_that_nobody_waits_for() {
        let (signals, id) = (Signals::default(), job());
        let two = (signals.subscribe_to(id), signals.subscribe_to(id));
        drop(two.0);
        assert_eq!(signals.jobs().len(), 1);
        drop(two.1);
        assert!(signals.jobs().is_empty());
    }
}
