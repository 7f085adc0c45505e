//! The shim: the small process that stands between a job runner and the command it wants run.
//!
//! It is process 1 of an agent's container, or a child in its own folder, and speaks with the job runner over **one** byte stream,
//! multiplexed with yamux. It unpacks a checkout, runs commands one after another in it, sends their output, and returns what they
//! changed. It needs no network, no shell, no git and no C library at run time, so that any image will do.
//!
//! Invariant: nothing is ever printed to stdout, which is the stream itself.
//! Invariant: no process started for a run is alive when that run's exit record is sent, nor when [`run`] returns.

pub mod archive;
mod bridge;
mod changes;
mod checkout;
mod command;
mod error;
pub mod mux;
mod output;
pub mod path;
mod placing;
mod processes;
pub mod protocol;
mod routes;
mod session;

use std::process::ExitCode;

pub use bridge::{ChannelReader, ChannelWriter, reader_from, writer_to};
pub use error::ShimError;
pub use session::run;

/// Runs the shim on this process's stdin and stdout and gives the exit code to end with.
///
/// For a process that does nothing else: it takes over child reaping, starts a session of its own, and keeps a blocked reader thread
/// on stdin, so end the process right after it.
pub fn run_on_stdio() -> ExitCode {
    // Fails when this is a group's leader already (process 1): that is what was wanted.
    let _ = nix::unistd::setsid();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(_) => return ExitCode::from(70),
    };
    let code = match runtime.block_on(run(tokio::io::stdin(), tokio::io::stdout())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::from(error.exit_code())
        }
    };
    // A thread may sit in a read of stdin for ever.
    runtime.shutdown_background();
    code
}

/// stderr belongs to whoever launched the shim: it's the only place that is left when the stream itself is broken.
fn report(error: &ShimError) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "ckrv-shim: {error}");
}
