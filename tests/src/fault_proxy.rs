//! An HTTP/1.1 proxy between a client of AWS and a stand-in for it. It does, by rules that a test sets, what the real service does
//! and no stand-in can: throttle, lose a transaction to another one, commit and never answer. And it counts what was asked.

use std::convert::Infallible;
use std::future::pending;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::http::{HeaderName, header, uri};
use hyper::service::service_fn;
use hyper::{Request, Response, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

mod answers;
mod counts;
mod rules;

pub use self::answers::ServiceError;
pub use self::counts::{Count, Counts};
use self::rules::Rule;
pub use self::rules::{Asked, Fault, On, When};

type Body = UnsyncBoxBody<Bytes, anyhow::Error>;

/// A running proxy; dropped, its connections end.
#[derive(Debug)]
pub struct FaultProxy {
    /// `http://127.0.0.1:PORT`, for the client's `endpoint_url`.
    pub url: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    upstream: uri::Authority,
    client: Client<HttpConnector, Full<Bytes>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    rules: Vec<Rule>,
    random: StdRng,
    counts: Counts,
}

impl FaultProxy {
    /// Upstream is `http://HOST:PORT`. What chances come to is decided by the seed.
    pub async fn start(upstream: &str, seed: u64) -> Result<Self> {
        let upstream: Uri = upstream.parse().with_context(|| format!("not a URL: {upstream}"))?;
        ensure!(upstream.scheme_str() == Some("http"), "the proxy speaks http only, and was given {upstream}");
        let upstream = upstream.authority().context("the upstream has no host")?.clone();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let state = State { rules: Vec::new(), random: StdRng::seed_from_u64(seed), counts: Counts::default() };
        let client = Client::builder(TokioExecutor::new()).build_http();
        let shared = Arc::new(Shared { upstream, client, state: Mutex::new(state) });
        let task = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { url, shared, task })
    }

    /// From now on. The first rule that fits a request and whose time has come decides; what none of them wants passes.
    pub fn rule(&self, on: On, when: When, fault: Fault) {
        self.shared.state().rules.push(Rule::new(on, when, fault));
    }

    /// From now on everything passes. What is held back already stays so.
    pub fn heal(&self) {
        self.shared.state().rules.clear();
    }

    /// What was asked since the start or since [`FaultProxy::take_counts`].
    pub fn counts(&self) -> Counts {
        self.shared.state().counts.clone()
    }

    /// The counts so far; they begin anew.
    pub fn take_counts(&self) -> Counts {
        std::mem::take(&mut self.shared.state().counts)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the request, and says what is to happen to it.
    fn decide(&self, asked: &Asked) -> Fault {
        let mut state = self.state();
        let State { rules, random, counts } = &mut *state;
        let fault = rules.iter_mut().find_map(|rule| rule.decide(asked, random)).unwrap_or(Fault::Pass);
        counts.count_asked(asked, !matches!(fault, Fault::Pass));
        fault
    }

    /// Headers and target stay as the client signed them, its Host among them.
    async fn forward(&self, asked: &Asked, request: Request<Bytes>) -> Result<Response<Bytes>> {
        let (mut head, body) = request.into_parts();
        let mut target = head.uri.into_parts();
        (target.scheme, target.authority) = (Some(uri::Scheme::HTTP), Some(self.upstream.clone()));
        head.uri = Uri::from_parts(target)?;
        for name in HOP_BY_HOP {
            head.headers.remove(name);
        }
        let response = self.client.request(Request::from_parts(head, Full::new(body))).await.context("the upstream is away")?;
        let (mut head, body) = response.into_parts();
        for name in HOP_BY_HOP {
            head.headers.remove(name);
        }
        let body = body.collect().await.context("the upstream broke off")?.to_bytes();
        self.state().counts.count_answered(asked, &body);
        Ok(Response::from_parts(head, body))
    }
}

/// About one connection, not about the message.
const HOP_BY_HOP: [HeaderName; 2] = [header::CONNECTION, header::TRANSFER_ENCODING];

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        connections.spawn(connection(client, Arc::clone(&shared)));
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(client: TcpStream, shared: Arc<Shared>) {
    let service = service_fn(|request| {
        let shared = Arc::clone(&shared);
        async move {
            let (head, body) = request.into_parts();
            let body = Incoming::collect(body).await?.to_bytes();
            // By itself: a client that has gone doesn't stop what is on its way.
            let answer = tokio::spawn(async move { serve(&shared, Request::from_parts(head, body)).await });
            answer.await?
        }
    });
    // An error is what a rule wanted, or a client that went.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(client), service).await;
}

/// An error closes the connection without an answer.
async fn serve(shared: &Shared, request: Request<Bytes>) -> Result<Response<Body>> {
    let asked = Asked::read(&request);
    match shared.decide(&asked) {
        Fault::Pass => shared.forward(&asked, request).await.map(whole),
        Fault::CommitThenCut => {
            shared.forward(&asked, request).await?;
            Err(anyhow!("cut, as a rule says"))
        }
        Fault::Fail(error) => Ok(whole(error.answer(&asked, request.body())?)),
        Fault::Delay(delay) => {
            tokio::time::sleep(delay).await;
            shared.forward(&asked, request).await.map(whole)
        }
        Fault::BlackHole => pending().await,
        Fault::CutAnswer => {
            let response = shared.forward(&asked, request).await?;
            let length = response.body().len();
            ensure!(length > 0, "cut, as a rule says");
            let at = shared.state().random.random_range(0..length);
            Ok(cut(response, at))
        }
    }
}

fn whole(response: Response<Bytes>) -> Response<Body> {
    response.map(|body| Full::new(body).map_err(|never: Infallible| match never {}).boxed_unsync())
}

/// The connection closes after this many bytes of the body, fewer than its length says.
fn cut(response: Response<Bytes>, at: usize) -> Response<Body> {
    let (mut head, body) = response.into_parts();
    head.headers.insert(header::CONTENT_LENGTH, body.len().into());
    let part = stream::iter([Ok(Frame::data(body.slice(..at)))]);
    let end = stream::once(async {
        // What came before is sent first: a server that sees the error at once throws it away.
        tokio::time::sleep(Duration::from_millis(20)).await;
        Err(anyhow!("cut, as a rule says"))
    });
    Response::from_parts(head, StreamBody::new(part.chain(end)).boxed_unsync())
}
