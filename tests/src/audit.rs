//! Who asked the test cluster's API server for what: its audit log, which has each request once.

use std::collections::BTreeSet;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::bench;

/// A request to the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// When it came, RFC 3339.
    pub at: String,
    /// The client's own name: its user agent.
    pub agent: String,
    pub user: String,
    pub verb: String,
    /// `pods`, `pods/status`, `serviceaccounts/token`.
    pub resource: String,
    pub namespace: String,
}

/// A place in the log.
#[derive(Clone, Copy, Debug)]
pub struct Mark(u64);

/// The log of a cluster that `cargo xtask cluster` made.
#[derive(Clone, Debug)]
pub struct Audit(PathBuf);

impl Audit {
    pub fn open() -> Result<Self> {
        let log = bench::kube_folder()?.join("logs/audit.log");
        ensure!(log.exists(), "the cluster has no audit log: start it with this checkout's `cargo xtask cluster`");
        Ok(Self(log))
    }

    pub fn mark(&self) -> Result<Mark> {
        Ok(Mark(std::fs::metadata(&self.0)?.len()))
    }

    /// What was asked since then. A watch that goes on counts as well as one that has ended.
    pub fn since(&self, mark: Mark) -> Result<Vec<Request>> {
        let mut file = std::fs::File::open(&self.0)?;
        ensure!(file.metadata()?.len() >= mark.0, "the audit log was begun anew meanwhile: measure again");
        file.seek(SeekFrom::Start(mark.0))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        let mut seen = BTreeSet::new();
        // The last line may be half written.
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let lines = text[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let events = lines.map(|line| serde_json::from_slice::<Value>(line).context("not a line of an audit log"));
        events
            .filter_map(|event| match event {
                Ok(event) => seen.insert(event["auditID"].to_string()).then(|| Ok(request(&event))),
                Err(error) => Some(Err(error)),
            })
            .collect()
    }
}

fn request(event: &Value) -> Request {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let object = &event["objectRef"];
    let resource = match object["subresource"].as_str() {
        Some(sub) => format!("{}/{sub}", text(&object["resource"])),
        None => text(&object["resource"]),
    };
    Request {
        at: text(&event["requestReceivedTimestamp"]),
        agent: text(&event["userAgent"]),
        user: text(&event["user"]["username"]),
        verb: text(&event["verb"]),
        resource,
        namespace: text(&object["namespace"]),
    }
}
