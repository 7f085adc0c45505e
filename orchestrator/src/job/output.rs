//! Output: raw frames become lines, lines become events by the adapter, events become log entries and usage.

use std::io::Write;

use ckrv_core::event::{AgentEvent, Usage};
use ckrv_core::log::Level;
use ckrv_core::plan::{self, OutputLine};
use tokio::sync::mpsc;

use super::failure::Failure;
use super::log::JobLog;
use super::plan::blocking;
use crate::adapter::Transcript;
use crate::launch::{self, LineSplitter};

/// Lines that an adapter gets at once.
const BATCH_LINES: usize = 64;
const BATCH_BYTES: usize = 256 * 1024;
/// Of the transcript of all runs together: it is sent to the gateway in one piece.
const MAX_TRANSCRIPT: u64 = 64 * 1024 * 1024;

/// Reads one run's output.
pub struct Reader {
    pub log: JobLog,
    pub file: std::fs::File,
    pub usage: Usage,
    pub max_cost: Option<u64>,
    pub over: tokio::sync::watch::Sender<bool>,
    pub session: Option<String>,
    /// The agent has said how its run ended: whatever it cost, there is nothing left to stop.
    pub has_result: bool,
}

/// What was read.
pub struct Read {
    pub transcript: Transcript,
    pub usage: Usage,
    pub session: Option<String>,
}

impl Reader {
    pub async fn read(
        mut self,
        mut transcript: Transcript,
        mut frames: mpsc::Receiver<launch::OutputFrame>,
    ) -> Result<Read, Failure> {
        let mut splitter = LineSplitter::default();
        let mut seq = 0;
        while let Some(frame) = frames.recv().await {
            let mut lines = numbered(splitter.push(&frame), &mut seq);
            let mut bytes: usize = lines.iter().map(|line| line.text.len()).sum();
            // What has come meanwhile goes with it; nothing is waited for.
            while lines.len() < BATCH_LINES && bytes < BATCH_BYTES {
                let Ok(frame) = frames.try_recv() else { break };
                let more = numbered(splitter.push(&frame), &mut seq);
                bytes += more.iter().map(|line| line.text.len()).sum::<usize>();
                lines.extend(more);
            }
            transcript = self.batch(transcript, lines).await?;
            self.log.room().await;
        }
        let last = numbered(splitter.finish(), &mut seq);
        transcript = self.batch(transcript, last).await?;
        Ok(Read { transcript, usage: self.usage, session: self.session })
    }

    async fn batch(&mut self, mut transcript: Transcript, lines: Vec<OutputLine>) -> Result<Transcript, Failure> {
        if lines.is_empty() {
            return Ok(transcript);
        }
        self.record(&lines);
        let fed = lines.clone();
        let (transcript, events) = blocking(move || {
            let events = transcript.feed(&fed);
            Ok((transcript, events))
        })
        .await?;
        let mut transcript = transcript;
        for note in transcript.take_notes() {
            self.log.warn("adapter", note);
        }
        for line in lines.iter().filter(|line| line.source == plan::Source::Stderr) {
            if !events.iter().any(|(seq, _)| *seq == line.seq) {
                self.log.write(Level::Warn, "agent.stderr", &line.text, None);
            }
        }
        for (_, event) in events {
            add_usage(&mut self.usage, &event);
            if let AgentEvent::RunResult { session_id, .. } = &event {
                self.has_result = true;
                self.session = session_id.clone().or(self.session.take());
            }
            write_event(&self.log, event);
        }
        if !self.has_result && over_limit(&self.usage, self.max_cost) {
            self.over.send_replace(true);
        }
        Ok(transcript)
    }

    /// The raw lines, masked, for the transcript.
    fn record(&mut self, lines: &[OutputLine]) {
        let written = |file: &std::fs::File| file.metadata().map_or(0, |about| about.len());
        if written(&self.file) >= MAX_TRANSCRIPT {
            return;
        }
        let needles = self.log.needles();
        for line in lines {
            let line = OutputLine { text: needles.mask(&line.text), ..line.clone() };
            if let Ok(mut json) = serde_json::to_vec(&line) {
                json.push(b'\n');
                // Left out of the artifact when the disk is full; the log tells the story too.
                let _ = self.file.write_all(&json);
            }
        }
        if written(&self.file) >= MAX_TRANSCRIPT {
            let limit = MAX_TRANSCRIPT >> 20;
            self.log.warn("ckrv", format!("the transcript reached its limit of {limit} MiB; what follows is left out of it"));
        }
    }
}

/// Whether the agents of a job have cost more than it may.
pub fn over_limit(usage: &Usage, max_cost: Option<u64>) -> bool {
    max_cost.zip(usage.cost_micro_usd).is_some_and(|(max, cost)| cost > max)
}

fn numbered(lines: Vec<launch::Line>, seq: &mut u32) -> Vec<OutputLine> {
    lines
        .into_iter()
        .map(|line| {
            *seq += 1;
            let source = if line.source == launch::Source::Stdout { plan::Source::Stdout } else { plan::Source::Stderr };
            OutputLine { seq: *seq, source, text: line.text, truncated: line.truncated }
        })
        .collect()
}

pub fn add_usage(usage: &mut Usage, event: &AgentEvent) {
    if let AgentEvent::Usage(delta) = event {
        usage.add(delta);
    }
}

/// An event as a line that people can read.
pub fn write_event(log: &JobLog, event: AgentEvent) {
    let (level, message) = match &event {
        AgentEvent::Message { text, .. } => (Level::Info, text.clone()),
        AgentEvent::ToolCall { name, input, .. } => (Level::Info, format!("{name} {}", brief(&input.to_string()))),
        AgentEvent::ToolResult { is_error, output, .. } => (if *is_error { Level::Warn } else { Level::Debug }, brief(output)),
        AgentEvent::Usage(usage) => (
            Level::Debug,
            format!(
                "usage: {} tokens in, {} out",
                usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens,
                usage.output_tokens
            ),
        ),
        AgentEvent::RunResult { text, is_error, .. } => (if *is_error { Level::Error } else { Level::Info }, text.clone()),
        AgentEvent::Other { kind, data } => (Level::Debug, format!("{kind} {}", brief(&data.to_string()))),
    };
    let text = if message.is_empty() { "(no text)" } else { message.as_str() };
    // A result that says nothing is a matter for programs only.
    let level = if message.is_empty() { Level::Debug } else { level };
    log.write(level, "agent", text, Some(event));
}

fn brief(text: &str) -> String {
    const MOST: usize = 400;
    if text.len() <= MOST { text.to_owned() } else { format!("{} [...]", &text[..text.floor_char_boundary(MOST)]) }
}

#[cfg(test)]
mod tests {
    use ckrv_core::id::Fence;

    use super::*;

    #[test]
    fn a_transcript_ends_at_its_limit_and_the_log_says_so_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("transcript.ndjson");
        let log = JobLog::new(Fence(1), &folder.path().join("log.ndjson")).unwrap();
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&path).unwrap();
        // As if all but a line's worth had been written; no disk holds it.
        file.set_len(MAX_TRANSCRIPT - 10).unwrap();
        let (over, usage) = (tokio::sync::watch::channel(false).0, Usage::default());
        let mut reader = Reader { log, file, usage, max_cost: None, over, session: None, has_result: false };
        let line = |text: &str| OutputLine { seq: 1, source: plan::Source::Stdout, text: text.to_owned(), truncated: false };
        reader.record(&[line("the last that fits")]);
        let length = std::fs::metadata(&path).unwrap().len();
        assert!(length > MAX_TRANSCRIPT && length < MAX_TRANSCRIPT + 1024, "{length}");
        for _ in 0..3 {
            reader.record(&[line("more")]);
        }
        assert_eq!(std::fs::metadata(&path).unwrap().len(), length);
        let said = std::fs::read_to_string(folder.path().join("log.ndjson")).unwrap();
        assert_eq!(said.matches("its limit of 64 MiB").count(), 1, "{said}");
    }
}
