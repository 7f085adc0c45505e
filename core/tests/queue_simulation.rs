//! The queue under simulated time: a store in memory, workers that crash, sleep past their lease, lose answers and repeat requests,
//! a reaper that acts on old views, users who cancel. Every run is made from its seed alone.
//!
//! The bookkeeping here (`Truth`) is kept apart from the records, so that a fault of the state machine shows.
//! Not tested here: a real store (its contract suite), a real network.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use ckrv_core::id::{ClaimId, Fence, JobId};
use ckrv_core::job::{Facts, JobRecord, Outcome, OutcomeClass, State};
use ckrv_core::log::Cursor;
use ckrv_core::machine::{EndReason, Evidence, Finish, MAX_ATTEMPTS, Refusal, Verb, apply};

use common::{TIMEOUT_SECONDS, at, claim_id, queued};

const LEASE: i64 = 60;
const BEAT: i64 = 20;
const DAY: i64 = 24 * 3600;
const WORKERS: usize = 6;
const JOBS: u32 = 40;
/// Jobs that no worker will take.
const UNWANTED: u32 = 15;
const CHAOS_STEPS: u32 = 4000;
const CALM_STEPS: u32 = 4000;
const SEEDS: u64 = 60;

/// SplitMix64: small, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.next() % 100 < chance
    }

    fn seconds(&mut self, bound: i64) -> i64 {
        (self.next() % bound as u64) as i64
    }
}

/// What really happened to one job, seen from outside of its record.
#[derive(Default)]
struct Truth {
    /// Who won the lease last, if it was not taken away since.
    holder: Option<(ClaimId, Fence)>,
    /// States that the present holder went through.
    trail: Vec<State>,
    claims: u32,
    cancel_accepted: bool,
    cancelled_in_queue: bool,
    ends: u32,
    refunds: u32,
}

struct World {
    now: i64,
    dice: Dice,
    chaos: bool,
    jobs: BTreeMap<JobId, JobRecord>,
    truth: BTreeMap<JobId, Truth>,
    /// Requests that are still somewhere on the way, to arrive again.
    sent: Vec<(JobId, Verb)>,
    gone: BTreeSet<ClaimId>,
    claims: u32,
    quota: i64,
}

/// Every third job has hardly the time that it takes.
fn job(number: u32) -> JobRecord {
    let mut job = queued(number, i64::from(number) * 20);
    if number % 3 == 1 {
        job.request.timeout_seconds = TIMEOUT_SECONDS / 20;
    }
    job
}

enum Reply {
    Done(Box<JobRecord>),
    Refused(Refusal, Box<JobRecord>),
    /// The caller does not know whether it happened.
    Lost,
}

impl World {
    fn new(seed: u64) -> Self {
        let jobs: BTreeMap<_, _> = (0..JOBS).map(job).map(|job| (job.id, job)).collect();
        let truth = jobs.keys().map(|id| (*id, Truth::default())).collect();
        let (sent, gone) = (Vec::new(), BTreeSet::new());
        Self { now: 0, dice: Dice(seed), chaos: true, quota: i64::from(JOBS), jobs, truth, sent, gone, claims: 0 }
    }

    fn call(&mut self, id: JobId, verb: &Verb) -> Reply {
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
    fn carry_out(&mut self, id: JobId, verb: &Verb) -> Reply {
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

    fn witness(&mut self, before: &JobRecord, after: &JobRecord, verb: &Verb, refund: bool) {
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
            | Verb::Release { claim, fence, .. }
            | Verb::Finish { claim, fence, .. } => {
                assert_eq!(truth.holder, Some((*claim, *fence)), "{} by somebody who is not the newest holder", verb.name());
            }
            Verb::Cancel => {
                truth.cancel_accepted = true;
                truth.cancelled_in_queue |= before.state == State::Queued;
            }
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

    fn new_claim(&mut self) -> ClaimId {
        self.claims += 1;
        claim_id(self.claims)
    }

    /// An old request arrives once more.
    fn repeat_something(&mut self) {
        if !self.sent.is_empty() {
            let (id, verb) = self.sent[self.dice.below(self.sent.len())].clone();
            self.carry_out(id, &verb);
        }
    }

    /// A reaper whose clock or view is wrong.
    fn judge_hastily(&mut self) {
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

    fn cancel_something(&mut self) {
        let open: Vec<_> = self.jobs.values().filter(|job| !job.state.is_final()).map(|job| job.id).collect();
        if !open.is_empty() {
            let id = open[self.dice.below(open.len().min(6))];
            self.call(id, &Verb::Cancel);
        }
    }
}

struct Work {
    id: JobId,
    claim: ClaimId,
    fence: Fence,
    state: State,
    last_beat: i64,
    ending: Option<OutcomeClass>,
}

#[derive(Default)]
struct Worker {
    /// A claim whose answer was lost; tried again with the same id.
    trying: Option<(JobId, ClaimId)>,
    work: Option<Work>,
    asleep_until: i64,
}

impl Worker {
    fn step(&mut self, world: &mut World) {
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

    fn claim(&mut self, world: &mut World) {
        let (id, claim) = match self.trying.take() {
            Some(trying) => trying,
            None => {
                let wanted = |job: &&JobRecord| job.state == State::Queued && job.id.0.as_u128() % u128::from(UNWANTED) != 0;
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

    fn beat(&mut self, world: &mut World, mut work: Work) {
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

    fn go_on(&mut self, world: &mut World, mut work: Work) {
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

    fn next_verb(&mut self, world: &mut World, work: &mut Work) -> Verb {
        let (claim, fence) = (work.claim, work.fence);
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
struct Reaper {
    plan: Vec<(JobId, Verb)>,
}

impl Reaper {
    fn step(&mut self, world: &mut World) {
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

fn check_end(job: &JobRecord, truth: &Truth) {
    assert!(job.state.is_final(), "job {} is stuck: {:?} {:?}", job.id, job.state, job.lease);
    assert_eq!(truth.ends, 1, "every job ends once");
    assert_eq!((job.attempt, truth.claims <= MAX_ATTEMPTS), (truth.claims, true));
    let class = job.outcome.as_ref().unwrap().class;
    let ended = job.completed_at.unwrap();
    let passed = job.deadline.is_some_and(|deadline| ended >= deadline);
    match class {
        OutcomeClass::Success => {
            assert!(!passed && !truth.cancel_accepted);
            assert_eq!(truth.trail.first(), Some(&State::Planning), "all by the attempt that succeeded");
            for phase in [State::Executing, State::Verifying, State::Publishing] {
                assert!(truth.trail.contains(&phase), "without {phase}");
            }
        }
        OutcomeClass::Cancelled => assert!(truth.cancel_accepted),
        OutcomeClass::Timeout => assert!(passed),
        OutcomeClass::Infrastructure => assert_eq!(truth.claims, MAX_ATTEMPTS),
        OutcomeClass::NoWorker => assert!(truth.claims == 0 && ended.duration_since(job.created_at).as_secs() >= DAY),
        OutcomeClass::Agent => assert!(truth.claims > 0),
        other => panic!("nobody ended a job with {other:?}"),
    }
    assert_eq!(truth.refunds, u32::from(class.is_infrastructure() || truth.cancelled_in_queue));
    assert_eq!(job.lease, None);
    if let (Some(start), Some(deadline)) = (job.started_at, job.deadline) {
        assert_eq!(deadline.duration_since(start).as_secs(), i64::from(job.request.timeout_seconds));
    }
}

fn run(seed: u64) -> World {
    let mut world = World::new(seed);
    let mut workers: Vec<Worker> = (0..WORKERS).map(|_| Worker::default()).collect();
    let mut reaper = Reaper::default();
    for step in 0..CHAOS_STEPS + CALM_STEPS {
        world.chaos = step < CHAOS_STEPS;
        // In the calm, time runs fast enough for a day to pass.
        world.now += if world.chaos { world.dice.seconds(4) } else { world.dice.seconds(60) };
        match world.dice.below(100) {
            0..=69 => {
                let index = world.dice.below(WORKERS);
                workers[index].step(&mut world);
            }
            70..=84 => reaper.step(&mut world),
            85..=94 if world.chaos => world.repeat_something(),
            95..=97 if world.chaos => world.judge_hastily(),
            98 if world.chaos && world.dice.percent(30) => world.cancel_something(),
            _ => {}
        }
    }
    for (id, job) in &world.jobs {
        check_end(job, &world.truth[id]);
    }
    let refunds: u32 = world.truth.values().map(|truth| truth.refunds).sum();
    assert_eq!(world.quota, i64::from(JOBS) - i64::from(refunds));
    world
}

#[test]
fn every_job_ends_once_and_rightly_whatever_happens_to_its_workers() {
    let mut ends: BTreeMap<String, u32> = BTreeMap::new();
    let mut taken_over = 0;
    for seed in 0..SEEDS {
        let world = std::panic::catch_unwind(|| run(seed)).unwrap_or_else(|_| panic!("seed {seed} failed"));
        for job in world.jobs.values() {
            *ends.entry(format!("{:?}", job.outcome.as_ref().unwrap().class)).or_default() += 1;
            taken_over += u32::from(job.attempt > 1);
        }
    }
    // A simulation in which nothing goes wrong shows nothing.
    for class in ["Success", "Agent", "Cancelled", "Timeout", "Infrastructure", "NoWorker"] {
        assert!(ends.contains_key(class), "no job ended as {class}: {ends:?}");
    }
    assert!(taken_over > 100, "{taken_over} jobs were taken over: {ends:?}");
    println!("{ends:?}, {taken_over} taken over");
}

#[test]
fn a_seed_gives_the_same_run_again() {
    let text = |world: World| serde_json::to_string(&world.jobs.values().collect::<Vec<_>>()).unwrap();
    assert_eq!(text(run(3)), text(run(3)));
}
