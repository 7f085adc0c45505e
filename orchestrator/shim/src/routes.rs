//! Loopback listeners: to the agent a model API or a proxy, in truth a stream to the job runner, which holds the key and the rules.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::mux::Opener;
use crate::protocol::{Run, StreamHeader, write_frame};

/// Connections open at the same time, over all listeners of a run; further ones wait.
const MAX_CONNECTIONS: usize = 128;

/// The listeners of one run; dropping it closes them and every connection.
#[derive(Debug)]
pub struct Listeners {
    /// What the agent needs to find them.
    pub env: BTreeMap<String, String>,
    _tasks: JoinSet<()>,
}

/// Opens what a run asks for.
///
/// # Errors
/// When there is no loopback interface to bind to.
pub async fn open(run: &Run, opener: &Opener) -> io::Result<Listeners> {
    let mut env = BTreeMap::new();
    let mut tasks = JoinSet::new();
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    for (index, route) in (0..).zip(&run.routes) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        env.insert(route.base_url_env.clone(), format!("http://{}{}", listener.local_addr()?, route.path));
        if let Some((variable, token)) = &route.placeholder {
            env.insert(variable.clone(), token.clone());
        }
        let header = StreamHeader::Route { run: run.id, index };
        tasks.spawn(serve(listener, header, opener.clone(), Arc::clone(&slots)));
    }
    if run.proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let proxy = format!("http://{}", listener.local_addr()?);
        // Programs disagree on the spelling. Without TLS nothing gets through, but what was wanted is told: where a model's route is plain
        // HTTP on this machine, not every agent would leave that out.
        let plain: &[&str] = if run.routes.is_empty() { &["HTTP_PROXY", "http_proxy"] } else { &[] };
        for variable in ["HTTPS_PROXY", "https_proxy"].iter().chain(plain) {
            env.insert((*variable).to_owned(), proxy.clone());
        }
        tasks.spawn(serve(listener, StreamHeader::Proxy { run: run.id }, opener.clone(), slots));
    }
    if run.proxy || !run.routes.is_empty() {
        for variable in ["NO_PROXY", "no_proxy"] {
            env.insert(variable.to_owned(), "127.0.0.1,localhost,::1,0.0.0.0".to_owned());
        }
    }
    Ok(Listeners { env, _tasks: tasks })
}

async fn serve(listener: TcpListener, header: StreamHeader, opener: Opener, slots: Arc<Semaphore>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let Ok((connection, _)) = listener.accept().await else {
            // Out of descriptors, most likely: wait for a connection to end rather than spin.
            drop(slot);
            if connections.join_next().await.is_none() {
                return;
            }
            continue;
        };
        let opener = opener.clone();
        connections.spawn(async move {
            // A connection that breaks is between the agent and its peer.
            let _ = pass_on(connection, header, &opener).await;
            drop(slot);
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn pass_on(mut connection: TcpStream, header: StreamHeader, opener: &Opener) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let mut stream = opener.open().await?;
    write_frame(&mut stream, &header).await?;
    copy_bidirectional(&mut connection, &mut stream).await?;
    Ok(())
}
