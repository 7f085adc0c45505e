//! `xtask guard`: runs a server for as long as whoever asked for it lives. A killed xtask can stop nothing any more, but its end of
//! a pipe closes.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

#[derive(clap::Args)]
pub struct Args {
    /// A folder to remove at the end
    #[arg(long)]
    scratch: PathBuf,
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Returns when the command has ended, by itself or because our stdin did.
pub fn run(args: &Args) -> Result<()> {
    let (program, arguments) = args.command.split_first().context("no command to guard")?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .process_group(0)
        .spawn()
        .with_context(|| format!("can't start {}", program.display()))?;
    let group = Pid::from_raw(i32::try_from(child.id())?);
    let scratch = args.scratch.clone();
    std::thread::spawn(move || end_with_stdin(group, &scratch));
    let status = child.wait()?;
    // What it started itself is in its group. An error means that nothing is left of it.
    let _ = killpg(group, Signal::SIGKILL);
    bail!("{} ended with {status}", program.display())
}

fn end_with_stdin(group: Pid, scratch: &Path) {
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    // Its data is of no more use to anybody; whoever lives removes it too.
    let _ = std::fs::remove_dir_all(scratch);
    let _ = killpg(group, Signal::SIGTERM);
    std::thread::sleep(Duration::from_secs(5));
    let _ = killpg(group, Signal::SIGKILL);
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    /// The test binary is no xtask: it runs the function in a shell's place by being asked for one test.
    #[test]
    fn a_server_and_what_it_started_end_with_the_pipe() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("of the server");
        std::fs::create_dir(&folder).unwrap();
        let mut guard = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "cloud::guard::tests::a_guard", "--ignored", "--nocapture"])
            .env("GUARDED", &folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pipe = guard.stdin.take();
        let mut output = guard.stdout.take().unwrap();
        let mut text = String::new();
        while !text.contains("up\n") {
            let mut buffer = [0; 256];
            let read = output.read(&mut buffer).unwrap();
            assert_ne!(read, 0, "{text}");
            text.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
        drop(pipe);
        // Its grandchild holds the same stdout: the end of it means that both are gone.
        output.read_to_string(&mut text).unwrap();
        guard.wait().unwrap();
        assert!(!folder.exists());
    }

    #[test]
    #[ignore = "not a test: the guard that the test above starts"]
    fn a_guard() {
        #[expect(clippy::disallowed_methods, reason = "the test that starts this one gives it its folder")]
        let Ok(scratch) = std::env::var("GUARDED") else { return };
        let script = "sleep 1000 & echo up; sleep 1000";
        let command = ["sh", "-c", script].map(OsString::from).to_vec();
        let _ = run(&Args { scratch: scratch.into(), command });
    }
}
