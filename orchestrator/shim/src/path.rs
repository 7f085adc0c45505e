//! Paths as bytes. A file's name is whatever the kernel allows: newlines, a leading dash, no valid UTF-8.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A path relative to the workspace, `/` between its parts. In JSON: a string where it is valid UTF-8, else an array of bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BytePath(pub Vec<u8>);

impl BytePath {
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    pub fn join(&self, name: &[u8]) -> Self {
        let mut bytes = self.0.clone();
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name);
        Self(bytes)
    }

    /// Everything before the last part; empty for a path of one part.
    pub fn parent(&self) -> Self {
        let end = self.0.iter().rposition(|b| *b == b'/').unwrap_or(0);
        Self(self.0[..end].to_vec())
    }

    /// Normalises what a tar entry calls itself: drops `./` and a closing `/`.
    /// `None` for a path that is absolute, climbs with `..`, holds a NUL or is longer than 4096 bytes.
    pub fn from_entry(raw: &[u8]) -> Option<Self> {
        if raw.len() > 4096 || raw.first() == Some(&b'/') || raw.contains(&0) {
            return None;
        }
        let mut parts = Vec::new();
        for part in raw.split(|b| *b == b'/') {
            match part {
                b"" | b"." => {}
                b".." => return None,
                part => parts.push(part),
            }
        }
        Some(Self(parts.join(&b'/')))
    }

    /// Whether a part of it is `.git` as some file system would understand it: any case, trailing dots and spaces, NTFS short names
    /// and streams, the code points that HFS+ ignores.
    pub fn names_git_folder(&self) -> bool {
        self.0.split(|b| *b == b'/').any(is_git_name)
    }
}

fn is_git_name(part: &[u8]) -> bool {
    let visible: String = String::from_utf8_lossy(part).chars().filter(|c| !hfs_ignores(*c)).collect();
    let name = visible.split(':').next().unwrap_or_default();
    let name = name.trim_end_matches(['.', ' ']).to_ascii_lowercase();
    name == ".git" || name == "git~1"
}

fn hfs_ignores(c: char) -> bool {
    matches!(c, '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}' | '\u{feff}')
}

impl fmt::Debug for BytePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl fmt::Display for BytePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::str::from_utf8(&self.0) {
            Ok(text) if !text.chars().any(char::is_control) => f.write_str(text),
            _ => write!(f, "{}", self.0.escape_ascii()),
        }
    }
}

impl From<&str> for BytePath {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Wire<'a> {
    Text(std::borrow::Cow<'a, str>),
    Bytes(Vec<u8>),
}

impl Serialize for BytePath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => Wire::Text(text.into()).serialize(serializer),
            Err(_) => Wire::Bytes(self.0.clone()).serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for BytePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match Wire::deserialize(deserializer)? {
            Wire::Text(text) => Self(text.into_owned().into_bytes()),
            Wire::Bytes(bytes) => Self(bytes),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_no_text_survives_json() {
        for raw in [&b"a/\xff\nb"[..], b"-rf", b"plain", b"new\nline"] {
            let path = BytePath(raw.to_vec());
            let json = serde_json::to_string(&path).unwrap();
            assert_eq!(serde_json::from_str::<BytePath>(&json).unwrap(), path);
        }
    }

    #[test]
    fn an_entry_that_leaves_the_workspace_is_no_path() {
        for raw in [&b"/etc/passwd"[..], b"../x", b"a/../../x", b"a\0b"] {
            assert_eq!(BytePath::from_entry(raw), None, "{}", raw.escape_ascii());
        }
        assert_eq!(BytePath::from_entry(b"./a//b/"), Some(BytePath::from("a/b")));
    }

    #[test]
    fn git_is_seen_in_any_spelling() {
        for name in [".git", "a/.GIT/config", ".git. ", "git~1", ".g\u{200c}it", ".git::$INDEX_ALLOCATION"] {
            assert!(BytePath::from(name).names_git_folder(), "{name}");
        }
        for name in [".github", ".gitignore", "git", "a.git"] {
            assert!(!BytePath::from(name).names_git_folder(), "{name}");
        }
    }
}
