//! The kubernetes launcher on a real cluster, with Pod Security `restricted` enforced. The job runner is this test, at an address that pods
//! reach; a pod that does nothing stands in for the job's own.
//!
//! Needs the `CKRV_TEST_KUBE` variables: `cargo xtask test` starts a cluster and gives them.

mod kube_support;
mod launch_support;

use std::sync::Arc;

use axum::http::StatusCode;
use ckrv_core::plan::Resources;
use ckrv_orchestrator::launch::kubernetes::KubernetesLauncher;
use ckrv_orchestrator::launch::*;
use k8s_openapi::api::core::v1::{Pod, ResourceQuota};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt as _};
use kube_support::{Bench, Mishap, given, object, unlucky};
use launch_support::{LIMITS, PATIENCE, connect, run, sh, small_tar};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::timeout;

const SMALL: Resources = Resources { cpu_millis: 50, memory_mib: 128, disk_mib: 128 };

fn spec(name: &str, resources: Resources) -> LaunchSpec {
    let spec = launch_support::spec(name, &given("CKRV_TEST_KUBE_TINY"), std::path::Path::new("/"));
    LaunchSpec { resources, ..spec }
}

async fn prepared(launcher: &KubernetesLauncher, spec: &LaunchSpec) -> (ShimSession, Arc<dyn Instance>) {
    let launched = launcher.launch(spec).await.expect("it launches");
    let (mut session, paths, instance) = connect(launched).await;
    session.prepare(paths, &small_tar()[..], LIMITS).await.expect("it's prepared");
    (session, instance)
}

/// Runs what ends in no ordinary way. Gives how, as the shim or its platform sees it.
async fn cut_off(session: &mut ShimSession, instance: &dyn Instance, script: &str) -> (Option<ExitStatus>, Ended) {
    let (output, mut frames) = mpsc::channel::<OutputFrame>(64);
    tokio::spawn(async move { while frames.recv().await.is_some() {} });
    let ended = timeout(PATIENCE, session.run(sh(script), &output)).await.expect("in time");
    let status = match ended {
        Ok(end) => Some(end.record.status),
        Err(SessionError::Lost(_)) => None,
        Err(error) => panic!("{error}"),
    };
    (status, timeout(PATIENCE, instance.watch()).await.expect("in time"))
}

#[tokio::test]
async fn a_pod_runs_commands_and_returns_changes() {
    let bench = Bench::new("changes").await;
    let (mut session, instance) = prepared(&bench.launcher().await, &spec("agent", SMALL)).await;
    let (end, stdout, stderr) = run(&mut session, sh("cat a.txt; echo B > b.txt; echo h > ~/h; echo t > /tmp/t; exit 7")).await;
    assert_eq!((end.record.status, &stdout[..]), (ExitStatus::Code(7), &b"A\n"[..]), "{}", stderr.escape_ascii());
    let mut tar = Vec::new();
    let collection = session.collect(LIMITS, |_| true, &mut tar).await.expect("changes");
    assert_eq!(collection.changed.iter().map(|c| c.path.to_string()).collect::<Vec<_>>(), ["b.txt"]);
    session.bye().await;
    let ended = timeout(PATIENCE, instance.watch()).await.expect("it ends");
    assert_eq!((ended.code, ended.fault), (Some(0), None));
    instance.stop().await;
    assert_eq!(instance.stop().await.code, Some(0), "again is no error");
    bench.gone("agent").await;
}

/// Neither shell nor library, no folder, no account: what it has is one static program.
#[tokio::test]
async fn an_image_of_one_program_is_enough() {
    let bench = Bench::new("scratch").await;
    let image = LaunchSpec { image: given("CKRV_TEST_KUBE_SCRATCH"), ..spec("agent", SMALL) };
    let (mut session, instance) = prepared(&bench.launcher().await, &image).await;
    let plain = |argv: &[&str]| RunSpec::plain(argv.iter().map(|word| (*word).to_owned()).collect(), 120);
    let (end, _, stderr) = run(&mut session, plain(&["/cp", "a.txt", "b.txt"])).await;
    assert_eq!(end.record.status, ExitStatus::Code(0), "{}", stderr.escape_ascii());
    let (end, ..) = run(&mut session, plain(&["/cp", "missing", "c.txt"])).await;
    assert_eq!(end.record.status, ExitStatus::Code(1));
    let (end, ..) = run(&mut session, sh("true")).await;
    assert!(matches!(&end.record.status, ExitStatus::NotStarted(why) if why.contains("no such program")), "{end:?}");
    let collection = session.collect(LIMITS, |_| true, &mut Vec::new()).await.expect("changes");
    assert_eq!(collection.changed.iter().map(|c| c.path.to_string()).collect::<Vec<_>>(), ["b.txt"]);
    session.bye().await;
    assert_eq!(timeout(PATIENCE, instance.watch()).await.expect("it ends").code, Some(0));
    instance.stop().await;
}

#[tokio::test]
async fn the_agent_has_no_rights_no_token_and_a_root_that_it_cannot_write() {
    let bench = Bench::new("rights").await;
    let (mut session, instance) = prepared(&bench.launcher().await, &spec("agent", SMALL)).await;
    let script = "id -u; id -g; cat /proc/1/comm; grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status
        echo x 2>&- > /etc/x || echo read-only; ls /var/run/secrets 2>&- || echo no-token; env | grep -c -E 'CKRV|KUBERNETES'
        tr '\\0' '\\n' < /proc/1/environ | grep -c TICKET; ls /proc/1/fd 2>&- || echo fds-safe; nslookup example.com >&- 2>&- || echo no-names";
    let (_, stdout, stderr) = run(&mut session, sh(script)).await;
    let text = String::from_utf8(stdout).expect("text");
    let lines: Vec<_> = text.lines().collect();
    for expected in
        ["1000", "shim", "CapBnd:\t0000000000000000", "CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2", "read-only"]
    {
        assert!(lines.contains(&expected), "{expected} in {lines:?}, {}", stderr.escape_ascii());
    }
    assert!(["no-token", "no-names", "0"].iter().all(|expected| lines.contains(expected)), "{lines:?}");
    let pod = bench.pods().get("agent").await.expect("the pod");
    let pod = pod.spec.expect("a specification");
    assert_eq!(pod.automount_service_account_token, Some(false));
    assert!(
        pod.active_deadline_seconds.is_some_and(|seconds| (1800..2000).contains(&seconds)),
        "{:?}",
        pod.active_deadline_seconds
    );
    let limits = pod.containers[0].resources.clone().expect("limits");
    assert_eq!(limits.limits, limits.requests);
    instance.stop().await;
}

#[tokio::test]
async fn an_agent_that_eats_its_memory_is_told_from_one_that_is_killed() {
    let bench = Bench::new("oom").await;
    let little = Resources { memory_mib: 64, ..SMALL };
    let (mut session, instance) = prepared(&bench.launcher().await, &spec("agent", little)).await;
    let (end, ..) = run(&mut session, sh("kill -9 $$")).await;
    assert_eq!(end.record.status, ExitStatus::Signal(9));
    let (output, _frames) = mpsc::channel::<OutputFrame>(64);
    match session.run(sh("x=0123456789abcdef; while :; do x=$x$x; done"), &output).await {
        Ok(end) => assert_eq!(end.record.status, ExitStatus::OomKilled, "{end:?}"),
        // The container was killed as a whole.
        Err(SessionError::Lost(_)) => assert_eq!(instance.watch().await.fault, Some(Fault::OutOfMemory)),
        Err(error) => panic!("{error}"),
    }
    instance.stop().await;
}

#[tokio::test]
async fn a_pod_that_fills_its_disk_ends_as_that() {
    let bench = Bench::new("disk").await;
    let (mut session, instance) = prepared(&bench.launcher().await, &spec("agent", SMALL)).await;
    let fill = "dd if=/dev/zero of=/tmp/full bs=1M count=300 2>&-; sleep 600";
    let (status, ended) = cut_off(&mut session, instance.as_ref(), fill).await;
    assert!(matches!(status, None | Some(ExitStatus::Evicted | ExitStatus::Signal(9))), "{status:?}");
    assert!(matches!(&ended.fault, Some(Fault::DiskFull(text)) if text.contains("exceeds")), "{ended:?}");
    instance.stop().await;
}

#[tokio::test]
async fn a_missing_image_and_a_pod_too_large_are_told_and_removed() {
    let bench = Bench::new("never").await;
    let launcher = bench.launcher().await;
    let mut missing = spec("missing", SMALL);
    missing.image = "localhost/no-such-image:1".to_owned();
    let error = launcher.launch(&missing).await.expect_err("no image");
    assert!(matches!(&error, LaunchError::ImagePull { message, .. } if message.contains("ErrImageNeverPull")), "{error:?}");
    let launcher = bench.launcher_with(bench.client.clone(), json!({ "unscheduled_seconds": 3 })).await;
    let huge = spec("huge", Resources { memory_mib: 4_000_000, ..SMALL });
    let error = launcher.launch(&huge).await.expect_err("no node");
    assert!(matches!(&error, LaunchError::Unschedulable { message, .. } if message.contains("Insufficient memory")), "{error:?}");
    let error = launcher.launch(&spec("Not_a_name", SMALL)).await.expect_err("no name");
    assert!(matches!(error, LaunchError::Name(_)), "{error:?}");
    bench.gone("missing").await;
    bench.gone("huge").await;
}

#[tokio::test]
async fn a_pod_that_vanishes_is_deleted_and_never_a_success() {
    let bench = Bench::new("vanish").await;
    let launcher = bench.launcher().await;
    let (mut session, instance) = prepared(&launcher, &spec("agent", SMALL)).await;
    let vanish = async {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        let now = DeleteParams { grace_period_seconds: Some(0), ..Default::default() };
        bench.pods().delete("agent", &now).await.expect("it's deleted");
    };
    let (_, (status, ended)) = tokio::join!(vanish, cut_off(&mut session, instance.as_ref(), "sleep 600"));
    assert!(matches!(status, None | Some(ExitStatus::Evicted)), "{status:?}");
    assert_eq!(ended.fault, Some(Fault::Deleted), "{ended:?}");
    instance.stop().await;
}

#[tokio::test]
async fn agent_pods_go_with_the_job_pod_that_owns_them() {
    let bench = Bench::new("owner").await;
    let (mut session, instance) = prepared(&bench.launcher().await, &spec("agent", SMALL)).await;
    let end_owner = async {
        bench.pods().delete("job", &DeleteParams::default()).await.expect("it's deleted");
    };
    let (_, (status, ended)) = tokio::join!(end_owner, cut_off(&mut session, instance.as_ref(), "sleep 600"));
    assert!(matches!(status, None | Some(ExitStatus::Evicted)), "{status:?}");
    drop(session);
    assert_eq!(ended.fault, Some(Fault::Deleted), "{ended:?}");
    bench.gone("agent").await;
}

#[tokio::test]
async fn a_creation_whose_answer_was_lost_or_refused_for_now_makes_one_pod() {
    let bench = Bench::new("lost").await;
    let mishaps =
        [Mishap::Refused(StatusCode::TOO_MANY_REQUESTS), Mishap::Refused(StatusCode::INTERNAL_SERVER_ERROR), Mishap::AnswerLost];
    let (client, line) = unlucky(bench.client.clone(), &mishaps).await;
    let launcher = bench.launcher_with(client, json!({})).await;
    let (mut session, instance) = prepared(&launcher, &spec("agent", SMALL)).await;
    let (end, ..) = run(&mut session, sh("exit 3")).await;
    assert_eq!(end.record.status, ExitStatus::Code(3));
    let uid = bench.pods().get("agent").await.expect("the pod").uid().expect("a uid");
    assert_eq!(line.lock().expect("no panic").lost, [uid], "the pod that was made first is the one that is used");
    instance.stop().await;
}

#[tokio::test]
async fn an_agent_pod_costs_a_create_and_a_delete_beside_one_watch_for_all() {
    let bench = Bench::new("cost").await;
    let (client, line) = unlucky(bench.client.clone(), &[]).await;
    let launcher = bench.launcher_with(client, json!({})).await;
    for name in ["run1", "verify1"] {
        let (mut session, instance) = prepared(&launcher, &spec(name, SMALL)).await;
        let (end, ..) = run(&mut session, sh("exit 0")).await;
        assert_eq!(end.record.status, ExitStatus::Code(0));
        session.bye().await;
        instance.stop().await;
        instance.stop().await;
    }
    let mut requests = line.lock().expect("no panic").requests.clone();
    requests.sort_unstable();
    // The one GET is the list that the watch begins with; on a slow node a pod that isn't up after ten seconds is asked for besides.
    requests.dedup_by(|one, other| one == "GET" && other == "GET");
    assert_eq!(requests, ["DELETE", "DELETE", "GET", "POST", "POST", "watch"]);
}

#[tokio::test]
async fn a_name_that_is_taken_by_a_stranger_is_refused_and_by_our_own_leftover_is_freed() {
    let bench = Bench::new("taken").await;
    let launcher = bench.launcher().await;
    // The stand-in carries none of our labels.
    let error = launcher.launch(&spec("job", SMALL)).await.expect_err("it's a stranger's");
    assert!(matches!(&error, LaunchError::Cluster { step, .. } if step.contains("isn't ours")), "{error:?}");
    assert_eq!(bench.pods().get("job").await.expect("still there").uid(), bench.owner.uid());
    // Of another launch: its shim has a ticket that is worth nothing here.
    let (session, leftover) = prepared(&launcher, &spec("agent", SMALL)).await;
    let first = bench.pods().get("agent").await.expect("it's there").uid();
    let (mut again, instance) = prepared(&bench.launcher().await, &spec("agent", SMALL)).await;
    let (end, ..) = run(&mut again, sh("exit 4")).await;
    assert_eq!(end.record.status, ExitStatus::Code(4));
    assert_ne!(bench.pods().get("agent").await.expect("it's there").uid(), first);
    // That deletes the pod that it was given for, and not the one that has its name now.
    drop((session, leftover));
    let (end, ..) = run(&mut again, sh("sleep 2; exit 5")).await;
    assert_eq!(end.record.status, ExitStatus::Code(5));
    assert_eq!(launcher.sweep("dev.ckrv.test", "agent").await.expect("a sweep"), 1);
    bench.gone("agent").await;
    instance.stop().await;
    assert!(bench.pods().get_opt("job").await.expect("an answer").is_some(), "the sweep took a pod of another kind");
}

#[tokio::test]
async fn a_full_quota_is_told() {
    let bench = Bench::new("quota").await;
    let quota: ResourceQuota = object(json!({ "metadata": { "name": "q" }, "spec": { "hard": { "pods": "0" } } }));
    let quotas: Api<ResourceQuota> = Api::namespaced(bench.client.clone(), &bench.namespace);
    quotas.create(&PostParams::default(), &quota).await.expect("a quota");
    // It holds from when the controller has counted.
    let counted = kube::runtime::wait::await_condition(quotas, "q", |quota: Option<&ResourceQuota>| {
        quota.and_then(|quota| quota.status.as_ref()?.hard.as_ref()).is_some_and(|hard| !hard.is_empty())
    });
    timeout(PATIENCE, counted).await.expect("in time").expect("it's counted");
    let error = bench.launcher().await.launch(&spec("agent", SMALL)).await.expect_err("no room");
    assert!(matches!(&error, LaunchError::Quota { message } if message.contains("exceeded quota")), "{error:?}");
}

#[tokio::test]
async fn a_launch_that_is_given_up_leaves_no_pod() {
    let bench = Bench::new("given-up").await;
    let launcher = bench.launcher().await;
    let (session, instance) = prepared(&launcher, &spec("agent", SMALL)).await;
    drop((session, instance));
    bench.gone("agent").await;
    let pods: Api<Pod> = bench.pods();
    assert_eq!(pods.list(&Default::default()).await.expect("a list").items.len(), 1, "the stand-in alone");
}
