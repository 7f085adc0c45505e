//! The store in memory, the network, and what really happened.

use std::collections::{BTreeMap, BTreeSet};

use ckrv_core::id::{ClaimId, Fence, JobId};
use ckrv_core::job::{JobRecord, State};
use ckrv_core::log::Cursor;
use ckrv_core::machine::{EndReason, Evidence, Refusal, Verb, apply};

use crate::common::{TIMEOUT_SECONDS, at, claim_id, queued};

pub const JOBS: u32 = 40;
pub const DAY: i64 = 24 * 3600;

/// SplitMix64: small, and the same everywhere.
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub fn percent(&mut self, chance: u64) -> bool {
        self.next() % 100 < chance
    }

    pub fn seconds(&mut self, bound: i64) -> i64 {
        (self.next() % bound as u64) as i64
    }
}

/// What really happened to one job, seen from outside of its record.
#[derive(Default)]
pub struct Truth {
    /// Who won the lease last, if it was not taken away since.
    pub holder: Option<(ClaimId, Fence)>,
    /// States that the present holder went through.
    pub trail: Vec<State>,
    pub claims: u32,
    pub cancel_accepted: bool,
    pub cancelled_in_queue: bool,
    pub ends: u32,
    pub refunds: u32,
}

pub struct World {
    pub now: i64,
    pub dice: Dice,
    pub chaos: bool,
    pub jobs: BTreeMap<JobId, JobRecord>,
    pub truth: BTreeMap<JobId, Truth>,
    /// Requests that are still somewhere on the way, to arrive again.
    pub sent: Vec<(JobId, Verb)>,
    pub gone: BTreeSet<ClaimId>,
    pub claims: u32,
    pub quota: i64,
}

/// Every third job has hardly the time that it takes.
pub fn job(number: u32) -> JobRecord {
    let mut job = queued(number, i64::from(number) * 20);
    if number % 3 == 1 {
        job.request.timeout_seconds = TIMEOUT_SECONDS / 20;
    }
    job
}

pub enum Reply {
    Done(Box<JobRecord>),
    Refused(Refusal, Box<JobRecord>),
    /// The caller does not know whether it happened.
    Lost,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let jobs: BTreeMap<_, _> = (0..JOBS).map(job).map(|job| (job.id, job)).collect();
        let truth = jobs.keys().map(|id| (*id, Truth::default())).collect();
        let (sent, gone) = (Vec::new(), BTreeSet::new());
        Self { now: 0, dice: Dice(seed), chaos: true, quota: i64::from(JOBS), jobs, truth, sent, gone, claims: 0 }
    }

    pub fn call(&mut self, id: JobId, verb: &Verb) -> Reply {
        if self.chaos {
            if self.sent.len() < 300 {
                self.sent.push((id, verb.clone()));
            } else {
                let slot = self.dice.below(300);
                self.sent[slot] = (id, verb.clone());
            }
            if self.dice.percent(7) {
                return Reply::Lost;
            }
        }
        let reply = self.carry_out(id, verb);
        if self.chaos && self.dice.percent(7) { Reply::Lost } else { reply }
    }

    /// The store: read, ask the state machine, write.
    pub fn carry_out(&mut self, id: JobId, verb: &Verb) -> Reply {
        let before = self.jobs[&id].clone();
        match apply(&before, verb, at(self.now)) {
            Ok(change) => {
                let after = change.job;
                if after != before {
                    self.witness(&before, &after, verb, change.refund);
                    self.jobs.insert(id, after.clone());
                }
                Reply::Done(Box::new(after))
            }
            Err(refusal) => Reply::Refused(refusal, Box::new(before)),
        }
    }

    pub fn witness(&mut self, before: &JobRecord, after: &JobRecord, verb: &Verb, refund: bool) {
        let truth = self.truth.get_mut(&before.id).unwrap();
        assert_eq!(truth.ends, 0, "a write after the end: {verb:?}");
        match verb {
            Verb::Claim { claim, .. } => {
                assert!(truth.holder.is_none(), "taken from {:?}, who holds it", truth.holder);
                truth.holder = Some((*claim, after.fence));
                truth.trail.clear();
                truth.claims += 1;
            }
            Verb::Beat { claim, fence, .. }
            | Verb::Advance { claim, fence, .. }
            | Verb::Checkpoint { claim, fence, .. }
            | Verb::HandOut { claim, fence, .. }
            | Verb::Release { claim, fence, .. }
            | Verb::Unclaim { claim, fence, .. }
            | Verb::Finish { claim, fence, .. } => {
                assert_eq!(truth.holder, Some((*claim, *fence)), "{} by somebody who is not the newest holder", verb.name());
            }
            Verb::Cancel => {
                truth.cancel_accepted = true;
                truth.cancelled_in_queue |= before.state == State::Queued;
            }
            Verb::Notified { .. } => unreachable!("no job of the simulation has a webhook"),
            Verb::End { reason: EndReason::Deadline, .. } => {}
            Verb::Reap { .. } | Verb::End { .. } => {
                let lease = before.lease.as_ref();
                let alive = lease.is_some_and(|lease| lease.until >= at(self.now) && !self.gone.contains(&lease.claim));
                assert!(!alive, "{} took the job from somebody who holds it", verb.name());
            }
        }
        if let Verb::Advance { to, .. } = verb {
            truth.trail.push(*to);
        }
        if let Verb::Unclaim { .. } = verb {
            truth.claims -= 1;
        }
        if after.lease.is_none() {
            truth.holder = None;
        }
        if refund {
            truth.refunds += 1;
            self.quota -= 1;
        }
        if after.state.is_final() {
            truth.ends += 1;
        }
    }

    pub fn new_claim(&mut self) -> ClaimId {
        self.claims += 1;
        claim_id(self.claims)
    }

    /// An old request arrives once more.
    pub fn repeat_something(&mut self) {
        if !self.sent.is_empty() {
            let (id, verb) = self.sent[self.dice.below(self.sent.len())].clone();
            self.carry_out(id, &verb);
        }
    }

    /// A reaper whose clock or view is wrong.
    pub fn judge_hastily(&mut self) {
        let open: Vec<_> = self.jobs.values().filter(|job| !job.state.is_final()).map(|job| (job.id, job.fence)).collect();
        if open.is_empty() {
            return;
        }
        let (id, fence) = open[self.dice.below(open.len())];
        let reasons = [EndReason::Cancelled, EndReason::Deadline, EndReason::AttemptsExhausted, EndReason::Unclaimed];
        let verb = match reasons.get(self.dice.below(5)) {
            Some(reason) => Verb::End { fence, reason: *reason, evidence: Evidence::Lapsed, log_end: Cursor::default() },
            None => Verb::Reap { fence, evidence: Evidence::Lapsed, not_before: at(self.now), note: "hasty".to_owned() },
        };
        self.call(id, &verb);
    }

    pub fn cancel_something(&mut self) {
        let open: Vec<_> = self.jobs.values().filter(|job| !job.state.is_final()).map(|job| job.id).collect();
        if !open.is_empty() {
            let id = open[self.dice.below(open.len().min(6))];
            self.call(id, &Verb::Cancel);
        }
    }
}
