//! Workers and a reaper.

use ckrv_core::id::{ClaimId, Fence, JobId};
use ckrv_core::job::{Facts, JobRecord, Outcome, OutcomeClass, State};
use ckrv_core::log::Cursor;
use ckrv_core::machine::{EndReason, Evidence, Finish, MAX_ATTEMPTS, Refusal, Verb};

use crate::common::at;
use crate::world::{DAY, Reply, World};

const LEASE: i64 = 60;
const BEAT: i64 = 20;
/// One job in so many is taken by no worker.
const UNWANTED: u32 = 15;

pub struct Work {
    id: JobId,
    claim: ClaimId,
    fence: Fence,
    state: State,
    last_beat: i64,
    ending: Option<OutcomeClass>,
}

#[derive(Default)]
pub struct Worker {
    /// A claim whose answer was lost; tried again with the same id.
    trying: Option<(JobId, ClaimId)>,
    work: Option<Work>,
    asleep_until: i64,
}

impl Worker {
    pub fn step(&mut self, world: &mut World) {
        if world.now < self.asleep_until {
            return;
        }
        if world.chaos && world.dice.percent(2) {
            // Past its lease, sometimes.
            self.asleep_until = world.now + world.dice.seconds(300);
            return;
        }
        if world.chaos && world.dice.percent(1) {
            world.gone.extend(self.work.take().map(|work| work.claim));
            self.trying = None;
            return;
        }
        match self.work.take() {
            None => self.claim(world),
            Some(work) if work.ending.is_none() && world.now - work.last_beat >= BEAT => self.beat(world, work),
            Some(work) => self.go_on(world, work),
        }
    }

    pub fn claim(&mut self, world: &mut World) {
        let (id, claim) = match self.trying.take() {
            Some(trying) => trying,
            None => {
                let wanted =
                    |job: &&JobRecord| job.state == State::Queued && !job.id.0.as_u128().is_multiple_of(u128::from(UNWANTED));
                let due: Vec<_> =
                    world.jobs.values().filter(wanted).filter(|job| job.not_before <= at(world.now)).map(|job| job.id).collect();
                if due.is_empty() {
                    return;
                }
                let id = due[world.dice.below(due.len().min(3))];
                (id, world.new_claim())
            }
        };
        let until = at(world.now + LEASE);
        match world.call(id, &Verb::Claim { claim, worker: "w".to_owned(), until, has_room: true }) {
            Reply::Done(job) => {
                let (state, fence) = (job.state, job.fence);
                self.work = Some(Work { id, claim, fence, state, last_beat: world.now, ending: None });
            }
            Reply::Refused(..) => {}
            Reply::Lost => self.trying = Some((id, claim)),
        }
    }

    pub fn beat(&mut self, world: &mut World, mut work: Work) {
        let verb = Verb::Beat { claim: work.claim, fence: work.fence, until: at(world.now + LEASE) };
        match world.call(work.id, &verb) {
            Reply::Done(job) => {
                work.last_beat = world.now;
                if job.cancel_at.is_some() {
                    work.ending = Some(OutcomeClass::Cancelled);
                }
                self.work = Some(work);
            }
            Reply::Refused(..) => {}
            Reply::Lost => self.work = Some(work),
        }
    }

    pub fn go_on(&mut self, world: &mut World, mut work: Work) {
        let verb = self.next_verb(world, &mut work);
        match world.call(work.id, &verb) {
            Reply::Done(job) if job.lease.as_ref().is_some_and(|lease| lease.claim == work.claim) => {
                work.state = job.state;
                self.work = Some(work);
            }
            // It ended, or was given back.
            Reply::Done(_) => {}
            Reply::Refused(refusal, job) => match refusal {
                Refusal::LostLease | Refusal::Ended => {}
                Refusal::CancelRequested => self.work = Some(Work { ending: Some(OutcomeClass::Cancelled), ..work }),
                Refusal::DeadlinePassed => self.work = Some(Work { ending: Some(OutcomeClass::Timeout), ..work }),
                Refusal::NoAttemptsLeft => self.work = Some(Work { ending: Some(OutcomeClass::Infrastructure), ..work }),
                // A repeated request has moved the job back, or success was claimed too early: on from where it is.
                Refusal::BadTransition { .. } => self.work = Some(Work { state: job.state, ending: None, ..work }),
                other => panic!("{other} to {verb:?}"),
            },
            Reply::Lost => self.work = Some(work),
        }
    }

    pub fn next_verb(&mut self, world: &mut World, work: &mut Work) -> Verb {
        let (claim, fence) = (work.claim, work.fence);
        if work.state == State::Preparing && world.chaos && world.dice.percent(3) {
            return Verb::Unclaim {
                claim,
                fence,
                not_before: at(world.now + world.dice.seconds(60)),
                note: "no room".to_owned(),
            };
        }
        if work.ending.is_none() && world.chaos && world.dice.percent(3) {
            return Verb::Release {
                claim,
                fence,
                not_before: at(world.now + world.dice.seconds(60)),
                note: "disk full".to_owned(),
            };
        }
        if work.ending.is_none() && world.dice.percent(3) {
            // Success out of the blue is a faulty worker's.
            work.ending = Some(if world.dice.percent(30) { OutcomeClass::Success } else { OutcomeClass::Agent });
        }
        let to = match work.state {
            State::Preparing => State::Planning,
            State::Planning => State::Executing,
            State::Executing => State::Verifying,
            // Now and then the checks fail and the agent repairs.
            State::Verifying if world.dice.percent(20) => State::Executing,
            State::Verifying => State::Publishing,
            _ => {
                work.ending.get_or_insert(OutcomeClass::Success);
                State::Publishing
            }
        };
        match work.ending {
            None => Verb::Advance { claim, fence, to, facts: Facts::default() },
            Some(class) => {
                let outcome = Outcome::new(class, "ended");
                let finish =
                    Finish { outcome, facts: Facts::default(), artifacts: Vec::new(), log_end: Cursor { fence, seq: 1 } };
                Verb::Finish { claim, fence, finish: Box::new(finish) }
            }
        }
    }
}

/// Looks at all jobs, and acts on what it saw later, when that may be old.
#[derive(Default)]
pub struct Reaper {
    plan: Vec<(JobId, Verb)>,
}

impl Reaper {
    pub fn step(&mut self, world: &mut World) {
        match self.plan.pop() {
            Some((id, verb)) => {
                world.call(id, &verb);
            }
            None => self.plan = world.jobs.values().filter_map(|job| Some((job.id, Self::judge(world, job)?))).collect(),
        }
    }

    fn judge(world: &World, job: &JobRecord) -> Option<Verb> {
        let now = at(world.now);
        let (fence, log_end) = (job.fence, Cursor { fence: job.fence, seq: 0 });
        let end = |reason, evidence| Some(Verb::End { fence, reason, evidence, log_end });
        if job.state.is_final() {
            return None;
        }
        if job.deadline.is_some_and(|deadline| now >= deadline) {
            return end(EndReason::Deadline, Evidence::Lapsed);
        }
        let Some(lease) = &job.lease else {
            let old = job.attempt == 0 && now.duration_since(job.created_at).as_secs() >= DAY;
            return if old { end(EndReason::Unclaimed, Evidence::Lapsed) } else { None };
        };
        let evidence = if world.gone.contains(&lease.claim) { Evidence::Gone } else { Evidence::Lapsed };
        if evidence == Evidence::Lapsed && lease.until >= now {
            return None;
        }
        if job.cancel_at.is_some() {
            return end(EndReason::Cancelled, evidence);
        }
        if job.attempt >= MAX_ATTEMPTS {
            return end(EndReason::AttemptsExhausted, evidence);
        }
        Some(Verb::Reap { fence, evidence, not_before: now, note: "worker vanished".to_owned() })
    }
}
