//! When a delivery is tried again: after some seconds at first, after hours in the end, for about a day.

use jiff::SignedDuration;

pub const MAX_ATTEMPTS: u32 = 12;
const FIRST_SECONDS: u32 = 10;
const LONGEST_SECONDS: u32 = 6 * 3600;

/// How long after try number `attempt` (the first is 0) the next one comes. `random`, 0 to 1, spreads what failed at the same moment.
pub fn delay(attempt: u32, random: f64) -> SignedDuration {
    let seconds = FIRST_SECONDS.saturating_mul(3_u32.saturating_pow(attempt)).min(LONGEST_SECONDS);
    SignedDuration::from_millis((f64::from(seconds) * 1000.0 * (0.5 + random.clamp(0.0, 1.0) / 2.0)) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tries_go_on_for_about_a_day() {
        assert_eq!((delay(0, 0.0), delay(0, 1.0)), (SignedDuration::from_secs(5), SignedDuration::from_secs(10)));
        assert_eq!(delay(1, 1.0), SignedDuration::from_secs(30));
        assert_eq!(delay(40, 1.0), SignedDuration::from_hours(6));
        let all = |random| (0..MAX_ATTEMPTS - 1).map(|attempt| delay(attempt, random)).sum::<SignedDuration>();
        assert!(all(0.0) > SignedDuration::from_hours(12), "{:?}", all(0.0));
        assert!(all(1.0) < SignedDuration::from_hours(28), "{:?}", all(1.0));
    }
}
