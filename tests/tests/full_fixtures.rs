//! The fixtures that need the bench: a real sshd, the real agents, the container image. Not tested here: ckrv.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use ckrv_tests::bench;
use ckrv_tests::git::{command, git};
use ckrv_tests::model::Model;
use ckrv_tests::repo::Repo;
use ckrv_tests::sshd::Sshd;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

/// `git clone` over ssh with the deploy key and pinned host keys.
fn clone_by_ssh(sshd: &Sshd, url: &str, known_hosts: &str, folder: &Path) -> Result<Output> {
    let pinned = folder.join("known_hosts");
    std::fs::write(&pinned, known_hosts)?;
    let options = format!("-F /dev/null -o IdentitiesOnly=yes -o BatchMode=yes -o UserKnownHostsFile={}", pinned.display());
    let ssh = format!("ssh -i {} {options} -o StrictHostKeyChecking=yes", sshd.deploy_key_file().display());
    command(folder).env("GIT_SSH_COMMAND", ssh).args(["clone", "--quiet", url, "tree"]).output().context("can't start git")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deploy_key_opens_its_repository_and_no_other() -> Result<()> {
    let (repo, other, folder) = (Repo::large(1)?, Repo::small(&[("a", "b")])?, tempfile::tempdir()?);
    let sshd = Sshd::start(&repo.path()).await?;
    let refused = clone_by_ssh(
        &sshd,
        &sshd.url().replace(repo.path().to_str().unwrap(), other.path().to_str().unwrap()),
        &sshd.known_hosts()?,
        folder.path(),
    )?;
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.contains("this key opens another repository"), "{text}\n{}", sshd.log());
    let opened = clone_by_ssh(&sshd, &sshd.url(), &sshd.known_hosts()?, folder.path())?;
    assert!(opened.status.success(), "{}\n{}", String::from_utf8_lossy(&opened.stderr), sshd.log());
    assert_eq!(git(&folder.path().join("tree"), &["rev-parse", "HEAD"])?, repo.head()?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_host_key_is_refused() -> Result<()> {
    let (repo, folder) = (Repo::small(&[("a", "b")])?, tempfile::tempdir()?);
    let (sshd, stranger) = (Sshd::start(&repo.path()).await?, Sshd::start(&repo.path()).await?);
    let words = |line: String| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let (name, key) = (words(sshd.known_hosts()?)[0].clone(), words(stranger.known_hosts()?)[1..].join(" "));
    let refused = clone_by_ssh(&sshd, &sshd.url(), &format!("{name} {key}\n"), folder.path())?;
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("HOST IDENTIFICATION HAS CHANGED"), "{text}");
    Ok(())
}

/// A command with nothing in its environment but what an agent needs.
fn agent(program: &Path, home: &Path, workspace: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(workspace).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", home);
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn finish(mut command: Command) -> Result<String> {
    let output = tokio::time::timeout(Duration::from_secs(120), command.output()).await.context("the agent never ends")??;
    let text = format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{text}", output.status);
    Ok(text)
}

fn claude(base_url: &str, home: &Path, workspace: &Path) -> Result<Command> {
    let mut claude = agent(&bench::claude()?, home, workspace);
    claude.env("ANTHROPIC_BASE_URL", base_url).env("ANTHROPIC_API_KEY", "real-key").env("IS_SANDBOX", "1");
    claude.env("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1").env("DISABLE_AUTOUPDATER", "1");
    claude.args([
        "-p",
        "--output-format",
        "stream-json",
        "--verbose",
        "--permission-mode",
        "bypassPermissions",
        "--model",
        "sonnet",
    ]);
    claude.args(["--setting-sources", "user", "--strict-mcp-config", "do it"]);
    Ok(claude)
}

fn gemini(base_url: &str, home: &Path, workspace: &Path) -> Result<Command> {
    std::fs::create_dir_all(home.join(".gemini"))?;
    let settings = r#"{"security":{"auth":{"selectedType":"gemini-api-key"}},"privacy":{"usageStatisticsEnabled":false},
        "telemetry":{"enabled":false},"general":{"enableAutoUpdate":false,"maxAttempts":4},"hooksConfig":{"enabled":false}}"#;
    std::fs::write(home.join(".gemini/settings.json"), settings)?;
    let mut gemini = agent(Path::new("node"), home, workspace);
    gemini.env("GOOGLE_GEMINI_BASE_URL", base_url).env("GEMINI_API_KEY", "real-key");
    gemini.env("GEMINI_CLI_TRUST_WORKSPACE", "true").env("GEMINI_CLI_NO_RELAUNCH", "true").arg(bench::gemini()?);
    gemini.args(["-p", "do it", "--output-format", "stream-json", "-m", "gemini-2.5-flash", "--approval-mode", "yolo"]);
    gemini.args(["--allowed-mcp-server-names", "none", "-e", "none"]);
    Ok(gemini)
}

#[tokio::test(flavor = "multi_thread")]
async fn claude_code_writes_what_the_model_says() -> Result<()> {
    let (model, home, workspace) = (Model::start([], None).await?, tempfile::tempdir()?, tempfile::tempdir()?);
    let text = finish(claude(&model.url("ok"), home.path(), workspace.path())?).await?;
    assert!(text.contains("\"subtype\":\"success\""), "{text}");
    assert_eq!(std::fs::read_to_string(workspace.path().join("hello.txt"))?, "hello from the model\n");
    let requests = model.requests();
    let calls = requests.iter().filter(|request| request.path.contains("/v1/messages"));
    assert!(
        calls.clone().count() >= 2 && calls.into_iter().all(|request| request.key.as_deref() == Some("real-key")),
        "{requests:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn gemini_cli_writes_what_the_model_says() -> Result<()> {
    let (model, home, workspace) = (Model::start([], None).await?, tempfile::tempdir()?, tempfile::tempdir()?);
    let text = finish(gemini(&model.url("ok"), home.path(), workspace.path())?).await?;
    assert!(text.contains("\"status\":\"success\""), "{text}");
    assert_eq!(std::fs::read_to_string(workspace.path().join("hello.txt"))?, "hello from the model\n");
    assert!(model.requests().iter().any(|request| request.key.as_deref() == Some("real-key")));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn both_agents_make_every_kind_of_change() -> Result<()> {
    let (model, home, folder) = (Model::start([], None).await?, tempfile::tempdir()?, tempfile::tempdir()?);
    let repo = Repo::large(1)?;
    let wanted = [
        "D  -leading-dash.txt",
        "D  assets/0.bin",
        "A  assets/moved to.bin",
        "A  assets/new.bin",
        "A  made/by model.txt",
        "M  README.md",
        "M  bin/run",
        "M  odd/with space.txt",
    ];
    for name in ["claude", "gemini"] {
        let tree = folder.path().join(name);
        repo.clone_to(&tree, None)?;
        let command = if name == "claude" { claude } else { gemini };
        let text = finish(command(&model.url("edit"), home.path(), &tree)?).await?;
        git(&tree, &["add", "--all"])?;
        let status = git(&tree, &["status", "--porcelain", "-z", "--no-renames"])?.replace('\0', "\n");
        for change in wanted {
            assert!(status.contains(change), "{name}: {change} is not in\n{status}\n{text}");
        }
        let summary = git(&tree, &["diff", "--cached", "--summary"])?;
        assert!(
            summary.contains("mode change 100644 => 100755 README.md") && summary.contains("create mode 120000 docs/second-link"),
            "{summary}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_engine_has_both_images() -> Result<()> {
    let socket = bench::engine()?;
    let socket = socket.strip_prefix("unix://").context("the engine is no unix socket")?;
    for image in [bench::image()?, bench::tiny_image()?] {
        let mut stream = tokio::net::UnixStream::connect(socket).await?;
        let ask =
            format!("GET /v1.40/images/{}/json HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n", image.replace('/', "%2F"));
        stream.write_all(ask.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    Ok(())
}
