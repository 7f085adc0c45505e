//! The main job with real parts: the real Claude Code and Gemini CLI change a large private repository, in containers and as
//! processes; and their model's key is found nowhere. Scripted is only the model.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use ckrv_tests::agents::{self, Place};
use ckrv_tests::forge::{Forge, secret};
use ckrv_tests::git::git;
use ckrv_tests::leaks::{Needles, Watch, cells};
use ckrv_tests::model::{Model, Script, Step};
use ckrv_tests::repo::Repo;
use ckrv_tests::scene::Scene;
use ckrv_tests::server::files_below;
use ckrv_tests::wait::{PATIENCE, wait_until};
use serde_json::Value;
use tokio::process::Child;

/// Everything that an agent may change, then its own environment and that of every process that it sees.
const EDIT: &str = "rm -- -leading-dash.txt && mv assets/0.bin 'assets/moved to.bin' && chmod +x README.md && chmod -x bin/run \
                    && ln -s README.md docs/second-link && printf '\\000\\001\\377' > assets/new.bin && echo changed >> 'odd/with space.txt'";
const ENVIRONMENT: &str =
    "env | sort | tee env.txt; cat /proc/[0-9]*/environ 2>/dev/null | tr '\\000' '\\n' | sort -u >> env.txt";

#[tokio::test(flavor = "multi_thread")]
async fn us1_us3_us4_claude_code_in_a_container_changes_a_private_repository_over_https() -> Result<()> {
    main_job("claude", Place::Container, false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn us1_us3_us4_gemini_cli_in_a_container_changes_a_private_repository_over_ssh() -> Result<()> {
    main_job("gemini", Place::Container, true).await
}

#[tokio::test(flavor = "multi_thread")]
async fn us1_us3_us4_claude_code_as_a_process_changes_a_private_repository_over_ssh() -> Result<()> {
    main_job("claude", Place::Process, true).await
}

#[tokio::test(flavor = "multi_thread")]
async fn us1_us3_us4_gemini_cli_as_a_process_changes_a_private_repository_over_https() -> Result<()> {
    main_job("gemini", Place::Process, false).await
}

/// A job's surroundings, with everything that a leak could end in.
struct Yard {
    scene: Scene,
    forge: Forge,
    model: Model,
    agent: &'static str,
    key: String,
    needles: Needles,
    /// Where the server and its job runners have their temporary files.
    temporary: tempfile::TempDir,
    /// Everything that the CLI printed for people or programs.
    said: Vec<String>,
}

async fn main_job(agent: &'static str, place: Place, ssh: bool) -> Result<()> {
    let _turn = agents::turn().await?;
    let mut yard = Yard::open(agent, place, ssh).await?;
    let watch = Watch::start(yard.needles.clone());
    let id = yard.submit().await?;
    yard.follow_live(&id).await?;
    let seen = watch.stop()?;
    yard.clone_was_watched(&seen.commands, ssh)?;
    assert!(seen.leaks.is_empty(), "a secret was in arguments or environment of {:?}", seen.leaks);
    let before = git(&yard.scene.project, &["rev-parse", "HEAD"])?;
    work_meanwhile(&yard.scene.project)?;
    yard.said.push(yard.scene.ckrv(&["pull", &id]).await?.ok()?);
    result_is_merged(&yard.scene.project, &before)?;
    yard.nowhere(&id).await
}

impl Yard {
    async fn open(agent: &'static str, place: Place, ssh: bool) -> Result<Self> {
        let steps = vec![Step::write("made/by model.txt", "made\n"), Step::shell(EDIT), Step::shell(ENVIRONMENT)];
        let model = Model::start([("work", Script::Held(steps))], None).await?;
        let repo = Repo::large(1)?;
        let forge = if ssh { Forge::ssh(&repo).await? } else { Forge::https(&repo).await? };
        let temporary = tempfile::Builder::new().prefix("ckt-").tempdir()?;
        let mut setup = agents::setup(place, &model.url("work"), forge.ca_file().as_deref())?;
        setup.env.push(("TMPDIR".to_owned(), temporary.path().display().to_string()));
        let scene = Scene::with(setup, repo).await?;
        forge.is_origin_of(&scene.project)?;
        forge.add_credential(&scene).await?;
        let key = secret("model");
        let slot = ["cloud", "secrets", "add", agents::slot(agent)];
        scene.user.run_with_input(scene.folder(), &slot, key.as_bytes()).await?.ok()?;
        let needles = Needles::of([key.as_str(), forge.secret()?.as_str()]);
        Ok(Self { scene, forge, model, agent, key, needles, temporary, said: Vec::new() })
    }

    async fn submit(&self) -> Result<String> {
        let model = if self.agent == "gemini" { "gemini-2.5-flash" } else { "sonnet" };
        let verify = "verify:\n  - test -f 'made/by model.txt'\n  - test ! -e assets/0.bin";
        let text = format!("---\nagent: {}\nmodel: {model}\n{verify}\n---\nMake the changes.\n", self.agent);
        let spec = self.scene.spec(text)?;
        self.scene.ckrv(&["run", "--cloud", "--credential", "forge", &spec]).await?.ok()
    }

    /// Follows the log; while the model holds the agent back, what it did so far is there already, and the job runs.
    async fn follow_live(&mut self, id: &str) -> Result<()> {
        let path = self.scene.folder().join("followed.ndjson");
        let file = std::fs::File::create(&path)?;
        let mut follower = self.scene.user.command(&self.scene.project, &["logs", "--json", "--follow", id]);
        let mut follower = follower.stdout(file).spawn()?;
        let read = || std::fs::read_to_string(&path).unwrap_or_default();
        let live = wait_until("the agent's first deed is in the log", PATIENCE * 2, async || {
            let ended = follower.try_wait().ok().flatten().is_some();
            (ended || read().contains("made/by model.txt")).then_some(())
        });
        live.await.with_context(|| self.scene.server.log())?;
        let job = self.scene.job(id).await?;
        assert_eq!(job["state"], "executing", "{job}\n{}", read());
        self.nowhere_at_work().await?;
        self.model.release();
        finish(follower).await.with_context(read)?;
        let log = read();
        gap_free(&log)?;
        assert_eq!(self.scene.job(id).await?["state"], "succeeded", "{log}");
        self.said.push(log);
        Ok(())
    }

    /// What lies about while the agent works.
    async fn nowhere_at_work(&self) -> Result<()> {
        if let Ok(cluster) = self.scene.server.cluster() {
            let text = cluster.everything().await?;
            assert!(text.contains("ckrv.dev/role"), "no pod to search");
            assert!(!self.needles.are_in(text.as_bytes()), "while the agent works, a secret is in an object of the cluster");
            return Ok(());
        }
        let runs: Vec<PathBuf> = files_below(&self.scene.server.data().join("runs"))?;
        assert!(runs.iter().any(|path| path.ends_with("runner.log")), "no run's folder to search: {runs:?}");
        let mut found = self.needles.files(&self.scene.server.data())?;
        found.extend(self.needles.files(self.temporary.path())?);
        assert!(found.is_empty(), "while the agent works, a secret is in {found:?}");
        Ok(())
    }

    /// A watch that saw nothing of the clone would prove nothing.
    fn clone_was_watched(&self, commands: &std::collections::BTreeSet<String>, ssh: bool) -> Result<()> {
        let url = self.forge.url();
        let fetched = commands.iter().any(|command| command.contains(" fetch ") && command.contains(&url));
        let helped = !ssh || commands.iter().any(|command| command.starts_with("ssh-agent "));
        ensure!(fetched && helped, "the watch has not seen the clone: {commands:#?}");
        Ok(())
    }

    /// The model got its key; nothing and nobody else did.
    async fn nowhere(mut self, id: &str) -> Result<()> {
        let calls: Vec<_> = self.model.requests().into_iter().filter(|request| request.method == "POST").collect();
        assert!(calls.len() >= 4 && calls.iter().all(|call| call.key.as_ref() == Some(&self.key)), "{calls:?}");
        let bodies = calls.iter().any(|call| self.needles.are_in(&call.body));
        assert!(!bodies, "the agent has told the model a secret, so it had one");
        if let Forge::Https { server, token, .. } = &self.forge {
            let offered: Vec<_> = server.offers().into_iter().flatten().map(|(_, password)| password).collect();
            assert!(offered.contains(token) && offered.iter().all(|password| password == token));
        }
        let environment = std::fs::read_to_string(self.scene.project.join("env.txt"))?;
        let name = if self.agent == "gemini" { "GEMINI_API_KEY=" } else { "ANTHROPIC_API_KEY=" };
        assert!(environment.contains(name) && environment.contains("BASE_URL=http://127.0.0.1:"), "{environment}");
        for args in [["logs", id].as_slice(), &["diff", id], &["status", "--json", id], &["cloud", "secrets", "list", "--json"]] {
            self.said.push(self.scene.ckrv(args).await?.ok()?);
        }
        self.said.push(environment);
        assert!(self.said.iter().any(|text| text.contains("made/by model.txt")));
        let said = self.said.iter().position(|text| self.needles.are_in(text.as_bytes()));
        assert_eq!(said, None, "the CLI has printed a secret");
        self.not_in_the_store().await
    }

    async fn not_in_the_store(&self) -> Result<()> {
        let mut found = Vec::new();
        if self.scene.server.cluster().is_ok() {
            // Everything that the API server ever kept, deleted objects and their old versions too.
            found.extend(self.needles.files(&ckrv_tests::bench::kube_folder()?.join("etcd"))?);
            found.extend(self.needles.are_in(self.scene.server.log().as_bytes()).then(|| "a dispatcher's log".to_owned()));
        }
        for folder in [&self.scene.server.data(), self.temporary.path(), self.scene.user.home(), self.scene.folder()] {
            found.extend(self.needles.files(folder)?);
        }
        for log in self.scene.server.logs() {
            found.extend(self.needles.are_in(&std::fs::read(&log)?).then(|| log.display().to_string()));
        }
        if let Some(aws) = self.scene.server.aws() {
            let folder = tempfile::tempdir()?;
            aws.dump(folder.path()).await?;
            found.extend(self.needles.files(folder.path())?);
            let marks = Needles::of(["made/by model.txt"]).files(folder.path())?;
            assert!(marks.len() >= 3, "log, transcript and diff were not searched: {marks:?}");
            assert!(found.is_empty(), "a secret is in {found:?}");
            return Ok(());
        }
        let (mut databases, mut logs) = (0, 0);
        for path in files_below(&self.scene.server.data())?.iter().filter(|path| is_database(path)) {
            found.extend(self.needles.database(path)?);
            cells(path, |_, bytes| logs += usize::from(memchr::memmem::find(bytes, b"made/by model.txt").is_some()))?;
            databases += 1;
        }
        assert!(databases > 0 && logs > 0, "the search of {databases} databases has not even found the log");
        // The transcript and the diff are there to be searched, in whatever files.
        let marks = Needles::of(["made/by model.txt"]).files(&self.scene.server.data())?;
        assert!(marks.len() >= 2, "neither transcript nor diff was searched: {marks:?}");
        assert!(found.is_empty(), "a secret is in {found:?}");
        Ok(())
    }
}

fn is_database(path: &Path) -> bool {
    std::fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"SQLite format 3\0"))
}

async fn finish(follower: Child) -> Result<()> {
    let output = tokio::time::timeout(PATIENCE * 2, follower.wait_with_output()).await.context("the log never ends")??;
    ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Entries count from 1, each once.
fn gap_free(log: &str) -> Result<()> {
    let entries: Vec<Value> = log.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let numbers: Vec<_> = entries.iter().filter_map(|entry| entry["seq"].as_u64()).collect();
    assert_eq!(numbers, (1..=entries.len() as u64).collect::<Vec<_>>(), "{log}");
    Ok(())
}

/// What somebody does while the agent works: a commit, a change that isn't committed, a new file.
fn work_meanwhile(project: &Path) -> Result<()> {
    std::fs::write(project.join("mine.txt"), "committed\n")?;
    git(project, &["add", "mine.txt"])?;
    git(project, &["commit", "--quiet", "-m", "Mine"])?;
    std::fs::write(project.join("src/part00/module0000.txt"), "not committed\n")?;
    std::fs::write(project.join("untracked.txt"), "mine too\n")?;
    Ok(())
}

fn result_is_merged(project: &Path, base: &str) -> Result<()> {
    let read = |path: &str| std::fs::read(project.join(path)).with_context(|| path.to_owned());
    assert_eq!(read("made/by model.txt")?, b"made\n");
    assert_eq!(read("assets/new.bin")?, [0, 1, 255]);
    let binary = ckrv_tests::git::output(project, &["cat-file", "blob", &format!("{base}:assets/0.bin")])?.stdout;
    assert!(binary.len() == 4096 && read("assets/moved to.bin")? == binary);
    assert_eq!(read("odd/with space.txt")?, b"odd, and fine\nchanged\n");
    assert!(!project.join("-leading-dash.txt").exists() && !project.join("assets/0.bin").exists());
    let executable = |path: &str| Ok::<_, std::io::Error>(project.join(path).metadata()?.permissions().mode() & 0o100 != 0);
    assert!(executable("README.md")? && !executable("bin/run")?);
    assert_eq!(std::fs::read_link(project.join("docs/second-link"))?, Path::new("README.md"));
    // The other work is as it was.
    assert_eq!(read("mine.txt")?, b"committed\n");
    assert_eq!(read("src/part00/module0000.txt")?, b"not committed\n");
    assert_eq!(read("untracked.txt")?, b"mine too\n");
    let status = git(project, &["status", "--porcelain", "--untracked-files=all", "--no-renames"])?;
    let staged: Vec<_> = status.lines().filter(|line| !line.starts_with([' ', '?'])).collect();
    assert_eq!(staged.len(), 10, "{status}");
    assert!(status.contains(" M src/part00/module0000.txt") && status.contains("?? untracked.txt"), "{status}");
    Ok(())
}
