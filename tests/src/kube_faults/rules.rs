//! Which calls meet which fault.

use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;

use super::{Call, When};

/// What happens to a call.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Nothing: for a rule that goes before another one.
    Pass,
    /// It is not carried out.
    Refuse(Refusal),
    /// One of the refusals, as the seed says.
    RefuseSomehow,
    /// It is carried out, and the connection closes without an answer.
    AnswerLost,
    /// It is not carried out, and there is no answer ever.
    BlackHole,
    /// Of a watch: this befalls it within that time, when the seed says.
    Ends(WatchEnd, Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// 409, as of a quota that is being written.
    Conflict,
    /// 429 with `Retry-After`.
    TooManyRequests,
    /// 500.
    Internal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchEnd {
    /// The connection breaks.
    Cut,
    /// It stays open, and nothing comes any more.
    Stalls,
    /// 410 Gone, as an event: what the watch stood at is forgotten.
    Expires,
}

impl Fault {
    pub(super) fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::Pass => return None,
            Self::Refuse(Refusal::Conflict) => "409",
            Self::Refuse(Refusal::TooManyRequests) => "429",
            Self::Refuse(Refusal::Internal) => "500",
            Self::RefuseSomehow => "refused",
            Self::AnswerLost => "answer lost",
            Self::BlackHole => "black hole",
            Self::Ends(WatchEnd::Cut, _) => "watch cut",
            Self::Ends(WatchEnd::Stalls, _) => "watch stalled",
            Self::Ends(WatchEnd::Expires, _) => "watch 410",
        })
    }
}

/// Which calls a rule is for; `None` is any.
#[derive(Clone, Copy, Debug, Default)]
pub struct On {
    pub agent: Option<&'static str>,
    pub verb: Option<&'static str>,
    pub resource: Option<&'static str>,
}

impl On {
    pub fn any() -> Self {
        Self::default()
    }

    pub fn verb(verb: &'static str) -> Self {
        Self { verb: Some(verb), ..Self::default() }
    }

    /// On pods, by one of ours.
    pub fn pods(agent: &'static str, verb: &'static str) -> Self {
        Self { agent: Some(agent), verb: Some(verb), resource: Some("pods") }
    }

    fn fits(&self, call: &Call) -> bool {
        self.agent.is_none_or(|agent| agent == call.agent)
            && self.verb.is_none_or(|verb| verb == call.verb)
            && self.resource.is_none_or(|resource| resource == call.resource)
    }
}

#[derive(Debug)]
pub(super) struct Rule {
    on: On,
    when: When,
    fault: Fault,
}

impl Rule {
    pub fn new(on: On, when: When, fault: Fault) -> Self {
        Self { on, when, fault }
    }

    pub fn decide(&mut self, call: &Call, random: &mut StdRng) -> Option<Fault> {
        if !self.on.fits(call) || !self.when.has_come(random) {
            return None;
        }
        Some(match self.fault {
            Fault::RefuseSomehow => {
                let all = [Refusal::Conflict, Refusal::TooManyRequests, Refusal::Internal];
                Fault::Refuse(all[random.random_range(0..all.len())])
            }
            Fault::Ends(end, within) => Fault::Ends(end, within.mul_f64(random.random_range(0.0..1.0))),
            fault => fault,
        })
    }
}
