//! The difference between two commits as a tar of whole files, and what is gone: what [`commit_result`](super::commit_result) takes.

use std::io::Write;

use super::checkout::{Entry, write_tar};
use super::{Git, GitError};

#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// In the tar.
    pub files: usize,
    pub deleted: Vec<Vec<u8>>,
}

/// Writes the tar.
///
/// # Errors
/// When an object can't be read or the tar can't be written.
pub async fn write_changes<W: Write + Send + 'static>(git: &Git, from: &str, to: &str, out: W) -> Result<(W, Changes), GitError> {
    let listing = git.run(["diff-tree", "-r", "-z", "--raw", "--no-renames", "--full-index", from, to]).await?;
    let (entries, deleted) = parse(&listing)?;
    let files = entries.len();
    let batch = git.command(["cat-file", "--batch"]);
    let written = tokio::task::spawn_blocking(move || write_tar(batch.into_std(), &entries, &[], out)).await;
    let (out, _) =
        written.map_err(|error| GitError::Unexpected { command: "cat-file".to_owned(), reason: error.to_string() })??;
    Ok((out, Changes { files, deleted }))
}

/// `:OLDMODE NEWMODE OLDSHA NEWSHA STATUS`, NUL, the path, NUL.
fn parse(listing: &[u8]) -> Result<(Vec<Entry>, Vec<Vec<u8>>), GitError> {
    let odd = || GitError::Unexpected { command: "diff-tree".to_owned(), reason: "its output has an unknown form".to_owned() };
    let mut words = listing.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    let (mut entries, mut deleted) = (Vec::new(), Vec::new());
    while let Some(about) = words.next() {
        let path = words.next().ok_or_else(odd)?.to_vec();
        let about: Vec<&str> = std::str::from_utf8(about).map_err(|_| odd())?.split(' ').collect();
        let [_, mode, _, sha, status] = about[..] else { return Err(odd()) };
        match (mode, status) {
            (_, "D") => deleted.push(path),
            // A submodule stays as it is.
            ("160000", _) => {}
            _ => {
                let mode = u32::from_str_radix(mode, 8).map_err(|_| odd())?;
                entries.push(Entry { mode, sha: sha.to_owned(), path });
            }
        }
    }
    Ok((entries, deleted))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use ckrv_core::mask::Needles;
    use jiff::Timestamp;

    use super::*;
    use crate::git::{CommitInfo, ResultLimits, commit_result};

    fn sh(folder: &std::path::Path, script: &str) -> String {
        let output = Command::new("sh").args(["-ec", script]).current_dir(folder).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    #[tokio::test]
    async fn the_changes_of_a_commit_make_the_same_tree_again_in_a_borrowing_repository() {
        let folder = tempfile::tempdir().unwrap();
        let script = "git init -q work; cd work; git config user.name a; git config user.email a@b.c
            echo 1 > same; echo 1 > changed; echo 1 > gone; mkdir file; echo 1 > file/in; echo 1 > run; ln -s same link
            git add .; git commit -qm one; git rev-parse HEAD
            echo 2 > changed; rm gone; rm -r file; echo 2 > file; chmod +x run; ln -sf changed link; mkdir -p new/deep
            printf 'a\\0b' > 'new/deep/b \"q\" \\303\\244'; git add -A; git commit -qm two; git rev-parse HEAD
            git clone -q --bare . ../bare.git";
        let commits = sh(folder.path(), script);
        let (base, head) = commits.split_once('\n').unwrap();
        let git = Git::new(folder.path().join("bare.git"), true, None);
        let tar = folder.path().join("tar");
        let (_, changes) = write_changes(&git, base, head, std::fs::File::create(&tar).unwrap()).await.unwrap();
        assert_eq!((changes.files, changes.deleted), (5, vec![b"file/in".to_vec(), b"gone".to_vec()]));
        let deleted = vec![b"file/in".to_vec(), b"gone".to_vec()];

        let before = sh(&git.dir().join("objects"), "find . -type f | sort");
        let scratch = git.borrowing(folder.path().join("scratch.git")).await.unwrap();
        let info =
            CommitInfo { parent: base.to_owned(), branch: "b".to_owned(), subject: "s".to_owned(), at: Timestamp::UNIX_EPOCH };
        let made = commit_result(&scratch, &info, tar, deleted, Needles::default(), ResultLimits::default()).await.unwrap();
        assert!(made.refused.is_empty(), "{:?}", made.refused);
        let tree = async |git: &Git, commit: &str| git.line(["rev-parse", &format!("{commit}^{{tree}}")]).await.unwrap();
        assert_eq!(tree(&scratch, &made.sha).await, tree(&git, head).await);
        assert_eq!(sh(&git.dir().join("objects"), "find . -type f | sort"), before, "nothing of it is in the lender");
    }
}
