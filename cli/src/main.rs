//! The binary `ckrv`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ckrv_cli::main()
}
