//! The one place where this crate reads the clock.

use jiff::Timestamp;

/// Now, to the millisecond: what goes over the wire and into the store is no finer.
#[must_use]
pub fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
}
