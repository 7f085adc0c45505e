//! The shim: the small process that stands between a job runner and the command it wants run.
//!
//! It is process 1 of an agent's container, or a child in its own folder, and speaks with the job runner over **one** byte stream,
//! multiplexed with yamux: stdin and stdout, or a resumable one over TLS connections that it makes ([`connect`]). It unpacks a checkout, runs commands one after another in it, sends their output, and returns what they
//! changed. It needs no shell, no git and no C library at run time, so that any image will do.
//!
//! Invariant: nothing is ever printed to stdout, which is the stream itself.
//! Invariant: no process started for a run is alive when that run's exit record is sent, nor when [`run`] returns.

pub mod admission;
pub mod archive;
mod bridge;
mod changes;
mod checkout;
mod command;
pub mod connect;
mod error;
pub mod mux;
mod output;
pub mod path;
mod pinned;
mod placing;
mod processes;
pub mod protocol;
pub mod resume;
mod routes;
mod session;
mod spool;
mod steps;

use std::ffi::OsString;
use std::process::ExitCode;

pub use bridge::{ChannelReader, ChannelWriter, reader_from, writer_to};
pub use error::ShimError;
pub use pinned::{Fingerprint, fingerprint};
pub use session::{Ends, run};

/// Runs the shim on this process's stdin and stdout and gives the exit code to end with.
///
/// For a process that does nothing else: it takes over child reaping, starts a session of its own, and keeps a blocked reader thread
/// on stdin, so end the process right after it.
pub fn run_on_stdio() -> ExitCode {
    in_own_process(run(tokio::io::stdin(), tokio::io::stdout(), Ends::default()))
}

/// Runs the static binary: with `connect` it dials the job runner that its environment names.
pub fn main(arguments: &[OsString]) -> ExitCode {
    match arguments {
        [] => run_on_stdio(),
        [mode] if mode == "connect" => in_own_process(connect::run_from_env()),
        [other, ..] => end(Err(ShimError::Usage(other.to_string_lossy().into_owned()))),
    }
}

fn in_own_process(shim: impl Future<Output = Result<(), ShimError>>) -> ExitCode {
    // Fails when this is a group's leader already (process 1): that is what was wanted.
    let _ = nix::unistd::setsid();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return end(Err(ShimError::Setup(error))),
    };
    let code = end(runtime.block_on(shim));
    // A thread may sit in a read of stdin for ever.
    runtime.shutdown_background();
    code
}

/// stderr belongs to whoever launched the shim: it's the only place that is left when the stream itself is broken.
fn end(result: Result<(), ShimError>) -> ExitCode {
    use std::io::Write as _;
    let Err(error) = result else { return ExitCode::SUCCESS };
    let mut text = format!("ckrv-shim: {error}");
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    let _ = writeln!(std::io::stderr(), "{text}");
    ExitCode::from(error.exit_code())
}
