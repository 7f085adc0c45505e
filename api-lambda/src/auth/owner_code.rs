//! The one-time code by which the owner proves to sit at the server: printed there, typed on the activation page.

use std::sync::{Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use secrecy::SecretString;

use crate::auth::keys;

/// After so many wrong codes in a row, [`LOCK`] passes before another is looked at.
const MAX_FAILURES: u32 = 5;
const LOCK: SignedDuration = SignedDuration::from_mins(10);

/// Holds the hash of the one code that is good now. A code is good for one approval; the next is made at once and told to the hook.
pub struct OwnerCodes {
    inner: Mutex<Inner>,
    on_new: Box<dyn Fn(SecretString) + Send + Sync>,
}

struct Inner {
    sha256: String,
    failures: u32,
    locked_until: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CodeError {
    Wrong,
    /// For so many seconds more.
    Locked(u64),
}

impl OwnerCodes {
    /// Makes the first code. `on_new` gets it and every later one, to be printed where only the owner looks.
    pub fn new(on_new: impl Fn(SecretString) + Send + Sync + 'static) -> Self {
        let (code, sha256) = fresh();
        on_new(code);
        Self { inner: Mutex::new(Inner { sha256, failures: 0, locked_until: None }), on_new: Box::new(on_new) }
    }

    /// Whether codes are looked at just now.
    pub(crate) fn check_lock(&self, now: Timestamp) -> Result<(), CodeError> {
        unlocked(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner), now)
    }

    /// Counts a wrong guess of any code on the page.
    pub(crate) fn count_failure(&self, now: Timestamp) {
        fail(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner), now);
    }

    /// Uses up a code. Whoever is second with the same code is refused.
    pub(crate) fn redeem(&self, typed: &str, now: Timestamp) -> Result<(), CodeError> {
        let next = {
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            unlocked(&mut inner, now)?;
            let typed = keys::sha256_hex(keys::normal_code(typed).as_bytes());
            if !keys::same(typed.as_bytes(), inner.sha256.as_bytes()) {
                fail(&mut inner, now);
                return Err(CodeError::Wrong);
            }
            let (code, sha256) = fresh();
            *inner = Inner { sha256, failures: 0, locked_until: None };
            code
        };
        (self.on_new)(next);
        Ok(())
    }
}

fn fresh() -> (SecretString, String) {
    let code = keys::random_owner_code();
    let sha256 = keys::sha256_hex(keys::normal_code(&code).as_bytes());
    (SecretString::from(code), sha256)
}

fn unlocked(inner: &mut Inner, now: Timestamp) -> Result<(), CodeError> {
    match inner.locked_until {
        Some(until) if now < until => {
            let left = until.duration_since(now).as_secs().max(0);
            Err(CodeError::Locked(left.unsigned_abs() + 1))
        }
        Some(_) => {
            inner.locked_until = None;
            inner.failures = 0;
            Ok(())
        }
        None => Ok(()),
    }
}

fn fail(inner: &mut Inner, now: Timestamp) {
    inner.failures += 1;
    if inner.failures >= MAX_FAILURES {
        inner.locked_until = Some(now + LOCK);
        tracing::warn!("the activation page is locked for 10 minutes after {MAX_FAILURES} wrong codes");
    }
}

impl std::fmt::Debug for OwnerCodes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnerCodes").finish_non_exhaustive()
    }
}
