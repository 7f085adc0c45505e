//! Which requests meet which fault.

use std::time::Duration;

use bytes::Bytes;
use hyper::Request;
use rand::RngExt as _;
use rand::rngs::StdRng;

use super::ServiceError;

/// What happens to a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Nothing: for a rule that goes before another one.
    Pass,
    /// It is carried out, and the connection closes without an answer.
    CommitThenCut,
    /// It is carried out, and the connection closes in the middle of the answer, where the seed says.
    CutAnswer,
    /// It is not carried out, and the service says why.
    Fail(ServiceError),
    /// It is carried out later, whether the client still waits or not.
    Delay(Duration),
    /// It is not carried out, and there is no answer ever.
    BlackHole,
}

/// Which requests a rule is for.
#[derive(Clone, Debug)]
pub enum On {
    Any,
    /// `PutItem`, `GenerateDataKey`: the end of `X-Amz-Target`.
    Operation(&'static str),
    /// Of services that have no such header: the method, and a part of the path with its query.
    Path(&'static str, &'static str),
}

/// When a rule that fits a request decides.
#[derive(Clone, Copy, Debug)]
pub enum When {
    Always,
    /// The next so many times.
    Times(u32),
    /// With this probability, from 0 to 1.
    Chance(f64),
}

impl When {
    /// Asked once for each request that fits.
    pub(crate) fn has_come(&mut self, random: &mut StdRng) -> bool {
        match self {
            Self::Always => true,
            Self::Times(0) => false,
            Self::Times(left) => {
                *left -= 1;
                true
            }
            Self::Chance(chance) => random.random_bool(*chance),
        }
    }
}

/// A request, as the rules see it.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The end of `X-Amz-Target`; without one, the method.
    pub operation: String,
    pub has_target: bool,
    path: String,
}

impl Asked {
    pub(super) fn read(request: &Request<Bytes>) -> Self {
        let target = request.headers().get("x-amz-target").and_then(|target| target.to_str().ok());
        let operation = target.and_then(|target| target.rsplit('.').next()).unwrap_or(request.method().as_str());
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        Self { operation: operation.to_owned(), has_target: target.is_some(), path: path.to_owned() }
    }
}

#[derive(Debug)]
pub(super) struct Rule {
    on: On,
    when: When,
    fault: Fault,
}

impl Rule {
    pub fn new(on: On, when: When, fault: Fault) -> Self {
        Self { on, when, fault }
    }

    pub fn decide(&mut self, asked: &Asked, random: &mut StdRng) -> Option<Fault> {
        let fits = match self.on {
            On::Any => true,
            On::Operation(name) => asked.has_target && asked.operation == name,
            On::Path(method, part) => !asked.has_target && asked.operation == method && asked.path.contains(part),
        };
        (fits && self.when.has_come(random)).then(|| self.fault.clone())
    }
}
