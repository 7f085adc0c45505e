//! FR-010: what leaves the user's machine. Everything that the CLI sends goes through a tap; marks stand wherever something could be
//! taken from. Not tested here: a local run, which sends nothing to anybody but its own engine.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ckrv_tests::git::git;
use ckrv_tests::repo::Repo;
use ckrv_tests::server::{Server, Setup};
use ckrv_tests::tap::Tap;
use ckrv_tests::user::{Ran, User};
use serde_json::Value;

const SPEC: &str = "---\nagent: script\n---\n# mark-in-the-spec\necho done > done.txt\n";

/// Where marks stand, and under which names they would be seen.
struct Machine {
    server: Server,
    tap: Tap,
    user: User,
    project: PathBuf,
    repository: String,
    marks: Vec<String>,
    _folder: tempfile::TempDir,
    _repo: Repo,
}

impl Machine {
    async fn start() -> Result<Self> {
        let server = Server::start(Setup::unsandboxed()).await?;
        let tap = Tap::start(server.url().trim_start_matches("http://").parse()?).await?;
        let mut user = User::new()?;
        user.set("CKRV_URL", &format!("http://{}", tap.address));
        let repo = Repo::small(&[("README.md", "mark-committed-file\n"), (".gitignore", "*.ignored\nmark-ignored-name\n")])?;
        let folder = tempfile::Builder::new().prefix("mark-folder-").tempdir()?;
        let project = folder.path().join("mark-project");
        repo.clone_to(&project, None)?;
        let repository = repo.path().display().to_string();
        let mut machine = Self { server, tap, user, project, repository, marks: Vec::new(), _folder: folder, _repo: repo };
        machine.marks = ["mark-committed-file", "mark-ignored-name", "mark-folder-", "mark-project", "user@example.com"]
            .map(str::to_owned)
            .into();
        machine.marks.push(machine.user.home().display().to_string());
        let host = String::from_utf8(std::process::Command::new("uname").arg("-n").output()?.stdout)?.trim().to_owned();
        if host.len() > 5 && host != "localhost" {
            machine.marks.push(host);
        }
        machine.plant_files()?;
        machine.plant_git()?;
        machine.plant_environment();
        Ok(machine)
    }

    fn mark(&mut self, name: &str) -> String {
        let mark = format!("mark-{name}-3f9c");
        self.marks.push(mark.clone());
        mark
    }

    fn write(&mut self, path: &Path, name: &str) -> Result<()> {
        let mark = self.mark(name);
        std::fs::create_dir_all(path.parent().context("no folder")?)?;
        Ok(std::fs::write(path, format!("# {mark}\n"))?)
    }

    fn plant_files(&mut self) -> Result<()> {
        let (project, home) = (self.project.clone(), self.user.home().to_owned());
        self.write(&project.join("README.md"), "uncommitted-diff")?;
        self.write(&project.join("new.txt"), "untracked-file")?;
        self.write(&project.join("secret.ignored"), "ignored-file")?;
        self.write(&project.join(".env"), "dotenv")?;
        self.write(&project.join(".ckrv/specs/other.md"), "other-spec")?;
        self.write(&project.join(".ckrv/config.toml"), "repository-config")?;
        self.write(&project.join("AGENTS.md"), "agents-file")?;
        for (path, name) in [(".ssh/id_ed25519", "ssh-key"), (".netrc", "netrc"), (".config/gh/hosts.yml", "gh-token")] {
            self.write(&home.join(path), name)?;
        }
        Ok(std::fs::write(project.join(".ckrv/specs/mine.md"), SPEC)?)
    }

    fn plant_git(&mut self) -> Result<()> {
        let project = self.project.clone();
        for (key, name) in [("user.email", "git-email"), ("user.name", "git-name"), ("http.extraHeader", "git-header")] {
            let mark = self.mark(name);
            git(&project, &["config", key, &mark])?;
        }
        let branch = self.mark("local-branch");
        let message = self.mark("local-commit");
        git(&project, &["branch", &branch])?;
        git(&project, &["stash", "push", "--quiet", "--message", &message, "--", "README.md"])?;
        git(&project, &["stash", "apply", "--quiet"])?;
        let staged = project.join("staged.txt");
        self.write(&staged, "staged-file")?;
        git(&project, &["add", "staged.txt"])?;
        Ok(())
    }

    fn plant_environment(&mut self) {
        for name in ["USER", "LOGNAME", "HOSTNAME", "EDITOR", "ANTHROPIC_API_KEY", "GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "PS1"]
        {
            let mark = self.mark(&format!("env-{name}"));
            self.user.set(name, &mark);
        }
    }

    async fn ckrv(&self, args: &[&str]) -> Result<Ran> {
        self.user.run(&self.project, args).await
    }

    /// No mark was sent: plain, in base64, or with its bytes in hexadecimal.
    fn nothing_leaked(&self) -> Result<()> {
        let sent = self.tap.sent();
        for mark in &self.marks {
            for form in forms(mark) {
                let leaked = sent.iter().any(|bytes| contains(bytes, form.as_bytes()));
                ensure!(!leaked, "{mark} left the machine (as {form})");
            }
        }
        Ok(())
    }
}

/// How a text could look on its way: also at each of base64's three alignments, without the characters that its neighbours decide.
fn forms(mark: &str) -> Vec<String> {
    let mut forms = vec![mark.to_owned(), hex::encode(mark)];
    for shift in 0..3 {
        let coded = STANDARD.encode(format!("{}{mark}", &"   "[..shift]));
        let coded = coded.trim_end_matches('=');
        forms.push(coded[if shift == 0 { 0 } else { 4 }..coded.len() - 2].to_owned());
    }
    forms
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

fn keys(body: &Value) -> BTreeSet<&str> {
    body.as_object().into_iter().flat_map(|object| object.keys().map(String::as_str)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn fr010_no_command_sends_files_environment_or_local_changes() -> Result<()> {
    let machine = Machine::start().await?;
    machine.user.login(&machine.server).await?;
    let id = machine.ckrv(&["run", "--cloud", ".ckrv/specs/mine.md"]).await?.ok()?;
    machine
        .user
        .run_with_input(&machine.project, &["cloud", "credentials", "add", "work"], b"value-of-the-credential")
        .await?
        .ok()?;
    machine.user.run_with_input(&machine.project, &["cloud", "secrets", "add", "key"], b"value-of-the-secret").await?.ok()?;
    let commands: [&[&str]; 15] = [
        &["wait", "@last"],
        &["status", "@last"],
        &["status", "--json", &id],
        &["logs", "@last"],
        &["logs", "--follow", "@last"],
        &["list"],
        &["diff", "@last"],
        &["pull", "--branch", "pulled", "@last"],
        &["pull", "@last"],
        &["retry", "@last"],
        &["cloud", "whoami"],
        &["cloud", "agents"],
        &["cloud", "credentials", "list"],
        &["cloud", "secrets", "list"],
        &["doctor"],
    ];
    for command in commands {
        let ran = machine.ckrv(command).await?;
        // `pull` may refuse what is unsaved, and `doctor` may have something to say.
        ensure!(ran.code == 0 || matches!(command[0], "pull" | "doctor"), "{command:?}: {ran:?}");
    }
    // A job that the retry made may have ended already: then there is nothing to cancel.
    machine.ckrv(&["cancel", "@last"]).await?;
    machine.ckrv(&["cloud", "credentials", "remove", "work"]).await?.ok()?;
    machine.ckrv(&["cloud", "secrets", "remove", "key"]).await?.ok()?;
    machine.ckrv(&["cloud", "logout"]).await?.ok()?;
    machine.nothing_leaked()?;
    // The tap sees what is meant to leave, each once: no command sends a spec or a value again.
    for wanted in ["mark-in-the-spec", "value-of-the-credential", "value-of-the-secret"] {
        let times: usize = machine.tap.sent().iter().map(|bytes| String::from_utf8_lossy(bytes).matches(wanted).count()).sum();
        ensure!(times == 1, "{wanted} was sent {times} times");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn fr010_a_job_request_has_exactly_the_known_fields() -> Result<()> {
    let machine = Machine::start().await?;
    machine.user.login(&machine.server).await?;
    let base = git(&machine.project, &["rev-parse", "--abbrev-ref", "HEAD"])?;
    machine.ckrv(&["run", "--cloud", ".ckrv/specs/mine.md"]).await?.ok()?;
    machine.user.run_with_input(&machine.project, &["cloud", "credentials", "add", "work"], b"token").await?.ok()?;
    machine.user.run_with_input(&machine.project, &["cloud", "secrets", "add", "key"], b"secret").await?.ok()?;
    let full = [
        "run",
        "--cloud",
        ".ckrv/specs/mine.md",
        "--agent",
        "claude",
        "--model",
        "m1",
        "--credential",
        "work",
        "--secret",
        "anthropic-api-key=key",
        "--timeout",
        "5m",
        "--label",
        "team=a",
        "--max-cost",
        "1.5",
        "--base",
        &base,
    ];
    machine.ckrv(&full).await?.ok()?;
    let bodies = machine.tap.bodies("POST /v1/jobs")?;
    let [plain, full] = &bodies[..] else { anyhow::bail!("{} jobs were made", bodies.len()) };
    let least = ["spec_content", "git_repo_url", "git_base_branch", "spec_name"];
    ensure!(keys(plain) == BTreeSet::from(least), "{plain}");
    let more = ["agent", "model", "git_credential_name", "secrets", "timeout_seconds", "labels", "max_cost_usd"];
    ensure!(keys(full) == least.into_iter().chain(more).collect(), "{full}");
    ensure!(plain["spec_content"] == SPEC && plain["git_repo_url"] == machine.repository.as_str(), "{plain}");
    ensure!(plain["git_base_branch"] == base.as_str() && plain["spec_name"] == "mine.md", "{plain}");
    machine.nothing_leaked()
}

/// A user or password in `origin`'s URL stays at home.
#[tokio::test(flavor = "multi_thread")]
async fn fr010_a_password_in_the_url_does_not_leave() -> Result<()> {
    let mut machine = Machine::start().await?;
    machine.user.login(&machine.server).await?;
    let password = machine.mark("password-in-url");
    let name = machine.mark("name-in-url");
    let origin = format!("https://{name}:{password}@git.example.invalid/project.git");
    git(&machine.project, &["remote", "set-url", "origin", &origin])?;
    let ran = machine.ckrv(&["run", "--cloud", ".ckrv/specs/mine.md"]).await?;
    machine.nothing_leaked()?;
    if ran.code == 0 {
        let bodies = machine.tap.bodies("POST /v1/jobs")?;
        ensure!(bodies[0]["git_repo_url"] == "https://git.example.invalid/project.git", "{}", bodies[0]);
    }
    ensure!(!ran.stdout.contains(&password) && !ran.stderr.contains(&password), "{ran:?}");
    Ok(())
}
