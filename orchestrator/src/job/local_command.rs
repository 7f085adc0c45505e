//! Where agents run as processes, an image stands for a command of this machine. An adapter knows one version's flags and events, so the
//! command's version is checked before it runs.

use std::process::Stdio;
use std::time::Duration;

use ckrv_core::job::{Outcome, OutcomeClass};
use ckrv_core::policy::LocalCommand;

use super::failure::Failure;

/// An agent's CLI may take seconds to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The program that stands for an image, found and of the right version.
pub async fn check(local: &LocalCommand, path: &str) -> Result<(), Failure> {
    let Some(wanted) = &local.version else { return Ok(()) };
    let mut command = tokio::process::Command::new(&local.program);
    command.args(&local.version_args).env_clear().env("PATH", path).env("HOME", "/nonexistent");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let refuse = |what: String| {
        Failure::Ends(Outcome::new(OutcomeClass::Policy, what).hint(format!(
            "install version {wanted} of `{}`, or map the image to another command in the policy's [local]",
            local.program
        )))
    };
    let output = match tokio::time::timeout(PATIENCE, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(refuse(format!("`{}` can't be started: {error}", local.program))),
        Err(_) => return Err(refuse(format!("`{}` does not say its version within {} s", local.program, PATIENCE.as_secs()))),
    };
    let said = String::from_utf8_lossy(&output.stdout);
    if local.accepts(&said) {
        return Ok(());
    }
    let said = said.lines().next().unwrap_or("nothing").chars().take(80).collect::<String>();
    Err(refuse(format!("`{}` says it is `{said}`; version {wanted} is what its adapter knows", local.program)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(version: &str, says: &str) -> LocalCommand {
        LocalCommand {
            program: "/bin/sh".to_owned(),
            version_args: vec!["-c".to_owned(), format!("echo '{says}'")],
            version: Some(version.to_owned()),
        }
    }

    #[tokio::test]
    async fn a_command_of_another_version_is_refused_by_name() {
        assert!(check(&command("2.1.330", "2.1.330 (Claude Code)"), "/bin").await.is_ok());
        let refused = check(&command("2.1.330", "2.1.197 (Claude Code)"), "/bin").await.unwrap_err().to_string();
        assert!(refused.contains("2.1.197") && refused.contains("2.1.330"), "{refused}");
    }

    #[tokio::test]
    async fn a_command_that_is_not_there_is_refused_by_name() {
        let missing = LocalCommand { program: "ckrv-no-such-program".to_owned(), ..command("1", "1.0") };
        assert!(check(&missing, "/bin").await.unwrap_err().to_string().contains("ckrv-no-such-program"));
    }
}
