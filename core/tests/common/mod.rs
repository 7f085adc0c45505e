//! A job and a clock for the tests of the state machine.

use ckrv_core::id::{ClaimId, Fence, JobId, UserId};
use ckrv_core::job::{Facts, JobRecord, JobRequest, State};
use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

pub const TIMEOUT_SECONDS: u32 = 1800;

pub fn at(seconds: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_secs(1_800_000_000 + seconds)
}

pub fn claim_id(number: u32) -> ClaimId {
    ClaimId(Uuid::from_u128(0xc1a1_0000 + u128::from(number)))
}

pub fn queued(number: u32, created: i64) -> JobRecord {
    let now = at(created);
    JobRecord {
        id: JobId(Uuid::from_u128(u128::from(number))),
        owner: UserId(Uuid::from_u128(7)),
        request: JobRequest {
            git_repo_url: "https://git.example/shop.git".to_owned(),
            git_base_branch: "main".to_owned(),
            git_credential_name: None,
            spec_id: "fix".to_owned(),
            spec_name: None,
            agent: "script".to_owned(),
            model: None,
            timeout_seconds: TIMEOUT_SECONDS,
            secrets: Default::default(),
            labels: Default::default(),
            push: false,
            max_cost_micro_usd: None,
            notify_url: None,
            retry_of: None,
        },
        spec_key: format!("jobs/{number}/spec"),
        state: State::Queued,
        created_at: now,
        updated_at: now,
        started_at: None,
        completed_at: None,
        fence: Fence(0),
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
        quota_month: "2027-01".to_owned(),
        charge_micro_usd: 0,
        checkpoint: None,
        handed_out: std::collections::BTreeMap::new(),
        notice: None,
        trace: None,
    }
}
