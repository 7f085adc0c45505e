//! What may come back in a tree: paths and links that are harmless wherever they are checked out. The job runner asks before it
//! hashes an agent's result, and `ckrv pull` asks again on the user's side.

/// A path or link that is never accepted, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{path}` is refused: {reason}")]
pub struct RefusedPath {
    /// The path, with anything unprintable escaped.
    pub path: String,
    pub reason: &'static str,
}

/// Bytes for people: printable ASCII and valid UTF-8 letters as they are, everything else escaped.
#[must_use]
pub fn display_path(path: &[u8]) -> String {
    let mut out = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

/// Checks a path relative to the top of the tree, with `/` between its parts.
///
/// # Errors
/// Absolute paths, empty, `.` and `..` parts, NUL, and `.git` in every spelling that some file system takes for it.
pub fn check_path(path: &[u8]) -> Result<(), RefusedPath> {
    let refuse = |reason| Err(RefusedPath { path: display_path(path), reason });
    if path.is_empty() {
        return refuse("it is empty");
    }
    if path.len() > 4096 {
        return refuse("it is longer than 4096 bytes");
    }
    if path[0] == b'/' {
        return refuse("it is absolute");
    }
    if path.contains(&0) {
        return refuse("it contains a NUL byte");
    }
    for part in path.split(|byte| *byte == b'/') {
        if part.is_empty() || part == b"." {
            return refuse("it has an empty part");
        }
        if part == b".." {
            return refuse("it leaves the tree");
        }
        // Windows takes a backslash for a separator, so each piece between backslashes must be harmless too.
        for piece in part.split(|byte| *byte == b'\\') {
            if piece == b".." {
                return refuse("it leaves the tree");
            }
            if is_dot_git(piece) {
                return refuse("it names a git folder");
            }
        }
    }
    Ok(())
}

/// Checks where a symbolic link points. `path` is the link's own, already checked path.
///
/// # Errors
/// Absolute targets, and relative ones that leave the tree or pass through a `.git`.
pub fn check_symlink(path: &[u8], target: &[u8]) -> Result<(), RefusedPath> {
    let refuse = |reason| Err(RefusedPath { path: format!("{} -> {}", display_path(path), display_path(target)), reason });
    if target.is_empty() || target.contains(&0) {
        return refuse("its target is empty or contains a NUL byte");
    }
    if target[0] == b'/' || target[0] == b'\\' || (target.len() > 1 && target[1] == b':' && target[0].is_ascii_alphabetic()) {
        return refuse("it points to an absolute path");
    }
    // The folder that holds the link is where a relative target starts.
    let mut depth = path.split(|byte| *byte == b'/').count() - 1;
    for part in target.split(|byte| *byte == b'/' || *byte == b'\\') {
        match part {
            b"" | b"." => {}
            b".." if depth == 0 => return refuse("it points out of the tree"),
            b".." => depth -= 1,
            part if is_dot_git(part) => return refuse("it points into a git folder"),
            _ => depth += 1,
        }
    }
    Ok(())
}

/// `.git` as HFS+ (ignorable code points, case), NTFS (trailing dots and spaces, streams, the short name `git~1`) and FAT see it.
fn is_dot_git(part: &[u8]) -> bool {
    let text = String::from_utf8_lossy(part);
    let folded: String = text.chars().filter(|c| !is_hfs_ignorable(*c)).collect::<String>().to_lowercase();
    let stem = folded.split(':').next().unwrap_or_default().trim_end_matches(['.', ' ']);
    stem == ".git" || stem == "git~1"
}

fn is_hfs_ignorable(c: char) -> bool {
    matches!(c, '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dot_git_is_refused_in_every_spelling() {
        for path in [
            ".git/config",
            "a/.git",
            ".GIT/x",
            ".g\u{200c}it/hooks/x",
            ".git./x",
            ".git /x",
            "GIT~1/config",
            ".git::$INDEX_ALLOCATION/x",
            "a\\.git\\x",
        ] {
            assert!(check_path(path.as_bytes()).is_err(), "{path}");
        }
        for path in [".gitignore", ".github/workflows/x", "git/x", "a.git", ".gitattributes", "-x", "a b", "\u{fe0f}"] {
            assert!(check_path(path.as_bytes()).is_ok(), "{path}");
        }
        assert!(check_path(b"caf\xe9").is_ok(), "names need not be UTF-8");
    }

    #[test]
    fn a_path_that_leaves_the_tree_is_refused() {
        for path in ["/etc/passwd", "../x", "a/../../x", "a//b", "./a", "", "a/", "a\\..\\b", "a\0b"] {
            assert!(check_path(path.as_bytes()).is_err(), "{path:?}");
        }
    }

    #[test]
    fn a_link_may_point_anywhere_inside_the_tree_and_nowhere_else() {
        for (path, target) in [("a", "b"), ("d/a", "../b"), ("d/e/a", "../../b"), ("a", "d/../b"), ("a", ".gitignore")] {
            assert!(check_symlink(path.as_bytes(), target.as_bytes()).is_ok(), "{path} -> {target}");
        }
        for (path, target) in [
            ("a", "../b"),
            ("d/a", "../../b"),
            ("a", "/etc/passwd"),
            ("a", "d/../../b"),
            ("a", ".git/config"),
            ("a", "C:\\x"),
            ("a", ""),
        ] {
            assert!(check_symlink(path.as_bytes(), target.as_bytes()).is_err(), "{path} -> {target}");
        }
    }
}
