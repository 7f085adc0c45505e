//! Log entries and the cursor that orders them.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::event::AgentEvent;
use crate::id::Fence;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

/// One line of a job's log. `source` says who spoke: `ckrv`, `git`, `agent`, `agent.stderr`, `setup`, `verify`, `adapter`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LogEntry {
    #[schema(value_type = String, format = DateTime)]
    pub timestamp: Timestamp,
    pub level: Level,
    pub source: String,
    pub message: String,
    /// Where the entry stands: the attempt's fence, and a number that counts from 1 without a gap within that fence.
    #[serde(default)]
    pub fence: Fence,
    #[serde(default)]
    pub seq: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<AgentEvent>,
}

impl LogEntry {
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        Cursor { fence: self.fence, seq: self.seq }
    }
}

/// A place in a job's log, written `FENCE.SEQ`. Entries are ordered by fence, then by sequence number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cursor {
    pub fence: Fence,
    pub seq: u64,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.fence.0, self.seq)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a log cursor; a cursor looks like `1.42`")]
pub struct BadCursor(pub String);

impl FromStr for Cursor {
    type Err = BadCursor;
    fn from_str(text: &str) -> Result<Self, BadCursor> {
        let bad = || BadCursor(text.chars().take(40).collect());
        let (fence, seq) = text.split_once('.').ok_or_else(bad)?;
        Ok(Self { fence: Fence(fence.parse().map_err(|_| bad())?), seq: seq.parse().map_err(|_| bad())? })
    }
}

impl Serialize for Cursor {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cursor {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
