//! The rest of the command line on jobs: list, wait, cancel, retry, names of jobs, `--json`, idempotency, local runs.

use anyhow::Result;
use ckrv_tests::git::git;
use ckrv_tests::repo::Repo;
use ckrv_tests::scene::{Scene, error, script_spec};
use ckrv_tests::server::Setup;
use ckrv_tests::user::User;
use ckrv_tests::wait::{PATIENCE, wait_until};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::{Value, json};

/// Runs one job at a time, so that a second one is queued.
async fn one_at_a_time() -> Result<Scene> {
    let mut setup = Setup::unsandboxed();
    setup.config.insert("capacity".to_owned(), 1.into());
    Scene::with(setup, Repo::small(&[("README.md", "x\n")])?).await
}

fn ids(list: &Value) -> Vec<String> {
    let jobs = list["jobs"].as_array().cloned().unwrap_or_default();
    jobs.iter().filter_map(|job| job["id"].as_str().map(str::to_owned)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn list_shows_jobs_newest_first_by_status_and_page() -> Result<()> {
    let scene = Scene::start().await?;
    let none = scene.ckrv(&["list"]).await?;
    assert!(none.code == 0 && none.stdout.is_empty() && none.stderr.contains("no jobs"), "{none:?}");
    let mut made = Vec::new();
    for script in ["true", "exit 1", "true"] {
        let id = scene.submit(script).await?;
        scene.ckrv(&["wait", &id]).await?;
        made.insert(0, id);
    }
    let text = scene.ckrv(&["list"]).await?.ok()?;
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with("JOB ") && lines[0].contains("STATE") && lines.len() == 4, "{text}");
    assert!(lines[2].starts_with(&made[1]) && lines[2].contains("failed") && lines[2].contains("spec2"), "{text}");
    assert_eq!(ids(&scene.ckrv(&["list", "--json"]).await?.json()?), made);
    assert_eq!(ids(&scene.ckrv(&["list", "--json", "--status", "failed"]).await?.json()?), [made[1].clone()]);
    let page = scene.ckrv(&["list", "--json", "--limit", "2"]).await?.json()?;
    assert_eq!(ids(&page), made[..2]);
    let cursor = page["next_cursor"].as_str().unwrap_or_default();
    assert_eq!(ids(&scene.ckrv(&["list", "--json", "--limit", "2", "--cursor", cursor]).await?.json()?), made[2..]);
    let bad = scene.ckrv(&["list", "--cursor", "nonsense"]).await?;
    assert!(bad.code == 1 && bad.stderr.contains("The cursor is not one of this list"), "{bad:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn wait_ends_with_the_job_or_with_its_own_limit() -> Result<()> {
    let scene = Scene::start().await?;
    let gate = scene.gate();
    let id = scene.submit(&gate.wait()).await?;
    gate.reached().await?;
    let short = scene.ckrv(&["wait", &id, "--timeout", "1s"]).await?;
    assert_eq!(short.code, 6, "{short:?}");
    assert!(short.stderr.contains(&format!("job {id} has not finished: it is executing")), "{short:?}");
    gate.open()?;
    let waited = scene.ckrv(&["wait", &id]).await?;
    assert_eq!((waited.code, waited.stdout.as_str()), (0, "succeeded\n"));
    assert_eq!(scene.ckrv(&["wait", "--json", &id]).await?.json()?["state"], "succeeded");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_of_a_running_job_ends_the_agents_processes() -> Result<()> {
    let scene = Scene::start().await?;
    let (gate, child) = (scene.gate(), scene.folder().join("child"));
    // A child that ignores polite signals, in a session of its own.
    let stubborn = format!("setsid sh -c 'trap \"\" TERM INT HUP; echo $$ > {}; while :; do sleep 0.1; done' &", child.display());
    let id = scene.submit(&format!("{stubborn}\n{}", gate.wait())).await?;
    let shell = gate.reached().await?;
    let read = async || std::fs::read_to_string(&child).ok()?.trim().parse::<i32>().ok();
    let child = wait_until("the child runs", PATIENCE, read).await?;
    let cancelled = scene.ckrv(&["cancel", &id]).await?;
    assert_eq!((cancelled.code, cancelled.stdout.trim_end()), (0, id.as_str()), "{cancelled:?}");
    let waited = scene.ckrv(&["wait", &id]).await?;
    assert_eq!((waited.code, waited.stdout.as_str()), (5, "cancelled\n"), "{waited:?}");
    for pid in [shell, child] {
        let gone = async || (!ckrv_tests::processes::runs(Pid::from_raw(pid))).then_some(());
        wait_until("the agent's processes are gone", PATIENCE, gone).await?;
    }
    let job = scene.job(&id).await?;
    assert_eq!((&job["status"], &job["outcome"]), (&"failed".into(), &"cancelled".into()), "{job}");
    let again = scene.ckrv(&["cancel", &id]).await?;
    assert!(again.code == 0 && again.stderr.contains("is cancelled"), "cancel can be repeated: {again:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_queued_job_never_runs_and_costs_no_quota() -> Result<()> {
    let scene = one_at_a_time().await?;
    let left =
        async || Ok::<_, anyhow::Error>(scene.ckrv(&["cloud", "whoami", "--json"]).await?.json()?["job_quota_remaining"].clone());
    let (first, second) = (scene.gate(), scene.gate());
    let running = scene.submit(&first.wait()).await?;
    first.reached().await?;
    let before = left().await?;
    let queued = scene.submit(&second.wait()).await?;
    let status = scene.ckrv(&["status", &queued]).await?.ok()?;
    assert!(status.contains("State:        queued, next in the queue"), "{status}");
    assert_ne!(left().await?, before);
    scene.ckrv(&["cancel", &queued]).await?.ok()?;
    assert_eq!(scene.job(&queued).await?["state"], "cancelled");
    assert_eq!(left().await?, before);
    first.open()?;
    scene.ckrv(&["wait", &running]).await?.ok()?;
    assert!(!second.was_reached());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_makes_a_new_job_of_the_same_request() -> Result<()> {
    let scene = Scene::start().await?;
    let marker = scene.folder().join("marker");
    let script = format!("test -e {0} || {{ touch {0}; exit 1; }}; echo done > done.txt", marker.display());
    let spec = scene.spec(script_spec("timeout: 77s", &script))?;
    let first = scene.ckrv(&["run", "--cloud", "--label", "ticket=7", &spec]).await?.ok()?;
    let early = scene.gate();
    assert_eq!(scene.ckrv(&["wait", &first]).await?.code, 5);
    let second = scene.ckrv(&["retry", &first]).await?.ok()?;
    assert_ne!(first, second);
    scene.ckrv(&["wait", "@last"]).await?.ok()?;
    let (old, new) = (scene.job(&first).await?, scene.job(&second).await?);
    assert_eq!((&new["retry_of"], &new["state"]), (&first.as_str().into(), &"succeeded".into()), "{new}");
    assert_eq!(old["state"], "failed", "the first job stays as it was");
    for key in ["spec_id", "agent", "git_repo_url", "git_base_branch", "labels"] {
        assert_eq!(new[key], old[key], "{key}");
    }
    assert_eq!(new["labels"], json!({"ticket": "7"}));
    let running = scene.submit(&early.wait()).await?;
    early.reached().await?;
    let (code, error) = error(&scene.ckrv(&["retry", "--json", &running]).await?)?;
    assert!(code == 1 && error["message"].as_str().is_some_and(|text| text.contains("has not ended")), "{error}");
    early.open()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_named_by_id_prefix_short_form_url_or_last() -> Result<()> {
    let scene = Scene::start().await?;
    let nobody = scene.ckrv(&["status", "@last"]).await?;
    assert!(nobody.code == 4 && nobody.stderr.contains("Job not found: no job was started from here"), "{nobody:?}");
    let id = scene.succeed("true").await?;
    let names = [
        id.clone(),
        id.to_uppercase(),
        id[..13].to_owned(),
        id[28..].to_owned(),
        format!("http://x/jobs/{id}"),
        "@last".to_owned(),
    ];
    for name in names {
        assert_eq!(scene.job(&name).await?["id"], id.as_str(), "{name}");
    }
    let other = scene.succeed("true").await?;
    assert_eq!(scene.job("@last").await?["id"], other.as_str());
    // Both begin with the time.
    let ran = scene.ckrv(&["status", &id[..8]]).await?;
    assert!(ran.code == 2 && ran.stderr.contains("2 jobs begin with") && ran.stderr.contains(&other), "{ran:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_speaks_json() -> Result<()> {
    let scene = Scene::start().await?;
    let spec = scene.spec(script_spec("", "echo a > a"))?;
    let job = scene.ckrv(&["run", "--cloud", "--json", &spec]).await?;
    assert_eq!((job.code, job.stderr.as_str(), job.stdout.lines().count()), (0, "", 1), "{job:?}");
    let id = job.json()?["id"].as_str().unwrap_or_default().to_owned();
    scene.ckrv(&["wait", &id]).await?.ok()?;
    let commands: [&[&str]; 10] = [
        &["status", &id],
        &["list"],
        &["wait", &id],
        &["diff", &id],
        &["pull", "--dry-run", &id],
        &["pull", &id],
        &["retry", &id],
        &["cloud", "whoami"],
        &["cloud", "credentials", "list"],
        &["cloud", "secrets", "list"],
    ];
    for command in commands {
        let ran = scene.ckrv(&[command, &["--json"]].concat()).await?;
        assert!(ran.code == 0 && ran.stderr.is_empty() && ran.json()?.get("error").is_none(), "{command:?}: {ran:?}");
    }
    assert!(scene.ckrv(&["diff", "--json", &id]).await?.json()?["diff"].as_str().is_some_and(|diff| diff.contains("+a\n")));
    let (code, ended) = error(&scene.ckrv(&["cancel", "--json", &id]).await?)?;
    assert_eq!((code, &ended["code"]), (1, &"job_ended".into()), "{ended}");
    // Also where the command line itself is wrong.
    for wrong in [&["status", "--json"][..], &["frobnicate", "--json"], &["list", "--json", "--limit", "0"]] {
        let (code, error) = error(&scene.ckrv(wrong).await?)?;
        assert_eq!((code, &error["code"]), (2, &"usage".into()), "{wrong:?}: {error}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotency_key_makes_one_job_of_two_calls() -> Result<()> {
    let scene = Scene::start().await?;
    let (spec, other) = (scene.spec(script_spec("", "true"))?, scene.spec(script_spec("", "false"))?);
    let run = async |spec: &str| scene.ckrv(&["run", "--cloud", "--idempotency-key", "key-1", spec]).await;
    let first = run(&spec).await?.ok()?;
    assert_eq!(run(&spec).await?.ok()?, first);
    let refused = run(&other).await?;
    assert!(refused.code == 1 && refused.stderr.contains("was used for a different request"), "{refused:?}");
    assert_eq!(ids(&scene.ckrv(&["list", "--json"]).await?.json()?), [first]);
    Ok(())
}

/// No server, no login, nothing pushed.
#[tokio::test(flavor = "multi_thread")]
async fn a_local_run_merges_its_changes_and_leaves_nothing_behind() -> Result<()> {
    let (user, folder) = (User::new()?, tempfile::tempdir()?);
    let project = folder.path().join("project");
    Repo::small(&[("README.md", "x\n")])?.clone_to(&project, None)?;
    git(&project, &["switch", "-qc", "topic"])?;
    std::fs::write(project.join("local.txt"), "never pushed\n")?;
    git(&project, &["add", "."])?;
    git(&project, &["commit", "-qm", "Local"])?;
    let spec = folder.path().join("local.md");
    std::fs::write(&spec, script_spec("verify: test -s made.txt", "cat local.txt > made.txt; echo said by the agent"))?;
    let spec = spec.display().to_string();
    let mut run = user.command(&project, &["run", "--unsandboxed", &spec]);
    let run = run.env("TMPDIR", folder.path().join("tmp"));
    std::fs::create_dir(folder.path().join("tmp"))?;
    let output = run.output().await?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    assert!(out.contains("said by the agent") && out.ends_with("A made.txt\n"), "{out}");
    assert!(err.contains("changed 1 path in your working tree, staged") && err.contains("verification: passed"), "{err}");
    assert_eq!(std::fs::read_to_string(project.join("made.txt"))?, "never pushed\n");
    let left: Vec<_> = std::fs::read_dir(folder.path().join("tmp"))?.flatten().map(|entry| entry.file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
    std::fs::write(&spec, script_spec("", "exit 3"))?;
    let failed = user.run(&project, &["run", "--unsandboxed", &spec]).await?;
    assert!(failed.code == 5 && failed.stderr.contains("exit code 3"), "{failed:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_run_that_is_interrupted_ends_its_agent() -> Result<()> {
    let (user, folder) = (User::new()?, tempfile::tempdir()?);
    let project = folder.path().join("project");
    Repo::small(&[("README.md", "x\n")])?.clone_to(&project, None)?;
    let (spec, pid) = (folder.path().join("local.md"), folder.path().join("pid"));
    std::fs::write(&spec, script_spec("", &format!("echo $$ > {}; while :; do sleep 0.1; done", pid.display())))?;
    let run = user.command(&project, &["run", "--unsandboxed", &spec.display().to_string()]).spawn()?;
    let read = async || std::fs::read_to_string(&pid).ok()?.trim().parse::<i32>().ok();
    let agent = Pid::from_raw(wait_until("the agent runs", PATIENCE, read).await?);
    kill(Pid::from_raw(i32::try_from(run.id().unwrap_or_default())?), nix::sys::signal::Signal::SIGINT)?;
    let output = run.wait_with_output().await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("interrupted; the job was ended"), "{said}");
    assert!(!ckrv_tests::processes::runs(agent), "the agent is gone when ckrv is");
    assert_eq!(git(&project, &["status", "--porcelain"])?, "");
    Ok(())
}
