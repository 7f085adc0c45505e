//! What a job is told of the user's repository: its URL and a base branch. Nothing else leaves this machine (FR-010).

use std::path::{Path, PathBuf};

use url::Url;

use crate::error::{CliError, Kind};
use crate::git::Git;

/// Where a job starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    pub url: String,
    pub base: String,
    /// The URL had a user or password, which we took away.
    pub stripped: bool,
}

/// The URL of `origin` and the base, from the repository that the user is in. The base must be what others can fetch.
///
/// # Errors
/// No repository, no `origin`, no branch; a base that was not pushed.
pub fn find(root: Option<&Path>, repo: Option<&str>, base: Option<&str>) -> Result<Origin, CliError> {
    if let Some(repo) = repo {
        let (url, stripped) = without_password(repo);
        return Ok(Origin { url, base: base.unwrap_or("main").to_owned(), stripped });
    }
    let root = root.ok_or_else(|| {
        CliError::usage("there is no git repository here")
            .hint("run this in a clone, or name the repository with --repo URL and --base BRANCH")
    })?;
    let git = Git::at(root);
    // Two short processes side by side: this stands between the user and the job's id.
    let (url, base) = std::thread::scope(|scope| {
        let url = scope.spawn(|| origin_url(&git, root));
        let base = pushed_base(&git, base);
        (url.join().unwrap_or_else(|_| Err(CliError::other("git_failed", "git could not be asked for its remote"))), base)
    });
    let (url, stripped) = without_password(&url?);
    Ok(Origin { url, base: base?, stripped })
}

/// The same for a job on this machine, which reads the user's repository itself: nothing need be pushed.
///
/// # Errors
/// No repository, no branch.
pub fn local(root: Option<&Path>, repo: Option<&str>, base: Option<&str>) -> Result<Origin, CliError> {
    if repo.is_some() {
        return find(root, repo, base);
    }
    let root = root.ok_or_else(|| {
        CliError::usage("there is no git repository here").hint("run this in a clone, or name a repository with --repo")
    })?;
    let base = match base {
        Some(base) => base.to_owned(),
        None => current_branch(&Git::at(root))?,
    };
    Ok(Origin { url: root.display().to_string(), base, stripped: false })
}

fn origin_url(git: &Git, root: &Path) -> Result<String, CliError> {
    let url = git.try_line(&["remote", "get-url", "origin"])?.ok_or_else(|| {
        CliError::usage("this repository has no remote `origin`").hint("add one, or name the repository with --repo URL")
    })?;
    let path = Path::new(&url);
    let is_path = path.is_relative() && (url.starts_with('.') || (!url.contains(':') && root.join(path).exists()));
    if is_path {
        let absolute: PathBuf =
            std::fs::canonicalize(root.join(path)).map_err(|error| CliError::io("can't find `origin`", error))?;
        return Ok(absolute.display().to_string());
    }
    Ok(url)
}

fn current_branch(git: &Git) -> Result<String, CliError> {
    git.try_line(&["symbolic-ref", "--quiet", "--short", "HEAD"])?
        .filter(|branch| !branch.is_empty())
        .ok_or_else(|| CliError::usage("HEAD is on no branch").hint("name the branch to start from with --base"))
}

fn pushed_base(git: &Git, base: Option<&str>) -> Result<String, CliError> {
    let named = base.is_some();
    let branch = match base {
        // The remote's own branch: what it holds is pushed by definition.
        Some(base) if base.starts_with("origin/") && base.len() > 7 => return Ok(base["origin/".len()..].to_owned()),
        Some(base) => base.strip_prefix("refs/heads/").unwrap_or(base).to_owned(),
        None => current_branch(git)?,
    };
    let local = format!("refs/heads/{branch}");
    let format = "--format=%(refname)%00%(upstream:remotename)%00%(upstream:remoteref)%00%(upstream:track,nobracket)";
    let known = git.try_line(&["for-each-ref", format, &local])?.unwrap_or_default();
    let Some(fields) = known.lines().map(|line| line.split('\0').collect::<Vec<_>>()).find(|fields| fields[0] == local) else {
        // Not a branch of ours: the service will find out whether it is one of the remote's.
        return if named { Ok(branch) } else { Err(unborn(&branch)) };
    };
    if let [_, "origin", reference, track] = fields[..]
        && let Some(upstream) = reference.strip_prefix("refs/heads/")
        && track != "gone"
    {
        return match ahead(track) {
            0 => Ok(upstream.to_owned()),
            count => Err(not_pushed(&branch, Some(count), upstream)),
        };
    }
    let range = format!("refs/remotes/origin/{branch}..{local}");
    match git.try_line(&["rev-list", "--count", &range, "--"])?.and_then(|count| count.parse().ok()) {
        Some(0) => Ok(branch),
        count => Err(not_pushed(&branch, count, &branch)),
    }
}

/// `ahead 2, behind 1`
fn ahead(track: &str) -> u64 {
    track.split(", ").find_map(|part| part.strip_prefix("ahead ")).and_then(|count| count.parse().ok()).unwrap_or(0)
}

fn not_pushed(branch: &str, commits: Option<u64>, upstream: &str) -> CliError {
    let what = match commits {
        Some(1) => "has 1 commit that is not pushed to `origin`".to_owned(),
        Some(count) => format!("has {count} commits that are not pushed to `origin`"),
        None => "is not pushed to `origin`".to_owned(),
    };
    let push =
        if branch == upstream { format!("git push -u origin {branch}") } else { format!("git push origin {branch}:{upstream}") };
    let start =
        if commits.is_some() { format!(", or start from what is there: `--base origin/{upstream}`") } else { String::new() };
    CliError::new(Kind::Other, "base_not_pushed", format!("base not pushed: `{branch}` {what}, so a worker can't clone it"))
        .hint(format!("run `{push}`{start}"))
}

fn unborn(branch: &str) -> CliError {
    CliError::new(Kind::Other, "base_not_pushed", format!("base not pushed: `{branch}` has no commit yet"))
        .hint(format!("commit something, then `git push -u origin {branch}`"))
}

/// Takes user and password out of a URL; the user of ssh stays, for it names no secret.
#[must_use]
pub fn without_password(text: &str) -> (String, bool) {
    let Ok(mut url) = Url::parse(text) else { return (text.to_owned(), false) };
    let is_ssh = matches!(url.scheme(), "ssh" | "git+ssh");
    let had = url.password().is_some() || (!is_ssh && !url.username().is_empty());
    if !had || url.cannot_be_a_base() {
        return (text.to_owned(), false);
    }
    let _ = url.set_password(None);
    if !is_ssh {
        let _ = url.set_username("");
    }
    (url.to_string(), true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_never_leaves_with_the_url() {
        for (text, clean) in [
            ("https://user:hunter2@github.com/o/r.git", "https://github.com/o/r.git"),
            ("https://hunter2@github.com/o/r.git", "https://github.com/o/r.git"),
            ("ssh://git:hunter2@h/o/r", "ssh://git@h/o/r"),
        ] {
            assert_eq!(without_password(text), (clean.to_owned(), true));
        }
        for text in ["https://github.com/o/r.git", "ssh://git@h/o/r", "git@github.com:o/r.git", "/srv/r.git"] {
            assert_eq!(without_password(text), (text.to_owned(), false));
        }
    }

    #[test]
    fn commits_ahead_are_counted() {
        assert_eq!((ahead("ahead 2, behind 1"), ahead("behind 3"), ahead("")), (2, 0, 0));
    }
}
