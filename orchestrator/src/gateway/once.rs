//! "Once" for secrets means: once for each fence and caller's nonce, and the same question may be repeated for a minute, because an answer can
//! be lost on its way.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use ckrv_core::id::{Fence, JobId};

const REPEATABLE: Duration = Duration::from_secs(60);
/// Entries of attempts that ended long ago are dropped beyond this number.
const MOST: usize = 10_000;

/// One secret of one attempt.
type Asked = (JobId, Fence, String);
/// Who asked first, and when.
type First = (String, Instant);

#[derive(Debug, Default)]
pub struct Once(Mutex<HashMap<Asked, First>>);

impl Once {
    /// Whether this caller may have the secret now.
    pub fn allow(&self, job: JobId, fence: Fence, what: &str, nonce: &str) -> bool {
        let now = Instant::now();
        let mut seen = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if seen.len() >= MOST {
            seen.retain(|_, (_, at)| now.duration_since(*at) < Duration::from_secs(24 * 3600));
        }
        let (first_nonce, at) = seen.entry((job, fence, what.to_owned())).or_insert_with(|| (nonce.to_owned(), now));
        first_nonce == nonce && now.duration_since(*at) <= REPEATABLE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_given_again_to_the_same_question_only() {
        let once = Once::default();
        let job: JobId = "01900000-0000-7000-8000-000000000001".parse().unwrap();
        assert!(once.allow(job, Fence(1), "git", "a"));
        assert!(once.allow(job, Fence(1), "git", "a"), "the answer may have been lost");
        assert!(!once.allow(job, Fence(1), "git", "b"), "another caller");
        assert!(once.allow(job, Fence(2), "git", "b"), "the next attempt");
    }
}
