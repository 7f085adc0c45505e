//! The changes so far, taken while a command is at work in them.

mod launch_support;

use std::io::Read as _;

use ckrv_orchestrator::launch::*;
use launch_support::{LIMITS, PATIENCE, connect, sh, shim, small_tar, spec};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Names and contents, and that nothing is short.
fn entries(tar: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut archive = tar::Archive::new(tar);
    let read = archive.entries().expect("entries").map(|entry| {
        let mut entry = entry.expect("an entry");
        let mut content = Vec::new();
        entry.read_to_end(&mut content).expect("content");
        assert_eq!(content.len() as u64, entry.size());
        (String::from_utf8(entry.path_bytes().into_owned()).expect("a name"), content)
    });
    read.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checkpoints_of_a_workspace_under_work_are_whole_and_do_the_run_no_harm() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = std::env::var_os("PATH").expect("a PATH");
    let launcher = ProcessLauncher::new(ProcessConfig { shim: vec![shim().into()], path });
    let (mut session, paths, instance) =
        connect(launcher.launch(&spec("job", "", folder.path())).await.expect("it launches")).await;
    let checkpointer = session.checkpointer();
    assert!(matches!(checkpointer.take(LIMITS, |_| true, &mut Vec::new()).await, Err(SessionError::Failed(_))), "too early");
    let workspace = std::path::PathBuf::from(&paths.workspace);
    session.prepare(paths, &small_tar()[..], LIMITS).await.expect("it's prepared");

    let script = "echo B > a.txt; echo N > new; ln -s new link; echo ready; i=0
        while [ ! -e stop ]; do i=$((i+1)); echo $i >> growing; echo $i > other.$((i%20)); rm -f other.$(((i+7)%20)); done; echo $i";
    let (output, mut frames) = mpsc::channel::<OutputFrame>(4);
    let running = async {
        let end = session.run(sh(script), &output).await;
        drop(output);
        (end, session)
    };
    let taking = async {
        assert_eq!(frames.recv().await.expect("output").bytes, b"ready\n");
        for _ in 0..10 {
            // One that is given up half way is nothing to the next.
            let _ = timeout(std::time::Duration::from_millis(2), checkpointer.take(LIMITS, |_| true, &mut Vec::new())).await;
            let (mut tar, keep) = (Vec::new(), |changed: &Changed| changed.path.0 != b"link");
            let collection = loop {
                tar.clear();
                match checkpointer.take(LIMITS, keep, &mut tar).await {
                    Ok(collection) => break collection,
                    // The one that was given up is still under way.
                    Err(SessionError::Failed(why)) => assert!(why.contains("another checkpoint"), "{why}"),
                    Err(error) => panic!("{error}"),
                }
            };
            let entries = entries(&tar);
            let listed: Vec<_> = collection.changed.iter().map(|changed| (changed.path.to_string(), changed.size)).collect();
            assert_eq!(entries.iter().map(|(name, content)| (name.clone(), content.len() as u64)).collect::<Vec<_>>(), listed);
            for (name, content) in [("a.txt", &b"B\n"[..]), ("new", b"N\n")] {
                assert!(entries.contains(&(name.to_owned(), content.to_vec())), "{name}: {listed:?}");
            }
            assert_eq!(collection.skipped.len(), 1);
            assert!(collection.deleted.is_empty());
        }
        std::fs::write(workspace.join("stop"), "").expect("a file");
        let mut rest = Vec::new();
        while let Some(frame) = frames.recv().await {
            rest.extend(frame.bytes);
        }
        rest
    };
    let ((end, mut session), rest) = timeout(PATIENCE, async { tokio::join!(running, taking) }).await.expect("in time");
    assert_eq!(end.expect("an end").record.status, ExitStatus::Code(0));
    let count: usize = String::from_utf8(rest).expect("text").trim().parse().expect("a number");
    // At rest a checkpoint is what is collected.
    let (mut first, mut second) = (Vec::new(), Vec::new());
    checkpointer.take(LIMITS, |_| true, &mut first).await.expect("a checkpoint");
    session.collect(LIMITS, |_| true, &mut second).await.expect("changes");
    assert!(first == second, "they differ");
    let growing: String = (1..=count).map(|n| format!("{n}\n")).collect();
    assert!(entries(&first).contains(&("growing".to_owned(), growing.into_bytes())));
    session.bye().await;
    instance.stop().await;
    assert!(matches!(checkpointer.take(LIMITS, |_| true, &mut Vec::new()).await, Err(SessionError::Lost(_))));
}
