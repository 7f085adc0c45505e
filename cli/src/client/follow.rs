//! A job's log as it grows: server-sent events, taken up again wherever a connection broke.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use ckrv_core::id::JobId;
use ckrv_core::log::{Cursor, LogEntry};
use eventsource_stream::{Event, Eventsource as _};
use futures::StreamExt as _;
use reqwest::Method;

use super::Client;
use crate::error::{CliError, Kind};

/// Pause before asking for the next batch, where the service names none.
const PAUSE: Duration = Duration::from_millis(500);

/// A place in the log that moves on with every entry.
#[derive(Debug)]
pub struct Follow<'a> {
    client: &'a Client,
    id: JobId,
    pub after: Option<Cursor>,
}

impl<'a> Follow<'a> {
    #[must_use]
    pub fn new(client: &'a Client, id: JobId, after: Option<Cursor>) -> Self {
        Self { client, id, after }
    }

    /// Hands out every entry once, in order, until the log is complete.
    ///
    /// # Errors
    /// What `show` says; a job that is unknown or expired; a service that stays away for about a minute.
    pub async fn run(&mut self, mut show: impl FnMut(LogEntry) -> Result<(), CliError>) -> Result<(), CliError> {
        let policy = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(200))
            .with_max_delay(Duration::from_secs(10))
            .with_max_times(10)
            .with_jitter();
        let mut pauses = policy.build();
        loop {
            let before = self.after;
            match self.connection(&mut show).await {
                Ok(Ended::Done) => return Ok(()),
                Ok(Ended::Batch(pause)) => {
                    pauses = policy.build();
                    tokio::time::sleep(pause).await;
                }
                Err(Broken::ForGood(error)) => return Err(error),
                Err(Broken::ForNow(error)) => {
                    if self.after != before {
                        pauses = policy.build();
                    }
                    tracing::debug!(%error, "The log's connection broke");
                    let Some(pause) = pauses.next() else { return Err(self.given_up(error)) };
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    async fn connection(&mut self, show: &mut impl FnMut(LogEntry) -> Result<(), CliError>) -> Result<Ended, Broken> {
        let path = format!("v1/jobs/{}/logs", self.id);
        let after = self.after.map(|after| after.to_string());
        let request = || {
            let request = self.client.request_with(Method::GET, &path, &[("follow", "true")])?;
            let request = request.header("Accept", "text/event-stream").header("Ckrv-Follow", "batch");
            Ok(match &after {
                Some(after) => request.header("Last-Event-ID", after),
                None => request,
            })
        };
        let response = self.client.send(request, true).await.map_err(|error| match error.kind {
            Kind::Unreachable | Kind::Limit => Broken::ForNow(error),
            _ => Broken::ForGood(error),
        })?;
        let mut events = response.bytes_stream().eventsource();
        let mut pause = PAUSE;
        while let Some(event) = events.next().await {
            let event = event.map_err(|error| Broken::ForNow(CliError::io("the log's connection broke", error)))?;
            pause = event.retry.unwrap_or(pause);
            if event.data == "[DONE]" {
                return Ok(Ended::Done);
            }
            self.take(&event, show)?;
        }
        Ok(Ended::Batch(pause))
    }

    fn take(&mut self, event: &Event, show: &mut impl FnMut(LogEntry) -> Result<(), CliError>) -> Result<(), Broken> {
        let entry: LogEntry = serde_json::from_str(&event.data)
            .map_err(|error| Broken::ForNow(CliError::io("the log contains something that is no log entry", error)))?;
        let cursor = if entry.seq > 0 { Some(entry.cursor()) } else { event.id.parse().ok() };
        if cursor.is_some() && cursor <= self.after {
            return Ok(());
        }
        show(entry).map_err(Broken::ForGood)?;
        self.after = cursor.or(self.after);
        Ok(())
    }

    fn given_up(&self, error: CliError) -> CliError {
        let resume = self.after.map(|after| format!(" --after {after}")).unwrap_or_default();
        CliError::new(Kind::Unreachable, "log_lost", "the connection to the log was lost and does not come back")
            .hint(format!("the job goes on without us; look again with `ckrv logs -f {}{resume}`", self.id))
            .retryable()
            .source(error)
    }
}

enum Ended {
    Done,
    /// The reply ended in good order, with more to come.
    Batch(Duration),
}

enum Broken {
    ForNow(CliError),
    ForGood(CliError),
}
