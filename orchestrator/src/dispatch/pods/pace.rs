//! A bounded rate: a client of Kubernetes has no such limit of its own.

use std::time::Duration;

use tokio::time::Instant;

/// A token bucket that holds one second's worth.
#[derive(Debug)]
pub(super) struct Pace {
    per_second: f64,
    state: tokio::sync::Mutex<(f64, Instant)>,
}

impl Pace {
    pub fn new(per_second: u32) -> Self {
        let per_second = f64::from(per_second.max(1));
        Self { per_second, state: tokio::sync::Mutex::new((per_second, Instant::now())) }
    }

    /// Waits for one's turn; those who wait are served in order.
    pub async fn take(&self) {
        let mut state = self.state.lock().await;
        loop {
            let (left, at) = *state;
            let now = Instant::now();
            let left = (left + now.duration_since(at).as_secs_f64() * self.per_second).min(self.per_second);
            *state = (left, now);
            if left >= 1.0 {
                state.0 -= 1.0;
                return;
            }
            tokio::time::sleep(Duration::from_secs_f64((1.0 - left) / self.per_second)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn no_more_than_a_second_s_worth_at_once_and_then_one_by_one() {
        let pace = Pace::new(50);
        let begin = Instant::now();
        for _ in 0..50 {
            pace.take().await;
        }
        assert_eq!(begin.elapsed(), Duration::ZERO, "the bucket was full");
        for _ in 0..100 {
            pace.take().await;
        }
        let took = begin.elapsed();
        assert!(took >= Duration::from_secs(2) && took < Duration::from_millis(2_500), "of simulated time: {took:?}");
    }
}
