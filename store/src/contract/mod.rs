//! What every backend must do, as tests that take a fresh set of stores. A backend's test file is one line:
//!
//! ```ignore
//! ckrv_store::contract_tests!(fixture); // async fn fixture() -> ckrv_store::contract::Fixture
//! ```
//!
//! Not tested here: what survives a crash, file modes, and what a backend does with a record that it can't read; these need the
//! backend's own files.

#![expect(clippy::unwrap_used, reason = "a test suite: a panic is how it says no")]
#![expect(clippy::missing_panics_doc, reason = "as above")]

pub mod accounts;
pub mod blobs;
pub mod create;
pub mod lists;
pub mod logs;
pub mod notices;
pub mod queue;
pub mod seals;
pub mod usage;

use std::any::Any;

use ckrv_core::id::{ClaimId, Fence, JobId, UserId};
use ckrv_core::job::{Facts, JobRecord, JobRequest, Outcome, OutcomeClass, State};
use ckrv_core::log::{Cursor, Level, LogEntry};
use ckrv_core::machine::{Finish, Refusal, Verb};
use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use crate::Stores;
use crate::error::VerbError;
use crate::job_store::{Created, Idempotency, JobStore, NewJob, QuotaRule};

/// Fresh, empty stores; `guard` keeps alive what they stand on.
pub struct Fixture {
    pub stores: Stores,
    pub guard: Box<dyn Any + Send>,
}

impl std::fmt::Debug for Fixture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fixture").finish_non_exhaustive()
    }
}

/// Makes a `#[tokio::test]` of every test of the suite. The argument is an async function that gives a [`Fixture`].
#[macro_export]
macro_rules! contract_tests {
    ($fixture:path) => {
        $crate::contract_tests! { @all $fixture;
            accounts: a_user_is_read_back, access_tokens_are_found_by_hash_and_kept_until_they_expire,
                a_family_is_rotated_by_one_of_many, a_revoked_family_is_never_rotated_and_its_tokens_are_gone,
                a_device_login_changes_state_once, a_device_login_is_found_by_its_user_code,
                a_credential_is_put_once_by_one_of_many, credentials_of_users_do_not_mix, a_secret_is_put_once_and_deleted_once,
                the_last_use_is_noted_and_never_goes_back, a_login_is_linked_with_one_user,
                a_service_token_is_found_by_its_hash_until_it_is_deleted, a_service_tokens_use_is_noted_once_a_minute,
                logins_of_a_user_are_listed_until_revoked, audit_records_are_read_by_day_in_order,
                workers_are_listed_once_each_while_they_were_seen_lately;
            blobs: a_blob_is_read_back, a_part_of_a_blob_is_read, the_same_content_again_is_success, other_content_is_a_conflict_and_changes_nothing,
                one_of_many_writers_decides_a_blob, a_prefix_is_deleted_with_all_below_and_nothing_beside,
                one_blob_is_deleted_and_nothing_beside,
                a_key_that_leaves_the_store_is_refused;
            create: a_new_job_can_be_read_at_once, the_same_key_and_body_give_the_same_job_even_at_full_quota,
                the_same_key_with_another_body_is_refused, keys_of_users_do_not_mix, one_of_many_equal_requests_makes_the_job,
                a_quota_of_five_lets_exactly_five_of_64_through, a_refused_job_leaves_nothing_behind,
                a_quota_of_zero_lets_nothing_through_and_no_cap_lets_everything_through, months_are_counted_apart,
                a_record_that_is_not_queued_is_not_made;
            lists: pages_give_every_job_once_newest_first, a_filter_by_state_holds_over_pages, a_made_up_cursor_is_refused,
                lists_of_users_do_not_mix, due_gives_what_may_start_oldest_first, queue_position_counts_who_came_earlier,
                running_gives_jobs_under_a_lease, stuck_gives_what_will_never_be_due, durations_are_of_successes_newest_first,
                an_expired_job_is_purged_once_and_can_still_be_named;
            logs: entries_come_back_in_order_across_attempts, repeated_entries_are_stored_once, a_gap_is_refused_and_says_where_to_go_on,
                only_the_holder_of_the_lease_appends, an_ended_job_takes_no_more_entries, a_page_starts_behind_its_cursor,
                a_big_batch_comes_back_whole, the_end_names_the_last_stored_entry, racing_repeats_leave_one_copy, a_compacted_log_reads_the_same;
            queue: each_of_200_jobs_is_claimed_once_by_24_claimers, a_claim_whose_answer_was_lost_is_told_again,
                a_stale_holder_is_refused_and_changes_nothing, a_job_goes_through_every_phase_to_success,
                a_repeated_finish_is_told_the_first_answer, a_refused_verb_is_stored_nowhere, an_unknown_job_is_not_found,
                a_released_job_waits_and_is_claimed_with_a_higher_fence, a_lapsed_lease_is_reaped_and_not_before,
                infrastructure_faults_give_the_quota_back, a_job_cancelled_while_queued_gives_the_quota_back,
                a_running_job_that_is_cancelled_is_told_and_keeps_its_count, a_deadline_ends_a_job_under_a_lease,
                a_job_that_nobody_claims_ends_after_a_day, a_refund_never_goes_below_zero, one_of_many_ends_wins,
                every_step_is_an_event, the_newest_checkpoint_of_a_holder_is_kept_for_the_next_attempt,
                a_secret_is_handed_out_once_in_an_attempt, one_of_many_askers_is_given_a_secret, a_claim_that_is_undone_is_no_attempt;
            seals: a_value_is_opened_where_it_was_sealed, another_owner_kind_or_name_opens_nothing, parts_can_not_be_shifted_between_fields,
                a_changed_value_is_not_opened, equal_values_are_sealed_differently;
            usage: a_job_beyond_the_included_ones_is_in_the_ledger, racing_creates_charge_exactly_what_is_beyond,
                a_refund_voids_the_ledger_entry_once, an_agents_cost_is_counted_at_the_end_of_its_job, the_depth_tells_what_waits_and_runs;
            notices: an_ended_job_is_to_be_notified_until_it_was, one_of_many_notifiers_counts, a_job_without_a_url_is_never_notified;
        }
    };
    (@all $fixture:path; $($module:ident: $($test:ident),+;)+) => {$(
        mod $module {
            #[allow(unused_imports, reason = "the fixture may be named by a path")]
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
                async fn $test() {
                    let fixture: $crate::contract::Fixture = $fixture().await;
                    $crate::contract::$module::$test(&fixture.stores).await;
                }
            )+
        }
    )+};
}

/// The suite's clock: a fixed moment and an offset in seconds.
#[must_use]
pub fn at(seconds: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_secs(1_800_000_000 + seconds)
}

pub(crate) const MONTH: &str = "2027-01";

pub(crate) fn new_user() -> UserId {
    UserId(Uuid::new_v4())
}

pub(crate) fn new_claim() -> ClaimId {
    ClaimId(Uuid::new_v4())
}

/// A queued job that was made `created` seconds after the suite's start.
pub(crate) fn record(owner: UserId, created: i64) -> JobRecord {
    let now = at(created);
    let id = JobId(Uuid::now_v7());
    JobRecord {
        id,
        owner,
        request: JobRequest {
            git_repo_url: "https://git.example/team/shop.git".to_owned(),
            git_base_branch: "main".to_owned(),
            git_credential_name: Some("forge".to_owned()),
            spec_id: "fix-cart".to_owned(),
            spec_name: Some("fix-cart.md".to_owned()),
            agent: "claude".to_owned(),
            model: None,
            timeout_seconds: 1800,
            secrets: [("api-key".to_owned(), "work".to_owned())].into(),
            labels: [("team".to_owned(), "größe \u{1f980}".to_owned())].into(),
            push: false,
            max_cost_micro_usd: Some(5_000_000),
            notify_url: None,
            retry_of: None,
        },
        spec_key: format!("jobs/{id}/spec"),
        state: State::Queued,
        created_at: now,
        updated_at: now,
        started_at: None,
        completed_at: None,
        fence: Fence::default(),
        attempt: 0,
        lease: None,
        not_before: now,
        deadline: None,
        cancel_at: None,
        outcome: None,
        facts: Facts::default(),
        artifacts: Vec::new(),
        log_end: None,
        finished_by: None,
        last_fault: None,
        version: 0,
        retention_seconds: 7 * 24 * 3600,
        expires_at: None,
        quota_month: MONTH.to_owned(),
        charge_micro_usd: 0,
        checkpoint: None,
        handed_out: std::collections::BTreeMap::new(),
        notice: None,
        trace: None,
    }
}

pub(crate) fn quota(cap: Option<u32>) -> QuotaRule {
    QuotaRule { month: MONTH.to_owned(), included: None, cap, overage_micro_usd: 0, resets_at: at(1_000_000) }
}

pub(crate) fn new_job(job: JobRecord) -> NewJob {
    NewJob { job, idempotency: None, quota: quota(None) }
}

pub(crate) fn keyed(job: JobRecord, key: &str, body: &str, cap: Option<u32>) -> NewJob {
    NewJob { job, idempotency: Some(Idempotency { key_sha256: key.to_owned(), body_sha256: body.to_owned() }), quota: quota(cap) }
}

/// Makes a queued job at second `created`.
pub(crate) async fn make(stores: &Stores, owner: UserId, created: i64) -> JobRecord {
    match stores.jobs.create_job(new_job(record(owner, created)), at(created)).await.unwrap() {
        Created::New(job) => job,
        Created::Replay(job) => panic!("{} is a replay", job.id),
    }
}

/// Takes the lease at second `now` for 60 seconds.
pub(crate) async fn claim(stores: &Stores, job: &JobRecord, now: i64) -> (JobRecord, ClaimId) {
    let claim = new_claim();
    let job = stores.jobs.apply(job.id, &claiming(claim, now), at(now)).await.unwrap();
    (job, claim)
}

pub(crate) fn claiming(claim: ClaimId, now: i64) -> Verb {
    Verb::Claim { claim, worker: "w1".to_owned(), until: at(now + 60), has_room: true }
}

pub(crate) fn finishing(claim: ClaimId, fence: Fence, class: OutcomeClass, log_end: Cursor) -> Verb {
    let finish = Finish { outcome: Outcome::new(class, "so it ended"), facts: Facts::default(), artifacts: Vec::new(), log_end };
    Verb::Finish { claim, fence, finish: Box::new(finish) }
}

/// Brings a claimed job to `publishing`.
pub(crate) async fn advance_to_publishing(stores: &Stores, job: &JobRecord, claim: ClaimId, now: i64) -> JobRecord {
    let mut job = job.clone();
    for to in [State::Planning, State::Executing, State::Verifying, State::Publishing] {
        let facts = Facts { base_sha: Some("b".repeat(40)), ..Facts::default() };
        job = stores.jobs.apply(job.id, &Verb::Advance { claim, fence: job.fence, to, facts }, at(now)).await.unwrap();
        assert_eq!(job.state, to);
    }
    job
}

pub(crate) async fn succeed(stores: &Stores, job: &JobRecord, start: i64, end: i64) -> JobRecord {
    let (job, claim) = claim(stores, job, start).await;
    let job = advance_to_publishing(stores, &job, claim, end).await;
    stores.jobs.apply(job.id, &finishing(claim, job.fence, OutcomeClass::Success, Cursor::default()), at(end)).await.unwrap()
}

pub(crate) fn entries(fence: Fence, range: std::ops::RangeInclusive<u64>) -> Vec<LogEntry> {
    range
        .map(|seq| LogEntry {
            timestamp: at(0),
            level: Level::Info,
            source: "agent".to_owned(),
            message: format!("line {seq} of attempt {fence}"),
            fence,
            seq,
            event: None,
        })
        .collect()
}

/// The record as bytes, for "nothing changed".
pub(crate) async fn bytes_of(jobs: &dyn JobStore, id: JobId) -> String {
    serde_json::to_string(&jobs.job(id).await.unwrap().unwrap()).unwrap()
}

pub(crate) fn refusal<T: std::fmt::Debug>(answer: Result<T, VerbError>) -> Refusal {
    match answer {
        Err(VerbError::Refused { refusal, .. }) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}
