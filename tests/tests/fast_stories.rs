//! The acceptance scenarios of user stories 1 to 3 and 5, with the real `ckrv` against a real `ckrv serve`. Story 4: `fast_pull.rs`.

use anyhow::{Context as _, Result};
use ckrv_tests::scene::{Scene, error, script_spec};
use ckrv_tests::server::{Server, Setup};
use ckrv_tests::user::User;
use ckrv_tests::wait::{PATIENCE, wait_until};
use tokio::io::{AsyncBufReadExt as _, BufReader};

#[tokio::test(flavor = "multi_thread")]
async fn us1_run_returns_a_job_id_at_once() -> Result<()> {
    let mut scene = Scene::start().await?;
    // The whole way of a new user: a real login, then no further one.
    scene.user = User::of(&scene.server)?;
    scene.user.login(&scene.server).await?;
    let (gate, spec) = (scene.gate(), |text: &str| scene.spec(script_spec("", text)));
    let started = scene.ckrv(&["run", "--cloud", &spec(&gate.wait())?]).await?;
    let id = started.stdout.trim_end().to_owned();
    assert_eq!((started.code, started.stdout.lines().count(), id.len()), (0, 1, 36), "{started:?}");
    assert!(started.stderr.contains("ckrv status @last"), "it says how to go on: {started:?}");
    // It came back although the job cannot have ended.
    gate.reached().await?;
    assert_eq!(scene.job(&id).await?["status"], "running");
    let other = scene.ckrv(&["run", "--cloud", &spec("true")?]).await?.ok()?;
    assert_ne!(id, other);
    gate.open()?;
    scene.ckrv(&["wait", &id]).await?.ok()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn us1_without_a_login_every_command_says_how_to_log_in() -> Result<()> {
    let mut scene = Scene::start().await?;
    let (id, spec) = (scene.succeed("true").await?, scene.spec(script_spec("", "true"))?);
    scene.user = User::of(&scene.server)?;
    let ran = scene.ckrv(&["run", "--cloud", &spec]).await?;
    assert_eq!((ran.code, ran.stdout.as_str()), (3, ""));
    assert_eq!(ran.stderr, "error: you are not logged in\nhint: run `ckrv cloud login`\n");
    let commands: [&[&str]; 10] = [
        &["run", "--cloud", &spec],
        &["list"],
        &["status", &id],
        &["logs", "-f", &id],
        &["wait", &id],
        &["pull", &id],
        &["diff", &id],
        &["cancel", &id],
        &["retry", &id],
        &["cloud", "whoami"],
    ];
    for command in commands {
        let (code, error) = error(&scene.ckrv(&[command, &["--json"]].concat()).await?)?;
        assert_eq!((code, &error["code"]), (3, &"not_logged_in".into()), "{command:?}: {error}");
        assert!(error["hint"].as_str().is_some_and(|hint| hint.contains("ckrv cloud login")), "{command:?}: {error}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn us1_without_a_service_a_local_run_is_suggested() -> Result<()> {
    let mut scene = Scene::start().await?;
    let spec = scene.spec(script_spec("", "true"))?;
    scene.server.stop().await?;
    let ran = scene.ckrv(&["run", "--cloud", &spec]).await?;
    assert_eq!((ran.code, ran.stdout.as_str()), (9, ""), "{ran:?}");
    assert!(ran.stderr.contains("can't be reached") && ran.stderr.contains(scene.server.url()), "{ran:?}");
    assert!(ran.stderr.contains("run the job on this machine: `ckrv run` without --cloud"), "{ran:?}");
    let (code, error) = error(&scene.ckrv(&["run", "--cloud", "--json", &spec]).await?)?;
    assert_eq!((code, &error["code"], &error["retryable"]), (9, &"unreachable".into(), &true.into()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn us2_status_of_a_running_job_shows_phase_elapsed_and_estimate() -> Result<()> {
    let scene = Scene::start().await?;
    let (first, second) = (scene.gate(), scene.gate());
    let id = scene.submit(&first.wait()).await?;
    first.reached().await?;
    let status = scene.ckrv(&["status", &id]).await?.ok()?;
    assert!(status.lines().any(|line| line == "State:        executing"), "{status}");
    assert!(status.lines().any(|line| line.starts_with("Elapsed:      ") && line.ends_with('s')), "{status}");
    assert!(status.contains("no estimate yet (no earlier job of this repository and agent)"), "{status}");
    first.open()?;
    scene.ckrv(&["wait", &id]).await?.ok()?;
    let id = scene.submit(&second.wait()).await?;
    second.reached().await?;
    let job = scene.job(&id).await?;
    assert_eq!((&job["status"], &job["phase"]), (&"running".into(), &"executing".into()), "{job}");
    assert!(job["elapsed_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{job}");
    assert!(job["estimated_completion_at"].is_string(), "the first job gives the estimate: {job}");
    let status = scene.ckrv(&["status", &id]).await?.ok()?;
    assert!(status.contains("done in about") || status.contains("done any moment"), "{status}");
    second.open()
}

#[tokio::test(flavor = "multi_thread")]
async fn us2_verifying_is_a_phase_that_status_shows() -> Result<()> {
    let scene = Scene::start().await?;
    let gate = scene.gate();
    let keys = format!("verify:\n  - {}", serde_json::to_string(&gate.wait())?);
    let id = scene.submit_spec(&script_spec(&keys, "echo a > a")).await?;
    gate.reached().await?;
    let status = scene.ckrv(&["status", &id]).await?.ok()?;
    assert!(status.lines().any(|line| line == "State:        verifying"), "{status}");
    gate.open()?;
    scene.ckrv(&["wait", &id]).await?.ok()?;
    assert_eq!(scene.job(&id).await?["verification"], "passed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn us2_status_of_an_ended_job_shows_what_came_of_it() -> Result<()> {
    let scene = Scene::start().await?;
    let id = scene.succeed("echo more >> README.md").await?;
    let status = scene.ckrv(&["status", &id]).await?;
    assert!(status.stderr.contains(&format!("ckrv pull {id}")), "{status:?}");
    let status = status.ok()?;
    for line in ["State:        succeeded", "Changes:      1 file, +1 -0"] {
        assert!(status.lines().any(|found| found == line), "{line}:\n{status}");
    }
    assert!(status.contains("Summary:      1 file changed, +1 -0; the spec has no checks, so nothing was verified"), "{status}");
    let id = scene.submit("echo something is broken >&2; exit 3").await?;
    let waited = scene.ckrv(&["wait", &id]).await?;
    assert_eq!((waited.code, waited.stdout.as_str()), (5, "failed\n"), "{waited:?}");
    let status = scene.ckrv(&["status", &id]).await?.ok()?;
    assert!(status.lines().any(|line| line == "State:        failed"), "{status}");
    assert!(status.contains("exit code 3: something is broken"), "{status}");
    assert_eq!(scene.job(&id).await?["result_status"], "failed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn us2_an_unknown_job_is_not_found_with_suggestions() -> Result<()> {
    let scene = Scene::start().await?;
    let id = scene.succeed("true").await?;
    let last = if id.ends_with('0') { '1' } else { '0' };
    let slip = format!("{}{last}", &id[..35]);
    for command in ["status", "logs", "pull", "diff", "wait", "cancel", "retry"] {
        let ran = scene.ckrv(&[command, &slip]).await?;
        assert_eq!((ran.code, ran.stdout.as_str()), (4, ""), "{command}: {ran:?}");
        assert!(ran.stderr.contains(&format!("Job not found: {slip}")), "{command}: {ran:?}");
        assert!(ran.stderr.contains("ckrv list") && ran.stderr.contains(&format!("did you mean {id}?")), "{command}: {ran:?}");
    }
    for nonsense in ["nonsense", "@first", "https://example.com/jobs/", "", "../../etc"] {
        let (code, error) = error(&scene.ckrv(&["status", "--json", nonsense]).await?)?;
        assert_eq!((code, &error["code"]), (4, &"job_not_found".into()), "{nonsense:?}: {error}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn us2_an_expired_job_is_not_found() -> Result<()> {
    let mut setup = Setup::unsandboxed();
    setup.config.insert("retention_seconds".to_owned(), 1.into());
    let scene = Scene::with(setup, ckrv_tests::repo::Repo::small(&[("a", "a\n")])?).await?;
    let id = scene.submit("echo b > b").await?;
    for command in ["status", "logs", "pull", "diff", "retry"] {
        let ran = wait_until(&format!("{command} says that the job has expired"), PATIENCE, async || {
            scene.ckrv(&[command, &id]).await.ok().filter(|ran| ran.code == 4)
        })
        .await?;
        assert!(ran.stderr.contains(&format!("Job not found: {id}")), "{command}: {ran:?}");
        assert!(ran.stderr.contains("ckrv list"), "{command}: {ran:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn us3_followed_lines_appear_while_the_job_runs() -> Result<()> {
    let scene = Scene::start().await?;
    let gate = scene.gate();
    let id = scene.submit(&format!("echo the first line; {}; echo the last line", gate.wait())).await?;
    let mut follow = scene.user.command(&scene.project, &["logs", &id, "--follow"]).spawn()?;
    let mut lines = BufReader::new(follow.stdout.take().context("no stdout")?).lines();
    let mut seen = Vec::new();
    while let Some(line) = tokio::time::timeout(PATIENCE, lines.next_line()).await.context("the line never comes")?? {
        seen.push(line);
        if seen.last().is_some_and(|line| line.ends_with("the first line")) {
            break;
        }
    }
    // The line was there, and the job can't have ended.
    assert!(gate.reached().await? > 0 && seen.last().is_some_and(|line| line.ends_with("the first line")), "{seen:?}");
    assert_eq!(scene.job(&id).await?["state"], "executing");
    gate.open()?;
    let mut last = false;
    while let Some(line) = lines.next_line().await? {
        last |= line.ends_with("the last line");
    }
    assert!(last && tokio::time::timeout(PATIENCE, follow.wait()).await??.success());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn us3_the_exit_code_of_follow_is_the_jobs() -> Result<()> {
    let scene = Scene::start().await?;
    let ran = scene.ckrv(&["run", "--cloud", "--follow", &scene.spec(script_spec("", "exit 4"))?]).await?;
    assert_eq!(ran.code, 5, "{ran:?}");
    assert!(ran.stderr.contains("exit code 4"), "{ran:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn us3_the_log_of_an_ended_job_is_complete() -> Result<()> {
    let scene = Scene::start().await?;
    let id =
        scene.succeed("i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i; done; sleep 0.3; echo to stderr >&2").await?;
    let wanted: Vec<String> = (1..=3000).map(|number| format!("line {number}")).collect();
    for follow in [None, Some("--follow")] {
        let text = scene.ckrv(&["logs", &id].into_iter().chain(follow).collect::<Vec<_>>()).await?.ok()?;
        let said = text.lines().filter_map(|line| line.find("agent        line ").map(|at| line[at + 13..].to_owned()));
        assert_eq!(said.collect::<Vec<_>>(), wanted, "{follow:?}");
        assert!(text.contains("to stderr"));
    }
    let json = scene.ckrv(&["logs", "--json", &id]).await?.ok()?;
    let entries: Vec<serde_json::Value> = json.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let numbers: Vec<u64> = entries.iter().filter_map(|entry| entry["seq"].as_u64()).collect();
    assert_eq!(numbers, (1..=u64::try_from(entries.len())?).collect::<Vec<_>>(), "no gap, nothing twice");
    // From a place in the middle on.
    let cursor = format!("{}.{}", entries[9]["fence"], entries[9]["seq"]);
    let rest = scene.ckrv(&["logs", "--json", &id, "--after", &cursor]).await?.ok()?;
    assert_eq!(rest.lines().count(), entries.len() - 10);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn us5_login_whoami_logout() -> Result<()> {
    let server = Server::start(Setup::unsandboxed()).await?;
    let user = User::of(&server)?;
    let whoami = async || user.run(user.home(), &["cloud", "whoami"]).await;
    assert_eq!(whoami().await?.code, 3);
    user.login(&server).await?;
    let me = whoami().await?;
    assert_eq!((me.code, me.stdout.as_str()), (0, "Owner <owner@localhost>\n"), "{me:?}");
    assert!(me.stderr.contains("jobs left until"), "{me:?}");
    let me = user.run(user.home(), &["cloud", "whoami", "--json"]).await?.json()?;
    assert_eq!(me["email"], "owner@localhost");
    let out = user.run(user.home(), &["cloud", "logout"]).await?;
    assert!(out.code == 0 && out.stderr.contains("logged out of"), "{out:?}");
    assert_eq!(whoami().await?.code, 3, "after a logout every command wants a login again");
    let again = user.run(user.home(), &["cloud", "logout"]).await?;
    assert!(again.code == 0 && again.stderr.contains("you were not logged in"), "{again:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn us5_the_session_is_kept_encrypted_and_private() -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let server = Server::start(Setup::unsandboxed()).await?;
    let user = User::of(&server)?;
    user.login(&server).await?;
    let said = std::fs::read_to_string(user.home().join("login.log"))?;
    assert!(said.contains("the session is kept in an encrypted file"), "{said}");
    let files = ckrv_tests::server::files_below(user.home())?;
    let kept: Vec<_> = files.iter().filter(|path| !path.ends_with("login.log")).collect();
    assert!(kept.len() >= 2, "the file and its key: {kept:?}");
    let secret = |path: &&&std::path::PathBuf| path.metadata().is_ok_and(|about| about.len() > 0);
    for path in kept.iter().filter(secret) {
        assert_eq!(path.metadata()?.permissions().mode() & 0o077, 0, "others may read {}", path.display());
        let text = String::from_utf8_lossy(&std::fs::read(path)?).into_owned();
        assert!(!text.contains("access_token") && !text.contains("refresh_token"), "in the clear: {}", path.display());
    }
    user.run(user.home(), &["cloud", "logout"]).await?.ok()?;
    let left = ckrv_tests::server::files_below(user.home())?;
    assert!(left.iter().all(|path| !path.to_string_lossy().contains("/sessions/")), "a logout clears it: {left:?}");
    Ok(())
}
