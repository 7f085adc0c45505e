//! The demo's own small machine: a temporary home folder with a server, a repository, and a shell to type into.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::podman::stop;
use crate::steps::{self, say};

/// A home folder that is thrown away, and the one `ckrv` that runs in it.
pub struct Home {
    folder: tempfile::TempDir,
    ckrv: PathBuf,
    pub url: Option<String>,
}

impl Home {
    pub fn new(ckrv: PathBuf) -> Result<Self> {
        Ok(Self { folder: tempfile::Builder::new().prefix("ckrv-demo-").tempdir()?, ckrv, url: None })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A command that sees this home and nothing of the user's: no keychain, no configuration, no browser.
    pub fn command(&self, program: &str, args: &[&str], folder: &Path) -> Command {
        let mut command = if program == "ckrv" { Command::new(&self.ckrv) } else { Command::new(program) };
        command.args(args).current_dir(folder).env_clear();
        for name in ["PATH", "TERM", "LANG", "TMPDIR"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.env("HOME", self.folder.path()).env("XDG_RUNTIME_DIR", self.folder.path());
        command.env("CKRV_KEYRING", "off").env("CKRV_DATA", self.path("server")).env("BROWSER", "true");
        command.env("GIT_CONFIG_NOSYSTEM", "1");
        if let Some(url) = &self.url {
            command.env("CKRV_URL", url);
        }
        command
    }

    /// Shows a command as a user would type it, runs it on our terminal, and insists that it succeeds.
    pub fn show(&self, program: &str, args: &[&str], folder: &Path) -> Result<()> {
        typed(program, args);
        steps::run(&mut self.command(program, args, folder))
    }

    /// The same, and returns its stdout too.
    pub fn show_text(&self, program: &str, args: &[&str], folder: &Path) -> Result<String> {
        typed(program, args);
        let text = steps::output(self.command(program, args, folder).stderr(Stdio::inherit()))?;
        let text = String::from_utf8_lossy(&text).trim_end().to_owned();
        say(&text);
        Ok(text)
    }

    /// Starts a command in the background; what it prints is shown, and can be awaited.
    pub fn start(&self, program: &str, args: &[&str], folder: &Path) -> Result<Background> {
        typed(program, args);
        let log = self.path(&format!("{}.log", args.first().unwrap_or(&program)));
        Background::start(&mut self.command(program, args, folder), &log)
    }
}

pub fn typed(program: &str, args: &[&str]) {
    say(&format!("\n$ {}", steps::shown(Command::new(program).args(args))));
}

/// A process whose lines we read while it runs; dropped, it is stopped by its process id.
pub struct Background {
    child: Child,
    lines: Receiver<String>,
}

impl Background {
    /// Its output goes through a file, so that it never waits for us nor dies of us.
    fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let out = File::create(log)?;
        let child = command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).spawn()?;
        let (sender, lines) = mpsc::channel();
        let mut reader = BufReader::new(File::open(log)?);
        std::thread::spawn(move || {
            let mut line = String::new();
            loop {
                match reader.read_line(&mut line) {
                    Ok(_) if line.ends_with('\n') => {
                        if sender.send(std::mem::take(&mut line).trim_end().to_owned()).is_err() {
                            return;
                        }
                    }
                    Ok(_) => std::thread::sleep(Duration::from_millis(10)),
                    Err(_) => return,
                }
            }
        });
        Ok(Self { child, lines })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Shows what it prints until `found` finds what it looks for in a line.
    pub fn wait_for<T>(&mut self, what: &str, mut found: impl FnMut(&str) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Ok(line) = self.lines.recv_timeout(Duration::from_millis(100)) {
                say(&line);
                if let Some(found) = found(&line) {
                    return Ok(found);
                }
            } else if let Some(status) = self.child.try_wait()? {
                bail!("it ended with {status} before it printed {what}");
            } else if Instant::now() > deadline {
                bail!("it printed no {what} within a minute");
            }
        }
    }

    /// Shows the rest of what it prints, until it ends well.
    pub fn finish(mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                bail!("it did not end within 30 seconds");
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        while let Ok(line) = self.lines.recv_timeout(Duration::from_millis(100)) {
            say(&line);
        }
        if status.success() { Ok(()) } else { bail!("it ended with {status}") }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        stop(&mut self.child);
    }
}

/// A page over plain HTTP on this machine, with the cookies that go with it.
pub struct Browser {
    agent: ureq::Agent,
    cookies: Vec<String>,
}

impl Browser {
    pub fn new() -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_global(Some(Duration::from_secs(10)));
        Self { agent: config.build().new_agent(), cookies: Vec::new() }
    }

    /// GET, or POST when there is a form to send. Returns the page, with redirects followed as browsers do.
    pub fn open(&mut self, url: &str, form: Option<&str>) -> Result<String> {
        let mut url = url.to_owned();
        let mut form = form;
        for _ in 0..5 {
            let cookies = self.cookies.join("; ");
            let response = match form {
                Some(body) => {
                    let request = self.agent.post(&url).header("content-type", "application/x-www-form-urlencoded");
                    // A browser says where a form comes from.
                    request.header("origin", origin(&url)).header("cookie", &cookies).send(body)
                }
                None => self.agent.get(&url).header("cookie", &cookies).call(),
            };
            let mut response = response.with_context(|| format!("can't open {url}"))?;
            for cookie in response.headers().get_all("set-cookie") {
                self.cookies.push(cookie.to_str()?.split(';').next().unwrap_or_default().to_owned());
            }
            if response.status().is_redirection() {
                let location = response.headers().get("location").context("a redirect to nowhere")?.to_str()?;
                url = absolute(&url, location);
                form = None;
                continue;
            }
            let mut page = String::new();
            response.body_mut().as_reader().take(1 << 20).read_to_string(&mut page)?;
            if !response.status().is_success() {
                bail!("{url} answers {}: {page}", response.status());
            }
            return Ok(page);
        }
        bail!("{url} redirects without end")
    }
}

/// `http://host:port`
pub fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    url[start..].find('/').map_or(url, |at| &url[..start + at])
}

/// A link on a page, relative or not.
pub fn absolute(page: &str, link: &str) -> String {
    match link {
        "" => page.to_owned(),
        link if link.contains("://") => link.to_owned(),
        link if link.starts_with('/') => format!("{}{link}", origin(page)),
        link => format!("{}/{link}", page.split('?').next().unwrap_or(page).rsplit_once('/').map_or(page, |(folder, _)| folder)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_resolved_as_browsers_do() {
        let page = "http://127.0.0.1:1/a/b?c=d";
        assert_eq!(absolute(page, ""), page);
        assert_eq!(absolute(page, "/x"), "http://127.0.0.1:1/x");
        assert_eq!(absolute(page, "x"), "http://127.0.0.1:1/a/x");
        assert_eq!(origin("http://127.0.0.1:1"), "http://127.0.0.1:1");
    }
}
