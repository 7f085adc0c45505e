//! A bounded rate: a client of Kubernetes has no such limit of its own.

use std::time::{Duration, Instant};

/// Waits for one's turn; those who wait are served in order.
#[derive(Debug)]
pub(super) struct Pace(tokio::sync::Mutex<Bucket>);

impl Pace {
    pub fn new(per_second: u32) -> Self {
        Self(tokio::sync::Mutex::new(Bucket::new(per_second, Instant::now())))
    }

    pub async fn take(&self) {
        let mut bucket = self.0.lock().await;
        while let Err(wait) = bucket.take(Instant::now()) {
            tokio::time::sleep(wait).await;
        }
    }
}

/// Holds one second's worth.
#[derive(Debug)]
struct Bucket {
    per_second: f64,
    left: f64,
    at: Instant,
}

impl Bucket {
    fn new(per_second: u32, at: Instant) -> Self {
        let per_second = f64::from(per_second.max(1));
        Self { per_second, left: per_second, at }
    }

    /// Takes one, or says how long until there is one.
    fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let come = now.saturating_duration_since(self.at).as_secs_f64() * self.per_second;
        (self.left, self.at) = ((self.left + come).min(self.per_second), now);
        if self.left < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - self.left) / self.per_second));
        }
        self.left -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seconds_worth_at_once_and_then_one_by_one() {
        let begin = Instant::now();
        let mut bucket = Bucket::new(50, begin);
        assert!((0..50).all(|_| bucket.take(begin).is_ok()), "the bucket was full");
        let (mut now, mut taken) = (begin, 0);
        while taken < 100 {
            match bucket.take(now) {
                Ok(()) => taken += 1,
                Err(wait) => now += wait,
            }
        }
        let took = now.duration_since(begin).as_secs_f64();
        assert!((1.9..2.1).contains(&took), "100 more at 50 a second: {took}");
        let later = now + Duration::from_secs(3600);
        assert_eq!((0..99).filter(|_| bucket.take(later).is_ok()).count(), 50, "it holds no more than a second's worth");
    }
}
