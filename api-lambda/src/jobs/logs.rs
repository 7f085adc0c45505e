//! `GET /v1/jobs/{id}/logs`: pages, and with `follow=true` a stream.

use axum::Extension;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use ckrv_core::log::Cursor;
use ckrv_core::wire::{LogPage, Problem};
use serde::Deserialize;
use utoipa::IntoParams;

use super::batch::batch;
use super::follow::{Deadline, follow};
use crate::config::FollowMode;
use crate::error::ApiError;
use crate::extract::{Caller, JobPath, Query, require_accept};
use crate::state::ApiState;

/// Version 1 has no pages, so that a client of it expects the whole log; longer ones it must follow.
const MAX_ENTRIES: usize = 10_000;
const MAX_PAGE_BYTES: usize = 4 * 1024 * 1024;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct LogParams {
    #[serde(default)]
    follow: bool,
    /// Only entries behind this cursor, `FENCE.SEQ`.
    after: Option<String>,
    /// 1 to 10000.
    limit: Option<usize>,
}

/// A job's log. With `follow=true` as server-sent events, until `data: [DONE]`; `Last-Event-ID` resumes. A reply may end before, where a
/// service can't hold it open: its client comes back. One that sends `Ckrv-Follow: batch` expects that, and is told when by `retry:`.
#[utoipa::path(get, path = "/v1/jobs/{id}/logs", tag = "jobs",
    params(("id" = String, Path), LogParams, ("Last-Event-ID" = Option<String>, Header), ("Ckrv-Follow" = Option<String>, Header)),
    responses((status = 200, description = "With `follow=true`: `text/event-stream`, each event's data one log entry", body = LogPage),
        (status = 404, body = Problem, content_type = "application/problem+json"), (status = 410, body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn read_logs(
    State(state): State<ApiState>,
    headers: HeaderMap,
    Caller(user): Caller,
    JobPath(id): JobPath,
    deadline: Option<Extension<Deadline>>,
    Query(params): Query<LogParams>,
) -> Result<Response, ApiError> {
    let kind = if params.follow { "text/event-stream" } else { "application/json" };
    require_accept(&headers, &[kind])?;
    let job = super::kept(super::job_of(&state, &user, id).await?, state.now())?;
    let resumed = headers.get("last-event-id").map(|value| value.to_str().unwrap_or("?").to_owned()).filter(|_| params.follow);
    let after = read_cursor(resumed.or(params.after))?;
    if params.follow {
        let wants_batch = headers.get("ckrv-follow").is_some_and(|value| value == "batch");
        return match state.config.follow {
            FollowMode::Lambda { streams } if wants_batch || !streams => batch(&state, id, after).await,
            _ => follow(&state, id, after, deadline.map(|Extension(deadline)| deadline)),
        };
    }
    let limit = params.limit.unwrap_or(MAX_ENTRIES);
    if !(1..=MAX_ENTRIES).contains(&limit) {
        return Err(ApiError::invalid("invalid_query", format!("`limit` must be 1 to {MAX_ENTRIES}.")));
    }
    let mut logs = state.stores.jobs.read_log(job.id, after, limit).await?;
    let mut bytes = 0;
    let fits = logs.iter().position(|entry| {
        bytes += serde_json::to_vec(entry).map_or(0, |text| text.len());
        bytes > MAX_PAGE_BYTES
    });
    let cut = fits.map(|count| count.max(1)).filter(|count| *count < logs.len());
    if let Some(count) = cut {
        logs.truncate(count);
    }
    let more = cut.is_some() || logs.len() == limit;
    let next_cursor = logs.last().filter(|_| more).map(|entry| entry.cursor().to_string());
    Ok(axum::Json(LogPage { logs, next_cursor }).into_response())
}

fn read_cursor(text: Option<String>) -> Result<Cursor, ApiError> {
    match text {
        None => Ok(Cursor::default()),
        Some(text) => text.parse().map_err(|error: ckrv_core::log::BadCursor| ApiError::invalid("bad_cursor", error.to_string())),
    }
}
