//! Commands under the real shim: their output, their ends, and that nothing of them is left.

use std::time::Duration;

use crate::support::{Bench, gone, is_alive, number_in, sh};
use ckrv_shim::protocol::*;

#[tokio::test]
async fn ten_megabytes_of_output_arrive_whole_and_in_order() {
    let mut bench = Bench::prepared(&[]).await;
    let result = bench.run(sh(1, "i=0; while [ $i -lt 1280000 ]; do echo; i=$((i+1)); done >/dev/null; seq 1 1500000")).await;
    let expected: String = (1..=1_500_000).map(|n| format!("{n}\n")).collect();
    assert!(expected.len() > 10 << 20);
    assert_eq!(result.record.status, ExitStatus::Code(0));
    assert_eq!(result.record.output_bytes, expected.len() as u64);
    assert!(result.stdout == expected.as_bytes(), "the bytes differ");
}

#[tokio::test]
async fn stdout_and_stderr_are_told_apart_and_the_exit_code_is_the_commands_own() {
    let mut bench = Bench::prepared(&[]).await;
    let result = bench.run(sh(1, "printf out; printf err >&2; exit 42")).await;
    assert_eq!((&result.stdout[..], &result.stderr[..]), (&b"out"[..], &b"err"[..]));
    assert_eq!(result.record.status, ExitStatus::Code(42));
    assert!(!result.record.stopped);
}

#[tokio::test]
async fn a_signal_is_no_exit_code() {
    let mut bench = Bench::prepared(&[]).await;
    assert_eq!(bench.run(sh(1, "kill -SEGV $$")).await.record.status, ExitStatus::Signal(11));
}

#[tokio::test]
async fn stdin_ends_after_the_text_and_at_once_without_one() {
    let mut bench = Bench::prepared(&[]).await;
    let with = Run { stdin: Some("hello".to_owned()), ..sh(1, "cat; echo end") };
    assert_eq!(bench.run(with).await.stdout, b"helloend\n");
    assert_eq!(bench.run(sh(2, "cat; echo end")).await.stdout, b"end\n");
}

#[tokio::test]
async fn a_large_stdin_that_nobody_reads_holds_nothing_up() {
    let mut bench = Bench::prepared(&[]).await;
    let run = Run { stdin: Some("x".repeat(1 << 20)), ..sh(1, "echo done") };
    assert_eq!(bench.run(run).await.stdout, b"done\n");
}

#[tokio::test]
async fn several_commands_share_workspace_and_home_and_each_has_its_own_record() {
    let mut bench = Bench::prepared(&[("a.txt", "A")]).await;
    assert_eq!(bench.run(sh(1, "cat a.txt; echo B > b.txt; echo H > ~/h")).await.stdout, b"A");
    assert_eq!(bench.run(sh(2, "cat b.txt ~/h; exit 3")).await.stdout, b"B\nH\n");
    assert_eq!(bench.run(sh(3, "true")).await.record.status, ExitStatus::Code(0));
}

#[tokio::test]
async fn a_missing_program_is_not_started_and_the_session_goes_on() {
    let mut bench = Bench::prepared(&[]).await;
    let mut run = sh(1, "");
    run.argv = vec!["no-such-agent".to_owned()];
    let ExitStatus::NotStarted(why) = bench.run(run).await.record.status else { panic!() };
    assert!(why.contains("\"no-such-agent\" could not be started"), "{why}");
    assert_eq!(bench.run(sh(2, "true")).await.record.status, ExitStatus::Code(0));
}

#[tokio::test]
async fn the_deadline_kills_a_grandchild_that_ignores_term_in_a_session_of_its_own() {
    let mut bench = Bench::prepared(&[]).await;
    let pid_file = bench.workspace().join("pid");
    let grandchild = "setsid sh -c 'trap \"\" TERM HUP INT; echo $$ > pid; while :; do sleep 0.05; done'";
    let run = Run { deadline_seconds: 2, ..sh(1, &format!("trap '' TERM; {grandchild} & wait; wait")) };
    let result = bench.run(run).await;
    assert_eq!(result.record.status, ExitStatus::Deadline);
    assert!(result.record.leftovers >= 1, "{:?}", result.record);
    assert!(!is_alive(number_in(&pid_file).await));
}

#[tokio::test]
async fn what_a_command_leaves_in_the_background_is_killed_at_its_end() {
    let mut bench = Bench::prepared(&[]).await;
    // A double fork into another session: no parent and no group leads to it.
    let result =
        bench.run(sh(1, "(setsid sh -c 'echo $$ > pid; exec sleep 1000' &) ; until [ -s pid ]; do :; done; echo over")).await;
    assert_eq!(result.stdout, b"over\n");
    assert_eq!(result.record.status, ExitStatus::Code(0));
    // At once: the record says that nothing is left.
    assert!(!is_alive(number_in(&bench.workspace().join("pid")).await));
}

#[tokio::test]
async fn stop_sends_the_runs_signal_first_and_kills_after_the_grace() {
    let mut bench = Bench::prepared(&[]).await;
    let polite = Run {
        stop_signal: StopSignal::Int,
        grace_seconds: 60,
        ..sh(1, "trap 'echo bye; exit 7' INT; echo up > up; while :; do sleep 0.05; done")
    };
    let stream = bench.begin(polite).await;
    wait_for(&bench, "up").await;
    bench.say(&ToShim::Stop { run: 1, now: false }).await;
    let result = bench.finish(stream).await;
    assert_eq!((result.record.status, result.record.stopped), (ExitStatus::Code(7), true));
    assert_eq!(result.stdout, b"bye\n");

    let stubborn = sh(2, "trap '' TERM; echo up > up2; while :; do sleep 0.05; done");
    let stream = bench.begin(stubborn).await;
    wait_for(&bench, "up2").await;
    bench.say(&ToShim::Stop { run: 2, now: false }).await;
    let result = bench.finish(stream).await;
    assert_eq!((result.record.status, result.record.stopped), (ExitStatus::Signal(9), true));
}

async fn wait_for(bench: &Bench, file: &str) {
    let path = bench.workspace().join(file);
    tokio::time::timeout(crate::support::PATIENCE, async {
        while !path.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the command is up in time");
}

#[tokio::test]
async fn the_agent_ends_when_the_runner_is_gone() {
    let mut bench = Bench::prepared(&[]).await;
    let stream = bench.begin(sh(1, "trap '' TERM HUP; echo $$ > pid; while :; do sleep 0.05; done")).await;
    let pid = number_in(&bench.workspace().join("pid")).await;
    drop(stream);
    // What a killed runner leaves: closed pipes, no goodbye.
    let Bench { folder: _folder, mut shim, opener, incoming, control } = bench;
    drop((opener, incoming, control));
    let status = tokio::time::timeout(crate::support::PATIENCE, shim.wait()).await.expect("in time").expect("a status");
    assert_eq!(status.code(), Some(74));
    gone(pid).await;
}

#[tokio::test]
async fn a_silent_runner_is_taken_for_dead_and_a_ping_is_not_silence() {
    let mut bench = Bench::start(2).await;
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        bench.say(&ToShim::Ping).await;
        assert!(matches!(bench.answer().await, FromShim::Pong));
    }
    assert_eq!(bench.ends().await.code(), Some(74));
}

#[tokio::test]
async fn a_ping_is_answered_while_output_is_held_back() {
    let mut bench = Bench::prepared(&[]).await;
    let stream = bench.begin(sh(1, "yes | head -c 20000000")).await;
    // Nobody reads the output: the command has to wait, the control stream has not.
    assert!(matches!(bench.answer().await, FromShim::Started { .. }));
    bench.say(&ToShim::Ping).await;
    assert!(matches!(bench.answer().await, FromShim::Pong));
    let result = bench.finish(stream).await;
    assert_eq!(result.stdout.len(), 20_000_000);
}

#[tokio::test]
async fn the_environment_is_what_was_given_and_nothing_else() {
    let mut bench = Bench::prepared(&[]).await;
    let mut run = sh(1, "env | sort");
    run.env.insert("MINE".to_owned(), "1".to_owned());
    let paths = bench.paths();
    let text = String::from_utf8(bench.run(run).await.stdout).expect("text");
    let names: Vec<_> =
        text.lines().filter_map(|line| line.split('=').next()).filter(|n| !["_", "SHLVL", "OLDPWD"].contains(n)).collect();
    assert_eq!(names, ["HOME", "MINE", "PATH", "PWD", "TMPDIR"]);
    assert!(text.contains(&format!("HOME={}\n", paths.home)));
}

#[tokio::test]
async fn files_of_the_plan_are_in_home_and_in_a_sealed_context() {
    let mut bench = Bench::prepared(&[]).await;
    let context = bench.paths().context;
    let file = |place, path: &str| PlacedFile {
        place,
        path: path.to_owned(),
        content: "#!/bin/sh\necho x\n".to_owned(),
        executable: true,
    };
    let mut run = sh(1, &format!("~/.agent/tool; {context}/rules/run; stat -c %a {context}/rules/run {context}"));
    run.files = vec![file(Place::Home, ".agent/tool"), file(Place::Context, "rules/run")];
    assert_eq!(bench.run(run.clone()).await.stdout, b"x\nx\n500\n500\n");
    // Again, over what is there.
    run.id = 2;
    assert_eq!(bench.run(run.clone()).await.stdout, b"x\nx\n500\n500\n");
    run.id = 3;
    run.files[0].path = "../outside".to_owned();
    assert!(matches!(bench.run(run).await.record.status, ExitStatus::NotStarted(_)));
    assert!(!bench.folder.path().join("outside").exists());
}

#[tokio::test]
async fn goodbye_ends_the_shim_with_success() {
    let mut bench = Bench::prepared(&[]).await;
    bench.run(sh(1, "true")).await;
    bench.say(&ToShim::Bye).await;
    assert_eq!(bench.ends().await.code(), Some(0));
}

#[tokio::test]
async fn a_route_leads_to_a_stream_of_the_runner() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut bench = Bench::prepared(&[]).await;
    let script = r#"h=${BASE#http://}; h=${h%/v1}; exec 3<>/dev/tcp/${h%:*}/${h#*:}; printf '%s %s' "$KEY" "${BASE/${h#*:}/PORT}" >&3; cat <&3"#;
    let mut run = sh(1, script);
    run.argv[0] = "/bin/bash".to_owned();
    run.routes = vec![Route {
        base_url_env: "BASE".to_owned(),
        path: "/v1".to_owned(),
        placeholder: Some(("KEY".to_owned(), "tok".to_owned())),
    }];
    let output = bench.begin(run).await;
    let mut route = bench.incoming.recv().await.expect("a route stream");
    assert_eq!(read_frame::<_, StreamHeader>(&mut route, 1024).await.expect("header"), StreamHeader::Route { run: 1, index: 0 });
    let mut said = [0; 28];
    route.read_exact(&mut said).await.expect("what the agent says");
    assert_eq!(&said[..], b"tok http://127.0.0.1:PORT/v1");
    route.write_all(b"answer").await.expect("an answer");
    route.shutdown().await.expect("an end");
    assert_eq!(bench.finish(output).await.stdout, b"answer");
}
