//! Why the shim ended before it was told to.

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
    #[error("the job runner speaks protocol {theirs}, this shim speaks {ours}")]
    Protocol { ours: u32, theirs: u32 },
    #[error("the job runner's first frame was not a greeting")]
    NoGreeting,
    #[error("the stream broke")]
    Stream(#[source] io::Error),
    #[error("the process table could not be set up")]
    Setup(#[source] io::Error),
}

impl ShimError {
    /// The process's exit code (sysexits.h): 74 for a broken stream, 76 for a protocol error, 70 for the rest.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Closed | Self::Silent(_) | Self::Stream(_) => 74,
            Self::Protocol { .. } | Self::NoGreeting => 76,
            Self::Signalled(_) | Self::Setup(_) => 70,
        }
    }
}
