//! Which launcher runs the containers of a job.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Chosen by the server's operator, handed to each job runner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum LauncherChoice {
    /// Docker's or Podman's API on this socket (`unix:///...`).
    Container { engine: String },
    /// As the server's own user, beside that user's files: only with `--unsandboxed`.
    Process {
        /// `PATH` of what runs.
        path: String,
        /// The program that is the shim (`ckrv` itself), when it is not the running one.
        #[serde(default)]
        shim: Option<PathBuf>,
    },
}

impl LauncherChoice {
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Container { .. } => "container",
            Self::Process { .. } => "process",
        }
    }
}
