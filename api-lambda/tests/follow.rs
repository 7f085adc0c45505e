//! Followed logs, over real TCP connections that are cut.
#![expect(clippy::unwrap_used, reason = "a test may panic, and so may its helpers")]

mod support;

use std::time::Duration;

use axum::http::Uri;
use ckrv_core::id::JobId;
use ckrv_core::machine::{Evidence, Verb};
use ckrv_store::Signal;
use support::Service;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const PATIENCE: Duration = Duration::from_secs(20);

/// One connection that follows a log.
struct Stream {
    socket: TcpStream,
    text: String,
    read: usize,
}

#[derive(Debug, PartialEq)]
enum Event {
    Entry { id: String },
    Done,
}

impl Stream {
    async fn open(port: u16, id: JobId, token: &str, last_event_id: Option<&str>) -> Self {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let resume = last_event_id.map_or(String::new(), |id| format!("Last-Event-ID: {id}\r\n"));
        let head = format!(
            "GET /v1/jobs/{id}/logs?follow=true HTTP/1.1\r\nHost: localhost:{port}\r\nAccept: text/event-stream\r\nCkrv-Follow: batch\r\nAuthorization: Bearer {token}\r\n{resume}Connection: close\r\n\r\n"
        );
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut stream = Self { socket, text: String::new(), read: 0 };
        while !stream.text.contains("\r\n\r\n") {
            assert!(stream.more().await, "{}", stream.text);
        }
        assert!(stream.text.starts_with("HTTP/1.1 200") && stream.text.contains("text/event-stream"), "{}", stream.text);
        stream
    }

    async fn more(&mut self) -> bool {
        let mut buffer = [0; 4096];
        let count =
            tokio::time::timeout(PATIENCE, self.socket.read(&mut buffer)).await.expect("something comes in time").unwrap();
        self.text.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
        count > 0
    }

    /// The next event; `None`: the connection ended.
    async fn next(&mut self) -> Option<Event> {
        loop {
            let rest = &self.text[self.read..];
            if let Some(end) = rest.find("\n\n") {
                let block = &rest[..end];
                self.read += end + 2;
                let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
                match (field("data: "), field("id: ")) {
                    (Some(data), None) if data == "[DONE]" => return Some(Event::Done),
                    (Some(data), Some(id)) => {
                        let entry: ckrv_core::log::LogEntry = serde_json::from_str(&data).unwrap();
                        assert_eq!(entry.cursor().to_string(), id);
                        return Some(Event::Entry { id });
                    }
                    _ => continue,
                }
            }
            if !self.more().await {
                return None;
            }
        }
    }

    async fn ids(&mut self, count: usize) -> Vec<String> {
        let mut ids = Vec::new();
        while ids.len() < count {
            match self.next().await {
                Some(Event::Entry { id }) => ids.push(id),
                other => panic!("{other:?} after {ids:?}"),
            }
        }
        ids
    }
}

async fn listen(service: &Service) -> (u16, tokio::sync::oneshot::Sender<()>, tokio::task::JoinHandle<std::io::Result<()>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(ckrv_api::serve(listener, service.state.clone(), None, async move {
        let _ = stopped.await;
    }));
    (port, stop, serving)
}

#[tokio::test]
async fn a_followed_log_resumes_without_a_gap_or_a_repeat_over_cut_connections() {
    let service = Service::start().await;
    let token = service.owner_token().await;
    let id = service.make_job(&token).await;
    let (port, _stop, _serving) = listen(&service).await;
    let (claim, fence) = service.claim(id).await;
    let mut seen: Vec<String> = Vec::new();
    for round in 0..5 {
        let mut stream = Stream::open(port, id, &token, seen.last().map(String::as_str)).await;
        service.log(id, claim, fence, round * 10 + 1..=round * 10 + 10).await;
        // Cut in the middle: of what was sent and not read, nothing may be lost.
        seen.extend(stream.ids(7).await);
    }
    let mut stream = Stream::open(port, id, &token, seen.last().map(String::as_str)).await;
    service.finish(id, claim, fence, 50).await;
    while let Some(Event::Entry { id }) = stream.next().await {
        seen.push(id);
    }
    let expected: Vec<String> = (1..=50).map(|seq| format!("1.{seq}")).collect();
    assert_eq!(seen, expected);
    assert!(stream.text.contains("data: [DONE]"));
}

#[tokio::test]
async fn done_comes_after_the_last_entry_and_not_while_the_job_runs() {
    let service = Service::start().await;
    let token = service.owner_token().await;
    let id = service.make_job(&token).await;
    let (port, _stop, _serving) = listen(&service).await;
    let mut stream = Stream::open(port, id, &token, None).await;
    let (claim, fence) = service.claim(id).await;
    service.log(id, claim, fence, 1..=300).await;
    assert_eq!(stream.ids(300).await.last().unwrap(), "1.300");
    let early = tokio::time::timeout(Duration::from_millis(1500), stream.next()).await;
    assert!(early.is_err(), "{early:?}");
    service.log(id, claim, fence, 301..=301).await;
    service.finish(id, claim, fence, 301).await;
    assert_eq!(stream.ids(1).await, ["1.301"]);
    assert_eq!(stream.next().await, Some(Event::Done));
    assert_eq!(stream.next().await, None);
}

#[tokio::test]
async fn a_new_attempt_goes_on_under_the_next_fence() {
    let service = Service::start().await;
    let token = service.owner_token().await;
    let id = service.make_job(&token).await;
    let (port, _stop, _serving) = listen(&service).await;
    let mut stream = Stream::open(port, id, &token, None).await;
    let (claim, fence) = service.claim(id).await;
    service.log(id, claim, fence, 1..=2).await;
    service.apply(id, Verb::Reap { fence, evidence: Evidence::Gone, not_before: service.clock_now(), note: "gone".into() }).await;
    let (claim, fence) = service.claim(id).await;
    service.log(id, claim, fence, 1..=1).await;
    assert_eq!(stream.ids(3).await, ["1.1".to_owned(), "1.2".to_owned(), format!("{}.1", fence.0)]);
    service.finish(id, claim, fence, 1).await;
    assert_eq!(stream.next().await, Some(Event::Done));
}

#[tokio::test]
async fn a_follow_is_signalled_and_a_cancelled_queued_job_ends_it() {
    let service = Service::start().await;
    let token = service.owner_token().await;
    let id = service.make_job(&token).await;
    let mut signals = service.state.stores.signals.subscribe();
    let (port, _stop, _serving) = listen(&service).await;
    let mut stream = Stream::open(port, id, &token, None).await;
    let watched = async { while signals.recv().await.unwrap() != Signal::Watched(id) {} };
    tokio::time::timeout(PATIENCE, watched).await.unwrap();
    service.send(support::request("POST", &format!("/v1/jobs/{id}/cancel"), &token, None)).await;
    assert_eq!(stream.next().await, Some(Event::Done));
}

#[tokio::test]
async fn what_nobody_signals_is_found_by_polling() {
    let mut service = Service::start().await;
    let token = service.owner_token().await;
    let id = service.make_job(&token).await;
    // As if another process had written.
    service.state.stores.signals = ckrv_store::Signals::default();
    let (port, _stop, _serving) = listen(&service).await;
    let mut stream = Stream::open(port, id, &token, None).await;
    let (claim, fence) = service.claim(id).await;
    service.log(id, claim, fence, 1..=1).await;
    assert_eq!(stream.ids(1).await, ["1.1"]);
}

#[tokio::test]
async fn a_closing_server_ends_streams_without_done() {
    let service = Service::start().await;
    let token = service.owner_token().await;
    let id = service.make_job(&token).await;
    let (port, stop, serving) = listen(&service).await;
    let mut stream = Stream::open(port, id, &token, None).await;
    stop.send(()).unwrap();
    assert_eq!(stream.next().await, None);
    tokio::time::timeout(PATIENCE, serving).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn followers_are_bounded_in_number() {
    let service = Service::start_with(|config| config.max_followers = 1).await;
    let token = service.owner_token().await;
    let id = service.make_job(&token).await;
    let (port, _stop, _serving) = listen(&service).await;
    let _first = Stream::open(port, id, &token, None).await;
    let second = service.get(&format!("/v1/jobs/{id}/logs?follow=true"), &token).await;
    second.problem(429, "too_many_followers");
    assert_eq!(second.header("retry-after"), "5");
}

#[tokio::test]
async fn tls_is_spoken_with_the_given_certificate() {
    let service = Service::start().await;
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let files = ckrv_api::TlsFiles { certificates: folder.path().join("cert.pem"), key: folder.path().join("key.pem") };
    std::fs::write(&files.certificates, made.cert.pem()).unwrap();
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(ckrv_api::serve(listener, service.state.clone(), Some(files), std::future::pending()));
    // One that never shakes hands must not hold up the next.
    let _silent = TcpStream::connect(addr).await.unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let name: Uri = "https://localhost".parse().unwrap();
    let name = rustls::pki_types::ServerName::try_from(name.host().unwrap().to_owned()).unwrap();
    let mut stream = connector.connect(name, TcpStream::connect(addr).await.unwrap()).await.unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
}
