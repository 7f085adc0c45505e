//! A commit as a tar for the agent's container: the files, and a fresh `.git` without remotes. Made from the job runner's bare repository by
//! reading objects, so that no filter, attribute or hook of the repository has a say.

use std::io::Write;
use std::path::Path;
use std::process::{Command as StdCommand, Stdio};

use ckrv_core::tree::{RefusedPath, check_path, check_symlink, display_path};

use super::{Git, GitError};

#[derive(Clone, Debug)]
pub struct CheckoutOptions {
    /// Whose files are written.
    pub commit: String,
    /// `None`: no `.git` at all.
    pub repository: Option<Repository>,
}

/// The fresh `.git`.
#[derive(Clone, Debug)]
pub struct Repository {
    pub branch: String,
    /// Where the branch is. The files are another commit's where an interrupted attempt's changes are in them: git then tells them as changed.
    pub head: String,
}

/// One blob of the tree.
pub(super) struct Entry {
    pub mode: u32,
    pub sha: String,
    pub path: Vec<u8>,
}

/// Writes the tar. Gives the entries that were left out: links that point out of the tree, paths that are never accepted, submodules.
///
/// # Errors
/// When an object can't be read or the tar can't be written.
pub async fn write_checkout<W: Write + Send + 'static>(
    git: &Git,
    options: &CheckoutOptions,
    out: W,
) -> Result<(W, Vec<RefusedPath>), GitError> {
    let listing = git.run(["ls-tree", "-r", "-z", "--full-tree", &options.commit]).await?;
    let (entries, submodules) = parse_listing(&listing)?;
    let mut repository = Vec::new();
    if let Some(Repository { branch, head }) = &options.repository {
        repository = fresh_repository(git, head, branch).await?;
    }
    let batch = git.command(["cat-file", "--batch"]);
    let (out, mut refused) = tokio::task::spawn_blocking(move || write_tar(batch.into_std(), &entries, &repository, out))
        .await
        .map_err(|error| GitError::Unexpected { command: "checkout".to_owned(), reason: error.to_string() })??;
    refused.extend(submodules);
    Ok((out, refused))
}

fn parse_listing(listing: &[u8]) -> Result<(Vec<Entry>, Vec<RefusedPath>), GitError> {
    let odd = || GitError::Unexpected { command: "ls-tree".to_owned(), reason: "its output has an unknown form".to_owned() };
    let (mut entries, mut refused) = (Vec::new(), Vec::new());
    for record in listing.split(|byte| *byte == 0).filter(|record| !record.is_empty()) {
        let tab = record.iter().position(|byte| *byte == b'\t').ok_or_else(odd)?;
        let head = std::str::from_utf8(&record[..tab]).map_err(|_| odd())?;
        let mut words = head.split(' ');
        let (mode, kind, sha) = (words.next().ok_or_else(odd)?, words.next().ok_or_else(odd)?, words.next().ok_or_else(odd)?);
        if kind == "commit" {
            // It has no content here, and stays as it is in the result. Its URL is the repository's word, and nobody follows it.
            refused.push(RefusedPath {
                path: display_path(&record[tab + 1..]),
                reason: "it is a submodule, and those are not fetched",
            });
        } else if kind == "blob" {
            entries.push(Entry {
                mode: u32::from_str_radix(mode, 8).map_err(|_| odd())?,
                sha: sha.to_owned(),
                path: record[tab + 1..].to_vec(),
            });
        }
    }
    Ok((entries, refused))
}

pub(super) fn write_tar<W: Write>(
    mut batch: StdCommand,
    entries: &[Entry],
    repository: &[(String, Vec<u8>)],
    out: W,
) -> Result<(W, Vec<RefusedPath>), GitError> {
    let fail = |context: &'static str| GitError::io(context);
    let mut child = batch.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().map_err(GitError::Start)?;
    let missing = || GitError::Unexpected { command: "cat-file".to_owned(), reason: "it has no pipes".to_owned() };
    let mut ask = child.stdin.take().ok_or_else(missing)?;
    let mut answers = std::io::BufReader::with_capacity(1 << 16, child.stdout.take().ok_or_else(missing)?);
    let mut tar = tar::Builder::new(out);
    let mut refused = Vec::new();
    for (path, content) in repository {
        append(&mut tar, path.as_bytes(), 0o100_644, content).map_err(fail("can't write the checkout"))?;
    }
    for entry in entries {
        if let Err(reason) = check_path(&entry.path) {
            refused.push(reason);
            continue;
        }
        ask.write_all(entry.sha.as_bytes())
            .and_then(|()| ask.write_all(b"\n"))
            .and_then(|()| ask.flush())
            .map_err(fail("can't ask git cat-file"))?;
        let content = read_object(&mut answers)?;
        if entry.mode == 0o120_000
            && let Err(reason) = check_symlink(&entry.path, &content)
        {
            refused.push(reason);
            continue;
        }
        append(&mut tar, &entry.path, entry.mode, &content).map_err(fail("can't write the checkout"))?;
    }
    drop(ask);
    let _ = child.wait();
    Ok((tar.into_inner().map_err(fail("can't end the checkout"))?, refused))
}

fn read_object(answers: &mut impl std::io::BufRead) -> Result<Vec<u8>, GitError> {
    let odd = |reason: String| GitError::Unexpected { command: "cat-file".to_owned(), reason };
    let mut head = String::new();
    answers.read_line(&mut head).map_err(GitError::io("can't read from git cat-file"))?;
    let size: usize = head
        .trim_end()
        .rsplit(' ')
        .next()
        .and_then(|size| size.parse().ok())
        .ok_or_else(|| odd(format!("it answered `{}`", head.trim_end())))?;
    let mut content = vec![0; size + 1];
    answers.read_exact(&mut content).map_err(GitError::io("can't read from git cat-file"))?;
    content.pop();
    Ok(content)
}

fn append<W: Write>(tar: &mut tar::Builder<W>, path: &[u8], mode: u32, content: &[u8]) -> std::io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let name = Path::new(std::ffi::OsStr::from_bytes(path));
    let mut header = tar::Header::new_gnu();
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    if mode == 0o120_000 {
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        return tar.append_link(&mut header, name, Path::new(std::ffi::OsStr::from_bytes(content)));
    }
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(content.len() as u64);
    header.set_mode(if mode & 0o111 == 0 { 0o644 } else { 0o755 });
    tar.append_data(&mut header, name, content)
}

/// The files of a fresh `.git`: the packs of our bare repository, one branch, an index, no remotes, no hooks.
async fn fresh_repository(git: &Git, commit: &str, branch: &str) -> Result<Vec<(String, Vec<u8>)>, GitError> {
    let index = git.dir().join("checkout-index");
    let mut command = git.command(["read-tree", commit]);
    command.env("GIT_INDEX_FILE", &index);
    super::checked("read-tree", super::finish("read-tree", command).await?)?;
    let read = |path: &Path| std::fs::read(path).map_err(GitError::io(format!("can't read {}", path.display())));
    let mut files = vec![
        (".git/HEAD".to_owned(), format!("ref: refs/heads/{branch}\n").into_bytes()),
        (".git/config".to_owned(), b"[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n\tlogallrefupdates = true\n[user]\n\tname = ckrv agent\n\temail = agent@ckrv.invalid\n".to_vec()),
        (format!(".git/refs/heads/{branch}"), format!("{commit}\n").into_bytes()),
        (".git/index".to_owned(), read(&index)?),
    ];
    let _ = std::fs::remove_file(&index);
    let shallow = git.dir().join("shallow");
    if shallow.exists() {
        files.push((".git/shallow".to_owned(), read(&shallow)?));
    }
    let objects = git.dir().join("objects");
    let list = |folder: &Path| -> Result<Vec<std::path::PathBuf>, GitError> {
        let entries = std::fs::read_dir(folder).map_err(GitError::io(format!("can't list {}", folder.display())))?;
        Ok(entries.filter_map(Result::ok).map(|entry| entry.path()).collect())
    };
    for folder in list(&objects)? {
        if !folder.is_dir() || folder.ends_with("info") {
            continue;
        }
        for file in list(&folder)? {
            // Temporary files of a fetch in another process have no place here.
            if file.is_file() && !file.to_string_lossy().contains("tmp_") {
                let relative = file.strip_prefix(git.dir()).map_err(|_| GitError::Unexpected {
                    command: "checkout".to_owned(),
                    reason: "an object lies outside".to_owned(),
                })?;
                files.push((format!(".git/{}", relative.display()), read(&file)?));
            }
        }
    }
    Ok(files)
}
