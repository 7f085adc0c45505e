//! The spans of an attempt: dispatcher, gateway and job runner each put theirs under the trace of the request that made the job.

use ckrv_core::id::{Fence, JobId};
use ckrv_core::trace::TraceParent;
use tracing::Span;
use tracing::field::Empty;

/// Puts a span of that name under its parent in a trace that leaves this process; gives the span's own place in it.
/// Without an exporter the parent itself goes on.
pub type LinkSpan = fn(&Span, &str, TraceParent) -> TraceParent;

/// Spans of this target are for the log only.
pub const QUIET: &str = "ckrv_quiet";

/// No exporter.
pub const UNLINKED: LinkSpan = |_, _, parent| parent;

/// A part of an attempt. What is logged in it carries the fields; what it hands on names the second value as its parent.
pub fn span(link: LinkSpan, part: &str, job: JobId, fence: Fence, trace: Option<&str>) -> (Span, Option<String>) {
    let span = tracing::info_span!(
        "attempt",
        part,
        %job,
        attempt = Empty,
        fence = fence.0,
        trace_id = Empty,
        otel.name = Empty,
        otel.kind = Empty,
    );
    let parent = trace.and_then(|trace| trace.parse::<TraceParent>().ok());
    let place = parent.map(|parent| {
        span.record("trace_id", parent.id());
        link(&span, part, parent).to_string()
    });
    (span, place)
}

/// The same for what happens many times a minute, as beats do: its log lines carry the fields, but no exporter is told.
pub fn quiet_span(part: &str, job: JobId, fence: Fence, trace: Option<&str>) -> Span {
    let span = tracing::info_span!(target: QUIET, "attempt", part, %job, attempt = Empty, fence = fence.0, trace_id = Empty);
    if let Some(parent) = trace.and_then(|trace| trace.parse::<TraceParent>().ok()) {
        span.record("trace_id", parent.id());
    }
    span
}

/// What a job runner asks of the gateway; `path` is the route's within its attempt.
pub fn request_span(link: LinkSpan, path: &str, job: JobId, fence: Fence, trace: Option<&str>) -> Span {
    const PARTS: [&str; 7] = ["job", "advance", "artifacts", "credential", "secrets", "release", "finish"];
    let first = path.split('/').find(|word| !word.is_empty()).unwrap_or_default();
    match PARTS.iter().find(|part| **part == first) {
        Some(part) => span(link, part, job, fence, trace).0,
        None => quiet_span("beat, attention or log", job, fence, trace),
    }
}

/// Which attempt it is, once that is known.
pub fn note_attempt(attempt: u32) {
    Span::current().record("attempt", attempt);
}
