//! Scenarios under a few seeds each, with the bounds that they set themselves; seeds that once
//! failed; and that one seed gives one run.

use narswarm_sim::machine::Sabotage;
use narswarm_sim::scenario::{self, Options, Scenario};
use narswarm_sim::sweep;
use narswarm_sim::trace::Trace;
use narswarm_sim::world::World;

fn named(name: &str) -> &'static Scenario {
    scenario::find(name).expect("a scenario of this name")
}

fn digest(name: &str, seed: u64) -> String {
    let (_, outcome) = sweep::run(named(name), Options::default(), seed, Trace::new(None));
    outcome.report.trace
}

fn holds(name: &str, options: Options, seeds: impl IntoIterator<Item = u64>) {
    for seed in seeds {
        let (_, outcome) = sweep::run(named(name), options, seed, Trace::new(None));
        assert_eq!(outcome.violation, None, "{name} under seed {seed}");
    }
}

#[test]
fn one_seed_gives_one_run() {
    for name in ["mixed", "churn"] {
        assert_eq!(digest(name, 5), digest(name, 5));
        assert_ne!(digest(name, 5), digest(name, 6));
    }
}

#[test]
fn every_small_scenario_keeps_its_bounds() {
    for scenario in scenario::ALL.iter().filter(|s| !s.name.starts_with("flash-crowd")) {
        holds(scenario.name, Options::default(), 1..=5);
    }
}

#[test]
fn a_flash_crowd_of_sixteen_keeps_its_bounds() {
    holds("flash-crowd", Options::default(), [1]);
}

#[test]
fn a_flash_crowd_of_sixty_four_gets_a_small_nar() {
    let small = Options { bytes: Some(4_000_000), ..Options::default() };
    let scenario = named("flash-crowd-64");
    let (_, outcome) = sweep::run(scenario, small, 1, Trace::new(None));
    assert_eq!((outcome.report.done, outcome.report.failed), (64, 0));
}

#[test]
fn whatever_happens_the_invariants_hold() {
    holds("mixed", Options::default(), 1..=50);
}

/// Seeds under which something was wrong once, and what it was.
const REGRESSIONS: &[(&str, u64)] = &[
    // A piece that a source in reserve missed was discounted twice, and asked of one source twice.
    ("mixed", 37),
    // A reader without a disk waited for a verdict that could not come before it had moved.
    ("mixed", 74),
    // A liar froze, and its list was kept for as long as it was remembered.
    ("mixed", 987),
    // The true root was condemned without proof, on the word of one liar.
    ("mixed", 594),
    // Slow askers came to hold all slots of a fast uplink.
    ("mixed", 1550),
    // The claims of busy peers made a crowd change its list for ever.
    ("mixed", 2432),
    // A stalled upstream kept the list of a liar that had frozen.
    ("mixed", 2995),
    // What an earlier attempt had left spoke against the only list there was.
    ("mixed", 9109),
    ("mixed", 9684),
    // What was left to upstream was asked of nobody when it left, and a deadline that moved on with
    // the time was never due.
    ("mixed", 17924),
    // A piece that had been taken back from the one idle seed was left with a slow member of a crowd.
    ("mixed", 16596),
    // The last piece was moved from one busy holder to the next, and was late in all of their queues.
    ("mixed", 1637),
    // A holder that had nothing of what it said to hold was asked for piece after piece.
    ("mixed", 18019),
    // The last piece waited at a slow member of a crowd, which had others to serve, and nothing more
    // might be asked for twice.
    ("mixed", 18789),
    // Cut off from two honest networks, a reader without a disk was given a liar's piece.
    ("mixed", 14223),
    // A liar's list is kept while it gives, however slowly; the reader's wait looked like a standstill.
    ("mixed", 12136),
    ("mixed", 19503),
    // Standstills that one or the other of these changes ended.
    ("mixed", 201),
    ("mixed", 478),
    ("mixed", 528),
    ("mixed", 542),
    ("mixed", 587),
    ("mixed", 633),
    ("mixed", 642),
    ("mixed", 688),
    ("mixed", 705),
    ("mixed", 731),
    // What was asked of liars came although their list was no longer used.
    ("false-roots-30", 14),
];

#[test]
fn what_failed_once_holds() {
    for &(name, seed) in REGRESSIONS {
        holds(name, Options::default(), [seed]);
    }
}

/// A checker that can't fail checks nothing: each deliberate error is noticed under some seed.
#[test]
fn every_sabotage_is_noticed() {
    let all = [
        (Sabotage::AskTwice, "one-peer"),
        (Sabotage::AskDropped, "liars-30"),
        (Sabotage::AskMissing, "one-peer"),
        (Sabotage::AskEverything, "one-peer"),
        (Sabotage::Forget, "one-peer"),
        (Sabotage::MissBeginnings, "flash-crowd"),
        (Sabotage::Sleep, "mixed"),
        (Sabotage::Storm, "one-peer"),
        (Sabotage::AcceptGarbage, "liars-30"),
        (Sabotage::DeliverEarly, "one-peer"),
    ];
    for (sabotage, name) in all {
        let noticed = (1..=60).any(|seed| {
            let plan = named(name).plan(Options::default(), seed);
            World::new(plan, seed, Trace::new(None), Some(sabotage)).run().is_err()
        });
        assert!(noticed, "{sabotage:?} in {name}");
    }
}
