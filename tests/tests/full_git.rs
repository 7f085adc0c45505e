//! Private repositories that can't be cloned, and what is never offered to whom: a real `git http-backend` and a real sshd.

use anyhow::{Context as _, Result};
use ckrv_tests::agents::{self, Place};
use ckrv_tests::bench;
use ckrv_tests::forge::{Forge, secret};
use ckrv_tests::git_http::{GitHttp, Rules};
use ckrv_tests::leaks::{Needles, Watch};
use ckrv_tests::repo::Repo;
use ckrv_tests::scene::{Scene, error, script_spec};
use ckrv_tests::server::{Setup, files_below};
use ckrv_tests::sshd::Sshd;
use serde_json::Value;

/// The process launcher, repositories on this machine allowed, this authority trusted.
fn setup(ca_file: Option<&std::path::Path>) -> Result<Setup> {
    let mut setup = Setup::unsandboxed();
    let ca_file = ca_file.map(|path| format!("ca_file = '{}'\n", path.display())).unwrap_or_default();
    setup.config = format!("{ca_file}[policy]\nprivate_git_hosts = true\n").parse()?;
    Ok(setup)
}

/// A scene whose clone comes from this forge; no credential is stored yet.
async fn scene(forge: &Forge, repo: Repo) -> Result<Scene> {
    let scene = Scene::with(setup(forge.ca_file().as_deref())?, repo).await?;
    forge.is_origin_of(&scene.project)?;
    Ok(scene)
}

fn repo() -> Result<Repo> {
    Repo::small(&[("README.md", "# Private\n")])
}

/// Runs a job to its end, which is not success: exit code 5; gives the job.
async fn fails(scene: &Scene, options: &[&str]) -> Result<Value> {
    let spec = scene.spec(script_spec("", "echo never > never.txt"))?;
    let mut args = vec!["run", "--cloud", "--follow", "--json"];
    args.extend(options);
    args.push(&spec);
    let ran = scene.ckrv(&args).await?;
    assert_eq!(ran.code, 5, "{ran:?}");
    let last = scene.ckrv(&["list", "--json"]).await?.json()?;
    let id = last["jobs"][0]["id"].as_str().with_context(|| format!("no job in {last}"))?.to_owned();
    let job = scene.job(&id).await?;
    assert_eq!(job["state"], "failed", "{job}");
    assert_eq!(job["outcome"], "repository", "{job}");
    let pulled = scene.ckrv(&["pull", "--json", &id]).await?;
    assert_eq!(error(&pulled)?.0, 5, "{pulled:?}");
    Ok(job)
}

fn says(job: &Value, message: &str, hint: &str) {
    let text = |key: &str| job[key].as_str().unwrap_or_default().to_owned();
    assert!(text("error_message").contains(message) && text("hint").contains(hint), "{job}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_refused_credential_a_wrong_token_ends_the_job_and_is_never_shown() -> Result<()> {
    let repo = repo()?;
    let forge = Forge::https(&repo).await?;
    let scene = scene(&forge, repo).await?;
    let wrong = secret("wrong");
    forge.add_credential_with(&scene, &forge.host()?, &wrong, None).await?.ok()?;
    let job = fails(&scene, &["--credential", "forge"]).await?;
    says(&job, "refused access", "ckrv cloud credentials list");
    let log = scene.ckrv(&["logs", job["id"].as_str().unwrap_or_default()]).await?.ok()?;
    let needles = Needles::of([wrong.as_str()]);
    assert!(!needles.are_in(log.as_bytes()) && !needles.are_in(job.to_string().as_bytes()));
    assert_eq!(needles.files(&scene.server.data())?, Vec::<String>::new());
    let Forge::Https { server, .. } = &forge else { unreachable!() };
    assert!(server.offers().contains(&Some(("git".to_owned(), wrong))), "{:?}", server.offers());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_refused_credential_none_at_all_for_a_private_repository() -> Result<()> {
    let repo = repo()?;
    let forge = Forge::https(&repo).await?;
    let scene = scene(&forge, repo).await?;
    says(&fails(&scene, &[]).await?, "refused access", "--credential NAME");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_refused_credential_a_deploy_key_that_the_server_does_not_know() -> Result<()> {
    let (repo, other) = (repo()?, Repo::small(&[("a", "b")])?);
    let (forge, stranger) = (Forge::ssh(&repo).await?, Sshd::start(&other.path()).await?);
    let scene = scene(&forge, repo).await?;
    let Forge::Ssh(sshd) = &forge else { unreachable!() };
    let (key, pinned) = (stranger.deploy_key()?, sshd.known_hosts()?);
    forge.add_credential_with(&scene, &forge.host()?, &key, Some(&pinned)).await?.ok()?;
    let job = fails(&scene, &["--credential", "forge"]).await?;
    says(&job, "refused access", "ckrv cloud credentials list");
    assert!(sshd.log().contains("Connection closed by authenticating user"), "{}", sshd.log());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_unknown_ssh_key_a_host_whose_key_was_not_given_is_refused() -> Result<()> {
    let repo = repo()?;
    let forge = Forge::ssh(&repo).await?;
    let scene = scene(&forge, repo).await?;
    forge.add_credential_with(&scene, &forge.host()?, &forge.secret()?, None).await?.ok()?;
    let job = fails(&scene, &["--credential", "forge"]).await?;
    says(&job, &format!("host key of {}:", bench::host()?), "--known-hosts FILE");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_unknown_ssh_key_another_key_than_the_pinned_one_is_refused() -> Result<()> {
    let repo = repo()?;
    let (forge, stranger) = (Forge::ssh(&repo).await?, Sshd::start(&repo.path()).await?);
    let scene = scene(&forge, repo).await?;
    let Forge::Ssh(sshd) = &forge else { unreachable!() };
    let (right, wrong) = (sshd.known_hosts()?, stranger.known_hosts()?);
    // `HOST KIND KEY`: this host, with the stranger's key.
    let host = right.split(' ').next().context("no host")?;
    let key = wrong.split_once(' ').context("no key")?.1;
    forge.add_credential_with(&scene, &forge.host()?, &forge.secret()?, Some(&format!("{host} {key}"))).await?.ok()?;
    let job = fails(&scene, &["--credential", "forge"]).await?;
    says(&job, "not the one that is known", "--known-hosts FILE");
    // Whoever answers for the host gets no chance to see which key we have.
    assert!(!sshd.log().contains("Accepted publickey"), "{}", sshd.log());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn fr011_a_credential_is_never_offered_to_another_host() -> Result<()> {
    let repo = repo()?;
    let forge = Forge::https(&repo).await?;
    let scene = scene(&forge, repo).await?;
    let token = secret("elsewhere");
    // The same machine, another port: that is another host.
    for host in ["git.example.com", "127.0.0.1:1"] {
        forge.add_credential_with(&scene, host, &token, None).await?.ok()?;
        let spec = scene.spec(script_spec("", "true"))?;
        let ran = scene.ckrv(&["run", "--cloud", "--json", "--credential", "forge", &spec]).await?;
        let (code, said) = error(&ran)?;
        assert_eq!((code, said["code"].as_str()), (1, Some("credential_mismatch")), "{said}");
        assert!(said["hint"].as_str().is_some_and(|hint| hint.contains("only to the hosts that it was stored with")), "{said}");
        assert!(!ran.stdout.contains(&token) && !ran.stderr.contains(&token));
        scene.ckrv(&["cloud", "credentials", "remove", "forge"]).await?.ok()?;
    }
    let Forge::Https { server, .. } = &forge else { unreachable!() };
    assert_eq!(server.offers(), []);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn fr011_a_redirect_to_another_host_is_not_followed_and_offers_it_nothing() -> Result<()> {
    let repo = repo()?;
    let token = secret("redirect");
    let open = Rules { token: token.clone(), redirect_to: None };
    let other = GitHttp::start(repo.root(), open, None).await?;
    let rules = Rules { token: token.clone(), redirect_to: Some(other.base_url().to_owned()) };
    let forge = Forge::https_with(&repo, rules).await?;
    let scene = scene(&forge, repo).await?;
    forge.add_credential(&scene).await?;
    let job = fails(&scene, &["--credential", "forge"]).await?;
    says(&job, "redirect to another place, which is not followed", "use the URL that the repository redirects to");
    assert_eq!(other.offers(), [], "it was not even asked");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn fr011_token_and_deploy_key_are_in_no_argument_environment_or_file_of_a_job() -> Result<()> {
    for ssh in [false, true] {
        let repo = Repo::large(2)?;
        let forge = if ssh { Forge::ssh(&repo).await? } else { Forge::https(&repo).await? };
        let temporary = tempfile::Builder::new().prefix("ckt-").tempdir()?;
        let mut setup = setup(forge.ca_file().as_deref())?;
        setup.env.push(("TMPDIR".to_owned(), temporary.path().display().to_string()));
        let scene = Scene::with(setup, repo).await?;
        forge.is_origin_of(&scene.project)?;
        forge.add_credential(&scene).await?;
        let needles = Needles::of([forge.secret()?.as_str()]);
        let watch = Watch::start(needles.clone());
        let gate = scene.gate();
        let script = format!("{}; git log --oneline | wc -l > seen.txt; git remote >> seen.txt; env > env.txt", gate.wait());
        let spec = scene.spec(script_spec("", &script))?;
        let id = scene.ckrv(&["run", "--cloud", "--credential", "forge", &spec]).await?.ok()?;
        gate.reached().await?;
        let mut found = needles.files(&scene.server.data())?;
        found.extend(needles.files(temporary.path())?);
        gate.open()?;
        scene.ckrv(&["wait", &id]).await?.ok()?;
        let seen = watch.stop()?;
        assert!(seen.command(&[" fetch ", &forge.url()]), "the clone was not seen: {:#?}", seen.commands);
        assert!(seen.leaks.is_empty(), "in arguments or environment of {:?}", seen.leaks);
        for folder in [&scene.server.data(), temporary.path(), scene.user.home()] {
            found.extend(needles.files(folder)?);
        }
        if let Ok(cluster) = scene.server.cluster() {
            found.extend(needles.are_in(cluster.everything().await?.as_bytes()).then(|| "an object of the cluster".to_owned()));
            found.extend(needles.files(&bench::kube_folder()?.join("etcd"))?);
        } else {
            for path in files_below(&scene.server.data())? {
                if std::fs::read(&path)?.starts_with(b"SQLite format 3\0") {
                    found.extend(needles.database(&path)?);
                }
            }
        }
        assert!(found.is_empty(), "a secret is in {found:?}");
        scene.ckrv(&["pull", &id]).await?.ok()?;
        // The agent gets some history, and no way back to where it came from.
        assert_eq!(std::fs::read_to_string(scene.project.join("seen.txt"))?.trim(), "50");
        assert!(!needles.are_in(&std::fs::read(scene.project.join("env.txt"))?));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_in_the_result_ends_the_job_with_path_and_line_and_publishes_nothing() -> Result<()> {
    let _turn = agents::turn().await?;
    let repo = repo()?;
    let forge = Forge::https(&repo).await?;
    let setup = agents::setup(Place::Container, "http://127.0.0.1:1", forge.ca_file().as_deref())?;
    let scene = Scene::with(setup, repo).await?;
    forge.is_origin_of(&scene.project)?;
    forge.add_credential(&scene).await?;
    let token = forge.secret()?;
    let needles = Needles::of([token.as_str()]);
    let (half, rest) = token.split_at(token.len() / 2);
    // In two halves, so that the spec itself holds no secret; the second time as git would send it.
    let whole = format!("$(printf '%s%s' '{half}' '{rest}')");
    for (content, path) in [
        (format!("mkdir -p conf; printf 'one\\ntwo\\n%s\\n' \"{whole}\" > conf/leak.txt"), "conf/leak.txt, line 3"),
        (format!("printf '\\nkey = %s' \"$(printf 'git:%s' \"{whole}\" | base64 -w 0)\" > b64.txt"), "b64.txt, line 2"),
        (format!("echo {whole}; touch \"{whole}\""), "name"),
    ] {
        let spec = scene.spec(script_spec("", &content))?;
        let id = scene.ckrv(&["run", "--cloud", "--credential", "forge", &spec]).await?.ok()?;
        assert_eq!(scene.ckrv(&["wait", &id]).await?.code, 5);
        let job = scene.job(&id).await?;
        let log = scene.ckrv(&["logs", &id]).await?.ok()?;
        assert_eq!(job["outcome"], "secret-in-result", "{job}\n{log}");
        says(&job, &format!("holds one of the job's secrets: {}", if path == "name" { "(a file's name)" } else { path }), "");
        says(&job, "", "nothing was published");
        for command in ["pull", "diff"] {
            let ran = scene.ckrv(&[command, "--json", &id]).await?;
            assert_eq!(error(&ran)?.0, 5, "{ran:?}");
        }
        assert!(path != "name" || log.contains("***"), "{log}");
        assert!(!needles.are_in(log.as_bytes()) && !needles.are_in(job.to_string().as_bytes()));
    }
    let found = needles.files(&scene.server.data())?;
    assert!(found.is_empty(), "the secret is kept in {found:?}");
    Ok(())
}
