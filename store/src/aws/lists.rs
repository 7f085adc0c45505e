//! What is kept beside a job's own item: the owner's list, how long jobs took, who follows a log; and the jobs that are stuck.

use std::collections::HashSet;
use std::sync::PoisonError;

use aws_sdk_dynamodb::types::AttributeValue;
use ckrv_core::id::{JobId, UserId};
use ckrv_core::job::{JobRecord, State};
use jiff::{SignedDuration, Timestamp};

use super::create::list_key;
use super::edit::Edit;
use super::jobs::AwsJobs;
use super::meta::Meta;
use super::queue::{List, Part, millis};
use super::table::{COUNTED, Item, PK, SK, TTL, failed, key, number, number_of, sha256_hex, string, text_of, ttl, user_key};
use crate::error::StoreError;
use crate::job_store::{JobFilter, Page};

/// What one look into a list reads: as many records as one BatchGetItem gives.
const PAGE: usize = 100;
/// Jobs whose durations are kept for each repository and agent; an estimate needs fewer.
const DURATIONS: usize = 20;
const SECONDS: &str = "d";
/// A repository without a success for this long has no estimate.
const DURATIONS_KEPT: SignedDuration = SignedDuration::from_hours(180 * 24);
const UNTIL: &str = "until";
/// A follower's note is written again only when it would end this much later.
const FOLLOW_STEP: SignedDuration = SignedDuration::from_secs(10);
/// Jobs whose followers this process remembers; beyond that it forgets all and writes once more.
const FOLLOWED: usize = 4096;

/// A place in the list of an owner's jobs, written `MICROSECONDS_ID`.
fn parse_cursor(text: &str) -> Result<(i64, String), StoreError> {
    let parsed = text.split_once('_').and_then(|(at, id)| Some((at.parse().ok()?, id.parse::<JobId>().ok()?.to_string())));
    parsed.ok_or(StoreError::BadCursor)
}

pub(super) async fn jobs_of(
    store: &AwsJobs,
    owner: UserId,
    filter: &JobFilter,
    limit: usize,
    cursor: Option<&str>,
) -> Result<Page<JobRecord>, StoreError> {
    let cursor = cursor.map(parse_cursor).transpose()?;
    let mut start = cursor.map(|(at, id)| key(user_key(owner), list_key(at, &id)));
    // One more than asked for tells whether there is a next page.
    let wanted = limit.saturating_add(1);
    let page = if filter.states.is_empty() { wanted.min(PAGE) } else { PAGE };
    let mut items: Vec<JobRecord> = Vec::new();
    loop {
        let (ids, next) = list_page(store, owner, page, start).await?;
        let found = store.metas(&ids).await?.into_iter().filter(|meta| !meta.purged).map(|meta| meta.job);
        items.extend(found.filter(|job| filter.states.is_empty() || filter.states.contains(&job.state)));
        start = next;
        if items.len() >= wanted || start.is_none() {
            break;
        }
    }
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(|job| format!("{}_{}", job.created_at.as_microsecond(), job.id));
    Ok(Page { items, next })
}

/// Ids from the owner's list, newest first, and where to go on.
async fn list_page(
    store: &AwsJobs,
    owner: UserId,
    limit: usize,
    start: Option<Item>,
) -> Result<(Vec<JobId>, Option<Item>), StoreError> {
    let query = store.table.client.query().table_name(&store.table.name).consistent_read(true).return_consumed_capacity(COUNTED);
    let answer = query
        .key_condition_expression("#p = :p AND begins_with(#s, :s)")
        .expression_attribute_names("#p", PK)
        .expression_attribute_names("#s", SK)
        .expression_attribute_values(":p", string(user_key(owner)))
        .expression_attribute_values(":s", string("J#"))
        .scan_index_forward(false)
        .limit(i32::try_from(limit).unwrap_or(i32::MAX))
        .set_exclusive_start_key(start)
        .send()
        .await
        .map_err(failed("listing jobs"))?;
    let ids = answer.items.unwrap_or_default();
    let ids = ids.iter().filter_map(|item| text_of(item, SK)?.rsplit_once('#')?.1.parse().ok()).collect();
    Ok((ids, answer.last_evaluated_key))
}

/// Queued jobs that are past their deadline, or that nobody took. The keys tell which may be; only those are read.
pub(super) async fn stuck(
    store: &AwsJobs,
    now: Timestamp,
    unclaimed_since: Timestamp,
    limit: usize,
) -> Result<Vec<Meta>, StoreError> {
    let look = store.look(List::Ready, Part::UpTo(now), None).await?;
    let (now_key, unclaimed_key) = (millis(now), millis(unclaimed_since));
    let mut seen = HashSet::new();
    let candidates = look.found.into_iter().filter(|found| match found.sort.splitn(3, '#').nth(2) {
        Some(deadline) => *deadline <= *now_key,
        None => found.sort.split('#').next().is_some_and(|at| *at <= *unclaimed_key),
    });
    let ids: Vec<JobId> = candidates.map(|found| found.id).filter(|id| seen.insert(*id)).collect();
    let mut stuck = Vec::new();
    for batch in ids.chunks(PAGE) {
        if stuck.len() >= limit {
            break;
        }
        stuck.extend(store.metas(batch).await?.into_iter().filter(|meta| {
            let job = &meta.job;
            let late = job.deadline.is_some_and(|deadline| deadline <= now);
            let unclaimed = job.attempt == 0 && job.created_at <= unclaimed_since;
            job.state == State::Queued && (late || unclaimed || job.cancel_at.is_some())
        }));
    }
    Ok(stuck)
}

fn durations_key(owner: UserId, repo_url: &str, agent: &str) -> Item {
    let name = sha256_hex(format!("{repo_url}\0{agent}"));
    key(user_key(owner), format!("R#{}", &name[..32]))
}

pub(super) async fn durations(
    store: &AwsJobs,
    owner: UserId,
    repo_url: &str,
    agent: &str,
    limit: usize,
) -> Result<Vec<f64>, StoreError> {
    let found = store.table.get("reading how long jobs took", durations_key(owner, repo_url, agent)).await?;
    let list = found.as_ref().and_then(|item| item.get(SECONDS)?.as_l().ok()).into_iter().flatten();
    Ok(list.filter_map(|seconds| seconds.as_n().ok()?.parse().ok()).take(limit).collect())
}

impl AwsJobs {
    /// Adds a success to the list of its repository and agent. Best effort: it serves an estimate only.
    pub(super) async fn note_duration(&self, job: &JobRecord) {
        let Some((start, end)) = job.started_at.zip(job.completed_at) else { return };
        if let Err(error) = self.try_note_duration(job, end.duration_since(start).as_secs_f64(), end).await {
            tracing::debug!(error = crate::chain(&error), job = %job.id, "how long the job took was not noted");
        }
    }

    async fn try_note_duration(&self, job: &JobRecord, seconds: f64, end: Timestamp) -> Result<(), StoreError> {
        let key = durations_key(job.owner, &job.request.git_repo_url, &job.request.agent);
        // Two jobs that end at the same moment may take each other's place: that makes an estimate no worse.
        let earlier = durations(self, job.owner, &job.request.git_repo_url, &job.request.agent, DURATIONS - 1).await?;
        let list = std::iter::once(seconds).chain(earlier).map(number).collect();
        let mut edit = Edit::default();
        edit.set(SECONDS, AttributeValue::L(list));
        edit.set(TTL, ttl(end + DURATIONS_KEPT));
        self.table.write("noting how long a job took", vec![edit.write(&self.table, key)?], "").await.map(drop)
    }
}

fn follow_partition(worker: &str) -> String {
    format!("W#{worker}")
}

pub(super) async fn watch(store: &AwsJobs, job: &JobRecord, until: Timestamp) -> Result<(), StoreError> {
    let Some(lease) = &job.lease else { return Ok(()) };
    {
        let mut followed = store.followed.lock().unwrap_or_else(PoisonError::into_inner);
        if followed.get(&job.id).is_some_and(|noted| until < *noted + FOLLOW_STEP) {
            return Ok(());
        }
        if followed.len() >= FOLLOWED {
            followed.clear();
        }
        followed.insert(job.id, until);
    }
    let mut item = key(follow_partition(&lease.worker), job.id.to_string());
    item.insert(UNTIL.to_owned(), number(until.as_millisecond()));
    item.insert(TTL.to_owned(), ttl(until));
    let put = store.table.client.put_item().table_name(&store.table.name).set_item(Some(item)).return_consumed_capacity(COUNTED);
    match put.send().await {
        Ok(_) => Ok(()),
        Err(error) => {
            store.followed.lock().unwrap_or_else(PoisonError::into_inner).remove(&job.id);
            Err(failed("noting that a log is followed")(error))
        }
    }
}

pub(super) async fn watched(store: &AwsJobs, worker: &str, now: Timestamp) -> Result<Vec<JobId>, StoreError> {
    let items = store.table.all("asking which logs are followed", &follow_partition(worker), "").await?;
    let live = items.iter().filter(|item| number_of::<i64>(item, UNTIL).is_some_and(|until| until > now.as_millisecond()));
    Ok(live.filter_map(|item| text_of(item, SK)?.parse().ok()).collect())
}
