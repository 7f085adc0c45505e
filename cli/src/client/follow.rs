//! A job's log as it grows: server-sent events, taken up again wherever a connection broke.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use ckrv_core::id::JobId;
use ckrv_core::log::{Cursor, LogEntry};
use eventsource_stream::{Event, Eventsource as _};
use futures::{StreamExt as _, TryStreamExt as _};
use reqwest::Method;

use super::Client;
use crate::error::{CliError, Kind};

/// Pause before asking for the next batch, where the service names none.
const PAUSE: Duration = Duration::from_millis(500);
/// However long it asks for.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

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
        let tail = Mutex::new(Tail::default());
        let bytes = response.bytes_stream().inspect_ok(|bytes| tail.lock().unwrap_or_else(PoisonError::into_inner).push(bytes));
        let mut events = bytes.eventsource();
        while let Some(event) = events.next().await {
            let event = event.map_err(|error| Broken::ForNow(CliError::io("the log's connection broke", error)))?;
            if event.data == "[DONE]" {
                return Ok(Ended::Done);
            }
            self.take(&event, show)?;
        }
        let pause = tail.lock().unwrap_or_else(PoisonError::into_inner).pause();
        Ok(Ended::Batch(pause.unwrap_or(PAUSE)))
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

/// The end of a reply, where a batch says by `retry:` when the next may be asked for. The parser doesn't hand out what has no data.
#[derive(Default)]
struct Tail(Vec<u8>);

impl Tail {
    const KEPT: usize = 64;

    fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        let excess = self.0.len().saturating_sub(Self::KEPT);
        self.0.drain(..excess);
    }

    fn pause(&self) -> Option<Duration> {
        let text = String::from_utf8_lossy(&self.0);
        let (before, line) = text.trim_end().rsplit_once('\n').unwrap_or(("", text.trim_end()));
        // Without a line before it, it may be the middle of one.
        if before.is_empty() && self.0.len() == Self::KEPT {
            return None;
        }
        let milliseconds = line.strip_prefix("retry:")?.trim().parse().ok()?;
        Some(Duration::from_millis(milliseconds).min(LONGEST_PAUSE))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn pause(chunks: &[&str]) -> Option<u128> {
        let mut tail = Tail::default();
        chunks.iter().for_each(|chunk| tail.push(chunk.as_bytes()));
        tail.pause().map(|pause| pause.as_millis())
    }

    #[test]
    fn a_batch_says_at_its_end_when_to_come_back() {
        let long = format!("id: 1.1\ndata: {{\"message\":\"{}\"}}\n\n", "x".repeat(100));
        assert_eq!(pause(&["retry: 700\n\n"]), Some(700));
        assert_eq!(pause(&[&long, "retry: 0\n\n"]), Some(0));
        assert_eq!(pause(&[&long, "ret", "ry: 12", "5\n\n"]), Some(125));
        assert_eq!(pause(&["retry: 99999999\n\n"]), Some(30_000));
        assert_eq!(pause(&[&long]), None);
        assert_eq!(pause(&[]), None);
        // What an agent says is no word of the service.
        assert_eq!(pause(&[&format!("data: {}retry: 5", "x".repeat(64 - 8))]), None);
        assert_eq!(pause(&["data: retry: 5\n\n"]), None);
    }
}
