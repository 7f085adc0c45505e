//! Bad input: each with its message and its exit code, and nothing sent or stored where it can be told before.

use anyhow::{Context as _, Result};
use ckrv_tests::git::git;
use ckrv_tests::repo::Repo;
use ckrv_tests::scene::{Scene, error, script_spec};
use ckrv_tests::server::Setup;
use serde_json::json;

/// Runs `ckrv run --cloud`, which must refuse with this exit code and code, print nothing else, and make no job.
async fn refused(scene: &Scene, arguments: &[&str], exit: i32, code: &str) -> Result<String> {
    let arguments = [&["run", "--cloud"], arguments].concat();
    let ran = scene.ckrv(&arguments).await?;
    anyhow::ensure!((ran.code, ran.stdout.as_str()) == (exit, ""), "{arguments:?}: {ran:?}");
    anyhow::ensure!(ran.stderr.starts_with("error: "), "{ran:?}");
    let (code_again, error) = error(&scene.ckrv(&[&arguments[..], &["--json"]].concat()).await?)?;
    anyhow::ensure!((code_again, &error["code"]) == (exit, &code.into()), "{arguments:?}: {error}");
    let list = scene.ckrv(&["list", "--json"]).await?.json()?;
    anyhow::ensure!(list["jobs"] == json!([]), "a job was made: {list}");
    Ok(ran.stderr)
}

/// A job that must fail; gives what `wait` says, and checks that `status` and `pull` say the same reason.
async fn fails(scene: &Scene, id: &str, reason: &str) -> Result<String> {
    let waited = scene.ckrv(&["wait", id]).await?;
    anyhow::ensure!((waited.code, waited.stdout.as_str()) == (5, "failed\n"), "{waited:?}");
    anyhow::ensure!(waited.stderr.contains(reason), "{reason}: {waited:?}");
    anyhow::ensure!(scene.ckrv(&["status", id]).await?.ok()?.contains(reason));
    let pulled = scene.ckrv(&["pull", id]).await?;
    anyhow::ensure!(pulled.code == 5 && pulled.stderr.contains("no successful output exists"), "{pulled:?}");
    anyhow::ensure!(scene.job(id).await?["result_url"].is_null());
    Ok(waited.stderr)
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_specs_are_refused_before_anything_is_sent() -> Result<()> {
    let scene = Scene::start().await?;
    let missing = scene.folder().join("nowhere.md").display().to_string();
    let said = refused(&scene, &[&missing], 2, "spec_missing").await?;
    assert!(said.contains("can't read the spec") && said.contains("No such file"), "{said}");
    let said = refused(&scene, &[], 2, "spec_missing").await?;
    assert!(said.contains("none in .ckrv/specs/") && said.contains("`ckrv run SPEC`"), "{said}");
    let said = refused(&scene, &[&scene.folder().display().to_string()], 2, "spec_unreadable").await?;
    assert!(said.contains("is a directory") || said.contains("Is a directory"), "{said}");
    let large = "x".repeat(1024 * 1024 + 1);
    let cases: [(&[u8], &str, &str); 9] = [
        (b"", "spec_empty", "is empty"),
        (b" \n\t\n", "spec_empty", "is empty"),
        (large.as_bytes(), "spec_too_large", "is too large: at most "),
        (b"caf\xe9 au lait", "spec_not_utf8", "is not UTF-8 (byte 4)"),
        (b"---\nagent: [script\n---\ntrue\n", "spec_invalid", "the spec's YAML is broken at line "),
        (b"---\nagent: script\nJust do it.\n", "spec_invalid", "no second `---` ends it"),
        (b"---\nagnet: script\n---\ntrue\n", "spec_invalid", "line 2: `agnet` is not a key of a spec; the keys are `id`"),
        (b"---\nagent: script\ntimeout: soon\n---\ntrue\n", "spec_invalid", "line 3: `timeout` must be a length of time"),
        (b"---\nagent: script\n---\n", "spec_invalid", "says nothing that the agent should do"),
    ];
    for (content, code, message) in cases {
        let said = refused(&scene, &[&scene.spec(content)?], 2, code).await?;
        assert!(said.contains(message), "{message}: {said}");
    }
    // Without a service the answer is the same: nothing was sent.
    let mut offline = scene;
    let broken = offline.spec(b"---\nagent: [\n---\n")?;
    offline.server.kill().await?;
    assert_eq!(offline.ckrv(&["run", "--cloud", &broken]).await?.code, 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_several_specs_are_listed() -> Result<()> {
    let scene = Scene::start().await?;
    let folder = scene.project.join(".ckrv/specs");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("one.md"), script_spec("", "true"))?;
    std::fs::write(folder.join("two.yaml"), "agent: script\ntask: 'true'\n")?;
    let said = refused(&scene, &[], 2, "spec_ambiguous").await?;
    assert!(said.contains("\n  .ckrv/specs/one.md\n  .ckrv/specs/two.yaml\n"), "{said}");
    std::fs::remove_file(folder.join("one.md"))?;
    let id = scene.ckrv(&["run", "--cloud"]).await?.ok()?;
    assert_eq!(scene.job(&id).await?["spec_id"], "two");
    let ran =
        scene.user.run_with_input(&scene.project, &["run", "--cloud", "-"], script_spec("id: piped", "true").as_bytes()).await?;
    assert_eq!(scene.job(&ran.ok()?).await?["spec_id"], "piped");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_options_are_refused_by_name() -> Result<()> {
    let scene = Scene::start().await?;
    let spec = scene.spec(script_spec("", "true"))?;
    let said = refused(&scene, &["--agent", "nobody", &spec], 1, "unknown_agent").await?;
    assert!(said.contains("There is no agent `nobody`. On offer: `claude`, `gemini`, `script`."), "{said}");
    let said = refused(&scene, &["--credential", "nothing", &spec], 1, "unknown_credential").await?;
    assert!(said.contains("`ckrv cloud credentials list` shows yours"), "{said}");
    let said = refused(&scene, &["--timeout", "soon", &spec], 2, "usage").await?;
    assert!(said.contains("soon"), "{said}");
    let said = refused(&scene, &["--timeout", "1000h", &spec], 1, "invalid_timeout").await?;
    assert!(said.contains("The time limit must be 1 to 21600 seconds."), "{said}");
    let said = refused(&scene, &["--max-cost", "0", &spec], 2, "usage").await?;
    assert!(said.contains("--max-cost"), "{said}");
    let said = refused(&scene, &["--label", "novalue", &spec], 2, "usage").await?;
    assert!(said.contains("--label"), "{said}");
    let said = refused(&scene, &["--secret", "anthropic-api-key=none", "--agent", "claude", &spec], 1, "unknown_secret").await?;
    assert!(said.contains("`ckrv cloud secrets list` shows yours"), "{said}");
    for wrong in ["main..", "-x", "a b", "refs/heads/x.lock", ""] {
        let ran =
            scene.ckrv(&["run", "--cloud", "--repo", "https://example.com/a/b.git", &format!("--base={wrong}"), &spec]).await?;
        assert!(ran.code == 1 || ran.code == 2, "{wrong:?}: {ran:?}");
        assert!(ran.stderr.contains("branch name") || ran.stderr.contains("--base"), "{wrong:?}: {ran:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_bad_url_is_refused_with_its_reason() -> Result<()> {
    let scene = Scene::start().await?;
    let spec = scene.spec(script_spec("", "true"))?;
    for (url, reason) in [
        ("not a url", "This is not a repository URL"),
        ("ftp://example.com/a.git", "`ftp` is not a way to a repository; use https or ssh"),
        ("http://example.com/a.git", "is not a way to a repository; use https or ssh"),
        ("ext::sh -c true", "not a"),
        ("https://", "This is not a repository URL"),
    ] {
        let said = refused(&scene, &["--repo", url, &spec], 1, "invalid_repo_url").await?;
        assert!(said.contains(reason), "{url}: {said}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_base_not_pushed_says_what_to_push() -> Result<()> {
    let scene = Scene::start().await?;
    let spec = scene.spec(script_spec("", "true"))?;
    std::fs::write(scene.project.join("new.txt"), "x\n")?;
    git(&scene.project, &["add", "."])?;
    git(&scene.project, &["commit", "-qm", "Not pushed"])?;
    let said = refused(&scene, &[&spec], 1, "base_not_pushed").await?;
    assert!(said.contains("`main` has 1 commit that is not pushed to `origin`"), "{said}");
    assert!(said.contains("run `git push -u origin main`, or start from what is there: `--base origin/main`"), "{said}");
    git(&scene.project, &["switch", "-qc", "topic"])?;
    let said = refused(&scene, &[&spec], 1, "base_not_pushed").await?;
    assert!(said.contains("`topic` is not pushed to `origin`"), "{said}");
    git(&scene.project, &["switch", "-q", "--detach"])?;
    let said = refused(&scene, &[&spec], 2, "usage").await?;
    assert!(said.contains("HEAD is on no branch") && said.contains("--base"), "{said}");
    // What the hints say works.
    git(&scene.project, &["switch", "-q", "topic"])?;
    let id = scene.ckrv(&["run", "--cloud", "--base", "origin/main", &spec]).await?.ok()?;
    scene.ckrv(&["wait", &id]).await?.ok()?;
    git(&scene.project, &["push", "-q", "-u", "origin", "topic"])?;
    let id = scene.ckrv(&["run", "--cloud", &spec]).await?.ok()?;
    assert_eq!(scene.job(&id).await?["git_base_branch"], "topic");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_no_repository_no_remote() -> Result<()> {
    let scene = Scene::start().await?;
    let spec = scene.spec(script_spec("", "true"))?;
    let ran = scene.user.run(scene.user.home(), &["run", "--cloud", &spec]).await?;
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("there is no git repository here") && ran.stderr.contains("--repo URL"), "{ran:?}");
    git(&scene.project, &["remote", "remove", "origin"])?;
    let said = refused(&scene, &[&spec], 2, "usage").await?;
    assert!(said.contains("has no remote `origin`") && said.contains("--repo URL"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_unknown_branch_names_those_that_there_are() -> Result<()> {
    let scene = Scene::start().await?;
    let (spec, repo) = (scene.spec(script_spec("", "true"))?, scene.repo.path().display().to_string());
    git(&scene.repo.path(), &["branch", "stable", "main"])?;
    let id = scene.ckrv(&["run", "--cloud", "--repo", &repo, "--base", "stabel", &spec]).await?.ok()?;
    let said = fails(&scene, &id, "the repository has no branch or tag `stabel`").await?;
    assert!(said.contains("stable") && said.contains("push the branch, or name another with `--base`"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_an_empty_repository_has_nothing_to_start_from() -> Result<()> {
    let scene = Scene::with(Setup::unsandboxed(), Repo::empty()?).await?;
    let (spec, repo) = (scene.spec(script_spec("", "true"))?, scene.repo.path().display().to_string());
    let said = refused(&scene, &[&spec], 1, "base_not_pushed").await?;
    assert!(said.contains("`main` has no commit yet") && said.contains("commit something"), "{said}");
    let id = scene.ckrv(&["run", "--cloud", "--repo", &repo, &spec]).await?.ok()?;
    let said = fails(&scene, &id, "the repository is empty: it has no commit to start from").await?;
    assert!(said.contains("push a first commit"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_a_repository_that_is_not_there() -> Result<()> {
    let scene = Scene::start().await?;
    let spec = scene.spec(script_spec("", "true"))?;
    let nowhere = scene.folder().join("nowhere.git").display().to_string();
    let id = scene.ckrv(&["run", "--cloud", "--repo", &nowhere, &spec]).await?.ok()?;
    let waited = scene.ckrv(&["wait", &id]).await?;
    assert_eq!((waited.code, waited.stdout.as_str()), (5, "failed\n"), "{waited:?}");
    assert!(waited.stderr.contains("repository") && waited.stderr.contains("hint: "), "{waited:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_verification_failed_publishes_nothing() -> Result<()> {
    let scene = Scene::start().await?;
    let spec = script_spec("verify:\n  - test -s made.txt\n  - echo the check says no; exit 9", "echo made > made.txt");
    let id = scene.submit_spec(&spec).await?;
    let said = fails(&scene, &id, "the check `echo the check says no; exit 9` failed on the result: exit code 9").await?;
    assert!(said.contains("nothing was published"), "{said}");
    let job = scene.job(&id).await?;
    assert_eq!((&job["verification"], &job["outcome"]), (&"failed".into(), &"verification".into()), "{job}");
    assert!(scene.ckrv(&["logs", &id]).await?.ok()?.contains("the check says no"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_a_setup_command_that_fails_is_named() -> Result<()> {
    let scene = Scene::start().await?;
    let id = scene.submit_spec(&script_spec("setup: echo preparing; exit 3", "echo never > never.txt")).await?;
    fails(&scene, &id, "the setup command `echo preparing; exit 3` failed: exit code 3").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_an_agent_without_its_key_says_how_to_store_one() -> Result<()> {
    let scene = Scene::start().await?;
    let spec = scene.spec("Say hello.\n")?;
    let id = scene.ckrv(&["run", "--cloud", "--agent", "claude", &spec]).await?.ok()?;
    let said = fails(&scene, &id, "the agent `claude` needs the secret `anthropic-api-key`, and there is none").await?;
    assert!(said.contains("ckrv cloud secrets add anthropic-api-key"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_a_service_that_is_no_ckrv() -> Result<()> {
    let mut scene = Scene::start().await?;
    let spec = scene.spec(script_spec("", "true"))?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let server =
        tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(|| async { "<html>hello" })).await });
    scene.user.set("CKRV_URL", &format!("http://{address}"));
    let ran = scene.ckrv(&["run", "--cloud", &spec]).await?;
    server.abort();
    assert!(ran.code != 0 && ran.stdout.is_empty() && ran.stderr.starts_with("error: "), "{ran:?}");
    for (url, code) in [("http://example.com", 2), ("nonsense", 2)] {
        scene.user.set("CKRV_URL", url);
        let ran = scene.ckrv(&["list"]).await?;
        assert!(ran.code == code && ran.stderr.starts_with("error: "), "{url}: {ran:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_a_broken_configuration_is_named_by_line() -> Result<()> {
    let scene = Scene::start().await?;
    let spec = scene.spec(script_spec("", "true"))?;
    std::fs::create_dir_all(scene.project.join(".ckrv"))?;
    std::fs::write(scene.project.join(".ckrv/config.toml"), "agent = \"script\"\nurl = \"http://evil.example\"\n")?;
    let ran = scene.ckrv(&["run", "--cloud", &spec]).await?;
    assert!(ran.code == 2 && ran.stderr.contains("config.toml") && ran.stderr.contains("url"), "{ran:?}");
    let path = scene.folder().join("server.toml");
    std::fs::write(&path, "capacity = 2\n[policy]\nmax_resouces = {}\n")?;
    let path = path.display().to_string();
    let serve = scene.ckrv(&["serve", "--listen", "127.0.0.1:0", "--unsandboxed", "--config", &path]).await?;
    assert!(serve.code == 2 && serve.stderr.contains("server.toml:3") && serve.stderr.contains("max_resouces"), "{serve:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_serve_refuses_what_would_be_unsafe() -> Result<()> {
    let scene = Scene::start().await?;
    let data = scene.folder().join("data").display().to_string();
    for listen in ["0.0.0.0:0", "[::]:0"] {
        let open = scene.ckrv(&["serve", "--listen", listen, "--unsandboxed", "--data", &data]).await?;
        assert!(open.code == 2 && open.stderr.contains("--unsandboxed runs agents as you"), "{open:?}");
        let plain = scene.ckrv(&["serve", "--listen", listen, "--data", &data]).await?;
        assert!(plain.code == 2 && plain.stderr.contains("--tls-cert"), "{plain:?}");
    }
    let used = scene.server.data().display().to_string();
    let twice = scene.ckrv(&["serve", "--listen", "127.0.0.1:0", "--unsandboxed", "--data", &used]).await?;
    assert!(twice.code == 1 && twice.stderr.contains("another ckrv serve uses"), "{twice:?}");
    let taken = scene.server.url().strip_prefix("http://").context("no address")?;
    let taken = scene.ckrv(&["serve", "--listen", taken, "--unsandboxed", "--data", &data]).await?;
    assert!(taken.code == 1 && taken.stderr.contains("can't listen on"), "{taken:?}");
    Ok(())
}
