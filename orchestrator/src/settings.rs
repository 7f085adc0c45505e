//! What a server's dispatcher and gateway are told; read and checked in one place, by whoever starts them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use ckrv_core::policy::Policy;
use jiff::SignedDuration;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::launch_choice::LauncherChoice;
use crate::trace::LinkSpan;

/// How long a lease holds without a beat.
pub const LEASE: SignedDuration = SignedDuration::from_secs(60);
/// How often a job runner beats.
pub const BEAT: Duration = Duration::from_secs(20);

/// How often a dispatcher looks around when nothing wakes it. Each look is paid for where the store is a cloud's.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// For queued jobs, and for signs of other processes about jobs that run here.
    pub claims: Duration,
    /// For leases that lapsed, deadlines that passed, jobs that nobody will ever claim.
    pub settles: Duration,
    /// For a job's log.
    pub log: LogPace,
}

/// How often a job runner sends new log entries, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPace {
    /// While somebody follows the log.
    pub watched: u64,
    pub unwatched: u64,
}

impl Default for LogPace {
    fn default() -> Self {
        Pace::EMBEDDED.log
    }
}

impl Pace {
    /// A store in this process: a look costs some microseconds.
    pub const EMBEDDED: Self =
        Self { claims: Duration::from_secs(1), settles: Duration::from_secs(1), log: LogPace { watched: 40, unwatched: 1000 } };
    /// A store of which every query is paid: a second is what a user may wait for a start, a lost worker is noticed by its lease of a minute,
    /// and each batch of log entries is a write.
    pub const SHARED: Self =
        Self { claims: Duration::from_secs(1), settles: Duration::from_secs(10), log: LogPace { watched: 500, unwatched: 5000 } };
}

/// `[checkpoints]`: what an agent has changed so far is kept now and then, and the next attempt goes on from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Checkpoints {
    /// 0: never.
    pub every_seconds: u32,
    /// One that has more is not kept.
    pub max_mib: u32,
}

impl Default for Checkpoints {
    fn default() -> Self {
        Self { every_seconds: 120, max_mib: 64 }
    }
}

impl Checkpoints {
    /// Each looks through the whole workspace.
    const LEAST_SECONDS: u32 = 5;

    /// # Errors
    /// What can't be, in words for the operator.
    pub fn check(&self) -> Result<(), String> {
        let most = crate::gateway::LARGEST_ARTIFACT >> 20;
        if (1..Self::LEAST_SECONDS).contains(&self.every_seconds) {
            return Err(format!("[checkpoints] every_seconds must be at least {}, or 0 for none", Self::LEAST_SECONDS));
        }
        if self.max_mib == 0 || u64::from(self.max_mib) > most {
            return Err(format!("[checkpoints] max_mib must be between 1 and {most}; every_seconds = 0 turns checkpoints off"));
        }
        Ok(())
    }
}

#[derive(Clone, Debug)]
pub struct Settings {
    /// Names this dispatcher in leases; the same after a restart, so that it knows its own jobs again.
    pub worker: String,
    pub pace: Pace,
    /// One folder for each attempt.
    pub runs: PathBuf,
    /// The gateway's socket.
    pub socket: PathBuf,
    /// The program that runs a job: `ckrv` itself.
    pub program: PathBuf,
    pub policy: Policy,
    pub launcher: LauncherChoice,
    pub allow_paths: bool,
    pub ca_file: Option<PathBuf>,
    pub cache: Option<PathBuf>,
    /// Jobs that this dispatcher runs at once.
    pub capacity: usize,
    /// Jobs that one owner may run at once.
    pub max_running: u32,
    /// What the gateway holds of uploads at once.
    pub upload_memory_mib: u32,
    pub checkpoints: Checkpoints,
    pub operator_secrets: BTreeMap<String, SecretString>,
    /// The operator's own adapters, by the agent's name; they come before the built-in ones.
    pub adapters: BTreeMap<String, PathBuf>,
    /// Puts the spans of attempts into the traces that they belong to.
    pub link_span: LinkSpan,
}
