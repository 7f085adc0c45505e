//! The edge cases of the specification, and what happens to secrets.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use ckrv_tests::faults::Faults;
use ckrv_tests::records::Records;
use ckrv_tests::repo::Repo;
use ckrv_tests::scene::{Scene, error, script_spec};
use ckrv_tests::server::{Setup, files_below};
use ckrv_tests::wait::{PATIENCE, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};

async fn free_tier() -> Result<Scene> {
    let mut setup = Setup::unsandboxed();
    let owner = toml::toml! { tier = "free" };
    setup.config.insert("owner".to_owned(), owner.into());
    setup.config.insert("upgrade_url".to_owned(), "https://example.com/upgrade".into());
    Scene::with(setup, Repo::small(&[("README.md", "x\n")])?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn edge_connection_lost_mid_follow_resumes_without_gap_or_double() -> Result<()> {
    let mut scene = Scene::start().await?;
    let server: SocketAddr = scene.server.url().trim_start_matches("http://").parse()?;
    let faults = Faults::start(server, 7, 5_000..20_000).await?;
    let gate = scene.gate();
    let lines = "i=0; while [ $i -lt 400 ]; do i=$((i+1)); echo line $i; done";
    let id = scene.submit(&format!("{lines}\n{}\necho line 401", gate.wait())).await?;
    scene.user.set("CKRV_URL", &format!("http://{}", faults.address));
    let mut follow = scene.user.command(&scene.project, &["logs", "--json", "-f", &id]).spawn()?;
    let mut stdout = BufReader::new(follow.stdout.take().context("no stdout")?).lines();
    let mut seen: Vec<serde_json::Value> = Vec::new();
    while let Some(line) = stdout.next_line().await? {
        seen.push(serde_json::from_str(&line)?);
        if seen.last().is_some_and(|entry| entry["message"] == "line 300") {
            break;
        }
    }
    // For a while nothing gets through at all; meanwhile the job ends.
    faults.refuse();
    gate.open()?;
    let mut direct = scene.user.command(&scene.project, &["wait", &id]);
    assert!(direct.env("CKRV_URL", scene.server.url()).status().await?.success(), "the job does not care");
    faults.heal();
    while let Some(line) = stdout.next_line().await? {
        seen.push(serde_json::from_str(&line)?);
    }
    assert!(follow.wait().await?.success());
    let numbers: Vec<u64> = seen.iter().filter_map(|entry| entry["seq"].as_u64()).collect();
    assert_eq!(numbers, (1..=u64::try_from(seen.len())?).collect::<Vec<_>>());
    assert!(seen.iter().any(|entry| entry["message"] == "line 401"));
    assert!(faults.cuts() > 1, "only {} cuts", faults.cuts());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn edge_time_limit_terminates_with_a_timeout_error_and_no_partial_result() -> Result<()> {
    let scene = Scene::start().await?;
    let gate = scene.gate();
    let script = format!("echo partial > partial.txt; echo begun; trap '' TERM\n{}", gate.wait());
    let id = scene.submit_spec(&script_spec("timeout: 6s", &script)).await?;
    let shell = gate.reached().await?;
    let waited = scene.ckrv(&["wait", &id]).await?;
    assert_eq!((waited.code, waited.stdout.as_str()), (5, "timeout\n"), "{waited:?}");
    assert!(waited.stderr.contains("timed out") && waited.stderr.contains("partial results are not kept"), "{waited:?}");
    assert!(waited.stderr.contains("--timeout"), "{waited:?}");
    let gone = async || (!ckrv_tests::processes::runs(Pid::from_raw(shell))).then_some(());
    wait_until("the agent is gone", PATIENCE, gone).await?;
    let job = scene.job(&id).await?;
    assert_eq!(
        (&job["status"], &job["result_url"], &job["diff_stat"]),
        (&"timeout".into(), &serde_json::Value::Null, &serde_json::Value::Null),
        "{job}"
    );
    for command in ["pull", "diff"] {
        let ran = scene.ckrv(&[command, &id]).await?;
        assert!(ran.code == 5 && ran.stderr.contains("no successful output exists"), "{ran:?}");
    }
    // The log tells how far it came; nothing of the result is kept anywhere.
    assert!(scene.ckrv(&["logs", &id]).await?.ok()?.contains("begun"));
    let dump = tempfile::tempdir()?;
    let kept = Records::of(&scene.server).files(dump.path()).await?;
    assert!(!kept.iter().any(|path| path.ends_with("diff") || path.ends_with("partial.txt")), "{kept:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn edge_quota_used_up_says_when_it_resets_and_where_to_upgrade() -> Result<()> {
    let scene = free_tier().await?;
    let gate = scene.gate();
    let mut ids = Vec::new();
    for number in 0..10 {
        let key = format!("key-{number}");
        let spec = scene.spec(script_spec("", &gate.wait()))?;
        ids.push((scene.ckrv(&["run", "--cloud", "--idempotency-key", &key, &spec]).await?.ok()?, key, spec));
    }
    let me = scene.ckrv(&["cloud", "whoami", "--json"]).await?.json()?;
    assert_eq!(me["job_quota_remaining"], 0, "{me}");
    let resets = me["billing_cycle_end"].as_str().unwrap_or_default();
    let spec = scene.spec(script_spec("", "true"))?;
    let ran = scene.ckrv(&["run", "--cloud", &spec]).await?;
    assert_eq!((ran.code, ran.stdout.as_str()), (8, ""), "{ran:?}");
    assert!(ran.stderr.contains("10 jobs are used up") && ran.stderr.contains(resets), "{ran:?}");
    assert!(ran.stderr.contains("upgrade at https://example.com/upgrade"), "{ran:?}");
    let (code, error) = error(&scene.ckrv(&["run", "--cloud", "--json", &spec]).await?)?;
    assert_eq!((code, &error["code"]), (8, &"quota_exceeded".into()), "{error}");
    // A repeated call is no new job.
    let (id, key, spec) = &ids[0];
    assert_eq!(&scene.ckrv(&["run", "--cloud", "--idempotency-key", key, spec]).await?.ok()?, id);
    gate.open()?;
    for (id, _, _) in &ids {
        scene.ckrv(&["wait", id]).await?.ok()?;
    }
    let list = scene.ckrv(&["list", "--json"]).await?.json()?;
    assert_eq!(list["jobs"].as_array().map(Vec::len), Some(10), "a refused job leaves no trace");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn edge_credentials_are_found_nowhere_in_the_clear() -> Result<()> {
    const SECRET: &str = "hunter2-correct-horse-battery";
    let scene = Scene::start().await?;
    let add = ["cloud", "credentials", "add", "forge", "--type", "pat", "--host", "git.example.com"];
    let added = scene.user.run_with_input(&scene.project, &add, format!("{SECRET}\n").as_bytes()).await?;
    added.ok()?;
    let add = ["cloud", "secrets", "add", "model-key"];
    scene.user.run_with_input(&scene.project, &add, format!("{SECRET}\n").as_bytes()).await?.ok()?;
    let listed = scene.ckrv(&["cloud", "credentials", "list"]).await?.ok()?;
    assert!(listed.contains("forge") && !listed.contains(SECRET), "{listed}");
    let gate = scene.gate();
    let id = scene.submit(&format!("env; {}", gate.wait())).await?;
    gate.reached().await?;
    // As it is, and as base64 of something that it begins 0, 1 or 2 bytes into a group of: without the ends, where its neighbours mix in.
    let base64 = |skip: usize| STANDARD_NO_PAD.encode(&SECRET.as_bytes()[skip..skip + 24]);
    let needles = [SECRET.to_owned(), base64(0), base64(1), base64(2)];
    let nowhere = async || -> Result<()> {
        let dump = tempfile::tempdir()?;
        let kept = Records::of(&scene.server).files(dump.path()).await?;
        let files = [kept, files_below(scene.user.home())?, scene.server.logs()].concat();
        assert!(files.len() > 5);
        for path in files {
            let content = std::fs::read(&path).unwrap_or_default();
            for needle in &needles {
                let found = content.windows(needle.len()).any(|window| window == needle.as_bytes());
                assert!(!found, "{needle} lies in {}", path.display());
            }
        }
        Ok(())
    };
    nowhere().await?;
    gate.open()?;
    scene.ckrv(&["wait", &id]).await?.ok()?;
    assert!(!scene.ckrv(&["logs", &id]).await?.ok()?.contains(SECRET));
    nowhere().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn edge_after_the_end_the_run_folder_is_gone() -> Result<()> {
    let scene = Scene::start().await?;
    let runs = scene.server.data().join("runs");
    let gate = scene.gate();
    let id = scene.submit(&format!("echo a > a; {}", gate.wait())).await?;
    gate.reached().await?;
    assert!(!files_below(&runs)?.is_empty());
    gate.open()?;
    scene.ckrv(&["wait", &id]).await?.ok()?;
    let empty = async || files_below(&runs).ok().filter(Vec::is_empty);
    wait_until("the run's folder is gone", PATIENCE, empty).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_ctrl_c_during_follow_leaves_the_job_going() -> Result<()> {
    let scene = Scene::start().await?;
    let gate = scene.gate();
    let id = scene.submit(&format!("echo begun; {}; echo a > a", gate.wait())).await?;
    gate.reached().await?;
    let mut child = scene.user.command(&scene.project, &["logs", "-f", &id]).spawn()?;
    let mut stdout = BufReader::new(child.stdout.take().context("no stdout")?).lines();
    while stdout.next_line().await?.is_some_and(|line| !line.ends_with("begun")) {}
    kill(Pid::from_raw(i32::try_from(child.id().context("ended")?)?), Signal::SIGINT)?;
    let mut said = String::new();
    child.stderr.take().context("no stderr")?.read_to_string(&mut said).await?;
    assert_eq!(child.wait().await?.code(), Some(130), "{said}");
    assert!(said.contains(&format!("interrupted; job {id} goes on")), "{said}");
    assert!(said.contains(&format!("ckrv logs -f {id}")) && said.contains(&format!("ckrv cancel {id}")), "{said}");
    assert_eq!(scene.job(&id).await?["state"], "executing");
    gate.open()?;
    scene.ckrv(&["logs", "-f", &id]).await?.ok()?;
    assert_eq!(scene.job(&id).await?["state"], "succeeded");
    Ok(())
}
