//! What the service's answers mean to a user.

use ckrv_core::wire::Problem;
use reqwest::{Response, StatusCode};
use url::Url;

use crate::error::{CliError, Kind};
use crate::tokens;

/// Longest error body that is read.
const MAX_BODY: usize = 64 * 1024;

/// The service is not there, or went away in the middle.
pub fn unreachable(service: &Url, error: reqwest::Error) -> CliError {
    let what = if error.is_timeout() { "does not answer" } else { "can't be reached" };
    CliError::new(Kind::Unreachable, "unreachable", format!("the service {service} {what}"))
        .hint("check your connection and the service's URL (`ckrv doctor`), or run the job on this machine: `ckrv run` without --cloud")
        .retryable()
        .source(error.without_url())
}

/// An answer that is not success.
pub async fn from_response(mut response: Response, has_token: bool) -> CliError {
    let status = response.status();
    let retry_after = response.headers().get("retry-after").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let request_id = response.headers().get("x-request-id").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_BODY {
            break;
        }
    }
    let problem = serde_json::from_slice::<Problem>(&body).ok();
    let error = describe(status, problem.as_ref(), retry_after.as_deref(), has_token);
    CliError {
        request_id: request_id
            .or_else(|| problem.map(|problem| problem.request_id))
            .filter(|id| is_request_id(id))
            .map(Into::into),
        ..error
    }
}

/// Ours are; what a proxy says is not printed.
fn is_request_id(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn describe(status: StatusCode, problem: Option<&Problem>, retry_after: Option<&str>, has_token: bool) -> CliError {
    let text = problem.and_then(Problem::text);
    let error = match status {
        StatusCode::UNAUTHORIZED if has_token => {
            CliError::new(Kind::NotLoggedIn, "not_logged_in", "the service refuses the token in CKRV_TOKEN")
                .hint("set CKRV_TOKEN to one that is valid, or unset it and run `ckrv cloud login`")
        }
        StatusCode::UNAUTHORIZED => tokens::not_logged_in(),
        StatusCode::PAYMENT_REQUIRED => quota(problem),
        StatusCode::NOT_FOUND => CliError::new(Kind::NotFound, "not_found", text.unwrap_or("not found")),
        StatusCode::GONE => CliError::new(Kind::NotFound, "expired", text.unwrap_or("it has expired")),
        StatusCode::TOO_MANY_REQUESTS => {
            let wait = retry_after.map_or_else(|| "a moment".to_owned(), |seconds| format!("{seconds} seconds"));
            CliError::new(Kind::Limit, "rate_limited", text.unwrap_or("the service has had too many requests"))
                .hint(format!("try again in {wait}"))
                .retryable()
        }
        status if status.is_server_error() => {
            let code = if status == StatusCode::SERVICE_UNAVAILABLE { "unavailable" } else { "server_error" };
            let message = format!(
                "the service is in trouble ({}){}",
                status.as_u16(),
                text.map(|text| format!(": {text}")).unwrap_or_default()
            );
            CliError::new(Kind::Unreachable, code, message)
                .hint("try again later, or run the job on this machine: `ckrv run` without --cloud")
                .retryable()
        }
        status => CliError::other("refused", text.map_or_else(|| format!("the service answers {status}"), str::to_owned)),
    };
    let Some(problem) = problem else { return error };
    let keeps_code = matches!(status, StatusCode::UNAUTHORIZED) || problem.code.is_empty();
    let error = if keeps_code { error } else { CliError { code: problem.code.clone().into(), ..error } };
    match &problem.hint {
        Some(hint) if error.hint.is_none() => error.hint(hint),
        _ => error,
    }
}

fn quota(problem: Option<&Problem>) -> CliError {
    let text = problem.and_then(Problem::text).unwrap_or("this month's jobs are used up");
    let mut hint = Vec::new();
    if let Some(at) = problem.and_then(|problem| problem.quota_resets_at) {
        hint.push(format!("your quota resets at {at}"));
    }
    if let Some(url) = problem.and_then(|problem| problem.upgrade_url.as_deref()) {
        hint.push(format!("upgrade at {url}"));
    }
    let error = CliError::new(Kind::Limit, "quota_exceeded", text);
    if hint.is_empty() { error } else { error.hint(hint.join(", or ")) }
}

/// The best sentence of a problem.
trait Text {
    fn text(&self) -> Option<&str>;
}

impl Text for Problem {
    fn text(&self) -> Option<&str> {
        let candidates =
            [self.message.as_deref(), Some(self.detail.as_str()), Some(self.title.as_str()), self.error_description.as_deref()];
        candidates.into_iter().flatten().find(|text| !text.is_empty())
    }
}
