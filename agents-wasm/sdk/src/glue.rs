//! Between the generated traits and the SDK's.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::Once;

use crate::bindings::exports::ckrv::agent::adapter::{Guest, GuestTranscript};
use crate::{
    Adapter, ContainerSpec, Decision, Descriptor, Error, Event, Events, ExitStatus, Job, OutputLine, PastRun, Transcript, Verdict,
};

/// The component's exports, for one adapter.
#[derive(Debug)]
pub struct Exported<A>(PhantomData<A>);

/// The `transcript` resource, for one adapter.
#[derive(Debug)]
pub struct ExportedTranscript<T>(RefCell<Option<T>>);

/// A panic ends in a trap without a word; this says the word before.
fn explain_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|info| crate::log::write(crate::log::Level::Error, &info.to_string())));
    });
}

impl<A: Adapter> Guest for Exported<A> {
    type Transcript = ExportedTranscript<A::Transcript>;

    fn describe() -> Descriptor {
        explain_panics();
        A::describe()
    }

    fn validate_config() -> Result<(), Error> {
        explain_panics();
        A::validate_config()
    }

    fn plan(job: Job) -> Result<ContainerSpec, Error> {
        explain_panics();
        A::plan(&job)
    }

    fn next(job: Job, history: Vec<PastRun>) -> Result<Decision, Error> {
        explain_panics();
        A::next(&job, &history)
    }
}

impl<T: Transcript> GuestTranscript for ExportedTranscript<T> {
    fn new(job: Job, checkpoint: Option<Vec<u8>>) -> Self {
        explain_panics();
        Self(RefCell::new(Some(T::start(job, checkpoint))))
    }

    fn feed(&self, lines: Vec<OutputLine>) -> Result<Vec<Event>, Error> {
        let mut guard = self.0.borrow_mut();
        let transcript = guard.as_mut().ok_or_else(|| Error::Internal("a line after the end".into()))?;
        let mut events = Events::default();
        for line in lines {
            events.at(line.seq);
            transcript.line(line, &mut events);
        }
        Ok(events.into_vec())
    }

    fn save(&self) -> Option<Vec<u8>> {
        self.0.borrow().as_ref().and_then(Transcript::save)
    }

    fn finish(&self, exit: ExitStatus) -> Result<Verdict, Error> {
        let mut transcript = self.0.borrow_mut().take().ok_or_else(|| Error::Internal("the end came twice".into()))?;
        let mut events = Events::default();
        let (outcome, summary) = transcript.finish(&exit, &mut events);
        Ok(Verdict { outcome, summary, events: events.into_vec() })
    }
}
