//! Private repositories over ssh: a real sshd on loopback with a host key of its own, and a deploy key that opens one repository
//! for reading. Needs `sshd` and `ssh-keygen`; runs as root or not, and logs in as whoever runs the test.

use std::fs::Permissions;
use std::net::{IpAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use tokio::process::{Child, Command};

use crate::bench;
use crate::wait::{PATIENCE, wait_until};

#[derive(Debug)]
pub struct Sshd {
    folder: tempfile::TempDir,
    host: IpAddr,
    port: u16,
    user: String,
    repository: PathBuf,
    child: Child,
}

impl Sshd {
    /// Serves one bare repository.
    pub async fn start(repository: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("ckrv-sshd-").tempdir()?;
        for key in ["host", "deploy"] {
            keygen(&folder.path().join(key)).await?;
        }
        write_door(folder.path(), repository)?;
        if nix::unistd::Uid::effective().is_root() {
            // sshd wants it when it runs as root; a distribution's service manager would make it.
            std::fs::create_dir_all("/run/sshd").context("can't make sshd's folder")?;
        }
        let user = nix::unistd::User::from_uid(nix::unistd::Uid::effective())?.context("who runs this?")?.name;
        let host = bench::host()?;
        // A port may be taken between our look and sshd's: then the next one.
        for _ in 0..5 {
            let port = TcpListener::bind((bench::host()?, 0))?.local_addr()?.port();
            if let Some(child) = listen(folder.path(), host, port).await? {
                return Ok(Self { folder, host, port, user, repository: repository.to_owned(), child });
            }
        }
        let log = std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
        bail!("sshd does not start:\n{log}")
    }

    /// `ssh://user@HOST:PORT/path`
    pub fn url(&self) -> String {
        format!("ssh://{}@{}:{}{}", self.user, self.host, self.port, self.repository.display())
    }

    /// The line that pins the host key.
    pub fn known_hosts(&self) -> Result<String> {
        let public = std::fs::read_to_string(self.folder.path().join("host.pub"))?;
        let words: Vec<_> = public.split_whitespace().take(2).collect();
        Ok(format!("[{}]:{} {}\n", self.host, self.port, words.join(" ")))
    }

    /// The private deploy key, OpenSSH's format.
    pub fn deploy_key(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.folder.path().join("deploy"))?)
    }

    pub fn deploy_key_file(&self) -> PathBuf {
        self.folder.path().join("deploy")
    }

    /// What sshd has said so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        // Gone already is fine too.
        let _ = self.child.start_kill();
    }
}

async fn keygen(path: &Path) -> Result<()> {
    let mut keygen = Command::new("ssh-keygen");
    let status = keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"]).arg(path).status().await;
    let status = status.context("can't start ssh-keygen")?;
    if status.success() { Ok(()) } else { bail!("ssh-keygen ended with {status}") }
}

/// The forced command gives the one repository for reading, whatever the client asks for; nothing else has a door here.
fn write_door(folder: &Path, repository: &Path) -> Result<()> {
    let path = repository.to_str().context("the repository's path is not UTF-8")?;
    if path.contains(['\'', '"', '\\']) {
        bail!("no quotes in the path of a repository that sshd serves: {path}");
    }
    let door = folder.join("door");
    let script = format!(
        "#!/bin/sh\ncase \"$SSH_ORIGINAL_COMMAND\" in\n\"git-upload-pack '{path}'\"|\"git upload-pack '{path}'\") exec git upload-pack '{path}' ;;\n\
         *) echo 'this key opens another repository' >&2; exit 1 ;;\nesac\n"
    );
    std::fs::write(&door, script)?;
    std::fs::set_permissions(&door, Permissions::from_mode(0o755))?;
    let public = std::fs::read_to_string(folder.join("deploy.pub"))?;
    std::fs::write(folder.join("authorized_keys"), format!("restrict,command=\"{}\" {public}", door.display()))?;
    Ok(())
}

/// `None`: it ended at once, most likely because the port is taken.
async fn listen(folder: &Path, host: IpAddr, port: u16) -> Result<Option<Child>> {
    let at = |name: &str| folder.join(name).display().to_string();
    let config = format!(
        "ListenAddress {host}:{port}\nHostKey {}\nPidFile none\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n\
         KbdInteractiveAuthentication no\nPermitRootLogin forced-commands-only\nAcceptEnv GIT_PROTOCOL\nPrintMotd no\nMaxStartups 100\nLogLevel VERBOSE\n",
        at("host"),
        at("authorized_keys")
    );
    std::fs::write(folder.join("config"), config)?;
    let log = std::fs::File::create(folder.join("log"))?;
    // It starts itself again for each connection, and so insists on an absolute path.
    let mut sshd = Command::new(sshd_path()?);
    sshd.arg("-D")
        .arg("-e")
        .arg("-f")
        .arg(folder.join("config"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true);
    let mut child = sshd.spawn().context("can't start sshd")?;
    let up = wait_until("sshd listens", PATIENCE, async || {
        if child.try_wait().ok().flatten().is_some() {
            return Some(false);
        }
        tokio::net::TcpStream::connect((host, port)).await.ok().map(|_| true)
    });
    Ok(if up.await? { Some(child) } else { None })
}

fn sshd_path() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join("sshd")).find(|path| path.is_file()).context("sshd is missing: run `cargo xtask setup`")
}
