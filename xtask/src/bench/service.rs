//! The service that is measured: the release build in a home of its own, a user who is logged in, a repository.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::demo;
use crate::machine::{Background, Home};
use crate::steps;

pub struct Service {
    pub home: Home,
    pub process: Background,
    pub owner_code: String,
    pub project: PathBuf,
    repository: String,
    agent: ureq::Agent,
    token: String,
}

impl Service {
    /// `config` is its server.toml.
    pub fn start(ckrv: &Path, config: &str) -> Result<Self> {
        let mut home = Home::new(ckrv.to_owned())?;
        std::fs::create_dir(home.path("server"))?;
        std::fs::write(home.path("server/server.toml"), config)?;
        let root = home.path("");
        let (process, owner_code) = demo::serve(&mut home, &root)?;
        let config = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(60)));
        let project = repository(&home)?;
        let repository = home.path("origin.git").display().to_string();
        let agent = config.build().new_agent();
        let mut service = Self { home, process, owner_code, project, repository, agent, token: String::new() };
        service.token = service.login()?;
        Ok(service)
    }

    fn url(&self) -> Result<&str> {
        self.home.url.as_deref().context("the service has no URL")
    }

    /// A device login without the CLI.
    fn login(&mut self) -> Result<String> {
        let device = self.post("/v1/auth/device", &json!({"client_id": "ckrv-cli"}))?;
        let text = |name: &str| device[name].as_str().map(str::to_owned).with_context(|| format!("no {name} in {device}"));
        demo::activate(&text("verification_uri")?, &text("user_code")?, &self.owner_code)?;
        let grant = "urn:ietf:params:oauth:grant-type:device_code";
        let ask = json!({"client_id": "ckrv-cli", "device_code": text("device_code")?, "grant_type": grant});
        let token = self.post("/v1/auth/token", &ask)?["access_token"].as_str().context("no token")?.to_owned();
        self.owner_code = self.process.wait_for("the next one-time code", demo::one_time_code)?;
        Ok(token)
    }

    pub fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let request = self.agent.post(format!("{}{path}", self.url()?)).header("content-type", "application/json");
        let request =
            if self.token.is_empty() { request } else { request.header("authorization", format!("Bearer {}", self.token)) };
        let text = request.send(body.to_string()).with_context(|| format!("POST {path}"))?.body_mut().read_to_string()?;
        Ok(serde_json::from_str(&text)?)
    }

    pub fn get(&self, path: &str) -> Result<Value> {
        let request = self.agent.get(format!("{}{path}", self.url()?)).header("authorization", format!("Bearer {}", self.token));
        let text = request.call().with_context(|| format!("GET {path}"))?.body_mut().read_to_string()?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Makes a job of agent `script` by `POST /v1/jobs`; gives its id.
    pub fn submit(&self, script: &str) -> Result<String> {
        let spec = format!("---\nagent: script\n---\n{script}\n");
        let job = self.post("/v1/jobs", &json!({"spec_content": spec, "git_repo_url": self.repository}))?;
        job["id"].as_str().map(str::to_owned).context("a job without an id")
    }

    /// Waits for a job's end; one that did not succeed is an error.
    pub fn ended(&self, id: &str) -> Result<Value> {
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let job = self.get(&format!("/v1/jobs/{id}"))?;
            match job["state"].as_str() {
                Some("succeeded") => return Ok(job),
                Some("failed" | "timeout" | "cancelled") => bail!("job {id} did not succeed: {job}"),
                _ if Instant::now() > deadline => bail!("job {id} never ends: {job}"),
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// `ckrv` in the clone, as this user.
    pub fn ckrv(&self, args: &[&str]) -> Command {
        let mut command = self.home.command("ckrv", args, &self.project);
        command.env("CKRV_TOKEN", &self.token);
        command
    }
}

/// One small file, pushed to a bare repository beside it, and a spec.
fn repository(home: &Home) -> Result<PathBuf> {
    let (root, project) = (home.path(""), home.path("project"));
    let git = |args: &[&str], folder: &Path| steps::run(&mut home.command("git", args, folder));
    git(&["init", "--quiet", "--bare", "--initial-branch=main", "origin.git"], &root)?;
    git(&["clone", "--quiet", "origin.git", "project"], &root)?;
    std::fs::write(project.join("README.md"), "# A project\n")?;
    std::fs::create_dir_all(project.join(".ckrv/specs"))?;
    std::fs::write(project.join(".ckrv/specs/trivial.md"), "---\nagent: script\n---\necho done > done.txt\n")?;
    git(&["config", "user.name", "Bench"], &project)?;
    git(&["config", "user.email", "bench@localhost"], &project)?;
    git(&["add", "."], &project)?;
    git(&["commit", "--quiet", "-m", "Start"], &project)?;
    git(&["push", "--quiet", "origin", "HEAD:main"], &project)?;
    Ok(project)
}

/// A time of the service's; its clock is ours.
pub fn time(value: &Value) -> Result<Timestamp> {
    Ok(value.as_str().with_context(|| format!("{value} is no time"))?.parse()?)
}

/// From one time to another; what is before it counts as zero.
pub fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}
