//! A TCP proxy that cuts connections in the middle, at bytes that a seed decides: the same seed, the same cuts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::Result;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// A running proxy; dropped, all its connections end.
#[derive(Debug)]
pub struct Faults {
    pub address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct State {
    healed: AtomicBool,
    refusing: AtomicBool,
    connections: AtomicUsize,
    cuts: AtomicUsize,
}

impl Faults {
    /// Each connection lives for a number of bytes, both ways together, from `bytes`.
    pub async fn start(upstream: SocketAddr, seed: u64, bytes: std::ops::Range<usize>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            let mut random = StdRng::seed_from_u64(seed);
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                // Drawn in the order of the connections, so that the seed alone decides.
                let budget = random.random_range(bytes.clone());
                if shared.refusing.load(Ordering::Relaxed) {
                    continue;
                }
                shared.connections.fetch_add(1, Ordering::Relaxed);
                connections.spawn(connection(client, upstream, budget, Arc::clone(&shared)));
            }
        });
        Ok(Self { address, state, task })
    }

    /// From now on new and open connections live as long as they like.
    pub fn heal(&self) {
        self.state.healed.store(true, Ordering::Relaxed);
        self.state.refusing.store(false, Ordering::Relaxed);
    }

    /// From now on new connections are closed at once, as if the server were away.
    pub fn refuse(&self) {
        self.state.refusing.store(true, Ordering::Relaxed);
    }

    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::Relaxed)
    }

    pub fn cuts(&self) -> usize {
        self.state.cuts.load(Ordering::Relaxed)
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn connection(client: TcpStream, upstream: SocketAddr, budget: usize, state: Arc<State>) {
    let Ok(server) = TcpStream::connect(upstream).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let left = AtomicUsize::new(budget);
    let both = async {
        tokio::join!(pump(&mut from_client, &mut to_server, &left, &state), pump(&mut from_server, &mut to_client, &left, &state))
    };
    // The first direction that runs out of bytes takes the other down with it, as a broken line would.
    let cut = async {
        while left.load(Ordering::Relaxed) > 0 || state.healed.load(Ordering::Relaxed) {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        state.cuts.fetch_add(1, Ordering::Relaxed);
    };
    tokio::select! { _ = both => {}, () = cut => {} }
}

/// Copies until the end, or until the budget of both directions is spent.
async fn pump(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin), left: &AtomicUsize, state: &State) {
    let mut buffer = [0; 8192];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let healed = state.healed.load(Ordering::Relaxed);
        let pass = if healed { read } else { read.min(left.load(Ordering::Relaxed)) };
        if !healed {
            left.fetch_sub(pass, Ordering::Relaxed);
        }
        if to.write_all(&buffer[..pass]).await.is_err() {
            return;
        }
        if pass < read {
            // Out of bytes: `connection` cuts.
            return std::future::pending().await;
        }
    }
    // The other direction may still have something to say.
    let _ = to.shutdown().await;
}
