//! Between being asked to leave and leaving lies one last checkpoint, where an agent is at work. A kubelet waits for half a minute.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What remains of that time is for the log, and for giving the job back.
const LAST: Duration = Duration::from_secs(12);

#[derive(Clone, Debug)]
pub struct Leaving {
    asked: CancellationToken,
    at_work: Arc<watch::Sender<bool>>,
}

/// Dropped, nothing holds the job runner any more.
#[derive(Debug)]
pub struct AtWork(Arc<watch::Sender<bool>>);

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.send_replace(false);
    }
}

impl Leaving {
    pub fn new(asked: CancellationToken) -> Self {
        Self { asked, at_work: Arc::new(watch::Sender::new(false)) }
    }

    /// Completes when the job runner was asked to leave.
    pub async fn asked(&self) {
        self.asked.cancelled().await;
    }

    pub fn at_work(&self) -> AtWork {
        self.at_work.send_replace(true);
        AtWork(Arc::clone(&self.at_work))
    }

    /// Completes when it was asked to, and nothing is at work or the time is up.
    pub async fn ready(self) {
        self.ready_within(LAST).await;
    }

    async fn ready_within(self, last: Duration) {
        self.asked().await;
        let mut at_work = self.at_work.subscribe();
        let _ = tokio::time::timeout(last, at_work.wait_for(|at_work| !at_work)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_is_at_work_holds_it_for_a_while_only() {
        let asked = CancellationToken::new();
        let leaving = Leaving::new(asked.clone());
        let at_work = leaving.at_work();
        let ready = tokio::spawn(leaving.clone().ready());
        asked.cancel();
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!ready.is_finished(), "somebody is at work");
        drop(at_work);
        ready.await.unwrap();
        let _stuck = leaving.at_work();
        leaving.ready_within(Duration::from_millis(20)).await;
    }
}
