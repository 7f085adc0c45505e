//! A receiver that answers each connection as its script says, and in the end always as the script's last word.

use std::collections::VecDeque;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

#[derive(Clone, Debug)]
pub enum Reply {
    Answer(String),
    /// The connection is closed instead of an answer.
    Cut,
    /// No answer for as long as the other side waits.
    Hold,
    /// A good status, and a body without an end.
    Endless,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self::Answer(format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n"))
    }

    pub fn redirect(status: u16, location: &str) -> Self {
        Self::Answer(format!("HTTP/1.1 {status} X\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n"))
    }
}

/// One request.
#[derive(Debug)]
pub struct Got {
    pub line: String,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Got {
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }
}

pub struct Receiver {
    host: String,
    port: u16,
    requests: mpsc::UnboundedReceiver<Got>,
    ends: mpsc::UnboundedReceiver<()>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Receiver {
    pub async fn start(host: &str, port: u16, script: Vec<Reply>) -> Self {
        let listener = TcpListener::bind((host, port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let ((sender, requests), (ended, ends)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let mut script = VecDeque::from(script);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let reply = if script.len() > 1 { script.pop_front() } else { script.front().cloned() };
                tokio::spawn(answer(stream, reply.unwrap(), sender.clone(), ended.clone()));
            }
        });
        Self { host: host.to_owned(), port, requests, ends, task }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}:{}{path}", self.host, self.port)
    }

    /// What came since it was last asked.
    pub fn got(&mut self) -> Vec<Got> {
        std::iter::from_fn(|| self.requests.try_recv().ok()).collect()
    }

    pub async fn next(&mut self) -> Got {
        self.requests.recv().await.unwrap()
    }

    /// Waits until the other side has left an endless answer.
    pub async fn hung_up(&mut self) {
        self.ends.recv().await.unwrap();
    }
}

async fn answer(mut stream: TcpStream, reply: Reply, got: mpsc::UnboundedSender<Got>, ended: mpsc::UnboundedSender<()>) {
    let request = read(&mut stream).await;
    let _ = got.send(request);
    match reply {
        Reply::Answer(text) => drop(stream.write_all(text.as_bytes()).await),
        Reply::Cut => {}
        Reply::Hold => drop(stream.read(&mut [0]).await),
        Reply::Endless => {
            let mut sent = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
            while sent.is_ok() {
                sent = stream.write_all(&[b'x'; 4096]).await;
            }
            let _ = ended.send(());
        }
    }
}

async fn read(stream: &mut TcpStream) -> Got {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at;
        }
        assert!(stream.read_buf(&mut bytes).await.unwrap() > 0, "no request");
    };
    let head = String::from_utf8(bytes[..head_end].to_vec()).unwrap();
    let mut lines = head.lines();
    let line = lines.next().unwrap().to_owned();
    let headers = lines.filter_map(|line| line.split_once(": ")).map(|(name, value)| (name.to_lowercase(), value.to_owned()));
    let headers: Vec<_> = headers.collect();
    let length = headers.iter().find(|(name, _)| name == "content-length").map_or(0, |(_, value)| value.parse().unwrap());
    let mut body = bytes[head_end + 4..].to_vec();
    while body.len() < length {
        assert!(stream.read_buf(&mut body).await.unwrap() > 0, "half a body");
    }
    Got { line, headers, body }
}
