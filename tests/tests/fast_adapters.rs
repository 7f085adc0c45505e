//! Adapters that an operator has installed by path, and one of them that is hostile: each misbehaviour ends its own job with a reason,
//! harms no other, and the service goes on.

use std::path::{Path, PathBuf};

use anyhow::Result;
use ckrv_tests::repo::Repo;
use ckrv_tests::scene::Scene;
use ckrv_tests::server::Setup;

fn component(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../agents-wasm/prebuilt").join(name)
}

fn setup(name: &str, file: &Path) -> Setup {
    let mut setup = Setup::unsandboxed();
    let file = toml::Table::from_iter([("file".to_owned(), file.display().to_string().into())]);
    setup.config.insert("adapters".to_owned(), toml::Table::from_iter([(name.to_owned(), file.into())]).into());
    setup
}

async fn hostile() -> Result<Scene> {
    Scene::with(setup("hostile", &component("testing/hostile.wasm")), Repo::small(&[("README.md", "x\n")])?).await
}

/// A job of the hostile adapter must fail for this reason; the next job of another agent must succeed.
async fn fails(scene: &Scene, behaviour: &str, reasons: &[&str]) -> Result<String> {
    let id = scene.submit_spec(&format!("---\nagent: hostile\n---\nhostile: {behaviour}\nnow\n")).await?;
    let waited = scene.ckrv(&["wait", &id]).await?;
    anyhow::ensure!((waited.code, waited.stdout.as_str()) == (5, "failed\n"), "{behaviour}: {waited:?}");
    for reason in reasons {
        anyhow::ensure!(waited.stderr.contains(reason), "{behaviour}: {reason}: {waited:?}");
    }
    let job = scene.job(&id).await?;
    anyhow::ensure!(job["result_url"].is_null() && job["attempt"] == 1, "tried again, or published: {job}");
    scene.ckrv(&["logs", &id]).await?.ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_installs_an_adapter_by_path() -> Result<()> {
    let scene = Scene::with(setup("shell", &component("script.wasm")), Repo::small(&[("README.md", "x\n")])?).await?;
    let agents = scene.ckrv(&["cloud", "agents", "--json"]).await?.json()?;
    let names: Vec<_> = agents["agents"].as_array().into_iter().flatten().filter_map(|agent| agent["name"].as_str()).collect();
    assert_eq!(names, ["claude", "gemini", "script", "shell"], "{agents}");
    let id = scene.submit_spec("---\nagent: shell\n---\necho a > a.txt\n").await?;
    scene.ckrv(&["wait", &id]).await?.ok()?;
    assert_eq!(scene.ckrv(&["pull", &id]).await?.ok()?, "A a.txt");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_a_file_that_is_no_adapter_stops_the_start_with_its_name() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (file, missing) = (folder.path().join("broken.wasm"), folder.path().join("missing.wasm"));
    std::fs::write(&file, "no component")?;
    for (path, reason) in [(&file, "the adapter `broken` can't be used"), (&missing, "missing.wasm of the adapter `broken`")] {
        let error = ckrv_tests::server::Server::start(setup("broken", path)).await.err().map(|error| format!("{error:#}"));
        assert!(error.as_ref().is_some_and(|error| error.contains(reason)), "{reason}: {error:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_an_adapter_that_traps_loops_or_eats_memory_while_planning() -> Result<()> {
    let scene = hostile().await?;
    for behaviour in ["plan-trap", "plan-loop", "plan-memory", "plan-large"] {
        fails(&scene, behaviour, &["the agent's adapter failed: ", "this is for the adapter's author"]).await?;
    }
    fails(&scene, "plan-invalid", &["this adapter refuses on purpose"]).await?;
    fails(&scene, "plan-unsupported", &["this adapter cannot, on purpose"]).await?;
    scene.succeed("true").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_an_adapter_that_asks_for_what_policy_denies() -> Result<()> {
    let scene = hostile().await?;
    fails(&scene, "plan-image", &["registry.example/evil"]).await?;
    fails(&scene, "plan-env", &["LD_PRELOAD"]).await?;
    fails(&scene, "plan-egress", &["169.254.169.254"]).await?;
    fails(&scene, "plan-file", &["../outside"]).await?;
    scene.succeed("true").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_an_adapter_that_misbehaves_while_reading() -> Result<()> {
    let scene = hostile().await?;
    let reads = [
        ("feed-trap", "trapped in `feed`"),
        ("feed-loop", "took more than 5000 ms in `feed` and was stopped"),
        ("feed-memory", "needed more than 64 MiB of memory in `feed` and was stopped"),
        ("finish-trap", "trapped in `finish`"),
    ];
    for (behaviour, note) in reads {
        let log = fails(&scene, behaviour, &["the agent did not succeed"]).await?;
        assert!(log.contains(note) && log.contains("from here on the log shows raw lines"), "{behaviour}: {log}");
        assert!(log.lines().any(|line| line.ends_with("agent        now")), "what the agent said is there: {log}");
    }
    fails(&scene, "next-loop", &["the agent's adapter failed: the adapter took more than 5000 ms in `next`"]).await?;
    // It praises itself; its advice to stop is taken, its praise is not.
    fails(&scene, "none", &["the agent did not succeed"]).await?;
    scene.succeed("true").await?;
    Ok(())
}
