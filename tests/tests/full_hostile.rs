//! A repository that is hostile to the agent that works in it, and an agent that is hostile to whoever takes its result.
//!
//! A trap is a file that exists once something of the hostile side was run, or a request at a model that isn't ours.

use anyhow::Result;
use ckrv_tests::agents::{self, Place};
use ckrv_tests::forge::secret;
use ckrv_tests::git::{command, git};
use ckrv_tests::model::{Model, Script, Step};
use ckrv_tests::repo::Repo;
use ckrv_tests::scene::{Scene, script_spec};
use ckrv_tests::traps;

/// The repository's own files that each agent is kept from.
const CLAUDE_REFUSES: [&str; 2] = [".claude/settings.json", ".mcp.json"];
const GEMINI_REFUSES: [&str; 3] = [".gemini/settings.json", ".gemini/.env", ".env"];

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_repository_harms_nothing_where_claude_code_runs_in_a_container() -> Result<()> {
    hostile_repository("claude", Place::Container).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_repository_harms_nothing_where_gemini_cli_runs_in_a_container() -> Result<()> {
    hostile_repository("gemini", Place::Container).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_repository_harms_nothing_where_claude_code_runs_as_a_process() -> Result<()> {
    hostile_repository("claude", Place::Process).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_repository_harms_nothing_where_gemini_cli_runs_as_a_process() -> Result<()> {
    hostile_repository("gemini", Place::Process).await
}

/// The agent does what our model says and nothing of what the repository wants; the log names what was refused.
async fn hostile_repository(agent: &str, place: Place) -> Result<()> {
    let _turn = agents::turn().await?;
    let (folder, thief) = (tempfile::tempdir()?, Model::start([], None).await?);
    let model =
        Model::start([("work", Script::Steps(vec![Step::write("fine.txt", "fine\n"), Step::shell("ls -a > seen.txt")]))], None);
    let model = model.await?;
    // In a container the machine's folders can't be seen from outside: there the trap would show in the result.
    let trap = if place == Place::Process { folder.path().join("trap") } else { "trapped".into() };
    let scene = Scene::with(agents::setup(place, &model.url("work"), None)?, Repo::hostile(&trap, &thief.url("ok"))?).await?;
    let key = secret("model");
    let slot = ["cloud", "secrets", "add", agents::slot(agent)];
    scene.user.run_with_input(scene.folder(), &slot, key.as_bytes()).await?.ok()?;
    let model_name = if agent == "gemini" { "gemini-2.5-flash" } else { "sonnet" };
    let verify = "verify:\n  - git status --short\n  - git diff HEAD\n  - test -f fine.txt";
    let id = scene.submit_spec(&format!("---\nagent: {agent}\nmodel: {model_name}\n{verify}\n---\nDo it.\n")).await?;
    let ended = scene.ckrv(&["wait", &id]).await?;
    let log = scene.ckrv(&["logs", &id]).await?.ok()?;
    assert_eq!(ended.code, 0, "{ended:?}\n{log}");
    let refused: &[&str] = if agent == "gemini" { &GEMINI_REFUSES } else { &CLAUDE_REFUSES };
    for name in refused {
        assert!(log.contains(&format!("refused: the repository's `{name}` is not used")), "{name}\n{log}");
    }
    for link in ["`outward -> /etc/passwd` is refused", "`upward -> ../../../../etc/passwd` is refused"] {
        assert!(log.contains(&format!("left out of the checkout: {link}")), "{link}\n{log}");
    }
    scene.ckrv(&["pull", &id]).await?.ok()?;
    assert_eq!(std::fs::read_to_string(scene.project.join("fine.txt"))?, "fine\n");
    let seen = std::fs::read_to_string(scene.project.join("seen.txt"))?;
    assert!(!seen.contains("ward") && !seen.contains("trapped"), "{seen}");
    let requests: Vec<_> = thief.requests().into_iter().map(|request| request.path).collect();
    assert!(requests.is_empty(), "the agent went to the repository's own model: {requests:?}");
    assert!(!trap.exists() && !scene.project.join("trapped").exists(), "a hook or server of the repository was run\n{log}");
    assert!(model.requests().iter().all(|request| request.method != "POST" || request.key.as_deref() == Some(&key)));
    // What was left out of the checkout is not taken for deleted.
    let links = git(&scene.project, &["ls-files", "outward", "upward"])?;
    assert_eq!(links, "outward\nupward", "{log}");
    assert!(git(&scene.project, &["status", "--porcelain"])?.lines().all(|line| line.starts_with("A ")), "{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_agent_in_a_container_harms_nobody_after_it_and_the_log_says_what_was_refused() -> Result<()> {
    hostile_agent(Place::Container).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_agent_as_a_process_harms_nobody_after_it_and_the_log_says_what_was_refused() -> Result<()> {
    hostile_agent(Place::Process).await
}

async fn hostile_agent(place: Place) -> Result<()> {
    let _turn = agents::turn().await?;
    let folder = tempfile::tempdir()?;
    let trap = folder.path().join("trap");
    let scene = Scene::with(agents::setup(place, "http://127.0.0.1:1", None)?, Repo::small(&[("README.md", "# A\n")])?).await?;
    // The checks look at a fresh checkout: nothing of the agent's `.git` is there, and nothing of what was refused.
    let verify = "verify:\n  - test ! -e .git/hooks/pre-commit\n  - git status --short\n  - test ! -e absolute -a ! -e nested/.git\n  - test -L inside";
    let id = scene.submit_spec(&script_spec(verify, &traps::set(&format!("touch {}", trap.display())))).await?;
    let ended = scene.ckrv(&["wait", &id]).await?;
    let log = scene.ckrv(&["logs", &id]).await?.ok()?;
    assert_eq!(ended.code, 0, "{ended:?}\n{log}");
    for refused in traps::REFUSED {
        assert!(log.contains(refused), "{refused}\n{log}");
    }
    let diff = scene.ckrv(&["diff", &id]).await?.ok()?;
    for never in traps::NEVER_IN_THE_DIFF {
        assert!(!diff.contains(never), "{never} is in the diff:\n{diff}");
    }
    // In each way of taking it: the working tree, a worktree of its own, a branch.
    for args in [["pull", &id].as_slice(), &["pull", &id, "--worktree", "../taken"], &["pull", &id, "--branch", "taken"]] {
        scene.ckrv(args).await?.ok()?;
    }
    command(&scene.project).args(["status"]).output()?;
    git(&scene.project, &["commit", "--quiet", "-m", "Taken"])?;
    let files = git(&scene.project, &["ls-tree", "-r", "--name-only", "HEAD"])?;
    assert_eq!(files, traps::RESULT);
    assert!(!trap.exists(), "something of the agent was run\n{log}");
    Ok(())
}
