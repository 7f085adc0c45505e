//! Specs: what a user wants done, as Markdown or YAML.
//!
//! YAML front matter, or the same keys in a YAML document, sets up the job; everything else is the agent's task, whatever its form.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::wire::MAX_SPEC_BYTES;

/// The keys that front matter may have.
pub const KEYS: [&str; 8] = ["id", "agent", "model", "timeout", "image", "setup", "verify", "command"];
/// Beside [`KEYS`], in a YAML document: the task itself. The two mean the same.
const TASK_KEYS: [&str; 2] = ["task", "prompt"];
/// Most commands in `setup` or `verify`.
const MAX_COMMANDS: usize = 50;
const MAX_COMMAND_BYTES: usize = 8 * 1024;
const MAX_SLUG: usize = 50;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Lower-case letters, digits and hyphens, at most 50; part of the feature branch's name.
    pub id: String,
    /// What the agent is told. Empty only where `command` is given.
    pub task: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Time limit of the job, from its first start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u32>,
    /// Image of the project's toolchain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Shell commands before the agent, without secrets.
    #[serde(default)]
    pub setup: Vec<String>,
    /// Shell commands that must pass on a fresh checkout of the result.
    #[serde(default)]
    pub verify: Vec<String>,
    /// The shell command of agent `script`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
}

/// What is wrong with a spec. Lines and columns count from 1, in the whole document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error("the spec is empty")]
    Empty,
    #[error("the spec is {bytes} bytes long; at most {limit} are allowed")]
    TooLarge { bytes: usize, limit: usize },
    #[error("the spec holds a NUL character; it must be plain text")]
    NotText,
    #[error("the spec's YAML is broken at line {line}, column {column}: {message}")]
    Yaml { line: u64, column: u64, message: String },
    #[error("the spec's front matter begins at line 1 with `---`, but no second `---` ends it")]
    Unclosed,
    #[error("the spec's {place} must consist of keys and values, for example `agent: claude`")]
    NotAMapping { place: &'static str },
    #[error("line {line}: `{key}` is not a key of a spec; the keys are {}", known_keys(*yaml))]
    UnknownKey { key: String, line: u64, yaml: bool },
    #[error("line {line}: `{key}` {reason}")]
    BadValue { key: String, line: u64, reason: String },
    #[error("the spec says nothing that the agent should do: write the task below the front matter{}", if *yaml { ", or as `task:`" } else { "" })]
    MissingTask { yaml: bool },
}

fn known_keys(yaml: bool) -> String {
    let mut keys: Vec<String> = KEYS.iter().map(|key| format!("`{key}`")).collect();
    if yaml {
        keys.extend(TASK_KEYS.iter().map(|key| format!("`{key}`")));
    }
    keys.join(", ")
}

impl Spec {
    /// Reads a spec. `name` is its file name, where it has one: it tells YAML from Markdown and gives the default id.
    ///
    /// # Errors
    /// [`SpecError`]; nothing that the user wrote is passed over in silence.
    pub fn parse(content: &str, name: Option<&str>) -> Result<Self, SpecError> {
        if content.len() > MAX_SPEC_BYTES {
            return Err(SpecError::TooLarge { bytes: content.len(), limit: MAX_SPEC_BYTES });
        }
        if content.contains('\0') {
            return Err(SpecError::NotText);
        }
        let content = content.strip_prefix('\u{feff}').unwrap_or(content);
        if content.trim().is_empty() {
            return Err(SpecError::Empty);
        }
        let file = name.map(file_name);
        let named_yaml = file.is_some_and(|file| has_extension(file, &["yaml", "yml"]));
        match split_front_matter(content) {
            Some((matter, body)) => from_front_matter(matter, body, file),
            None if named_yaml => from_yaml(&read_mapping(content, 0, "document")?, content, file),
            None => match detect_yaml(content) {
                Some(map) => from_yaml(&map, content, file),
                None if first_line_is_fence(content) => Err(SpecError::Unclosed),
                None => finish(Self::default(), content.trim(), file, false),
            },
        }
    }
}

fn from_front_matter(matter: &str, body: &str, file: Option<&str>) -> Result<Spec, SpecError> {
    if matter.trim().is_empty() {
        return finish(Spec::default(), body.trim(), file, false);
    }
    let map = read_mapping(matter, 1, "front matter")?;
    if let Some(key) = map.keys().find(|key| !KEYS.contains(&key.as_str())) {
        return Err(SpecError::UnknownKey { key: key.clone(), line: line_of(matter, key) + 1, yaml: false });
    }
    let spec = read_keys(&map, &|key| line_of(matter, key) + 1)?;
    finish(spec, body.trim(), file, false)
}

fn from_yaml(map: &Map<String, Value>, content: &str, file: Option<&str>) -> Result<Spec, SpecError> {
    let line = |key: &str| line_of(content, key);
    let spec = read_keys(map, &line)?;
    let tasks: Vec<&str> = TASK_KEYS.into_iter().filter(|key| map.contains_key(*key)).collect();
    let task = match tasks.as_slice() {
        [] => rest_of(map, content),
        [key] => {
            let known = |name: &String| KEYS.contains(&name.as_str()) || name == key;
            if let Some(unknown) = map.keys().find(|name| !known(name)) {
                return Err(SpecError::UnknownKey { key: unknown.clone(), line: line(unknown), yaml: true });
            }
            text(key, &map[*key], &line)?.to_owned()
        }
        _ => return Err(bad("prompt", &line, "means the same as `task`; give one of them")),
    };
    finish(spec, task.trim(), file, true)
}

/// The document without the keys that set up the job, as the user wrote it where that can be cut out line by line.
fn rest_of(map: &Map<String, Value>, content: &str) -> String {
    let rest: Map<String, Value> =
        map.iter().filter(|(key, _)| !KEYS.contains(&key.as_str())).map(|(key, value)| (key.clone(), value.clone())).collect();
    if rest.is_empty() {
        return String::new();
    }
    let mut kept = String::new();
    let mut inside_known_key = false;
    for line in content.split_inclusive('\n') {
        let starts_key = !line.starts_with([' ', '\t', '-', '#', '\n', '\r']);
        if starts_key {
            inside_known_key = KEYS.iter().any(|key| is_key_line(line, key));
        }
        if !inside_known_key {
            kept.push_str(line);
        }
    }
    // Flow style, anchors and the like can't be cut by lines: then the values themselves are the task.
    match parse_yaml(&kept) {
        Ok(Value::Object(again)) if again == rest => kept,
        _ => serde_json::to_string_pretty(&rest).unwrap_or_default(),
    }
}

fn finish(mut spec: Spec, task: &str, file: Option<&str>, yaml: bool) -> Result<Spec, SpecError> {
    if task.is_empty() && spec.command.is_none() {
        return Err(SpecError::MissingTask { yaml });
    }
    spec.task = task.to_owned();
    if spec.id.is_empty() {
        let from_name = file.map(|file| slug(file.rsplit_once('.').map_or(file, |(stem, _)| stem))).filter(|id| !id.is_empty());
        let from_heading = || heading(task).map(slug).filter(|id| !id.is_empty());
        spec.id = from_name.or_else(from_heading).unwrap_or_else(|| "spec".to_owned());
    }
    Ok(spec)
}

fn read_keys(map: &Map<String, Value>, line: &dyn Fn(&str) -> u64) -> Result<Spec, SpecError> {
    let line_text = |key: &str| -> Result<Option<String>, SpecError> {
        let Some(value) = map.get(key) else { return Ok(None) };
        let value = text(key, value, line)?.trim();
        let plain = !value.is_empty() && value.len() <= 500 && !value.chars().any(char::is_control);
        if plain { Ok(Some(value.to_owned())) } else { Err(bad(key, line, "must be one line of text, at most 500 bytes")) }
    };
    let id = line_text("id")?.unwrap_or_default();
    if map.contains_key("id") && !is_slug(&id) {
        let reason = "must be lower-case letters, digits and hyphens, at most 50, with a letter or digit at both ends";
        return Err(bad("id", line, reason));
    }
    let timeout_seconds = match map.get("timeout") {
        None => None,
        Some(value) => {
            Some(timeout(value).ok_or_else(|| bad("timeout", line, "must be a length of time: `90s`, `30m`, `2h`, or seconds"))?)
        }
    };
    let command = match map.get("command") {
        None => None,
        Some(value) => Some(command("command", text("command", value, line)?, line)?),
    };
    Ok(Spec {
        id,
        task: String::new(),
        agent: line_text("agent")?,
        model: line_text("model")?,
        timeout_seconds,
        image: line_text("image")?,
        setup: commands("setup", map, line)?,
        verify: commands("verify", map, line)?,
        command,
    })
}

fn commands(key: &str, map: &Map<String, Value>, line: &dyn Fn(&str) -> u64) -> Result<Vec<String>, SpecError> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(one)) => Ok(vec![command(key, one, line)?]),
        Some(Value::Array(many)) if many.len() <= MAX_COMMANDS => {
            many.iter().map(|value| command(key, text(key, value, line)?, line)).collect()
        }
        Some(_) => Err(bad(key, line, &format!("must be a list of at most {MAX_COMMANDS} commands"))),
    }
}

fn command(key: &str, text: &str, line: &dyn Fn(&str) -> u64) -> Result<String, SpecError> {
    if text.trim().is_empty() {
        return Err(bad(key, line, "holds an empty command"));
    }
    if text.len() > MAX_COMMAND_BYTES {
        return Err(bad(key, line, &format!("holds a command longer than {MAX_COMMAND_BYTES} bytes")));
    }
    Ok(text.to_owned())
}

fn text<'a>(key: &str, value: &'a Value, line: &dyn Fn(&str) -> u64) -> Result<&'a str, SpecError> {
    value.as_str().ok_or_else(|| bad(key, line, "must be text; put it in quotes"))
}

fn bad(key: &str, line: &dyn Fn(&str) -> u64, reason: &str) -> SpecError {
    SpecError::BadValue { key: key.to_owned(), line: line(key), reason: reason.to_owned() }
}

fn timeout(value: &Value) -> Option<u32> {
    match value {
        Value::Number(number) => number.as_u64().and_then(|seconds| u32::try_from(seconds).ok()).filter(|seconds| *seconds > 0),
        Value::String(text) => parse_timeout(text),
        _ => None,
    }
}

/// Reads a length of time, in seconds: `90`, `90s`, `30m`, `2h`, `1h30m`, `1d`. Never zero.
#[must_use]
pub fn parse_timeout(text: &str) -> Option<u32> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<u32>() {
        return (seconds > 0).then_some(seconds);
    }
    let mut total = 0_u32;
    let mut rest = text;
    let mut smallest_unit = u32::MAX;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let count: u32 = rest[..digits].parse().ok()?;
        let unit = match rest.as_bytes()[digits] {
            b'd' => 86_400,
            b'h' => 3_600,
            b'm' => 60,
            b's' => 1,
            _ => return None,
        };
        // `30m2h` and `1h1h` are slips of the pen rather than times.
        if unit >= smallest_unit {
            return None;
        }
        smallest_unit = unit;
        total = total.checked_add(count.checked_mul(unit)?)?;
        rest = &rest[digits + 1..];
    }
    (total > 0).then_some(total)
}

/// Front matter and body, where the document begins with `---` and a later line is `---` again.
fn split_front_matter(content: &str) -> Option<(&str, &str)> {
    let mut lines = content.split_inclusive('\n');
    let first = lines.next().filter(|line| is_fence(line))?;
    let mut end = first.len();
    for line in lines {
        if is_fence(line) {
            return Some((&content[first.len()..end], &content[end + line.len()..]));
        }
        end += line.len();
    }
    None
}

fn is_fence(line: &str) -> bool {
    line.trim_end() == "---"
}

fn first_line_is_fence(content: &str) -> bool {
    content.lines().next().is_some_and(is_fence)
}

/// A document without a telling name is YAML if it reads as a mapping that has one of our keys.
fn detect_yaml(content: &str) -> Option<Map<String, Value>> {
    let ours = |key: &str| content.lines().any(|line| is_key_line(line, key));
    let flow = content.trim_start().starts_with('{');
    if !flow && !KEYS.iter().chain(&TASK_KEYS).any(|key| ours(key)) {
        return None;
    }
    match parse_yaml(content) {
        Ok(Value::Object(map)) if KEYS.iter().chain(&TASK_KEYS).any(|key| map.contains_key(*key)) => Some(map),
        _ => None,
    }
}

fn read_mapping(yaml: &str, lines_before: u64, place: &'static str) -> Result<Map<String, Value>, SpecError> {
    match parse_yaml(yaml) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(SpecError::NotAMapping { place }),
        Err((line, column, message)) => Err(SpecError::Yaml { line: line + lines_before, column, message }),
    }
}

fn parse_yaml(yaml: &str) -> Result<Value, (u64, u64, String)> {
    let options = serde_saphyr::options! {
        // Anchors and aliases have no use here, and are how a small document becomes a large one.
        budget: serde_saphyr::budget! { max_depth: 32, max_nodes: 20_000, max_events: 60_000, max_anchors: 16, max_aliases: 64, max_documents: 1 },
        strict_booleans: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(yaml, options).map_err(|error| {
        let (line, column) = error.location().map_or((1, 1), |place| (place.line().max(1), place.column().max(1)));
        let message = error.to_string();
        // The place is told in our own words, counted in the whole document.
        let message = message.split(" at line ").next().unwrap_or(&message).trim();
        (line, column, message.lines().next().unwrap_or("it can't be read").to_owned())
    })
}

fn is_key_line(line: &str, key: &str) -> bool {
    let line = line.strip_prefix(['"', '\'']).unwrap_or(line);
    line.strip_prefix(key).is_some_and(|rest| rest.trim_start_matches(['"', '\'']).trim_start().starts_with(':'))
}

/// The line at which a key stands, from 1.
fn line_of(yaml: &str, key: &str) -> u64 {
    yaml.lines().zip(1..).find(|(line, _)| is_key_line(line, key)).map_or(1, |(_, number)| number)
}

fn file_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

fn has_extension(file: &str, extensions: &[&str]) -> bool {
    file.rsplit_once('.').is_some_and(|(_, found)| extensions.iter().any(|extension| found.eq_ignore_ascii_case(extension)))
}

fn heading(task: &str) -> Option<&str> {
    task.lines().find_map(|line| line.strip_prefix('#').map(|rest| rest.trim_matches(['#', ' ']))).filter(|text| !text.is_empty())
}

/// Whether `text` may be a spec's id.
#[must_use]
pub fn is_slug(text: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    (1..=MAX_SLUG).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

fn slug(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().flat_map(char::to_lowercase) {
        if out.len() == MAX_SLUG {
            break;
        }
        if c.is_ascii_alphanumeric() {
            out.push(c);
        } else if !out.is_empty() && !out.ends_with('-') {
            out.push('-');
        }
    }
    out.trim_end_matches('-').to_owned()
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
