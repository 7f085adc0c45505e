//! A TCP proxy that keeps what its clients send.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

type Sent = Arc<Mutex<Vec<Vec<u8>>>>;

/// A running tap; dropped, its connections end.
#[derive(Debug)]
pub struct Tap {
    pub address: SocketAddr,
    sent: Sent,
    task: JoinHandle<()>,
}

impl Tap {
    pub async fn start(upstream: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let sent = Sent::default();
        let shared = Arc::clone(&sent);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let index = {
                    let mut sent = lock(&shared);
                    sent.push(Vec::new());
                    sent.len() - 1
                };
                connections.spawn(connection(client, upstream, index, Arc::clone(&shared)));
            }
        });
        Ok(Self { address, sent, task })
    }

    /// Everything that was sent so far, each connection by itself.
    pub fn sent(&self) -> Vec<Vec<u8>> {
        lock(&self.sent).clone()
    }

    /// The JSON bodies of all requests with this method and path, as HTTP/1.1 has them.
    pub fn bodies(&self, request: &str) -> Result<Vec<Value>> {
        let mut found = Vec::new();
        for connection in self.sent() {
            let text = String::from_utf8_lossy(&connection).into_owned();
            let starts: Vec<usize> = text.match_indices(&format!("{request} HTTP/1.1\r\n")).map(|(at, _)| at).collect();
            for start in starts {
                let (head, body) = text[start..].split_once("\r\n\r\n").context("a request without a body")?;
                let length = head.lines().find_map(|line| {
                    let (name, value) = line.split_once(':')?;
                    name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
                });
                found.push(serde_json::from_str(body.get(..length.context("no length")?).context("a short body")?)?);
            }
        }
        Ok(found)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(sent: &Sent) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
    sent.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn connection(client: TcpStream, upstream: SocketAddr, index: usize, sent: Sent) {
    let Ok(server) = TcpStream::connect(upstream).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = async {
        let mut buffer = [0; 16 * 1024];
        while let Ok(read @ 1..) = from_client.read(&mut buffer).await {
            if let Some(kept) = lock(&sent).get_mut(index) {
                kept.extend_from_slice(&buffer[..read]);
            }
            if to_server.write_all(&buffer[..read]).await.is_err() {
                return;
            }
        }
        let _ = to_server.shutdown().await;
    };
    let down = async {
        let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
        let _ = to_client.shutdown().await;
    };
    tokio::join!(up, down);
}
