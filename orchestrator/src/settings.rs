//! What a server's dispatcher and gateway are told; read and checked in one place, by whoever starts them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ckrv_core::policy::Policy;
use jiff::SignedDuration;
use secrecy::SecretString;

use crate::launch_choice::LauncherChoice;

/// How long a lease holds without a beat.
pub const LEASE: SignedDuration = SignedDuration::from_secs(60);
/// How often a job runner beats.
pub const BEAT: std::time::Duration = std::time::Duration::from_secs(20);

#[derive(Clone, Debug)]
pub struct Settings {
    /// Names this dispatcher in leases.
    pub worker: String,
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
    pub operator_secrets: BTreeMap<String, SecretString>,
    /// The operator's own adapters, by the agent's name; they come before the built-in ones.
    pub adapters: BTreeMap<String, PathBuf>,
}
