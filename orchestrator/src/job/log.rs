//! The job runner's log: numbered without a gap, masked, kept until the gateway has taken it, and held back when the gateway is too slow.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ckrv_core::event::AgentEvent;
use ckrv_core::id::Fence;
use ckrv_core::log::{Cursor, Level, LogEntry};
use ckrv_core::mask::Needles;
use ckrv_core::tree::display_path;
use tokio::sync::Notify;

use crate::gateway::{Denial, Gateway, GatewayError};
use crate::settings::LogPace;

/// Longest message of one entry; the transcript has the whole line.
const MAX_MESSAGE: usize = 16 * 1024;
/// What may wait for the gateway before the agent's output is held back.
const MAX_WAITING: usize = 8 * 1024 * 1024;
/// A job's whole log; what an agent says after that is only counted.
const MAX_LOG: usize = 64 * 1024 * 1024;
/// For what there is to be said of it.
const RESERVED: usize = 1024 * 1024;
const MAX_BATCH: usize = 256;

#[derive(Clone)]
pub struct JobLog(Arc<Inner>);

struct Inner {
    fence: Fence,
    state: Mutex<Waiting>,
    news: Notify,
    taken: Notify,
    watched: AtomicBool,
    /// Somebody waits for everything to be stored.
    flushing: AtomicBool,
}

struct Waiting {
    next: u64,
    /// Each with its size.
    entries: VecDeque<(LogEntry, usize)>,
    bytes: usize,
    total: usize,
    dropped: u64,
    /// Something was dropped, and that was said.
    full: bool,
    /// The gateway takes nothing more: the attempt is over.
    closed: bool,
    needles: Needles,
    file: File,
}

impl std::fmt::Debug for JobLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JobLog").field("fence", &self.0.fence).finish_non_exhaustive()
    }
}

impl JobLog {
    /// A log that is also written to `path`, for the artifact.
    ///
    /// # Errors
    /// When the file can't be made.
    pub fn new(fence: Fence, path: &Path) -> std::io::Result<Self> {
        let file = File::create(path)?;
        let state = Waiting {
            next: 1,
            entries: VecDeque::new(),
            bytes: 0,
            total: 0,
            dropped: 0,
            full: false,
            closed: false,
            needles: Needles::default(),
            file,
        };
        Ok(Self(Arc::new(Inner {
            fence,
            state: Mutex::new(state),
            news: Notify::new(),
            taken: Notify::new(),
            watched: AtomicBool::new(false),
            flushing: AtomicBool::new(false),
        })))
    }

    fn state(&self) -> MutexGuard<'_, Waiting> {
        self.0.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// From now on this secret is masked.
    pub fn hide(&self, secret: &str) {
        self.state().needles.add(secret);
    }

    pub fn needles(&self) -> Needles {
        self.state().needles.clone()
    }

    pub fn info(&self, source: &str, message: impl AsRef<str>) {
        self.write(Level::Info, source, message.as_ref(), None);
    }

    pub fn warn(&self, source: &str, message: impl AsRef<str>) {
        self.write(Level::Warn, source, message.as_ref(), None);
    }

    pub fn error(&self, source: &str, message: impl AsRef<str>) {
        self.write(Level::Error, source, message.as_ref(), None);
    }

    pub fn write(&self, level: Level, source: &str, message: &str, event: Option<AgentEvent>) {
        let mut state = self.state();
        let mut message = state.needles.mask(message);
        if message.len() > MAX_MESSAGE {
            let cut = message.floor_char_boundary(MAX_MESSAGE);
            message.truncate(cut);
            message.push_str(" [cut]");
        }
        let event = event.map(|event| masked_event(event, &state.needles));
        let size =
            message.len() + 160 + event.as_ref().map_or(0, |event| serde_json::to_string(event).map_or(0, |json| json.len()));
        let most = if is_output(source, level) { MAX_LOG } else { MAX_LOG + RESERVED };
        if state.total + size > most {
            state.dropped += 1;
            let said = std::mem::replace(&mut state.full, true);
            drop(state);
            if !said {
                self.warn("ckrv", format!("the log has reached its limit of {} MiB: what follows is left out", MAX_LOG >> 20));
            }
            return;
        }
        let entry = LogEntry {
            timestamp: crate::clock::now(),
            level,
            source: source.to_owned(),
            message,
            fence: self.0.fence,
            seq: state.next,
            event,
        };
        state.next += 1;
        state.bytes += size;
        state.total += size;
        if let Ok(mut line) = serde_json::to_vec(&entry) {
            line.push(b'\n');
            // The artifact is a convenience; the entries themselves go to the gateway.
            let _ = state.file.write_all(&line);
        }
        state.entries.push_back((entry, size));
        drop(state);
        self.0.news.notify_one();
    }

    pub fn set_watched(&self, watched: bool) {
        self.0.watched.store(watched, Ordering::Relaxed);
        self.0.news.notify_one();
    }

    /// Waits until the gateway has taken enough: an agent that writes faster than its log is stored is slowed down, not cut.
    pub async fn room(&self) {
        loop {
            let taken = self.0.taken.notified();
            {
                let state = self.state();
                if state.closed || state.bytes < MAX_WAITING {
                    return;
                }
            }
            taken.await;
        }
    }

    /// Waits until everything is stored and gives the last entry's place.
    pub async fn flush(&self) -> Cursor {
        let dropped = {
            let mut state = self.state();
            state.total = state.total.min(MAX_LOG);
            std::mem::take(&mut state.dropped)
        };
        if dropped > 0 {
            self.warn("ckrv", format!("{dropped} entries beyond the log's limit of {} MiB were left out", MAX_LOG >> 20));
        }
        self.0.flushing.store(true, Ordering::Relaxed);
        self.0.news.notify_one();
        loop {
            let taken = self.0.taken.notified();
            {
                let state = self.state();
                if state.closed || state.entries.is_empty() {
                    self.0.flushing.store(false, Ordering::Relaxed);
                    return Cursor { fence: self.0.fence, seq: state.next - 1 };
                }
            }
            self.0.news.notify_one();
            tokio::select! {
                () = taken => {}
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
        }
    }

    /// Sends entries until the log is closed. One task for the life of the job runner.
    pub async fn ship(self, gateway: Gateway, pace: LogPace) {
        const RETRY: Duration = Duration::from_millis(50);
        let mut pause = RETRY;
        loop {
            let batch: Vec<LogEntry> = self.state().entries.iter().take(MAX_BATCH).map(|(entry, _)| entry.clone()).collect();
            if batch.is_empty() {
                self.0.news.notified().await;
                if self.state().entries.len() < MAX_BATCH {
                    self.gather(pace).await;
                }
                continue;
            }
            match gateway.log(&batch).await {
                Ok(()) => {
                    pause = RETRY;
                    self.take(batch.last().map_or(0, |entry| entry.seq));
                }
                Err(GatewayError::Denied(Denial::LogGap(expected))) => {
                    // What was stored is told once more by the store itself; entries before it are safe there.
                    self.take(expected.saturating_sub(1));
                }
                Err(error) if error.is_lost() => {
                    self.state().closed = true;
                    self.0.taken.notify_waiters();
                    return;
                }
                Err(_) => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
            }
        }
    }

    /// Lets a few more entries come together; shorter while somebody watches or waits for the end.
    async fn gather(&self, pace: LogPace) {
        let start = tokio::time::Instant::now();
        while !self.0.flushing.load(Ordering::Relaxed) {
            let pause = if self.0.watched.load(Ordering::Relaxed) { pace.watched } else { pace.unwatched };
            let pause = Duration::from_millis(pause);
            // Each notice may be a follower, a flush, or only more entries.
            let told = tokio::time::timeout_at(start + pause, self.0.news.notified()).await;
            if told.is_err() || self.state().entries.len() >= MAX_BATCH {
                return;
            }
        }
    }

    fn take(&self, through: u64) {
        let mut state = self.state();
        while state.entries.front().is_some_and(|(entry, _)| entry.seq <= through) {
            if let Some((_, size)) = state.entries.pop_front() {
                state.bytes -= size;
            }
        }
        drop(state);
        self.0.taken.notify_waiters();
    }
}

/// Whether an entry is what a command said, of which there may be any amount, and not what we say of it.
fn is_output(source: &str, level: Level) -> bool {
    source.starts_with("agent") || (level < Level::Warn && matches!(source, "setup" | "verify"))
}

fn masked_event(event: AgentEvent, needles: &Needles) -> AgentEvent {
    if needles.is_empty() {
        return event;
    }
    let Ok(json) = serde_json::to_string(&event) else { return event };
    if needles.find(json.as_bytes()).is_none() {
        return event;
    }
    serde_json::from_str(&needles.mask(&json))
        .unwrap_or(AgentEvent::Other { kind: "ckrv/masked".to_owned(), data: serde_json::Value::Null })
}

/// Names for the log: at most ten, then a count.
pub fn names<'a>(paths: impl IntoIterator<Item = &'a [u8]>) -> String {
    let all: Vec<String> = paths.into_iter().map(display_path).collect();
    let shown = all.iter().take(10).cloned().collect::<Vec<_>>().join(", ");
    if all.len() > 10 { format!("{shown} and {} more", all.len() - 10) } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_cannot_write_beyond_the_limit_on_stderr_either_and_what_we_say_still_has_room() {
        let folder = tempfile::tempdir().unwrap();
        let log = JobLog::new(Fence(1), &folder.path().join("log")).unwrap();
        let line = "x".repeat(MAX_MESSAGE);
        for _ in 0..2 * MAX_LOG / MAX_MESSAGE / 2 {
            log.write(Level::Warn, "agent.stderr", &line, None);
            log.write(Level::Info, "verify", &line, None);
        }
        log.info("ckrv", "succeeded");
        let state = log.state();
        assert!(state.total <= MAX_LOG + RESERVED && state.dropped > 4000, "{} bytes, {} dropped", state.total, state.dropped);
        let last: Vec<_> = state.entries.iter().rev().take(2).map(|(entry, _)| entry.message.as_str()).collect();
        assert_eq!(last, ["succeeded", "the log has reached its limit of 64 MiB: what follows is left out"]);
        let written = std::fs::metadata(folder.path().join("log")).unwrap().len();
        assert!(written <= (MAX_LOG + RESERVED) as u64, "{written} bytes in the file");
    }
}
