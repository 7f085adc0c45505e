//! Webhooks: whoever asked to be told of a job's end is told, at least once.
//!
//! A delivery is taken before it is sent: its next try is written first, so that of several notifiers one sends it, and one that is killed
//! meanwhile is followed by that next try. The id of a job's delivery is always the same, so that a receiver can drop repeats.

mod flight;
mod schedule;
mod sender;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ckrv_core::job::{JobRecord, Notice};
use ckrv_core::machine::Verb;
use ckrv_core::view::view;
use ckrv_core::webhook::{JOB_ENDED, NotifyPolicy, delivery_id, signature, signing_secret};
use ckrv_core::wire::Delivery;
use ckrv_store::{StoreError, Stores, VerbError};
use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use tokio_util::sync::CancellationToken;
use url::Url;

use flight::Flight;
use schedule::{MAX_ATTEMPTS, delay};
use sender::{Answer, Lookup, Sender, SystemLookup};

pub use sender::SenderError;

use crate::metrics::{self, Metrics};

/// Due deliveries that one look takes in; more than can be under way, so that one owner's do not hide the others'.
const PAGE: usize = 1000;

#[derive(Clone, Debug)]
pub struct NotifierSettings {
    pub policy: NotifyPolicy,
    /// Certificates to trust beside the system's, PEM.
    pub ca_file: Option<PathBuf>,
    /// Where clients reach the service, for the result's URL; without it there is none.
    pub public_url: Option<Url>,
    /// [`ckrv_core::webhook::webhook_key`] of the server's key.
    pub key: SecretString,
    /// Between two looks at what is due.
    pub pace: Duration,
}

pub struct Notifier {
    stores: Stores,
    settings: NotifierSettings,
    sender: Sender,
    clock: Box<dyn Fn() -> Timestamp + Send + Sync>,
    metrics: Metrics,
}

impl std::fmt::Debug for Notifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Notifier").field("policy", &self.settings.policy).finish_non_exhaustive()
    }
}

impl Notifier {
    /// # Errors
    /// A file of certificates that can't be used.
    pub fn new(
        stores: Stores,
        settings: NotifierSettings,
        clock: impl Fn() -> Timestamp + Send + Sync + 'static,
    ) -> Result<Self, SenderError> {
        let allowed = if settings.policy.allow_private { |_: IpAddr| true } else { ckrv_core::address::is_public };
        Self::with(stores, settings, clock, Arc::new(SystemLookup), allowed)
    }

    fn with(
        stores: Stores,
        settings: NotifierSettings,
        clock: impl Fn() -> Timestamp + Send + Sync + 'static,
        lookup: Arc<dyn Lookup>,
        allowed: fn(IpAddr) -> bool,
    ) -> Result<Self, SenderError> {
        let sender = Sender::new(settings.policy, settings.ca_file.as_deref(), lookup, allowed)?;
        Ok(Self { stores, settings, sender, clock: Box::new(clock), metrics: Metrics::default() })
    }

    /// Counts deliveries there.
    #[must_use]
    pub fn counted(self, metrics: Metrics) -> Self {
        Self { metrics, ..self }
    }

    /// Runs until `shutdown`. What is under way then is sent again by the next notifier.
    pub async fn run(self, shutdown: CancellationToken) {
        let notifier = Arc::new(self);
        let mut flight = Flight::default();
        loop {
            if let Err(error) = notifier.start_due(&mut flight).await {
                notifier.metrics.store_failed(metrics::Part::Notifier);
                tracing::error!(error = ckrv_store::chain(&error), "the notifier could not reach its store; it tries again");
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(notifier.settings.pace) => {}
            }
        }
    }

    /// One look at what is due, and as many deliveries as may be under way at once.
    async fn start_due(self: &Arc<Self>, flight: &mut Flight) -> Result<(), StoreError> {
        flight.reap();
        if flight.is_full() {
            return Ok(());
        }
        for job in self.stores.jobs.to_notify((self.clock)(), PAGE).await? {
            if flight.is_full() {
                return Ok(());
            }
            if !flight.has_room_for(job.owner) {
                continue;
            }
            if let Some((job, attempt)) = self.take(&job).await? {
                let notifier = Arc::clone(self);
                flight.spawn(job.owner, async move { notifier.deliver(&job, attempt).await });
            }
        }
        Ok(())
    }

    /// Writes when the delivery is tried again, should nothing more be heard of this try; `None`: it is somebody else's, or over.
    async fn take(&self, job: &JobRecord) -> Result<Option<(JobRecord, u32)>, StoreError> {
        let Some(Notice { attempts, .. }) = job.notice else { return Ok(None) };
        let (next, note) = if attempts >= MAX_ATTEMPTS {
            (None, "given up: nothing was heard of the last delivery".to_owned())
        } else {
            let next = (self.clock)() + delay(attempts, rand::random());
            (Some(next), format!("delivery {} of {MAX_ATTEMPTS}", attempts + 1))
        };
        let taken = self.note(job, attempts, next, note).await?;
        Ok(taken.filter(|taken| taken.notice.is_some()).map(|taken| (taken, attempts + 1)))
    }

    /// The record with the note; `None`: another notifier was first.
    async fn note(
        &self,
        job: &JobRecord,
        attempts: u32,
        next: Option<Timestamp>,
        note: String,
    ) -> Result<Option<JobRecord>, StoreError> {
        match self.stores.jobs.apply(job.id, &Verb::Notified { attempts, next, note }, (self.clock)()).await {
            Ok(noted) => Ok(Some(noted)),
            Err(VerbError::Refused { .. } | VerbError::NotFound) => Ok(None),
            Err(VerbError::Store(error)) => Err(error),
        }
    }

    async fn deliver(&self, job: &JobRecord, attempt: u32) {
        let Some(url) = &job.request.notify_url else { return };
        let body = self.body(job);
        let secret = SecretString::from(signing_secret(self.settings.key.expose_secret().as_bytes(), job.owner));
        let signature = signature(secret.expose_secret(), (self.clock)().as_second(), &body);
        let answer = self.sender.post(url, body, &signature).await;
        self.metrics.webhook(match &answer {
            Answer::Delivered(_) => metrics::Delivery::Delivered,
            Answer::Failed(_) if attempt < MAX_ATTEMPTS => metrics::Delivery::Retried,
            Answer::Failed(_) | Answer::Gone => metrics::Delivery::GivenUp,
        });
        let note = match answer {
            Answer::Delivered(status) => format!("delivered: {status}"),
            Answer::Gone => "the receiver is gone for good (410): nothing more is sent".to_owned(),
            Answer::Failed(why) if attempt >= MAX_ATTEMPTS => format!("given up after {attempt} deliveries: {why}"),
            Answer::Failed(why) => {
                tracing::warn!(job = %job.id, attempt, %why, "a webhook was not delivered; it is tried again");
                return;
            }
        };
        tracing::info!(job = %job.id, attempt, %note, "a webhook is done");
        if let Err(error) = self.note(job, attempt, None, note).await {
            tracing::error!(
                job = %job.id,
                error = ckrv_store::chain(&error),
                "a delivery could not be noted; it is sent again"
            );
        }
    }

    /// The same at every try.
    fn body(&self, job: &JobRecord) -> Bytes {
        let ended = job.completed_at.unwrap_or(job.updated_at);
        let has_diff = job.artifacts.iter().any(|artifact| artifact.name == "diff");
        let base = self.settings.public_url.as_ref().filter(|_| has_diff);
        let result = base.and_then(|base| base.join(&format!("/v1/jobs/{}/artifacts/diff", job.id)).ok());
        // Notes of deliveries are changes of the record too, and none of the receiver's business.
        let job = JobRecord { updated_at: ended, ..job.clone() };
        let delivery = Delivery {
            id: delivery_id(job.id),
            kind: JOB_ENDED.to_owned(),
            job: view(job, ended, None, None, result.map(String::from)),
        };
        serde_json::to_vec(&delivery).unwrap_or_default().into()
    }
}
