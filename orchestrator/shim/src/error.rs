//! Why the shim ended before it was told to, and the exit codes for it.

use std::io;

/// An end that the job runner didn't ask for. The shim has killed what it started before it gives one of these.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    #[error("the job runner closed the stream")]
    Closed,
    #[error("the job runner has been silent for {0} s")]
    Silent(u64),
    #[error("ended by signal {0}")]
    Signalled(&'static str),
    /// SIGTERM, and what was going on came to its end before.
    #[error("ended because it was asked to (SIGTERM)")]
    Asked,
    #[error("the deadline has passed")]
    Deadline,
    #[error("the job runner speaks protocol {theirs}, this shim speaks {ours}")]
    Protocol { ours: u32, theirs: u32 },
    #[error("the job runner's first frame was not a greeting")]
    NoGreeting,
    #[error("the stream broke")]
    Stream(#[source] io::Error),
    #[error("the job runner at {runner} could not be reached for {seconds} s: {last}")]
    Unreachable { runner: std::net::SocketAddr, seconds: u64, last: String },
    #[error("the job runner at {0} refuses this shim: its ticket is used, over, or for another address")]
    Refused(std::net::SocketAddr),
    #[error("{0}")]
    Settings(String),
    #[error("unknown argument {0:?}: give none to serve on stdin and stdout, or `connect`")]
    Usage(String),
    #[error("the process table could not be set up")]
    Setup(#[source] io::Error),
}

impl ShimError {
    /// The process's exit code: 0 is a session that ended with a goodbye, 124 (as `timeout` has it) one that met its deadline, the
    /// others are those of sysexits.h.
    ///
    /// | Code | |
    /// |---|---|
    /// | 64 | an argument that isn't known |
    /// | 69 | the job runner was never reached |
    /// | 70 | the machine: signals, no process table |
    /// | 74 | the stream to the job runner ended or fell silent |
    /// | 76 | the job runner speaks another protocol |
    /// | 77 | the job runner refuses the ticket |
    /// | 78 | a variable of the launcher is missing or wrong |
    /// | 124 | the deadline |
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 64,
            Self::Unreachable { .. } => 69,
            Self::Signalled(_) | Self::Asked | Self::Setup(_) => 70,
            Self::Closed | Self::Silent(_) | Self::Stream(_) => 74,
            Self::Protocol { .. } | Self::NoGreeting => 76,
            Self::Refused(_) => 77,
            Self::Settings(_) => 78,
            Self::Deadline => 124,
        }
    }
}
