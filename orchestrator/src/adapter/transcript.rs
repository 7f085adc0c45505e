//! Reading one run's output through an adapter, whatever the adapter does.

use ckrv_core::event::AgentEvent;
use ckrv_core::plan::{AdapterJob, ExitStatus, OutputLine, RunOutcome, Source};
use wasmtime::component::ResourceAny;

use super::bindings::ckrv::agent::types as wit;
use super::convert::event;
use super::error::AdapterError;
use super::host::Adapter;
use super::instance::Instance;

/// Lines and bytes of one call; events must not depend on it.
const BATCH_LINES: usize = 64;
const BATCH_BYTES: usize = 256 << 10;

type Events = Vec<(u32, AgentEvent)>;

/// What an adapter makes of a run. Advice: the host verifies.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    pub outcome: RunOutcome,
    pub summary: String,
    /// Events that only the end made complete, each with its line.
    pub events: Vec<(u32, AgentEvent)>,
}

/// A reader for one run. It never fails: an adapter that traps gets the output again in a fresh instance; if it traps again, lines
/// become plain messages and the verdict comes from the exit code.
pub struct Transcript {
    adapter: Adapter,
    job: AdapterJob,
    reader: Reader,
    /// What was fed, for a replay; `None` once it is too much to keep.
    fed: Option<Vec<OutputLine>>,
    fed_bytes: usize,
    /// Events that were given out; a replay gives out only later ones.
    given: usize,
    notes: Vec<String>,
}

impl std::fmt::Debug for Transcript {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transcript")
            .field("adapter", &self.adapter)
            .field("given", &self.given)
            .field("notes", &self.notes)
            .finish_non_exhaustive()
    }
}

enum Reader {
    NotStarted,
    Live(Box<Live>),
    Raw,
}

struct Live {
    instance: Instance,
    handle: ResourceAny,
    /// Traps so far: the second is the last.
    trapped: bool,
}

impl Live {
    fn start(adapter: &Adapter, job: &AdapterJob, trapped: bool) -> Result<Self, AdapterError> {
        let mut instance = adapter.instance()?;
        let job = wit::Job::from(job);
        let handle = instance
            .call("transcript", |world, store| world.ckrv_agent_adapter().transcript().call_constructor(store, &job, None))?;
        Ok(Self { instance, handle, trapped })
    }

    fn feed(&mut self, lines: &[OutputLine]) -> Result<Events, AdapterError> {
        let handle = self.handle;
        let mut events = Vec::new();
        for batch in batches(lines) {
            let batch: Vec<_> = batch.iter().map(wit::OutputLine::from).collect();
            let answer = self
                .instance
                .call("feed", |world, store| world.ckrv_agent_adapter().transcript().call_feed(store, handle, &batch))?;
            events.extend(answer?.into_iter().map(event));
        }
        Ok(events)
    }

    fn finish(&mut self, exit: &ExitStatus) -> Result<Verdict, AdapterError> {
        let (handle, exit) = (self.handle, wit::ExitStatus::from(exit));
        let answer = self
            .instance
            .call("finish", |world, store| world.ckrv_agent_adapter().transcript().call_finish(store, handle, &exit))?;
        let verdict = answer?;
        Ok(Verdict {
            outcome: verdict.outcome.into(),
            summary: verdict.summary,
            events: verdict.events.into_iter().map(event).collect(),
        })
    }
}

impl Transcript {
    pub(super) fn new(adapter: Adapter, job: AdapterJob) -> Self {
        Self { adapter, job, reader: Reader::NotStarted, fed: Some(Vec::new()), fed_bytes: 0, given: 0, notes: Vec::new() }
    }

    /// Lines in order; their events, each with the line that it came from.
    pub fn feed(&mut self, lines: &[OutputLine]) -> Vec<(u32, AgentEvent)> {
        if lines.is_empty() {
            return Vec::new();
        }
        let events = match self.try_feed(lines) {
            Ok(events) => {
                self.remember(lines);
                events
            }
            Err(error) => {
                self.remember(lines);
                self.after(&error, |live| Ok((live.feed(&[])?, None))).map_or_else(|| raw(lines), |(events, _)| events)
            }
        };
        self.given += events.len();
        events
    }

    /// The run is over. Call it once.
    pub fn finish(&mut self, exit: &ExitStatus) -> Verdict {
        let result = self.live().and_then(|live| match live {
            Some(live) => live.finish(exit).map(Some),
            None => Ok(None),
        });
        match result {
            Ok(Some(verdict)) => verdict,
            Ok(None) => by_exit_code(exit),
            Err(error) => match self.after(&error, |live| Ok((Vec::new(), Some(live.finish(exit)?)))) {
                Some((late, Some(mut verdict))) => {
                    verdict.events.splice(0..0, late);
                    verdict
                }
                _ => by_exit_code(exit),
            },
        }
    }

    /// What went wrong since the last call, for the job's log.
    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// The instance that reads, started when there is something to read; `None` where lines are taken as they are.
    fn live(&mut self) -> Result<Option<&mut Live>, AdapterError> {
        if let Reader::NotStarted = self.reader {
            self.reader = Reader::Live(Box::new(Live::start(&self.adapter, &self.job, false)?));
        }
        Ok(match &mut self.reader {
            Reader::Live(live) => Some(live),
            _ => None,
        })
    }

    fn try_feed(&mut self, lines: &[OutputLine]) -> Result<Events, AdapterError> {
        match self.live()? {
            Some(live) => live.feed(lines),
            None => Ok(raw(lines)),
        }
    }

    fn remember(&mut self, lines: &[OutputLine]) {
        self.fed_bytes += lines.iter().map(|line| line.text.len() + 32).sum::<usize>();
        if self.fed_bytes > self.adapter.limits.replay_bytes {
            self.fed = None;
        }
        if let Some(fed) = &mut self.fed {
            fed.extend_from_slice(lines);
        }
    }

    /// Once: everything again in a fresh instance, then `last`; the events that were not given out yet. `None`: no more adapter.
    fn after(
        &mut self,
        error: &AdapterError,
        last: impl FnOnce(&mut Live) -> Result<(Events, Option<Verdict>), AdapterError>,
    ) -> Option<(Events, Option<Verdict>)> {
        let before = matches!(&self.reader, Reader::Live(live) if live.trapped);
        self.reader = Reader::Raw;
        let Some(fed) = self.fed.as_ref().filter(|_| !before) else {
            self.give_up(error);
            return None;
        };
        self.notes.push(format!("{error}; its output is read again"));
        let again = Live::start(&self.adapter, &self.job, true).and_then(|mut live| {
            let mut events = live.feed(fed)?;
            let (more, verdict) = last(&mut live)?;
            events.extend(more);
            Ok((live, events, verdict))
        });
        match again {
            Ok((live, events, verdict)) => {
                self.reader = Reader::Live(Box::new(live));
                Some((events.into_iter().skip(self.given).collect(), verdict))
            }
            Err(error) => {
                self.give_up(&error);
                None
            }
        }
    }

    fn give_up(&mut self, error: &AdapterError) {
        self.fed = None;
        self.notes.push(format!("{error}; from here on the log shows raw lines, and the exit code decides"));
    }
}

fn batches(lines: &[OutputLine]) -> impl Iterator<Item = &[OutputLine]> {
    let mut rest = lines;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |line: &&OutputLine| {
            bytes += line.text.len();
            bytes <= BATCH_BYTES
        };
        // At least one, however long.
        let count = rest.iter().take(BATCH_LINES).take_while(fits).count().max(1).min(rest.len());
        let (batch, later) = rest.split_at(count);
        rest = later;
        (!batch.is_empty()).then_some(batch)
    })
}

fn raw(lines: &[OutputLine]) -> Events {
    let role = |source| match source {
        Source::Stdout => "stdout",
        Source::Stderr => "stderr",
    };
    lines
        .iter()
        .map(|line| (line.seq, AgentEvent::Message { role: role(line.source).to_owned(), text: line.text.clone() }))
        .collect()
}

fn by_exit_code(exit: &ExitStatus) -> Verdict {
    let (outcome, summary) = match exit {
        ExitStatus::Code(0) => {
            (RunOutcome::Success, "the agent ended with exit code 0; its adapter could not read its output".to_owned())
        }
        other => {
            let reason = match other {
                ExitStatus::Code(code) => format!("the agent ended with exit code {code}"),
                ExitStatus::Signal(signal) => format!("the agent was killed by signal {signal}"),
                ExitStatus::OomKilled => "the agent ran out of memory".to_owned(),
                ExitStatus::Deadline => "the time limit passed".to_owned(),
                ExitStatus::Evicted => "the machine took the agent's place away".to_owned(),
                ExitStatus::Other(why) => format!("the agent was stopped: {why}"),
            };
            (RunOutcome::Failure(reason.clone()), reason)
        }
    };
    Verdict { outcome, summary, events: Vec::new() }
}
