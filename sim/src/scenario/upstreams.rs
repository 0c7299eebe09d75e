//! Swarm and substitute server side by side.

use super::{LEECH, MEGABIT, Options, Scenario, calm};
use crate::agenda::{MILLI, SECOND};
use crate::content::Version;
use crate::plan::{Event, Nature, Plan, Role, UpstreamPlan};

/// A server 25 ms away.
fn server(rate: u64) -> UpstreamPlan {
    UpstreamPlan { rate, access: 20 * MILLI, think: 10 * MILLI, version: Version::True }
}

/// One host that fetches, number 0, some seeds, and a server.
fn with_server(options: Options, seeds: u32, seed_up: u64, rate: u64) -> Plan {
    let mut hosts = vec![options.home(0, LEECH)];
    for seed in 0..seeds {
        let mut host = options.home(1 + u64::from(seed), Role::Seed);
        host.link.up = seed_up;
        hosts.push(host);
    }
    let mut plan = calm(options.bytes.unwrap_or(64_000_000), hosts);
    plan.upstream = Some(server(rate));
    plan.demands.deadline = 300 * SECOND;
    plan
}

/// All peers die.
pub const ALL_DEAD_UPSTREAM_ALIVE: Scenario = Scenario {
    name: "all-dead-upstream-alive",
    about: "all three seeds die in mid-transfer; the substitute server has it all",
    plan: |options, chance| {
        let mut plan = with_server(options, 3, 20 * MEGABIT, 50 * MEGABIT);
        let dies = |host| (chance.between(100 * MILLI, 3 * SECOND), Event::Kill(host));
        plan.events = (1..=3).map(dies).collect();
        plan
    },
};

/// Peers that are of no use.
pub const NO_USEFUL_PEER: Scenario = Scenario {
    name: "no-useful-peer",
    about: "those said to hold the nar don't; everything must come from the substitute server",
    plan: |options, chance| {
        let mut plan = with_server(options, 4, 20 * MEGABIT, 50 * MEGABIT);
        for host in &mut plan.hosts[1..] {
            host.nature =
                [Nature::NotHeld, Nature::Busy, Nature::Empty][chance.between(0, 2) as usize];
        }
        if chance.percent(50) {
            plan.events = vec![(0, Event::Cut(1)), (0, Event::Kill(2))];
        }
        plan.demands.ratio_percent = Some(110);
        // The server's own 60 ms, and the patience with a peer that has been cut off.
        plan.demands.first_octet_within = Some(250 * MILLI);
        plan
    },
};

/// Nobody but the server.
pub const UPSTREAM_ALONE: Scenario = Scenario {
    name: "upstream-alone",
    about: "no peer is found; everything comes from a substitute server 50 ms of round trip away",
    plan: |options, _| {
        let mut plan = with_server(options, 0, MEGABIT, 50 * MEGABIT);
        plan.demands.ratio_percent = Some(107);
        // Straight from the server it takes a round trip and what the server thinks.
        plan.demands.first_octet_within = Some((50 + 10 + 50) * MILLI);
        plan
    },
};

/// Both are needed.
pub const UPSTREAM_AND_PEERS: Scenario = Scenario {
    name: "upstream-and-peers",
    about: "two seeds with 10 Mbit/s each and a substitute server with 40, known to give that",
    plan: |options, _| {
        let mut plan = with_server(options, 2, 10 * MEGABIT, 40 * MEGABIT);
        plan.upstream_rate = Some((40 * MEGABIT) as f64);
        plan
    },
};

/// A slow server.
pub const UPSTREAM_SLOW: Scenario = Scenario {
    name: "upstream-slow",
    about: "two seeds with 20 Mbit/s each, a substitute server with 2",
    plan: |options, _| {
        let mut plan = with_server(options, 2, 20 * MEGABIT, 2 * MEGABIT);
        plan.demands.ratio_percent = Some(112);
        plan
    },
};

/// A fast server.
pub const UPSTREAM_FAST: Scenario = Scenario {
    name: "upstream-fast",
    about: "one seed with 1 Mbit/s, a substitute server with 50, known to give that",
    plan: |options, _| {
        let mut plan = with_server(options, 1, MEGABIT, 50 * MEGABIT);
        plan.upstream_rate = Some((50 * MEGABIT) as f64);
        // The swarm is watched before it is called slow.
        plan.demands.ratio_percent = Some(123);
        plan
    },
};
