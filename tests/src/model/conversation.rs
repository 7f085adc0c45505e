//! What can be read from a request of either dialect: where the agent works, and its words for our calls.

use serde_json::{Value, json};

use super::script::Call;

/// What an agent writes before the path of its workspace, and how far behind it the path may begin.
const MARKERS: [(&str, usize); 5] = [
    ("working directory", 40),
    ("<cwd>", 1),
    ("current directory", 20),
    ("workspace directories", 60),
    ("working in the directory", 20),
];

/// The agent's workspace, as its prompt names it.
pub fn workspace(request: &Value) -> Option<String> {
    let mut texts = Vec::new();
    collect(request, &mut texts);
    texts.iter().find_map(|text| MARKERS.iter().find_map(|(marker, gap)| path_after(text, marker, *gap)))
}

fn path_after(text: &str, marker: &str, gap: usize) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    lower.match_indices(marker).find_map(|(at, _)| {
        let rest = &text[at + marker.len()..];
        let start = rest.find('/').filter(|start| *start <= gap)?;
        let path = rest[start..].split(|c: char| c.is_whitespace() || "`'\"<>*".contains(c)).next()?.trim_end_matches(['.', ',']);
        (path.len() > 1).then(|| path.trim_end_matches('/').to_owned())
    })
}

fn collect<'a>(value: &'a Value, texts: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => texts.push(text),
        Value::Array(items) => items.iter().for_each(|item| collect(item, texts)),
        Value::Object(fields) => fields.values().for_each(|field| collect(field, texts)),
        _ => {}
    }
}

/// Whether a tool has answered in this conversation, in either dialect.
pub fn has_result(request: &Value) -> bool {
    let parts = |list: &str, part: &str| {
        let turns = request[list].as_array().into_iter().flatten();
        turns.filter_map(|turn| turn[part].as_array().cloned()).flatten().collect::<Vec<_>>()
    };
    parts("messages", "content").iter().any(|block| block["type"] == "tool_result")
        || parts("contents", "parts").iter().any(|part| part.get("functionResponse").is_some())
}

/// Name and arguments of a call in the words of the agent that offers these tools; `None` if it offers none for it.
pub fn tool(call: &Call, offered: &[&str], workspace: Option<&str>) -> Option<(String, Value)> {
    let first = |names: [&str; 2]| names.into_iter().find(|name| offered.contains(name)).map(str::to_owned);
    match call {
        Call::Write { path, content } => {
            let path = workspace.map_or_else(|| path.clone(), |folder| format!("{folder}/{path}"));
            Some((first(["Write", "write_file"])?, json!({"file_path": path, "content": content})))
        }
        Call::Shell { command } => {
            Some((first(["Bash", "run_shell_command"])?, json!({"command": command, "description": "a command of the script"})))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_is_read_from_either_agents_prompt() {
        let claude = json!({"system": [{"text": "# Environment\n - Primary working directory: /workspace\n - Git: yes"}]});
        assert_eq!(workspace(&claude).as_deref(), Some("/workspace"));
        let gemini = json!({"contents": [{"parts": [{"text": "- **Workspace Directories:**\n  - /tmp/a b/c\n"}]}]});
        assert_eq!(workspace(&gemini).as_deref(), Some("/tmp/a"));
        assert_eq!(workspace(&json!({"x": "in the working directory, which is nice"})), None);
    }

    #[test]
    fn a_call_takes_the_agents_words() {
        let write = Call::Write { path: "a".into(), content: "b".into() };
        assert_eq!(
            tool(&write, &["Bash", "Write"], Some("/w")).unwrap(),
            ("Write".into(), json!({"file_path": "/w/a", "content": "b"}))
        );
        assert_eq!(tool(&Call::Shell { command: "x".into() }, &["write_file"], None), None);
    }
}
