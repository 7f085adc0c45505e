//! What pods reach of this machine: a port of the address that they see it by, for a server that listens on loopback only.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Dropped, it is gone.
#[derive(Debug)]
pub struct Relay {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Relay {
    pub async fn start(host: IpAddr, to: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((host, 0)).await.with_context(|| format!("can't listen on {host}"))?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move {
            while let Ok((mut from, _)) = listener.accept().await {
                tokio::spawn(async move {
                    if let Ok(mut there) = TcpStream::connect(to).await {
                        // Either side may break off when it likes.
                        let _ = tokio::io::copy_bidirectional(&mut from, &mut there).await;
                    }
                });
            }
        });
        Ok(Self { address, task })
    }

    /// A relay to the server of this URL, and the URL by which pods reach it.
    pub async fn to_url(host: IpAddr, url: &str) -> Result<(Self, String)> {
        let url = reqwest::Url::parse(url)?;
        let port = url.port().with_context(|| format!("{url} has no port"))?;
        let relay = Self::start(host, SocketAddr::from(([127, 0, 0, 1], port))).await?;
        let there = format!("{}://{}", url.scheme(), relay.address);
        Ok((relay, there))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}
