//! What an agent changed, hashed into the job runner's bare repository without being extracted.

use std::io::Read;
use std::path::PathBuf;
use std::process::Stdio;

use ckrv_core::job::DiffStat;
use ckrv_core::mask::Needles;
use ckrv_core::tree::{RefusedPath, check_path, check_symlink, display_path};
use jiff::Timestamp;
use std::io::Write;

use super::{Git, GitError};

#[derive(Clone, Copy, Debug)]
pub struct ResultLimits {
    pub max_bytes: u64,
    pub max_entries: usize,
}

impl Default for ResultLimits {
    fn default() -> Self {
        Self { max_bytes: 512 * 1024 * 1024, max_entries: 50_000 }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ResultError {
    #[error("the result holds one of the job's secrets: {path}, line {line}")]
    Secret { path: String, line: usize },
    #[error("the result is too large: more than {limit}")]
    TooLarge { limit: String },
    #[error("the result can't be read: {0}")]
    Archive(#[source] std::io::Error),
    #[error(transparent)]
    Git(#[from] GitError),
}

#[derive(Clone, Debug)]
pub struct CommitInfo {
    /// The commit that the agent started from.
    pub parent: String,
    pub branch: String,
    pub subject: String,
    pub at: Timestamp,
}

#[derive(Clone, Debug)]
pub struct Committed {
    pub sha: String,
    /// What was left out, by name.
    pub refused: Vec<RefusedPath>,
}

/// A diff in git's own format, and what it changes.
#[derive(Clone, Debug)]
pub struct Diff {
    pub content: Vec<u8>,
    pub stat: DiffStat,
}

/// Makes one commit of the changes: `archive` is a tar of changed entries, `deleted` are the paths that are gone.
///
/// # Errors
/// When a changed file holds a secret, when the result passes a limit, or when git fails.
pub async fn commit_result(
    git: &Git,
    info: &CommitInfo,
    archive: PathBuf,
    deleted: Vec<Vec<u8>>,
    needles: Needles,
    limits: ResultLimits,
) -> Result<Committed, ResultError> {
    let import = git.command(["fast-import", "--quiet", "--force", "--done", "--date-format=raw"]).into_std();
    let job = info.clone();
    let refused = tokio::task::spawn_blocking(move || feed(import, &job, &archive, &deleted, &needles, limits))
        .await
        .map_err(|error| GitError::Unexpected { command: "fast-import".to_owned(), reason: error.to_string() })??;
    let sha = git.line(["rev-parse", "--verify", &format!("refs/heads/{}^{{commit}}", info.branch)]).await?;
    Ok(Committed { sha, refused })
}

fn feed(
    mut import: std::process::Command,
    info: &CommitInfo,
    archive: &PathBuf,
    deleted: &[Vec<u8>],
    needles: &Needles,
    limits: ResultLimits,
) -> Result<Vec<RefusedPath>, ResultError> {
    let mut child = import.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().map_err(GitError::Start)?;
    let stdin = child
        .stdin
        .take()
        .ok_or_else(|| GitError::Unexpected { command: "fast-import".to_owned(), reason: "it has no input".to_owned() })?;
    let written = write_stream(std::io::BufWriter::new(stdin), info, archive, deleted, needles, limits);
    if written.is_err() {
        // Without `done` fast-import throws away what it was given.
        let _ = child.kill();
    }
    let output = child.wait_with_output().map_err(GitError::io("git fast-import"))?;
    let refused = written?;
    super::checked("fast-import", output)?;
    Ok(refused)
}

fn write_stream(
    mut out: impl Write,
    info: &CommitInfo,
    archive: &PathBuf,
    deleted: &[Vec<u8>],
    needles: &Needles,
    limits: ResultLimits,
) -> Result<Vec<RefusedPath>, ResultError> {
    let io = |error| ResultError::Git(GitError::io("can't write to git fast-import")(error));
    let mut refused = Vec::new();
    let who = format!("ckrv <ckrv@ckrv.invalid> {} +0000", info.at.as_second());
    let subject = info.subject.as_bytes();
    write!(out, "commit refs/heads/{}\nauthor {who}\ncommitter {who}\ndata {}\n", info.branch, subject.len()).map_err(io)?;
    out.write_all(subject).map_err(io)?;
    write!(out, "\nfrom {}\n", info.parent).map_err(io)?;
    // Deletions first: a file may have become a folder.
    for path in deleted {
        match check_path(path) {
            Ok(()) => {
                out.write_all(b"D ")
                    .and_then(|()| out.write_all(&quoted(path)))
                    .and_then(|()| out.write_all(b"\n"))
                    .map_err(io)?;
            }
            Err(reason) => refused.push(reason),
        }
    }
    let file = std::fs::File::open(archive).map_err(ResultError::Archive)?;
    let mut tar = tar::Archive::new(std::io::BufReader::new(file));
    let mut budget = limits.max_bytes;
    for (count, entry) in tar.entries().map_err(ResultError::Archive)?.enumerate() {
        if count >= limits.max_entries {
            return Err(ResultError::TooLarge { limit: format!("{} entries", limits.max_entries) });
        }
        let mut entry = entry.map_err(ResultError::Archive)?;
        let path = entry.path_bytes().into_owned();
        if let Err(reason) = check_path(&path) {
            refused.push(reason);
            continue;
        }
        let kind = entry.header().entry_type();
        let (mode, content) = if kind.is_symlink() {
            let target = entry.link_name_bytes().unwrap_or_default().into_owned();
            if let Err(reason) = check_symlink(&path, &target) {
                refused.push(reason);
                continue;
            }
            ("120000", target)
        } else if kind.is_file() {
            let size = entry.header().size().map_err(ResultError::Archive)?;
            budget =
                budget.checked_sub(size).ok_or_else(|| ResultError::TooLarge { limit: format!("{} bytes", limits.max_bytes) })?;
            let mut content = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
            entry.read_to_end(&mut content).map_err(ResultError::Archive)?;
            let executable = entry.header().mode().map_err(ResultError::Archive)? & 0o111 != 0;
            (if executable { "100755" } else { "100644" }, content)
        } else if kind.is_dir() {
            continue;
        } else {
            refused.push(RefusedPath { path: display_path(&path), reason: "only files and links can be a result" });
            continue;
        };
        if let Some(found) = needles.find(&content) {
            return Err(ResultError::Secret { path: display_path(&path), line: found.line });
        }
        if needles.find(&path).is_some() {
            return Err(ResultError::Secret { path: "(a file's name)".to_owned(), line: 0 });
        }
        write!(out, "M {mode} inline ").and_then(|()| out.write_all(&quoted(&path))).map_err(io)?;
        write!(out, "\ndata {}\n", content.len())
            .and_then(|()| out.write_all(&content))
            .and_then(|()| out.write_all(b"\n"))
            .map_err(io)?;
    }
    out.write_all(b"\ndone\n").and_then(|()| out.flush()).map_err(io)?;
    Ok(refused)
}

/// A path as fast-import reads it: quoted the way C does, so that any byte may stand in it.
fn quoted(path: &[u8]) -> Vec<u8> {
    let mut out = vec![b'"'];
    for byte in path {
        match byte {
            b'"' | b'\\' => out.extend([b'\\', *byte]),
            0x20..=0x7e => out.push(*byte),
            _ => out.extend(format!("\\{byte:03o}").bytes()),
        }
    }
    out.push(b'"');
    out
}

/// The difference between two commits: binary files whole, renames told, nothing of the repository's own configuration used.
///
/// # Errors
/// When it has more than `most` bytes, or when git fails.
pub async fn diff(git: &Git, from: &str, to: &str, most: u64) -> Result<Diff, ResultError> {
    // Into a file first: the content of a result has a limit, but its diff is not known to be smaller.
    let file = tempfile::NamedTempFile::new_in(git.dir()).map_err(GitError::io("can't make a file for the diff"))?;
    let output = format!("--output={}", file.path().display());
    git.run([
        "diff",
        &output,
        "--binary",
        "--full-index",
        "--no-color",
        "--no-ext-diff",
        "--no-textconv",
        "--find-renames",
        "--src-prefix=a/",
        "--dst-prefix=b/",
        from,
        to,
        "--",
    ])
    .await?;
    let read = |error| GitError::io("can't read the diff")(error);
    if file.as_file().metadata().map_err(read)?.len() > most {
        return Err(ResultError::TooLarge { limit: format!("{} MiB of diff", most >> 20) });
    }
    let content = std::fs::read(file.path()).map_err(read)?;
    let numbers = git.run(["diff", "--numstat", "-z", "--no-ext-diff", "--no-textconv", "--no-renames", from, to, "--"]).await?;
    let mut stat = DiffStat::default();
    for record in numbers.split(|byte| *byte == 0).filter(|record| !record.is_empty()) {
        let text = String::from_utf8_lossy(record);
        let mut words = text.split('\t');
        stat.files += 1;
        // A binary file has `-` for both.
        stat.insertions += words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        stat.deletions += words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Diff { content, stat })
}
