//! A server, a user who is logged in, a repository and the user's clone of it: where most scenarios begin.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::bench;
use crate::forge::Forge;
use crate::git::git;
use crate::git_http::Rules;
use crate::repo::Repo;
use crate::server::{Server, Setup};
use crate::user::{Ran, User};
use crate::wait::{PATIENCE, wait_until};

/// Dropped, its server is killed and its folders are removed.
#[derive(Debug)]
pub struct Scene {
    pub server: Server,
    pub user: User,
    pub repo: Repo,
    /// The user's clone.
    pub project: PathBuf,
    folder: tempfile::TempDir,
    made: AtomicUsize,
    /// In the test cluster: where job pods clone from.
    _forge: Option<Forge>,
}

impl Scene {
    /// By the process launcher, on a repository of one small file.
    pub async fn start() -> Result<Self> {
        Self::with(Setup::unsandboxed(), Repo::small(&[("README.md", "# A project\n")])?).await
    }

    /// The user's access token is given by `CKRV_TOKEN`: the login is the matter of other tests.
    pub async fn with(mut setup: Setup, repo: Repo) -> Result<Self> {
        let forge = if bench::in_cluster() { Some(public(&mut setup, &repo).await?) } else { None };
        let mut scene = Self::of(Server::start(setup).await?, repo).await?;
        if let Some(forge) = &forge {
            forge.is_origin_of(&scene.project)?;
        }
        scene._forge = forge;
        Ok(scene)
    }

    /// With a server that runs already.
    pub async fn of(server: Server, repo: Repo) -> Result<Self> {
        let mut user = User::of(&server)?;
        user.set("CKRV_TOKEN", &server.login().await?.access);
        let folder = tempfile::Builder::new().prefix("ckrv-scene-").tempdir()?;
        let project = folder.path().join("project");
        repo.clone_to(&project, None)?;
        Ok(Self { server, user, repo, project, folder, made: AtomicUsize::new(0), _forge: None })
    }

    /// A folder beside the clone.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// `ckrv` in the clone.
    pub async fn ckrv<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<Ran> {
        self.user.run(&self.project, args).await
    }

    /// A file with a spec, beside the clone, so that the clone stays as it is. Its name is its id: `spec1` and so on.
    pub fn spec(&self, text: impl AsRef<[u8]>) -> Result<String> {
        let number = self.made.fetch_add(1, Ordering::Relaxed) + 1;
        let path = self.folder.path().join(format!("spec{number}.md"));
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    }

    /// A job of agent `script`; returns its id.
    pub async fn submit(&self, script: &str) -> Result<String> {
        self.submit_spec(&script_spec("", script)).await
    }

    pub async fn submit_spec(&self, spec: &str) -> Result<String> {
        self.ckrv(&["run", "--cloud", &self.spec(spec)?]).await?.ok()
    }

    /// The same to its success.
    pub async fn succeed(&self, script: &str) -> Result<String> {
        let id = self.submit(script).await?;
        self.ckrv(&["wait", &id]).await?.ok()?;
        Ok(id)
    }

    /// The job as the service tells it.
    pub async fn job(&self, id: &str) -> Result<Value> {
        serde_json::from_str(&self.ckrv(&["status", "--json", id]).await?.ok()?).context("no JSON")
    }

    /// Waits until a job is in this state.
    pub async fn until(&self, id: &str, state: &str) -> Result<Value> {
        wait_until(&format!("job {id} is {state}"), PATIENCE, async || {
            self.job(id).await.ok().filter(|job| job["state"] == state)
        })
        .await
    }

    /// A gate that a script can wait at.
    pub fn gate(&self) -> Gate {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let name = format!("gate{number}");
        match self.server.cluster() {
            Ok(cluster) => Gate { path: Path::new("/tmp").join(name), jobs: Some(cluster.jobs.clone()) },
            Err(_) => Gate { path: self.folder.path().join(name), jobs: None },
        }
    }

    /// `git status` with everything in it, and the content of each file outside `.git`: equal before and after means untouched.
    pub fn tree(&self) -> Result<Tree> {
        let status = git(&self.project, &["status", "--porcelain=v1", "-z", "--untracked-files=all", "--ignored"])?;
        let mut files = Vec::new();
        read(&self.project, &self.project, &mut files)?;
        files.sort();
        Ok(Tree { status, head: git(&self.project, &["rev-parse", "HEAD"])?, files })
    }
}

/// A folder as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    pub status: String,
    pub head: String,
    /// Path, mode, content or target of a link.
    pub files: Vec<(PathBuf, u32, Vec<u8>)>,
}

impl Tree {
    /// The content of a file, or the target of a link.
    pub fn content(&self, path: impl AsRef<Path>) -> Option<&[u8]> {
        self.files.iter().find(|(found, _, _)| found == path.as_ref()).map(|(_, _, content)| content.as_slice())
    }
}

fn read(root: &Path, folder: &Path, files: &mut Vec<(PathBuf, u32, Vec<u8>)>) -> Result<()> {
    use std::os::unix::ffi::OsStringExt as _;
    use std::os::unix::fs::MetadataExt as _;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let about = path.symlink_metadata()?;
        let name = path.strip_prefix(root)?.to_owned();
        if name == Path::new(".git") {
            continue;
        }
        if about.is_dir() {
            read(root, &path, files)?;
        } else if about.is_symlink() {
            files.push((name, 0o120_000, std::fs::read_link(&path)?.into_os_string().into_vec()));
        } else {
            files.push((name, about.mode() & 0o777, std::fs::read(&path)?));
        }
    }
    Ok(())
}

/// The repository on a server that pods reach, where everybody may read.
async fn public(setup: &mut Setup, repo: &Repo) -> Result<Forge> {
    let forge = Forge::https_with(repo, Rules::default()).await?;
    if let Some(file) = forge.ca_file()
        && !setup.config.contains_key("ca_file")
    {
        setup.config.insert("ca_file".to_owned(), file.display().to_string().into());
    }
    let policy = setup.config.entry("policy").or_insert_with(|| toml::Table::new().into());
    policy.as_table_mut().context("policy is not a table")?.insert("private_git_hosts".to_owned(), true.into());
    Ok(forge)
}

/// Closed at first.
#[derive(Debug)]
pub struct Gate {
    path: PathBuf,
    /// In the test cluster: the namespace of the pods that may stand before it, each with the file in its own `/tmp`.
    jobs: Option<String>,
}

impl Gate {
    /// Shell text that waits until it is open. It says so in a file first, for [`Gate::reached`].
    pub fn wait(&self) -> String {
        let path = self.path.display();
        format!("echo $$ > {path}.reached; while [ ! -e {path} ]; do sleep 0.05; done")
    }

    pub fn open(&self) -> Result<()> {
        if self.jobs.is_some() {
            let script = format!("test -e {0}.reached && touch {0}", self.path.display());
            return self.in_pod(&script).map(drop).context("no pod stands before the gate");
        }
        std::fs::write(&self.path, "")?;
        Ok(())
    }

    /// Waits until the script stands before it; gives the shell's process id.
    pub async fn reached(&self) -> Result<i32> {
        let read = async || self.read().and_then(|text| text.trim().parse().ok());
        wait_until("the script stands before the gate", PATIENCE, read).await
    }

    pub fn was_reached(&self) -> bool {
        self.read().is_some()
    }

    fn read(&self) -> Option<String> {
        match self.jobs {
            Some(_) => self.in_pod(&format!("cat {}.reached", self.path.display())),
            None => std::fs::read_to_string(self.path.with_extension("reached")).ok(),
        }
    }

    /// What the script prints in the first agent pod where it succeeds.
    fn in_pod(&self, script: &str) -> Option<String> {
        crate::kube::in_any_agent(self.jobs.as_deref()?, script)
    }
}

/// A spec for agent `script`; `keys` are further lines of its front matter.
pub fn script_spec(keys: &str, script: &str) -> String {
    format!("---\nagent: script\n{keys}\n---\n{script}\n")
}

/// What a command in error says: its exit code and the object `error` that `--json` prints.
pub fn error(ran: &Ran) -> Result<(i32, Value)> {
    let value = ran.json()?;
    let error = value["error"].clone();
    ensure!(error["code"].is_string() && error["message"].is_string(), "not an error: {ran:?}");
    Ok((ran.code, error))
}
