//! The job runner's door: where shims that can only be reached over the network come in.
//!
//! Each expected shim is a [`Guest`] with a ticket of its own. It comes in over TLS (it knows the certificate's fingerprint), from the
//! one address that the launcher names, and shows its ticket with a key that it chose: from then on the ticket is worth nothing
//! without that key. What comes in is one resumable stream, over as many connections as it takes.
//!
//! Invariant: whoever has no ticket costs a bounded number of sockets for a bounded time, and is never heard beyond its credentials.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ckrv_shim::admission::{self, Credentials, KEY, Verdict};
use ckrv_shim::resume::{self, Connection, Source, Timing};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// TLS and credentials.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// For the launcher to learn where its shim is.
const HELD_FOR: Duration = Duration::from_secs(30);
/// A failed arrival keeps its place for this long, so that its address can't try as often as it likes.
const PENALTY: Duration = Duration::from_millis(250);
/// Connections that aren't let in yet: of one address, and of all addresses together from which no shim is awaited.
const HALF_OPEN_EACH: usize = 8;
const HALF_OPEN: usize = 64;
/// Refusals that are logged in a minute: an agent's pod can cause them.
const WARNINGS: u32 = 20;

type Digest = [u8; 32];

/// One per job runner. Dropping it closes the port; streams that came in go on until their connection breaks.
#[derive(Debug)]
pub struct Door {
    address: SocketAddr,
    fingerprint: String,
    timing: Timing,
    desk: Arc<Desk>,
    _accepting: JoinSet<()>,
}

impl Door {
    /// Makes a certificate, whose key never leaves this process, and listens.
    ///
    /// # Errors
    /// When the address can't be listened on.
    pub async fn open(listen: SocketAddr) -> io::Result<Self> {
        Self::open_with(listen, Timing::default()).await
    }

    /// With another patience than the default of 60 s.
    pub async fn open_with(listen: SocketAddr, timing: Timing) -> io::Result<Self> {
        let made = rcgen::generate_simple_self_signed(vec!["ckrv-job-runner".to_owned()]).map_err(io::Error::other)?;
        let certificate = made.cert.der().clone();
        let fingerprint = hex::encode(ckrv_shim::fingerprint(&certificate));
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .and_then(|config| config.with_no_client_auth().with_single_cert(vec![certificate], key));
        let mut config = config.map_err(io::Error::other)?;
        // Nobody resumes a TLS session here.
        config.send_tls13_tickets = 0;
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let desk = Arc::new(Desk::default());
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, TlsAcceptor::from(Arc::new(config)), Arc::clone(&desk)));
        Ok(Self { address, fingerprint, timing, desk, _accepting: accepting })
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// SHA-256 of the certificate in DER, hex: what a shim is told to expect.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Awaits one shim, and no other with its ticket.
    pub fn expect(&self) -> Guest {
        let random: [u8; 32] = rand::random();
        let ticket = SecretString::from(hex::encode(random));
        let (arrived, arrivals) = mpsc::channel(4);
        let (from, address) = watch::channel(None);
        let mut guests = self.desk.guests();
        guests.retain(|_, guest| !guest.arrived.is_closed());
        guests.insert(digest(ticket.expose_secret().as_bytes()), Expected { arrived, from: address, key: None });
        drop(guests);
        Guest { ticket, from, arrivals: Some(arrivals), timing: self.timing }
    }
}

/// A shim that is awaited. Dropping it before the shim has arrived, or the stream after, ends it: a shim that comes back is refused.
#[derive(Debug)]
pub struct Guest {
    ticket: SecretString,
    from: watch::Sender<Option<IpAddr>>,
    arrivals: Option<mpsc::Receiver<Connection>>,
    timing: Timing,
}

/// The two halves of a shim's stream.
pub type Halves = (Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>);

impl Guest {
    /// For the shim alone.
    pub fn ticket(&self) -> &SecretString {
        &self.ticket
    }

    /// The only address that it may come from. Until this is called, arrivals are held.
    pub fn from(&self, address: IpAddr) {
        self.from.send_replace(Some(address.to_canonical()));
    }

    /// Waits for the shim, for as long as the caller does; may be given up and called again.
    ///
    /// # Errors
    /// When it has arrived already.
    pub async fn arrived(&mut self) -> io::Result<Halves> {
        let arrivals = self.arrivals.as_mut().ok_or_else(|| io::Error::other("this shim has arrived already"))?;
        let first = arrivals.recv().await.ok_or_else(|| io::Error::other("the door is closed"))?;
        let later = self.arrivals.take().ok_or_else(|| io::Error::other("this shim has arrived already"))?;
        let (stream, _driver) = resume::start(Source::Accept { first: Some(first), later }, self.timing);
        let (read, write) = tokio::io::split(stream);
        Ok((Box::new(read), Box::new(write)))
    }
}

#[derive(Debug)]
struct Expected {
    arrived: mpsc::Sender<Connection>,
    from: watch::Receiver<Option<IpAddr>>,
    /// The digest of the key that the ticket was first shown with.
    key: Option<Digest>,
}

#[derive(Debug, Default)]
struct Desk {
    /// By the digest of their ticket, so that looking one up tells nothing of another by its time.
    guests: Mutex<HashMap<Digest, Expected>>,
    half_open: Mutex<HashMap<IpAddr, usize>>,
    warned: Mutex<Option<(Instant, u32)>>,
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, desk: Arc<Desk>) {
    let slots = Arc::new(Semaphore::new(HALF_OPEN));
    let mut arrivals = JoinSet::new();
    loop {
        let Ok((connection, peer)) = listener.accept().await else {
            // Out of descriptors, most likely.
            sleep(PENALTY).await;
            continue;
        };
        while arrivals.try_join_next().is_some() {}
        let peer = peer.ip().to_canonical();
        // Other jobs' agents can knock here too, with as many addresses as they have pods: what they take up is never a guest's.
        let slot = if desk.awaits(peer) { Ok(None) } else { Arc::clone(&slots).try_acquire_owned().map(Some) };
        let (Ok(slot), Some(place)) = (slot, Place::take(&desk, peer)) else {
            desk.warn(peer, &"too many connections at once");
            continue;
        };
        let (acceptor, desk) = (acceptor.clone(), Arc::clone(&desk));
        arrivals.spawn(async move {
            if let Err(error) = desk.receive(connection, peer, &acceptor).await {
                desk.warn(peer, &error);
                sleep(PENALTY).await;
            }
            drop((slot, place));
        });
    }
}

impl Desk {
    fn guests(&self) -> MutexGuard<'_, HashMap<Digest, Expected>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a shim is awaited from this address.
    fn awaits(&self, peer: IpAddr) -> bool {
        self.guests().values().any(|guest| !guest.arrived.is_closed() && *guest.from.borrow() == Some(peer))
    }

    async fn receive(&self, connection: TcpStream, peer: IpAddr, acceptor: &TlsAcceptor) -> io::Result<()> {
        connection.set_nodelay(true)?;
        let shown = timeout(HANDSHAKE_WITHIN, examine(connection, acceptor)).await;
        let (mut connection, credentials) = shown.map_err(|_elapsed| io::Error::other("it was too slow"))??;
        let (verdict, why) = match self.judge(&credentials, peer).await {
            // The place is there before the answer is given.
            Ok(arrived) => match timeout(HELD_FOR, arrived.reserve_owned()).await {
                Ok(Ok(place)) => {
                    timeout(HANDSHAKE_WITHIN, admission::answer(&mut connection, Verdict::Welcome)).await??;
                    place.send(Box::new(connection));
                    return Ok(());
                }
                Ok(Err(_)) => (Verdict::Refused, "its ticket is over"),
                Err(_elapsed) => (Verdict::Later, "its earlier connections were not taken yet"),
            },
            Err(refused) => refused,
        };
        timeout(HANDSHAKE_WITHIN, admission::answer(&mut connection, verdict)).await??;
        Err(io::Error::other(why))
    }

    /// Where to bring the connection, or why not.
    async fn judge(&self, credentials: &Credentials, peer: IpAddr) -> Result<mpsc::Sender<Connection>, (Verdict, &'static str)> {
        let unknown = (Verdict::Refused, "its ticket is not known here, or over");
        let ticket = digest(&credentials.ticket);
        let (arrived, mut from) = {
            let guests = self.guests();
            let guest = guests.get(&ticket).filter(|guest| !guest.arrived.is_closed()).ok_or(unknown)?;
            (guest.arrived.clone(), guest.from.clone())
        };
        // A guest that is given up meanwhile lets nobody in, nor does one that is never told where its shim is.
        let told = tokio::select! {
            told = timeout(HELD_FOR, known(&mut from)) => told.map_err(|_elapsed| (Verdict::Later, "its address was not announced"))?,
            () = arrived.closed() => return Err(unknown),
        };
        if told != Some(peer) {
            return Err((Verdict::Refused, "it shows the ticket of another address"));
        }
        let key = digest(&credentials.key[..KEY]);
        let mut guests = self.guests();
        let guest = guests.get_mut(&ticket).ok_or(unknown)?;
        if *guest.key.get_or_insert(key) == key {
            return Ok(arrived);
        }
        Err((Verdict::Refused, "its ticket was used already, with another key"))
    }

    fn warn(&self, peer: IpAddr, why: &dyn std::fmt::Display) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let (_, count) = match &mut *warned {
            Some(recent) if now - recent.0 < Duration::from_secs(60) => recent,
            old => old.insert((now, 0)),
        };
        *count += 1;
        match *count {
            ..WARNINGS => tracing::warn!(%peer, %why, "a connection for a shim was not let in"),
            WARNINGS => {
                tracing::warn!(%peer, %why, "a connection for a shim was not let in; further ones of this minute aren't logged")
            }
            _ => {}
        }
    }
}

/// The address, once it's told; `None` when it never will be.
async fn known(from: &mut watch::Receiver<Option<IpAddr>>) -> Option<IpAddr> {
    let told = from.wait_for(Option::is_some).await.is_ok();
    from.borrow().filter(|_| told)
}

async fn examine(connection: TcpStream, acceptor: &TlsAcceptor) -> io::Result<(TlsStream<TcpStream>, Credentials)> {
    let mut connection = acceptor.accept(connection).await?;
    let credentials = admission::examine(&mut connection).await?;
    Ok((connection, credentials))
}

/// One of an address's places among the half-open connections.
struct Place {
    desk: Arc<Desk>,
    peer: IpAddr,
}

impl Place {
    fn take(desk: &Arc<Desk>, peer: IpAddr) -> Option<Self> {
        let mut half_open = desk.half_open.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = half_open.entry(peer).or_default();
        if *taken >= HALF_OPEN_EACH {
            return None;
        }
        *taken += 1;
        Some(Self { desk: Arc::clone(desk), peer })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut half_open = self.desk.half_open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = half_open.get_mut(&self.peer) {
            *taken -= 1;
            if *taken == 0 {
                half_open.remove(&self.peer);
            }
        }
    }
}

fn digest(secret: &[u8]) -> Digest {
    Sha256::digest(secret).into()
}
