//! The process launcher and the session with a real shim. Not tested: isolation, of which this launcher has none.

mod launch_support;

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use ckrv_orchestrator::launch::*;
use launch_support::{LIMITS, PATIENCE, connect, run, sh, shim, small_tar, spec};
use tokio::sync::mpsc;

fn launcher() -> ProcessLauncher {
    let path = std::env::var_os("PATH").expect("a PATH");
    ProcessLauncher::new(ProcessConfig { shim: vec![shim().into()], path })
}

async fn prepared(name: &str, folder: &Path) -> (ShimSession, std::sync::Arc<dyn Instance>) {
    let launched = launcher().launch(&spec(name, "", folder)).await.expect("it launches");
    let (mut session, paths, instance) = connect(launched).await;
    session.prepare(paths, &small_tar()[..], LIMITS).await.expect("it's prepared");
    (session, instance)
}

#[tokio::test]
async fn a_command_changes_the_checkout_and_the_changes_come_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut session, instance) = prepared("job-1", folder.path()).await;
    let mode = std::fs::metadata(folder.path().join("job-1")).expect("the run's folder").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    let (end, stdout, _) = run(&mut session, sh("cat a.txt; echo B > b.txt; mkdir out; echo o > out/o; rm a.txt")).await;
    assert_eq!((end.record.status, end.hung, &stdout[..]), (ExitStatus::Code(0), None, &b"A\n"[..]));

    let mut tar = Vec::new();
    let collection = session.collect(LIMITS, |changed| !changed.path.0.starts_with(b"out/"), &mut tar).await.expect("changes");
    assert_eq!(collection.deleted, [BytePath::from("a.txt")]);
    assert_eq!(collection.changed.iter().map(|c| c.path.to_string()).collect::<Vec<_>>(), ["b.txt"]);
    assert_eq!(collection.skipped.iter().map(|c| c.path.to_string()).collect::<Vec<_>>(), ["out/o"]);
    let mut archive = tar::Archive::new(&tar[..]);
    let mut content = String::new();
    archive.entries().expect("entries").next().expect("one").expect("readable").read_to_string(&mut content).expect("text");
    assert_eq!(content, "B\n");

    session.bye().await;
    assert_eq!(instance.watch().await.code, Some(0));
    instance.stop().await;
    assert!(!folder.path().join("job-1").exists());
}

#[tokio::test]
async fn the_agent_sees_no_variable_of_ours() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut session, _instance) = prepared("job-2", folder.path()).await;
    let (_, stdout, _) = run(&mut session, sh("env")).await;
    let text = String::from_utf8(stdout).expect("text");
    let names = text.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name);
    let foreign: Vec<_> =
        names.filter(|name| !["PATH", "HOME", "TMPDIR", "PWD", "OLDPWD", "SHLVL", "_"].contains(name)).collect();
    assert!(foreign.is_empty(), "{foreign:?}");
}

#[tokio::test]
async fn silence_stops_a_run_and_says_which() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut session, _instance) = prepared("job-3", folder.path()).await;
    let dog = Watchdog { first_output: Duration::from_millis(300), idle: Duration::from_secs(100) };
    let (end, ..) = run(&mut session, RunSpec { watchdog: Some(dog), ..sh("sleep 1000") }).await;
    assert_eq!((end.hung, end.record.stopped), (Some(Hung::FirstOutput), true));
    let dog = Watchdog { first_output: PATIENCE, idle: Duration::from_millis(300) };
    let (end, ..) = run(&mut session, RunSpec { watchdog: Some(dog), ..sh("echo x; sleep 1000") }).await;
    assert_eq!(end.hung, Some(Hung::Idle));
}

#[tokio::test]
async fn a_run_is_stopped_from_elsewhere() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut session, _instance) = prepared("job-4", folder.path()).await;
    let stopper = session.stopper();
    let (output, mut frames) = mpsc::channel::<OutputFrame>(1);
    let stopping = async {
        frames.recv().await.expect("it runs");
        stopper.stop(false).await;
        frames
    };
    let spec = sh("trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done");
    let (end, _frames) = tokio::join!(session.run(spec, &output), stopping);
    let record = end.expect("the run ends").record;
    assert_eq!((record.status, record.stopped), (ExitStatus::Code(9), true));
}

#[tokio::test]
async fn stop_kills_what_escaped_into_another_session_and_the_run_is_lost() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut session, instance) = prepared("job-5", folder.path()).await;
    let (output, mut frames) = mpsc::channel::<OutputFrame>(1);
    let script = "setsid sh -c 'trap \"\" TERM HUP; echo $$; exec sleep 1000' & wait";
    let stopping = async {
        let pid = String::from_utf8(frames.recv().await.expect("it runs").bytes).expect("text");
        instance.stop().await;
        pid.trim().to_owned()
    };
    let (end, pid) = tokio::join!(session.run(sh(script), &output), stopping);
    assert!(matches!(end, Err(SessionError::Lost(_))), "{end:?}");
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    assert!(stat.as_ref().map_or(true, |stat| stat.contains(") Z ")), "{stat:?}");
    assert!(!folder.path().join("job-5").exists());
}

#[tokio::test]
async fn a_bad_name_and_a_missing_shim_are_errors_with_a_hint() {
    let folder = tempfile::tempdir().expect("a folder");
    let error = launcher().launch(&spec("../x", "", folder.path())).await.expect_err("a bad name");
    assert_eq!(error.to_string(), "the name \"../x\" can't be used for a launch");
    assert!(!error.hint().is_empty());
    let missing = ProcessLauncher::new(ProcessConfig { shim: vec!["/no/such/shim".into()], path: "/bin".into() });
    let error = missing.launch(&spec("x", "", folder.path())).await.expect_err("no shim");
    assert!(matches!(error, LaunchError::Local { step: "starting the shim", .. }), "{error:?}");
    assert!(!folder.path().join("x").exists());
}
