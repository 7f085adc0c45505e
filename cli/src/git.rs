//! Git in the user's own repository: with the user's configuration, for it is theirs, but without hooks, and without the variables
//! by which a surrounding git (we may run in a hook or an alias) would send us to another repository or index.

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::error::{CliError, Kind};

/// `git rev-parse --local-env-vars`, and what changes git's output.
const FOREIGN: [&str; 22] = [
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_CONFIG",
    "GIT_CONFIG_PARAMETERS",
    "GIT_CONFIG_COUNT",
    "GIT_OBJECT_DIRECTORY",
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_IMPLICIT_WORK_TREE",
    "GIT_GRAFT_FILE",
    "GIT_INDEX_FILE",
    "GIT_NO_REPLACE_OBJECTS",
    "GIT_REPLACE_REF_BASE",
    "GIT_PREFIX",
    "GIT_SHALLOW_FILE",
    "GIT_COMMON_DIR",
    "GIT_INTERNAL_SUPER_PREFIX",
    "GIT_NAMESPACE",
    "GIT_EXTERNAL_DIFF",
    "GIT_DIFF_OPTS",
    "GIT_LITERAL_PATHSPECS",
    "GIT_TRACE",
    "GIT_QUARANTINE_PATH",
];

/// The first version with `git merge-tree --write-tree`.
pub const NEEDED: (u32, u32) = (2, 38);

/// Git, run in one folder.
#[derive(Clone, Debug)]
pub struct Git {
    folder: PathBuf,
    index: Option<PathBuf>,
    envs: Vec<(&'static str, OsString)>,
}

impl Git {
    #[must_use]
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), index: None, envs: Vec::new() }
    }

    /// The same with an index of its own.
    #[must_use]
    pub fn with_index(&self, index: impl Into<PathBuf>) -> Self {
        Self { index: Some(index.into()), ..self.clone() }
    }

    #[must_use]
    pub fn with_env(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.envs.push((name, value.into()));
        self
    }

    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new("git");
        for name in FOREIGN {
            command.env_remove(name);
        }
        command.arg("-C").arg(&self.folder);
        for setting in
            ["core.hooksPath=/dev/null", "core.fsmonitor=false", "gc.auto=0", "maintenance.auto=false", "submodule.recurse=false"]
        {
            command.args(["-c", setting]);
        }
        command.args(args).env("LC_ALL", "C").env("GIT_TERMINAL_PROMPT", "0").env("GIT_NO_REPLACE_OBJECTS", "1");
        command.envs(self.envs.iter().map(|(name, value)| (name, value)));
        if let Some(index) = &self.index {
            command.env("GIT_INDEX_FILE", index);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs git and returns what happened, whatever it is.
    ///
    /// # Errors
    /// There is no git.
    pub fn output<S: AsRef<OsStr>>(&self, args: &[S], input: Option<&[u8]>) -> Result<Output, CliError> {
        let mut command = self.command(args);
        let missing = |error: std::io::Error| {
            CliError::io("can't run git", error).hint("install git 2.38 or newer and see that it is on the PATH")
        };
        let Some(input) = input else { return command.output().map_err(missing) };
        let mut child = command.stdin(Stdio::piped()).spawn().map_err(missing)?;
        let stdin = child.stdin.take();
        std::thread::scope(|scope| {
            // Git may answer before it has read everything; a pipe that it closes early shows in its exit code.
            scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input)));
            child.wait_with_output()
        })
        .map_err(|error| CliError::io("can't run git", error))
    }

    /// Stdout of a git that has to succeed.
    ///
    /// # Errors
    /// Git's own words, when it doesn't.
    pub fn run<S: AsRef<OsStr>>(&self, args: &[S], input: Option<&[u8]>) -> Result<Vec<u8>, CliError> {
        let output = self.output(args, input)?;
        if output.status.success() { Ok(output.stdout) } else { Err(failed(args, &output)) }
    }

    /// The same as one trimmed line.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn line<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<String, CliError> {
        Ok(String::from_utf8_lossy(&self.run(args, None)?).trim_end().to_owned())
    }

    /// A line of a git that may fail.
    ///
    /// # Errors
    /// There is no git.
    pub fn try_line<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<Option<String>, CliError> {
        let output = self.output(args, None)?;
        Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim_end().to_owned()))
    }

    /// Major and minor.
    ///
    /// # Errors
    /// There is no git, or one that doesn't say its version.
    pub fn version(&self) -> Result<(u32, u32), CliError> {
        let text = self.line(&["version"])?;
        parse_version(&text).ok_or_else(|| CliError::other("git_version", format!("git says an unknown version: {text}")))
    }
}

/// Git's last words, as an error.
pub fn failed<S: AsRef<OsStr>>(args: &[S], output: &Output) -> CliError {
    let verb = args.iter().map(AsRef::as_ref).find(|arg| !arg.as_encoded_bytes().starts_with(b"-")).unwrap_or_default();
    let stderr = String::from_utf8_lossy(&output.stderr);
    CliError::new(Kind::Other, "git_failed", format!("git {} failed: {}", verb.to_string_lossy(), stderr.trim()))
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.strip_prefix("git version ")?.split(['.', ' ']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The folder that we were started in.
///
/// # Errors
/// It is gone.
pub fn here() -> Result<PathBuf, CliError> {
    std::env::current_dir().map_err(|error| CliError::io("can't find the current folder", error))
}

/// The top of the work tree that holds `folder`, found without starting a process.
#[must_use]
pub fn work_tree(folder: &Path) -> Option<PathBuf> {
    folder.ancestors().find(|folder| folder.join(".git").exists()).map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_in_every_dialect() {
        for (text, version) in [
            ("git version 2.39.5", (2, 39)),
            ("git version 2.50.1 (Apple Git-155)", (2, 50)),
            ("git version 2.45.0.windows.1", (2, 45)),
        ] {
            assert_eq!(parse_version(text), Some(version));
        }
        assert!(parse_version("hub version 2").is_none());
    }
}
