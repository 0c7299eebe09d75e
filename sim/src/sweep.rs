//! Many seeds of one scenario: which fail, and how the outcomes are distributed.

use crate::check::Violation;
use crate::report::Report;
use crate::scenario::{Options, Scenario};
use crate::trace::Trace;
use crate::world::World;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// One seed's outcome.
#[derive(Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// What came of it.
    pub report: Report,
    /// What was wrong, if something was.
    pub violation: Option<Violation>,
}

/// Runs a scenario under one seed.
#[must_use]
pub fn run(scenario: &Scenario, options: Options, seed: u64, trace: Trace) -> (World, Outcome) {
    let mut world = World::new(scenario.plan(options, seed), seed, trace, None);
    let violation = world.run().err();
    let report = Report::of(&world);
    (world, Outcome { seed, report, violation })
}

/// Runs many seeds on several threads; gives the outcomes by seed. Stops early once `most_failures`
/// have failed.
#[must_use]
pub fn run_many(
    scenario: &Scenario,
    options: Options,
    seeds: Range<u64>,
    jobs: usize,
    most_failures: usize,
) -> Vec<Outcome> {
    let next = AtomicU64::new(seeds.start);
    let outcomes = Mutex::new(Vec::new());
    let failures = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let enough = failures.load(Ordering::Relaxed) >= most_failures as u64;
                    if seed >= seeds.end || enough {
                        return;
                    }
                    let (_, outcome) = run(scenario, options, seed, Trace::new(None));
                    failures.fetch_add(outcome.violation.is_some().into(), Ordering::Relaxed);
                    outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcomes.sort_by_key(|outcome| outcome.seed);
    outcomes
}

/// Smallest, median, ninety-fifth and hundredth percentile of a value over outcomes.
#[must_use]
pub fn distribution(outcomes: &[Outcome], value: fn(&Report) -> f64) -> [f64; 4] {
    let mut all: Vec<f64> = outcomes.iter().map(|outcome| value(&outcome.report)).collect();
    all.sort_by(f64::total_cmp);
    [0, 50, 95, 100].map(|percent| {
        let place = (all.len().saturating_sub(1)) * percent / 100;
        all.get(place).copied().unwrap_or(f64::NAN)
    })
}
