//! JOB on the command line: an id, a unique beginning of one, a URL that ends in one, or `@last`.

use std::path::PathBuf;

use ckrv_core::id::JobId;
use ckrv_core::wire::Job;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::client::Client;
use crate::config::Settings;
use crate::error::{CliError, Kind};
use crate::tokens::write_private;

/// Fewest characters of an id's beginning.
const SHORTEST: usize = 4;
/// Pages of the list looked through for a beginning, 100 jobs each.
const PAGES: usize = 50;

/// Finds out which job is meant.
///
/// # Errors
/// Nothing of that kind; more than one job that begins so.
pub async fn resolve(text: &str, client: &Client, settings: &Settings) -> Result<JobId, CliError> {
    if text == "@last" {
        return last(client, settings);
    }
    if let Some(id) = full_id(text) {
        return Ok(id);
    }
    let prefix = text.to_ascii_lowercase().replace('-', "");
    if prefix.len() < SHORTEST || !prefix.bytes().all(|byte| byte.is_ascii_hexdigit()) || prefix.len() > 32 {
        return Err(not_found(text, client).await);
    }
    let mut found: Vec<Job> = Vec::new();
    let mut cursor = None;
    for _ in 0..PAGES {
        let page = client.jobs(None, 100, cursor.as_deref()).await?;
        found.extend(page.jobs.into_iter().filter(|job| matches(&prefix, job.id)));
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    match found.len() {
        1 => Ok(found[0].id),
        0 => Err(not_found(text, client).await),
        _ => Err(ambiguous(text, &found)),
    }
}

/// Calls the service for a job, and says how to find it when it isn't there.
///
/// # Errors
/// "Job not found", with suggestions, among others.
pub async fn fetch(text: &str, client: &Client, settings: &Settings) -> Result<Job, CliError> {
    let id = resolve(text, client, settings).await?;
    match client.job(id).await {
        Ok(job) => Ok(job),
        Err(error) => Err(explain(error, text, client).await),
    }
}

/// Turns "not found" into "Job not found", with suggestions.
pub async fn explain(error: CliError, text: &str, client: &Client) -> CliError {
    match (error.kind, error.code.as_ref()) {
        (Kind::NotFound, "expired" | "gone" | "job_expired") => CliError {
            message: format!("Job not found: {text} has expired"),
            ..error.hint("results and logs are kept for 7 days; `ckrv list` shows the jobs that are left")
        },
        (Kind::NotFound, _) => CliError { request_id: error.request_id, ..not_found(text, client).await },
        _ => error,
    }
}

fn full_id(text: &str) -> Option<JobId> {
    let last = match url::Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => url.path_segments()?.rfind(|part| !part.is_empty())?.to_owned(),
        _ => text.to_owned(),
    };
    (last.len() == 36).then(|| last.parse().ok()).flatten()
}

/// The beginning of the id; or its short form, as in the names of branches.
fn matches(prefix: &str, id: JobId) -> bool {
    id.0.simple().to_string().starts_with(prefix) || id.short() == prefix
}

fn ambiguous(text: &str, jobs: &[Job]) -> CliError {
    let shown = jobs.iter().take(10).map(|job| format!("\n  {}  {}  {}", job.id, job.state, job.spec_id)).collect::<String>();
    let more = if jobs.len() > 10 { format!("\n  and {} more", jobs.len() - 10) } else { String::new() };
    let ids: Vec<String> = jobs.iter().map(|job| job.id.to_string()).collect();
    CliError::new(Kind::Usage, "job_ambiguous", format!("{} jobs begin with {text}:{shown}{more}", jobs.len()))
        .hint("give more of the id; ids made in the same minute begin alike, so the last 8 digits work too")
        .details(json!({ "jobs": ids }))
}

async fn not_found(text: &str, client: &Client) -> CliError {
    let known = client.jobs(None, 100, None).await.map(|page| page.jobs).unwrap_or_default();
    let similar = similar(text, &known.iter().map(|job| job.id).collect::<Vec<_>>());
    let mut hint = String::from("`ckrv list` shows your jobs; they are gone 7 days after their end");
    if !similar.is_empty() {
        hint.push_str("; did you mean ");
        hint.push_str(&similar.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or "));
        hint.push('?');
    }
    CliError::new(Kind::NotFound, "job_not_found", format!("Job not found: {text}")).hint(hint)
}

/// Ids that differ from the text by a slip of the hand, best first, three at most.
fn similar(text: &str, known: &[JobId]) -> Vec<JobId> {
    let text: Vec<char> = text.to_ascii_lowercase().chars().filter(|c| *c != '-').take(40).collect();
    let mut scored: Vec<(usize, JobId)> = known
        .iter()
        .map(|id| {
            let hex: Vec<char> = id.0.simple().to_string().chars().take(text.len().max(1)).collect();
            (distance(&text, &hex), *id)
        })
        .filter(|(distance, _)| text.len() >= SHORTEST && *distance <= 1 + text.len() / 10)
        .collect();
    scored.sort();
    scored.into_iter().take(3).map(|(_, id)| id).collect()
}

/// Levenshtein's.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

fn last_file(client: &Client, settings: &Settings) -> PathBuf {
    let name: String = hex::encode(&Sha256::digest(client.service().as_str())[..12]);
    settings.env.state_dir.join("last").join(name)
}

fn last(client: &Client, settings: &Settings) -> Result<JobId, CliError> {
    let text = std::fs::read_to_string(last_file(client, settings)).unwrap_or_default();
    text.trim().parse().map_err(|_| {
        CliError::new(
            Kind::NotFound,
            "job_not_found",
            format!("Job not found: no job was started from here at {}", client.service()),
        )
        .hint("`ckrv list` shows your jobs")
    })
}

/// Remembers a job as `@last` of its service.
///
/// # Errors
/// A state folder that can't be written.
pub fn remember(id: JobId, client: &Client, settings: &Settings) -> Result<(), CliError> {
    write_private(&last_file(client, settings), format!("{id}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0198c0de-aaaa-7bbb-8ccc-0123456789ab";

    #[test]
    fn an_id_is_found_in_a_url() {
        let id: JobId = ID.parse().unwrap();
        for text in [ID.to_owned(), format!("https://h/jobs/{ID}"), format!("https://h/v1/jobs/{ID}/?x=y#z"), ID.to_uppercase()] {
            assert_eq!(full_id(&text), Some(id), "{text}");
        }
        assert_eq!(full_id("https://h/jobs"), None);
    }

    #[test]
    fn a_slip_of_the_hand_is_recognised() {
        let id: JobId = ID.parse().unwrap();
        let swapped = ID.replace("aaaa", "aaba");
        assert_eq!(similar(&swapped, &[id]), [id]);
        assert_eq!(similar("0198c0df", &[id]), [id]);
        assert!(similar("ffffffff", &[id]).is_empty());
    }

    #[test]
    fn the_beginning_or_the_short_form_names_a_job() {
        let id: JobId = ID.parse().unwrap();
        assert!(matches("0198c0deaaaa", id) && matches("456789ab", id) && !matches("0198c0df", id));
    }
}
