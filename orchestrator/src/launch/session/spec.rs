//! What a session is asked for and what it answers.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use ckrv_shim::path::BytePath;
use ckrv_shim::protocol::{Changed, ExitRecord, PlacedFile, Refused, StopSignal};

use crate::launch::proxy::{Egress, Route};

#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// A shim that has said nothing for this long is lost, and the other way round. At most 60 s.
    pub silence: Duration,
    /// A quarter of `silence` is a good value.
    pub ping_every: Duration,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self { silence: Duration::from_secs(60), ping_every: Duration::from_secs(15) }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The stream ended or fell silent. Ask the launcher's `watch` what became of the shim.
    #[error("the shim is gone: {0}")]
    Lost(String),
    /// The shim could not do it and goes on; the text is for the user.
    #[error("{0}")]
    Failed(String),
    #[error("the shim broke the protocol: {0}")]
    Protocol(String),
    #[error("reading the checkout or writing the changes failed")]
    Local(#[source] io::Error),
}

/// Silence that counts as hung.
#[derive(Clone, Copy, Debug)]
pub struct Watchdog {
    pub first_output: Duration,
    pub idle: Duration,
}

/// Which silence it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hung {
    FirstOutput,
    Idle,
}

/// One command.
#[derive(Debug)]
pub struct RunSpec {
    pub argv: Vec<String>,
    pub env: BTreeMap<String, String>,
    /// Relative to the workspace.
    pub cwd: BytePath,
    pub files: Vec<PlacedFile>,
    pub stdin: Option<String>,
    pub stop_signal: StopSignal,
    pub grace_seconds: u32,
    pub deadline_seconds: u32,
    pub watchdog: Option<Watchdog>,
    pub routes: Vec<Route>,
    /// Opens the CONNECT proxy, with these hosts.
    pub egress: Option<Egress>,
}

impl RunSpec {
    /// A command without model, network or watchdog: a setup step or a check.
    pub fn plain(argv: Vec<String>, deadline_seconds: u32) -> Self {
        Self {
            argv,
            env: BTreeMap::new(),
            cwd: BytePath::default(),
            files: Vec::new(),
            stdin: None,
            stop_signal: StopSignal::Term,
            grace_seconds: 5,
            deadline_seconds,
            watchdog: None,
            routes: Vec::new(),
            egress: None,
        }
    }
}

#[derive(Clone, Debug)]
pub struct RunEnd {
    pub record: ExitRecord,
    /// Stopped by the watchdog.
    pub hung: Option<Hung>,
}

/// What `collect` has written, and what it hasn't.
#[derive(Clone, Debug)]
pub struct Collection {
    /// In the tar, in its order.
    pub changed: Vec<Changed>,
    /// Left out by the caller's filter.
    pub skipped: Vec<Changed>,
    pub deleted: Vec<BytePath>,
    pub refused: Vec<Refused>,
    pub tar_bytes: u64,
    /// Hex; checked against what arrived.
    pub tar_sha256: String,
}
