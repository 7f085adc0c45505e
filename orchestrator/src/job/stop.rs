//! Why a job runner stops before its work is done, and who finds out.

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;

use super::log::JobLog;
use crate::gateway::Gateway;
use crate::settings::BEAT;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    Cancelled,
    Deadline,
    /// Somebody else took over, or the job was ended elsewhere: nothing more may be written.
    Lost,
    /// Its machine wants to be rid of it: the job is given back.
    Leaving,
}

/// Beats, listens and watches the clock, and says when to stop.
#[derive(Debug)]
pub struct Stopper {
    receiver: watch::Receiver<Option<StopReason>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for Stopper {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Stopper {
    #[must_use]
    pub fn start(
        gateway: &Gateway,
        log: &JobLog,
        deadline: Option<Timestamp>,
        leaving: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        let (sender, receiver) = watch::channel(None);
        let tasks = vec![
            tokio::spawn(beat(gateway.clone(), sender.clone())),
            tokio::spawn(listen(gateway.clone(), log.clone(), sender.clone())),
            tokio::spawn(wait_for_deadline(deadline, sender.clone())),
            tokio::spawn(async move {
                leaving.await;
                tell(&sender, StopReason::Leaving);
            }),
        ];
        Self { receiver, tasks }
    }

    /// Completes when there is a reason to stop.
    pub async fn stopped(&self) -> StopReason {
        let mut receiver = self.receiver.clone();
        match receiver.wait_for(Option::is_some).await {
            Ok(reason) => reason.unwrap_or(StopReason::Lost),
            Err(_) => std::future::pending().await,
        }
    }
}

/// The first reason stays.
fn tell(sender: &watch::Sender<Option<StopReason>>, reason: StopReason) {
    sender.send_if_modified(|current| {
        let first = current.is_none();
        if first {
            *current = Some(reason);
        }
        first
    });
}

async fn beat(gateway: Gateway, sender: watch::Sender<Option<StopReason>>) {
    loop {
        match gateway.beat().await {
            Ok(answer) if answer.cancel => tell(&sender, StopReason::Cancelled),
            Err(error) if error.is_lost() => tell(&sender, StopReason::Lost),
            // A gateway that is away decides nothing: the fence does, once it is back.
            Ok(_) => {}
            Err(_) => {
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        }
        tokio::time::sleep(BEAT).await;
    }
}

async fn listen(gateway: Gateway, log: JobLog, sender: watch::Sender<Option<StopReason>>) {
    let mut watched = false;
    loop {
        match gateway.attention(watched).await {
            Ok(attention) => {
                watched = attention.watched;
                log.set_watched(attention.watched);
                if attention.cancel {
                    tell(&sender, StopReason::Cancelled);
                    return;
                }
            }
            Err(error) if error.is_lost() => {
                tell(&sender, StopReason::Lost);
                return;
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
        }
    }
}

async fn wait_for_deadline(deadline: Option<Timestamp>, sender: watch::Sender<Option<StopReason>>) {
    let Some(deadline) = deadline else { return };
    loop {
        let left = deadline.duration_since(crate::clock::now());
        // In steps: a machine that slept must not wait the whole time once more.
        match Duration::try_from(left) {
            Ok(left) if !left.is_zero() => tokio::time::sleep(left.min(Duration::from_secs(10))).await,
            _ => break,
        }
    }
    tell(&sender, StopReason::Deadline);
}
