//! A collector of spans: takes OTLP over HTTP and reads as much of its protobuf as a test asks about.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;

use crate::http::Http;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Hexadecimal, as the ids are.
    pub trace: String,
    pub id: String,
    pub parent: String,
    pub name: String,
    /// 1 internal, 2 server.
    pub kind: u64,
}

type Received = Arc<Mutex<Vec<(BTreeMap<String, String>, Bytes)>>>;

#[derive(Debug)]
pub struct Collector {
    http: Http,
    received: Received,
}

impl Collector {
    pub async fn start() -> Result<Self> {
        let received = Received::default();
        let router = axum::Router::new().route("/v1/traces", axum::routing::post(take)).with_state(Arc::clone(&received));
        Ok(Self { http: Http::start(router, None).await?, received })
    }

    pub fn url(&self) -> &str {
        &self.http.url
    }

    fn received(&self) -> Vec<(BTreeMap<String, String>, Bytes)> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Of each request.
    pub fn headers(&self) -> Vec<BTreeMap<String, String>> {
        self.received().into_iter().map(|(headers, _)| headers).collect()
    }

    pub fn spans(&self) -> Vec<Span> {
        // TracesData.resource_spans.scope_spans.spans
        self.received().iter().flat_map(|(_, body)| inner(body, &[1, 2, 2])).map(|span| read_span(&span)).collect()
    }

    /// `service.name` of each batch.
    pub fn services(&self) -> Vec<String> {
        // TracesData.resource_spans.resource.attributes
        let bodies = self.received();
        let attributes = bodies.iter().flat_map(|(_, body)| inner(body, &[1, 1, 1]));
        let named = attributes.filter(|attribute| inner(attribute, &[1]).iter().any(|key| key == b"service.name"));
        named.flat_map(|attribute| inner(&attribute, &[2, 1])).map(|value| String::from_utf8_lossy(&value).into_owned()).collect()
    }
}

async fn take(State(received): State<Received>, headers: HeaderMap, body: Bytes) {
    let headers = headers.iter().map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()));
    received.lock().unwrap_or_else(PoisonError::into_inner).push((headers.collect(), body));
}

fn read_span(bytes: &[u8]) -> Span {
    let mut span = Span::default();
    for (number, field) in fields(bytes) {
        match (number, field) {
            (1, Field::Bytes(bytes)) => span.trace = hex::encode(bytes),
            (2, Field::Bytes(bytes)) => span.id = hex::encode(bytes),
            (4, Field::Bytes(bytes)) => span.parent = hex::encode(bytes),
            (5, Field::Bytes(bytes)) => span.name = String::from_utf8_lossy(bytes).into_owned(),
            (6, Field::Number(number)) => span.kind = number,
            _ => {}
        }
    }
    span
}

/// The messages at the end of a path of field numbers.
fn inner(bytes: &[u8], path: &[u64]) -> Vec<Vec<u8>> {
    let Some((first, rest)) = path.split_first() else { return vec![bytes.to_vec()] };
    let matching = fields(bytes).into_iter().filter(|(number, _)| number == first);
    let messages = matching.filter_map(|(_, field)| if let Field::Bytes(bytes) = field { Some(bytes) } else { None });
    messages.flat_map(|message| inner(message, rest)).collect()
}

enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Fixed,
}

/// A protobuf message's fields, up to the first that can't be read.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut found = Vec::new();
    while let Some(key) = varint(&mut bytes) {
        let field = match key & 7 {
            0 => varint(&mut bytes).map(Field::Number),
            1 => split(&mut bytes, 8).map(|_| Field::Fixed),
            2 => varint(&mut bytes).and_then(|length| split(&mut bytes, usize::try_from(length).ok()?)).map(Field::Bytes),
            5 => split(&mut bytes, 4).map(|_| Field::Fixed),
            _ => None,
        };
        let Some(field) = field else { break };
        found.push((key >> 3, field));
    }
    found
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *split(bytes, 1)?.first()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn split<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (first, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(first)
}
