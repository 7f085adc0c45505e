//! What was asked of the API server, by whom.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use hyper::{Method, Request, Uri, header};

use super::Fault;

/// The dispatchers' user agent.
pub const DISPATCHER: &str = "ckrv-dispatcher";
/// The job runners'.
pub const RUNNER: &str = "ckrv-job-runner";

/// A call, as the rules see it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    /// The user agent without its version.
    pub agent: String,
    /// As roles name it: `get`, `list`, `watch`, `create`, `delete`, ...
    pub verb: &'static str,
    /// `pods`, `tokenreviews`, `pods/log`; the whole path of what is none.
    pub resource: String,
}

impl Call {
    pub(super) fn read(request: &Request<Bytes>) -> Self {
        let agent = request.headers().get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
        let (resource, is_named) = resource(request.uri());
        let watches =
            request.uri().query().is_some_and(|query| query.split('&').any(|part| matches!(part, "watch=true" | "watch=1")));
        let verb = match *request.method() {
            Method::GET if watches => "watch",
            Method::GET if is_named => "get",
            Method::GET => "list",
            Method::POST => "create",
            Method::DELETE if is_named => "delete",
            Method::DELETE => "deletecollection",
            Method::PUT => "update",
            Method::PATCH => "patch",
            _ => "other",
        };
        Self { agent: agent.split('/').next().unwrap_or_default().to_owned(), verb, resource }
    }
}

/// `/api/V/[namespaces/NS/]RESOURCE[/NAME[/SUBRESOURCE]]`, `/apis/GROUP/V/...`; and whether it names an object.
fn resource(uri: &Uri) -> (String, bool) {
    let parts: Vec<&str> = uri.path().split('/').filter(|part| !part.is_empty()).collect();
    let rest = match parts[..] {
        ["api", _, ref rest @ ..] | ["apis", _, _, ref rest @ ..] => rest,
        _ => return (uri.path().to_owned(), true),
    };
    match *rest {
        ["namespaces", _, resource] => (resource.to_owned(), false),
        ["namespaces", _, resource, _] => (resource.to_owned(), true),
        ["namespaces", _, resource, _, sub] => (format!("{resource}/{sub}"), true),
        [resource] => (resource.to_owned(), false),
        [resource, _] => (resource.to_owned(), true),
        _ => (uri.path().to_owned(), true),
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Calls that came.
    pub asked: u64,
    /// Of these: met a fault.
    pub faults: u64,
    /// Of these: carried out by the API server with success, whether the client was told or not.
    pub done: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Calls {
    pub by_call: BTreeMap<Call, Count>,
    /// Faults, by their names.
    pub by_fault: BTreeMap<&'static str, u64>,
}

impl Calls {
    /// Those on pods.
    pub fn pods(&self, agent: &str, verb: &str) -> Count {
        self.sum(|call| call.agent == agent && call.verb == verb && call.resource == "pods")
    }

    pub fn total(&self) -> Count {
        self.sum(|_| true)
    }

    fn sum(&self, fits: impl Fn(&Call) -> bool) -> Count {
        let fitting = self.by_call.iter().filter(|(call, _)| fits(call)).map(|(_, count)| *count);
        fitting.fold(Count::default(), |sum, one| Count {
            asked: sum.asked + one.asked,
            faults: sum.faults + one.faults,
            done: sum.done + one.done,
        })
    }

    pub(super) fn count_asked(&mut self, call: &Call, fault: &Fault) {
        let count = self.by_call.entry(call.clone()).or_default();
        count.asked += 1;
        if let Some(name) = fault.name() {
            count.faults += 1;
            *self.by_fault.entry(name).or_default() += 1;
        }
    }

    pub(super) fn count_done(&mut self, call: &Call) {
        self.by_call.entry(call.clone()).or_default().done += 1;
    }
}

impl fmt::Display for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (Call { agent, verb, resource }, Count { asked, faults, done }) in &self.by_call {
            writeln!(f, "{agent}: {verb} {resource}: {asked} calls, {faults} faults, {done} done")?;
        }
        let Count { asked, faults, .. } = self.total();
        write!(f, "{asked} calls, {faults} faults: {:?}", self.by_fault)
    }
}
