//! Local commands in place of images, for the process launcher.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A command of this machine that stands for an image. Its version is checked, because an adapter knows one version's flags and events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalCommand {
    /// Replaces the first word of the plan's command: a name that is looked up, or an absolute path.
    pub program: String,
    /// What makes the program say its version; with `version`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub version_args: Vec<String>,
    /// The version that it must have; fewer parts stand for any that begin like it (`2.1` for `2.1.330`). None: not checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

impl LocalCommand {
    /// Whether this is what the wanted version says of itself.
    #[must_use]
    pub fn accepts(&self, said: &str) -> bool {
        let Some(wanted) = &self.version else { return true };
        let found = said.split(|c: char| !(c.is_ascii_alphanumeric() || ".-+_".contains(c))).find(|word| is_version(word));
        found
            .map(|word| word.trim_start_matches('v'))
            .is_some_and(|found| found == wanted || found.strip_prefix(wanted.as_str()).is_some_and(|rest| rest.starts_with('.')))
    }
}

fn is_version(word: &str) -> bool {
    let word = word.trim_start_matches('v');
    word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.')
}

pub(super) fn defaults() -> BTreeMap<String, LocalCommand> {
    let agent = |program: &str, version: &str| LocalCommand {
        program: program.to_owned(),
        version_args: vec!["--version".to_owned()],
        version: Some(version.to_owned()),
    };
    BTreeMap::from([
        ("localhost/ckrv/claude:2.1.330".to_owned(), agent("claude", "2.1.330")),
        ("localhost/ckrv/gemini:0.61.0".to_owned(), agent("gemini", "0.61.0")),
        ("localhost/ckrv/script:1".to_owned(), LocalCommand { program: "/bin/sh".to_owned(), ..LocalCommand::default() }),
    ])
}
