//! Model routes and the CONNECT proxy, from a process under the shim to servers on loopback.

mod launch_support;

use std::path::Path;
use std::sync::{Arc, Mutex};

use ckrv_core::plan::EgressRule;
use ckrv_orchestrator::launch::proxy::{Denied, DeniedReason};
use ckrv_orchestrator::launch::*;
use launch_support::{LIMITS, connect, run, shim, small_tar, spec};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

const SECRET: &str = "sk-very-secret-0123456789";

async fn prepared(name: &str, folder: &Path) -> ShimSession {
    let path = std::env::var_os("PATH").expect("a PATH");
    let launcher = ProcessLauncher::new(ProcessConfig { shim: vec![shim().into()], path });
    let launched = launcher.launch(&spec(name, "", folder)).await.expect("it launches");
    let (mut session, paths, _instance) = connect(launched).await;
    session.prepare(paths, &small_tar()[..], LIMITS).await.expect("it's prepared");
    session
}

fn bash(script: &str) -> RunSpec {
    RunSpec::plain(["bash", "-c", script].map(str::to_owned).to_vec(), 120)
}

fn route(port: u16) -> Route {
    Route {
        base_url_env: "API_BASE".to_owned(),
        path: "/v1".to_owned(),
        placeholder_env: Some("API_KEY".to_owned()),
        upstream: format!("http://127.0.0.1:{port}/prefix").parse().expect("a URL"),
        header: "authorization".to_owned(),
        prefix: "Bearer ".to_owned(),
        secret: SECRET.into(),
    }
}

/// Opens descriptor 3 to the route; `$host` is its address.
const OPEN: &str = r#"url=${API_BASE#http://}; host=${url%/v1}; exec 3<>/dev/tcp/${host%:*}/${host#*:}"#;

/// A server for one request: gives the request's head, and answers in two pieces, the second once it's told to.
async fn model(head: oneshot::Sender<String>, more: oneshot::Receiver<()>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        let (mut agent, _) = listener.accept().await.expect("a connection");
        let mut text = Vec::new();
        while !text.ends_with(b"BODY") {
            let mut byte = [0];
            agent.read_exact(&mut byte).await.expect("the request");
            text.extend(byte);
        }
        let _ = head.send(String::from_utf8(text).expect("text"));
        let begin = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nx-echo: {SECRET}\r\nconnection: close\r\n\r\ndata: 1\n\n"
        );
        agent.write_all(begin.as_bytes()).await.expect("the answer");
        more.await.expect("a go");
        let (left, right) = SECRET.split_at(7);
        agent.write_all(format!("data: {left}").as_bytes()).await.expect("the answer");
        agent.write_all(format!("{right}\n\n").as_bytes()).await.expect("the answer");
    });
    port
}

#[tokio::test]
async fn a_route_adds_the_key_streams_the_answer_and_never_shows_the_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut session = prepared("route-1", folder.path()).await;
    let (to_head, head) = oneshot::channel();
    let (go, more) = oneshot::channel();
    let port = model(to_head, more).await;
    let script = format!(
        r#"{OPEN}; printf 'POST /v1/messages?x=1 HTTP/1.1\r\nhost: %s\r\nAuthorization: Bearer %s\r\nx-other: %s\r\naccept-encoding: gzip\r\nconnection: x-hop, close\r\nx-hop: 1\r\ncontent-length: 4\r\n\r\nBODY' "$host" "$API_KEY" "$API_KEY" >&3
        while read -r line <&3; do echo "$line"; case "$line" in *"data: 1"*) break;; esac; done; echo first; cat <&3; env"#
    );
    let (output, mut frames) = tokio::sync::mpsc::channel::<OutputFrame>(4);
    let spec = RunSpec { routes: vec![route(port)], ..bash(&script) };
    let reading = async {
        let (mut text, mut go) = (String::new(), Some(go));
        while let Some(frame) = frames.recv().await {
            text.push_str(&String::from_utf8_lossy(&frame.bytes));
            // The first event has gone all the way before the server sends the second.
            if text.contains("first\n")
                && let Some(go) = go.take()
            {
                go.send(()).expect("the server waits");
            }
        }
        text
    };
    let running = async {
        let end = session.run(spec, &output).await.expect("it ends");
        drop(output);
        end
    };
    let (end, text) =
        tokio::time::timeout(launch_support::PATIENCE, async { tokio::join!(running, reading) }).await.expect("in time");
    assert_eq!(end.record.status, ExitStatus::Code(0), "{text}");
    assert!(text.contains("data: *************************"), "{text}");
    assert!(!text.contains(SECRET) && !text.contains(&SECRET[7..]), "{text}");

    let head = head.await.expect("a request");
    let lower = head.to_ascii_lowercase();
    assert!(head.starts_with("POST /prefix/v1/messages?x=1 HTTP/1.1\r\n"), "{head}");
    assert!(lower.contains(&format!("authorization: bearer {SECRET}\r\n")), "{head}");
    assert!(lower.contains(&format!("host: 127.0.0.1:{port}\r\n")), "{head}");
    assert!(lower.contains("accept-encoding: identity\r\n"), "{head}");
    for gone in ["ckrv-run-", "x-hop", "x-other"] {
        assert!(!lower.contains(gone), "{gone} in {head}");
    }
}

#[tokio::test]
async fn a_request_without_the_runs_token_is_refused_before_it_leaves() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut session = prepared("route-2", folder.path()).await;
    // Nobody listens there: a forwarded request would be a 502.
    let script = format!(
        r#"{OPEN}; printf 'GET /v1/x HTTP/1.1\r\nhost: x\r\nauthorization: Bearer wrong\r\nconnection: close\r\n\r\n' >&3; cat <&3"#
    );
    let (_, stdout, _) = run(&mut session, RunSpec { routes: vec![route(1)], ..bash(&script) }).await;
    assert!(stdout.starts_with(b"HTTP/1.1 401 "), "{}", stdout.escape_ascii());
}

#[tokio::test]
async fn an_api_that_is_down_is_a_502_without_the_key_in_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut session = prepared("route-3", folder.path()).await;
    let script = format!(
        r#"{OPEN}; printf 'GET /v1/x HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %s\r\nconnection: close\r\n\r\n' "$API_KEY" >&3; cat <&3"#
    );
    let (_, stdout, _) = run(&mut session, RunSpec { routes: vec![route(1)], ..bash(&script) }).await;
    let text = String::from_utf8(stdout).expect("text");
    assert!(text.starts_with("HTTP/1.1 502 ") && !text.contains(SECRET), "{text}");
}

async fn connect_to(targets: &[String], egress: Egress, name: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let mut session = prepared(name, folder.path()).await;
    let open = r#"p=${HTTPS_PROXY#http://}; exec 3<>/dev/tcp/${p%:*}/${p#*:}"#;
    let each = targets.iter().map(|target| {
        format!(
            r#"{open}; printf '{target} HTTP/1.1\r\nhost: x\r\n\r\n' >&3; read -r status <&3; echo "$status"
            case "$status" in *200*) printf ping >&3; until [ "$line" = 'from the tunnel' ]; do read -r line <&3 || break; done; echo "$line";; esac; exec 3>&-
            "#
        )
    });
    let script: String = each.collect();
    let (end, stdout, stderr) = run(&mut session, RunSpec { egress: Some(egress), ..bash(&script) }).await;
    assert!(matches!(end.record.status, ExitStatus::Code(_)), "{}", stderr.escape_ascii());
    String::from_utf8(stdout).expect("text")
}

#[tokio::test]
async fn the_proxy_lets_granted_hosts_through_and_names_the_others() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        let (mut agent, _) = listener.accept().await.expect("a tunnel");
        let mut said = [0; 4];
        agent.read_exact(&mut said).await.expect("what the agent says");
        assert_eq!(&said, b"ping");
        agent.write_all(b"from the tunnel\n").await.expect("an answer");
    });
    let denied = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&denied);
    let egress = Egress {
        allow: vec![EgressRule { host: "localhost".to_owned(), port }],
        allow_private: true,
        on_denied: Arc::new(move |denied: Denied| seen.lock().expect("a list").push(denied)),
    };
    let targets =
        [format!("CONNECT LOCALHOST.:{port}"), "CONNECT example.com:443".to_owned(), "GET http://example.com/".to_owned()];
    let text = connect_to(&targets, egress, "egress-1").await;
    assert!(
        text.contains("HTTP/1.1 200 OK") && text.contains("from the tunnel") && text.contains("HTTP/1.1 403 Forbidden"),
        "{text}"
    );
    let example = |port, reason| Denied { host: "example.com".to_owned(), port, reason };
    let denied = denied.lock().expect("a list");
    assert_eq!(*denied, [example(443, DeniedReason::NotGranted), example(80, DeniedReason::PlainHttp)]);
}

#[tokio::test]
async fn a_granted_name_that_leads_inside_is_denied() {
    let denied = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&denied);
    let egress = Egress {
        allow: vec![EgressRule { host: "localhost".to_owned(), port: 9 }],
        allow_private: false,
        on_denied: Arc::new(move |denied: Denied| seen.lock().expect("a list").push(denied)),
    };
    connect_to(&["CONNECT localhost:9".to_owned()], egress, "egress-2").await;
    assert_eq!(denied.lock().expect("a list")[0].reason, DeniedReason::NotPublic);
}
