//! What the model does in a scenario, in no dialect.

use std::collections::BTreeMap;
use std::time::Duration;

/// A scenario.
#[derive(Clone, Debug, PartialEq)]
pub enum Script {
    /// One step a turn, then [`super::DONE`].
    Steps(Vec<Step>),
    /// The same, but everything after the first step waits for [`super::Model::release`]: for a look at an agent at work.
    Held(Vec<Step>),
    /// The same step in every turn, for ever.
    Loop(Step),
    /// A text of so many lines, one at a time.
    Slow { lines: u32, every: Duration },
    /// An HTTP error, in the dialect's own shape. Seconds of `retry-after` go with 429 and 529.
    Error { status: u16, retry_after: u32 },
    /// So many errors, then something else.
    FailFirst { times: u32, status: u16, then: Box<Script> },
    /// The connection is accepted and nothing is ever answered.
    Hang,
    /// The reply breaks off in the middle of a sentence.
    Drop,
}

/// A turn of the model: some words, then tool calls.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub say: String,
    pub calls: Vec<Call>,
}

/// A tool call; the agent's own name for the tool is found among those that it offers.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    /// A new file, by its path in the workspace.
    Write { path: String, content: String },
    /// A command for the shell, in the workspace.
    Shell { command: String },
}

impl Step {
    pub fn write(path: &str, content: &str) -> Self {
        let call = Call::Write { path: path.to_owned(), content: content.to_owned() };
        Self { say: format!("I will write {path}."), calls: vec![call] }
    }

    pub fn shell(command: &str) -> Self {
        Self { say: "I will run a command.".to_owned(), calls: vec![Call::Shell { command: command.to_owned() }] }
    }
}

impl Script {
    pub fn write(path: &str, content: &str) -> Self {
        Self::Steps(vec![Step::write(path, content)])
    }

    pub fn shell(command: &str) -> Self {
        Self::Steps(vec![Step::shell(command)])
    }

    /// The scenarios that every model knows. `edit` wants a repository like [`crate::repo::Repo::large`].
    pub fn built_in() -> BTreeMap<String, Self> {
        let edit = "rm -- -leading-dash.txt && mv assets/0.bin 'assets/moved to.bin' && chmod +x README.md && chmod -x bin/run \
                    && ln -s README.md docs/second-link && printf '\\000\\001\\377' > assets/new.bin && echo changed >> 'odd/with space.txt'";
        let scripts = [
            ("ok", Self::write("hello.txt", "hello from the model\n")),
            ("text", Self::Steps(Vec::new())),
            ("edit", Self::Steps(vec![Step::write("made/by model.txt", "made\n"), Step::shell(edit)])),
            ("env", Self::shell("env | sort > env.txt; cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n' | sort -u >> env.txt")),
            ("loop", Self::Loop(Step::shell("date >> loop.txt"))),
            ("slow", Self::Slow { lines: 20, every: Duration::from_millis(250) }),
            ("hang", Self::Hang),
            ("drop", Self::Drop),
            ("e400", Self::Error { status: 400, retry_after: 1 }),
            ("e401", Self::Error { status: 401, retry_after: 1 }),
            ("e429", Self::Error { status: 429, retry_after: 1 }),
            ("e500", Self::Error { status: 500, retry_after: 1 }),
        ];
        scripts.into_iter().map(|(name, script)| (name.to_owned(), script)).collect()
    }

    /// What to do in turn `turn`, counted from 0; `None` is the end.
    pub fn step(&self, turn: usize) -> Option<&Step> {
        match self {
            Self::Steps(steps) | Self::Held(steps) => steps.get(turn),
            Self::Loop(step) => Some(step),
            _ => None,
        }
    }
}
