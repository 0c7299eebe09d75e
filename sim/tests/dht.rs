//! The DHT under a few fixed seeds, small enough for every run of the tests: that one seed gives
//! one run, that what is held is found, and that a checker that is to notice something does.

use narswarm_sim::dht::command::{self, Ran};
use narswarm_sim::dht::scenario::{self, Options, Scenario};
use narswarm_sim::dht::setup::{Demands, HOUR};

const SMALL: Options = Options { nodes: Some(150), measured: None, refresh: None };

fn named(name: &str) -> &'static Scenario {
    scenario::find(name).expect("a scenario of this name")
}

fn run(name: &str, options: Options, seed: u64) -> Ran {
    command::run(named(name), options, seed)
}

#[test]
fn one_seed_gives_one_run() {
    let first = run("lookups", SMALL, 3);
    assert_eq!(first.digest, run("lookups", SMALL, 3).digest);
    assert_ne!(first.digest, run("lookups", SMALL, 4).digest);
}

#[test]
fn what_is_held_is_found_though_a_tenth_is_dead() {
    let ran = run("lookups", SMALL, 1);
    assert!(ran.outcome.searches > 500, "{:?}", ran.outcome);
    assert!(ran.outcome.success > 0.97, "{:?}", ran.outcome);
    assert!(ran.outcome.stale < 0.2, "{:?}", ran.outcome);
}

#[test]
fn whoever_searches_again_and_again_finds_within_two_round_trips_mostly() {
    let ran = run("sessions", SMALL, 1);
    assert!(ran.outcome.searches > 300 && ran.outcome.success > 0.97, "{:?}", ran.outcome);
    assert!(ran.outcome.p50_ms <= 150.0 && ran.outcome.p99_ms <= 500.0, "{:?}", ran.outcome);
}

#[test]
fn what_is_new_is_found_two_seconds_later() {
    let ran = run("novelties", SMALL, 1);
    assert!(ran.outcome.searches > 500 && ran.outcome.success > 0.99, "{:?}", ran.outcome);
}

#[test]
fn peers_give_most_of_what_they_could_while_they_come_and_go() {
    let options = Options { nodes: Some(120), measured: Some(4 * HOUR), refresh: None };
    let ran = run("churn", options, 1);
    assert!(ran.outcome.online < 110 && ran.outcome.serving < 80, "{:?}", ran.outcome);
    assert!(ran.outcome.searches > 50 && ran.outcome.offload > 0.8, "{:?}", ran.outcome);
}

#[test]
fn what_is_demanded_and_not_kept_is_noticed() {
    let impossible = Demands { p50_ms: Some(1), success: Some(1001), ..Demands::default() };
    let strict = named("lookups").demanding(impossible);
    let ran = command::run(&strict, SMALL, 1);
    assert_eq!(ran.violations.len(), 2, "{:?}", ran.violations);
}
