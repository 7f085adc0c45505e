//! The static binary that is copied into a container.

use std::process::ExitCode;

fn main() -> ExitCode {
    ckrv_shim::run_on_stdio()
}
