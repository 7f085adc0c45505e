//! What can go wrong for a user: a kind that decides the exit code, a message, what to do about it, and the cause.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;

use serde_json::{Value, json};

/// How a command ended, when it ended without an error of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit(pub u8);

impl Exit {
    pub const OK: Self = Self(0);
}

impl From<Kind> for Exit {
    fn from(kind: Kind) -> Self {
        Self(kind.exit_code())
    }
}

/// What a command returns.
pub type Outcome = Result<Exit, CliError>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Other,
    Usage,
    NotLoggedIn,
    /// Unknown, or expired.
    NotFound,
    /// The job failed, timed out or was cancelled.
    JobFailed,
    NotFinished,
    Conflict,
    /// Quota or rate.
    Limit,
    Unreachable,
    Interrupted,
    /// Whoever read our stdout has gone: nobody is left to be told.
    ClosedPipe,
}

impl Kind {
    /// The process's exit code; part of the interface, see docs/cli.md.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Other => 1,
            Self::Usage => 2,
            Self::NotLoggedIn => 3,
            Self::NotFound => 4,
            Self::JobFailed => 5,
            Self::NotFinished => 6,
            Self::Conflict => 7,
            Self::Limit => 8,
            Self::Unreachable => 9,
            Self::Interrupted => 130,
            Self::ClosedPipe => 0,
        }
    }
}

/// An error as the user sees it. Printed once, by [`crate::ui::Ui::error`].
#[derive(Debug)]
pub struct CliError {
    pub kind: Kind,
    /// For programs, for example `job_not_found`.
    pub code: Cow<'static, str>,
    pub message: String,
    pub hint: Option<String>,
    /// Whether the same command may succeed later without a change.
    pub retryable: bool,
    /// More for programs, for example the paths in conflict.
    pub details: Option<Box<Value>>,
    pub source: Option<Box<dyn Error + Send + Sync>>,
    /// What the service calls the request: its operator finds it in the log by that.
    pub request_id: Option<Box<str>>,
}

impl CliError {
    pub fn new(kind: Kind, code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self {
            kind,
            code: code.into(),
            message: message.into(),
            hint: None,
            retryable: false,
            details: None,
            source: None,
            request_id: None,
        }
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, "usage", message)
    }

    pub fn other(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::new(Kind::Other, code, message)
    }

    /// A failure of the user's own machine: `what` says what we tried, for example ``can't read `a.md` ``.
    pub fn io(what: impl Into<String>, source: impl Error + Send + Sync + 'static) -> Self {
        Self::new(Kind::Other, "io", what).source(source)
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    #[must_use]
    pub fn retryable(mut self) -> Self {
        self.retryable = true;
        self
    }

    #[must_use]
    pub fn details(mut self, details: Value) -> Self {
        self.details = Some(Box::new(details));
        self
    }

    #[must_use]
    pub fn source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The causes, outermost first, without those whose text the message has already.
    #[must_use]
    pub fn causes(&self) -> Vec<String> {
        let mut causes = Vec::new();
        let mut next: Option<&(dyn Error + 'static)> = self.source.as_ref().map(|source| &**source as _);
        while let Some(cause) = next {
            let text = cause.to_string();
            if !self.message.contains(&text) && causes.last() != Some(&text) {
                causes.push(text);
            }
            next = cause.source();
        }
        causes
    }

    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut error = json!({
            "code": self.code, "message": self.message, "hint": self.hint, "retryable": self.retryable,
        });
        let causes = self.causes();
        if !causes.is_empty() {
            error["causes"] = json!(causes);
        }
        if let Some(id) = &self.request_id {
            error["request_id"] = json!(id);
        }
        if let Some(details) = &self.details {
            error["details"] = (**details).clone();
        }
        json!({ "error": error })
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for CliError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}
