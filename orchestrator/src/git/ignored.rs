//! What a commit's own `.gitignore` files leave out: an agent that installs packages must not bring them all home.

use std::collections::HashMap;
use std::path::Path;

use ignore::gitignore::{Gitignore, GitignoreBuilder};

use super::{Git, GitError};

/// The ignore files of one commit, by the folder that they stand in.
#[derive(Debug, Default)]
pub struct Ignored(HashMap<Vec<u8>, Gitignore>);

impl Ignored {
    /// Reads them.
    ///
    /// # Errors
    /// When git fails.
    pub async fn of(git: &Git, commit: &str) -> Result<Self, GitError> {
        let listing = git.run(["ls-tree", "-r", "-z", "--name-only", "--full-tree", commit]).await?;
        let mut all = HashMap::new();
        for path in listing.split(|byte| *byte == 0).filter(|path| *path == b".gitignore" || path.ends_with(b"/.gitignore")) {
            // A name that isn't UTF-8 can't be asked for in this way; its folder then has no rules.
            let Ok(name) = std::str::from_utf8(path) else { continue };
            let content = git.run(["cat-file", "blob", &format!("{commit}:{name}")]).await?;
            let folder = path[..path.len() - ".gitignore".len()].strip_suffix(b"/").unwrap_or_default().to_vec();
            let mut builder = GitignoreBuilder::new("");
            for line in String::from_utf8_lossy(&content).lines() {
                // A pattern that can't be read is passed over, as git does.
                let _ = builder.add_line(None, line);
            }
            if let Ok(rules) = builder.build() {
                all.insert(folder, rules);
            }
        }
        Ok(Self(all))
    }

    /// Whether a file of this path would be ignored. The deepest file that has an opinion decides.
    #[must_use]
    pub fn matches(&self, path: &[u8]) -> bool {
        use std::os::unix::ffi::OsStrExt;
        let mut folder = path;
        while let Some(end) = folder.iter().rposition(|byte| *byte == b'/') {
            folder = &folder[..end];
            if let Some(verdict) = self.ask(folder, Path::new(std::ffi::OsStr::from_bytes(&path[end + 1..]))) {
                return verdict;
            }
        }
        self.ask(b"", Path::new(std::ffi::OsStr::from_bytes(path))).unwrap_or(false)
    }

    fn ask(&self, folder: &[u8], relative: &Path) -> Option<bool> {
        let found = self.0.get(folder)?.matched_path_or_any_parents(relative, false);
        if found.is_ignore() {
            return Some(true);
        }
        found.is_whitelist().then_some(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(folder: &str, lines: &[&str]) -> (Vec<u8>, Gitignore) {
        let mut builder = GitignoreBuilder::new("");
        for line in lines {
            builder.add_line(None, line).unwrap();
        }
        (folder.as_bytes().to_vec(), builder.build().unwrap())
    }

    #[test]
    fn the_deepest_ignore_file_with_an_opinion_decides() {
        let ignored = Ignored(HashMap::from([rules("", &["node_modules/", "*.log", "/build"]), rules("keep", &["!*.log"])]));
        for path in ["node_modules/a/b.js", "x/node_modules/c", "a.log", "build/x"] {
            assert!(ignored.matches(path.as_bytes()), "{path}");
        }
        for path in ["src/a.rs", "keep/a.log", "x/build/y"] {
            assert!(!ignored.matches(path.as_bytes()), "{path}");
        }
    }
}
