//! The queue under simulated time: a store in memory, workers that crash, sleep past their lease, lose answers and repeat requests,
//! a reaper that acts on old views, users who cancel. Every run is made from its seed alone.
//!
//! The bookkeeping here (`Truth`) is kept apart from the records, so that a fault of the state machine shows.
//! Not tested here: a real store (its contract suite), a real network.

#![expect(clippy::unwrap_used, reason = "tests")]

mod actors;
#[path = "../common/mod.rs"]
mod common;
mod world;

use std::collections::BTreeMap;

use ckrv_core::job::{JobRecord, OutcomeClass, State};
use ckrv_core::machine::MAX_ATTEMPTS;

use actors::{Reaper, Worker};
use world::{DAY, JOBS, Truth, World};

const WORKERS: usize = 6;
const CHAOS_STEPS: u32 = 4000;
const CALM_STEPS: u32 = 4000;
const SEEDS: u64 = 60;

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
