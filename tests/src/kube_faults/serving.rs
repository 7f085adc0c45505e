//! Connections and what comes over them.

use std::convert::Infallible;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::http::{HeaderMap, HeaderName, header};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::rules::{Fault, WatchEnd};
use super::{Call, Reach, Shared, answers};

type Body = UnsyncBoxBody<Bytes, anyhow::Error>;

/// About one connection, not about the message.
const HOP_BY_HOP: [HeaderName; 3] = [header::CONNECTION, header::TRANSFER_ENCODING, header::HOST];

pub(super) async fn listen(listener: TcpListener, address: SocketAddr, shared: Arc<Shared>) {
    let mut reach = shared.reach.subscribe();
    let mut here = Some(listener);
    loop {
        let listener = match here.take() {
            Some(listener) => listener,
            None => match TcpListener::bind(address).await {
                Ok(listener) => listener,
                Err(_) => {
                    sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        tokio::select! {
            () = accept(&listener, &shared) => {}
            _ = reach.wait_for(|reach| *reach == Reach::Refuses) => {}
        }
        drop(listener);
        if reach.wait_for(|reach| *reach != Reach::Refuses).await.is_err() {
            return;
        }
    }
}

/// Dropped, all connections end.
async fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        // One that couldn't be taken is the client's loss.
        if let Ok((client, _)) = listener.accept().await {
            connections.spawn(connection(client, Arc::clone(shared)));
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(client: TcpStream, shared: Arc<Shared>) {
    shared.here().await;
    let Ok(client) = shared.acceptor.accept(client).await else { return };
    let service = service_fn(|request| {
        let shared = Arc::clone(&shared);
        async move {
            let (head, body) = request.into_parts();
            let body = Incoming::collect(body).await?.to_bytes();
            shared.here().await;
            // By itself: a client that has gone doesn't stop what is on its way.
            let answer = tokio::spawn(async move { serve(&shared, Request::from_parts(head, body)).await });
            answer.await?
        }
    });
    // An error is what a rule wanted, or a client that went.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(client), service).await;
}

/// An error closes the connection without an answer.
async fn serve(shared: &Arc<Shared>, request: Request<Bytes>) -> Result<Response<Body>> {
    let call = Call::read(&request);
    match shared.decide(&call) {
        Fault::Refuse(refusal) => Ok(refusal.answer()?.map(|body| Full::new(body).map_err(never).boxed_unsync())),
        Fault::Pass | Fault::RefuseSomehow => forward(shared, &call, request).await.map(|answer| answer.map(streamed)),
        Fault::AnswerLost => {
            forward(shared, &call, request).await?.into_body().try_for_each(async |_| Ok(())).await?;
            Err(anyhow!("lost, as a rule says"))
        }
        Fault::BlackHole => pending().await,
        Fault::Ends(end, after) => {
            let answer = forward(shared, &call, request).await?;
            Ok(answer.map(|events| streamed(ending(events, end, after))))
        }
    }
}

fn never(never: Infallible) -> anyhow::Error {
    match never {}
}

/// With the caller's own token; what it is answered flows as long as nothing hangs.
async fn forward(
    shared: &Arc<Shared>,
    call: &Call,
    request: Request<Bytes>,
) -> Result<Response<BoxStream<'static, Result<Bytes>>>> {
    let (head, body) = request.into_parts();
    let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
    let asked = shared.client.request(head.method, format!("{}{target}", shared.upstream));
    let answer = asked.headers(end_to_end(head.headers)).body(body).send().await.context("the API server is away")?;
    if answer.status().is_success() {
        shared.state().calls.count_done(call);
    }
    let mut response = Response::new(());
    *response.status_mut() = answer.status();
    *response.headers_mut() = end_to_end(answer.headers().clone());
    let hanging = Arc::clone(shared);
    let body = answer.bytes_stream().map_err(anyhow::Error::from).then(move |chunk| {
        let shared = Arc::clone(&hanging);
        async move {
            shared.here().await;
            chunk
        }
    });
    Ok(response.map(|()| body.boxed()))
}

fn end_to_end(mut headers: HeaderMap) -> HeaderMap {
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    headers
}

fn streamed(body: BoxStream<'static, Result<Bytes>>) -> Body {
    StreamBody::new(body.map_ok(Frame::data)).boxed_unsync()
}

fn ending(events: BoxStream<'static, Result<Bytes>>, end: WatchEnd, after: Duration) -> BoxStream<'static, Result<Bytes>> {
    let events = events.take_until(sleep(after));
    match end {
        WatchEnd::Cut => events.chain(stream::once(async { Err(anyhow!("cut, as a rule says")) })).boxed(),
        WatchEnd::Stalls => events.chain(stream::pending()).boxed(),
        WatchEnd::Expires => events.chain(stream::once(async { Ok(answers::expired()) })).boxed(),
    }
}
