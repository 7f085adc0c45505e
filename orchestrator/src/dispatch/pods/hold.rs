//! What refused one pod refuses the next: after a start that failed, none is tried for a while, and then a single one.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};

const SHORTEST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(60);

/// Of all starts of one dispatcher.
#[derive(Debug)]
pub(super) struct Hold {
    most: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    until: Option<Instant>,
    /// Of the failures since the last success.
    pauses: Option<ExponentialBackoff>,
    at_once: usize,
}

impl Hold {
    pub fn new(most: usize) -> Self {
        Self { most, state: Mutex::new(State { until: None, pauses: None, at_once: most }) }
    }

    pub fn is_over(&self, now: Instant) -> bool {
        self.state().is_over(now)
    }

    /// How many may be tried side by side.
    pub fn at_once(&self) -> usize {
        self.state().at_once
    }

    pub fn failed(&self, now: Instant) {
        let mut state = self.state();
        // One of those that were begun together with another that failed.
        if !state.is_over(now) {
            return;
        }
        let pause = state.pauses.get_or_insert_with(pauses).next();
        state.until = Some(now + pause.unwrap_or(LONGEST));
        state.at_once = 1;
    }

    pub fn succeeded(&self, now: Instant) {
        let mut state = self.state();
        if state.is_over(now) {
            state.pauses = None;
            state.at_once = (state.at_once + 1).min(self.most);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_over(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| now >= until)
    }
}

fn pauses() -> ExponentialBackoff {
    ExponentialBuilder::default().with_min_delay(SHORTEST).with_max_delay(LONGEST).without_max_times().build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_in_a_row_pause_longer_and_longer_and_a_success_ends_that() {
        let hold = Hold::new(16);
        let mut now = Instant::now();
        assert!(hold.is_over(now));
        for seconds in [5, 10, 20, 40, 60, 60] {
            hold.failed(now);
            // Begun together with the one that failed.
            hold.failed(now);
            hold.succeeded(now);
            assert_eq!(hold.at_once(), 1, "a single one is tried next");
            let pause = Duration::from_secs(seconds);
            assert!(!hold.is_over(now + pause - Duration::from_millis(1)) && hold.is_over(now + pause), "{seconds} s");
            now += pause;
        }
        for at_once in [2, 3, 4] {
            hold.succeeded(now);
            assert_eq!(hold.at_once(), at_once);
        }
        (0..20).for_each(|_| hold.succeeded(now));
        assert_eq!(hold.at_once(), 16);
        hold.failed(now);
        assert!(hold.is_over(now + SHORTEST), "the pauses begin anew");
    }
}
