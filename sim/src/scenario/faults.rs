//! Sources that freeze, die, vanish and come back.

use super::{LEECH, MEGABIT, Options, Scenario, calm};
use crate::agenda::{MILLI, SECOND};
use crate::plan::{Event, Plan, Role};
use crate::random::Chance;

/// One host that fetches, number 0, from so many seeds with 100 Mbit/s each.
fn few_seeds(options: Options, seeds: u32) -> Plan {
    let link = options.link(100 * MEGABIT, 200 * MEGABIT);
    let mut hosts = vec![options.home(0, LEECH)];
    hosts.extend((0..seeds).map(|seed| options.home(1 + u64::from(seed), Role::Seed)));
    for host in &mut hosts {
        host.link = link;
    }
    let mut plan = calm(options.bytes.unwrap_or(64_000_000), hosts);
    plan.demands.deadline = 60 * SECOND;
    // A second, and what it takes to look: the node looks five times a second.
    plan.demands.longest_gap = Some(1200 * MILLI);
    plan
}

/// One of two seeds is lost in mid-transfer, in this way: what it costs beside its share of the
/// work is a second at most, and what an opening takes.
fn lose_one(plan: &mut Plan, chance: &mut Chance, how: Event) {
    let at = chance.between(50 * MILLI, 1500 * MILLI);
    plan.events.push((at, how));
    let alone = plan.nar_bytes * SECOND / plan.hosts[1].link.up;
    plan.demands.last_within = Some(alone.saturating_sub(at) + SECOND + 100 * MILLI);
}

/// A source stops in mid-piece.
pub const FROZEN_SOURCE: Scenario = Scenario {
    name: "frozen-source",
    about: "one of two seeds stops in mid-piece and says nothing more",
    plan: |options, chance| {
        let mut plan = few_seeds(options, 2);
        let seed = chance.between(1, 2) as u32;
        lose_one(&mut plan, chance, Event::Freeze(seed));
        plan
    },
};

/// A source dies.
pub const KILLED_SOURCE: Scenario = Scenario {
    name: "killed-source",
    about: "one of two seeds dies, and its connections break",
    plan: |options, chance| {
        let mut plan = few_seeds(options, 2);
        let seed = chance.between(1, 2) as u32;
        lose_one(&mut plan, chance, Event::Kill(seed));
        plan
    },
};

/// A source is cut off.
pub const CUT_OFF: Scenario = Scenario {
    name: "cut-off",
    about: "a firewall drops everything of one of three seeds from the start, of another later",
    plan: |options, chance| {
        let mut plan = few_seeds(options, 3);
        plan.events = vec![(0, Event::Cut(1))];
        lose_one(&mut plan, chance, Event::Cut(2));
        plan
    },
};

/// Hosts come and go.
pub const CHURN: Scenario = Scenario {
    name: "churn",
    about: "12 homes fetch from two seeds, and most of them go and come back",
    plan: |options, chance| {
        let peers = options.peers.unwrap_or(12);
        let mut hosts: Vec<_> = (0..2).map(|seed| options.home(seed, Role::Seed)).collect();
        hosts.extend((0..peers).map(|peer| options.home(2 + u64::from(peer), LEECH)));
        let mut plan = calm(options.bytes.unwrap_or(16_000_000), hosts);
        for host in 1..peers + 2 {
            if chance.percent(70) {
                let away = chance.between(100 * MILLI, 12 * SECOND);
                let back = away + chance.between(SECOND, 8 * SECOND);
                plan.events.push((away, Event::Kill(host)));
                plan.events.push((back, Event::Return(host)));
            }
        }
        plan.demands.deadline = 180 * SECOND;
        plan
    },
};

/// The network falls apart and finds together again.
pub const PARTITION_HEALS: Scenario = Scenario {
    name: "partition-heals",
    about: "8 homes fetch from a seed; half of them lose sight of it and each other for a while",
    plan: |options, chance| {
        let peers = options.peers.unwrap_or(8);
        let mut hosts = vec![options.home(0, Role::Seed)];
        hosts.extend((0..peers).map(|peer| options.home(1 + u64::from(peer), LEECH)));
        let mut plan = calm(options.bytes.unwrap_or(16_000_000), hosts);
        let apart = chance.between(500 * MILLI, 4 * SECOND);
        // Shorter than the time after which a fetch that has nobody left gives up.
        let healed = apart + chance.between(500 * MILLI, 4 * SECOND);
        plan.events = vec![
            (apart, Event::Partition((1 + peers / 2..=peers).collect())),
            (healed, Event::Heal),
        ];
        plan.demands.deadline = 120 * SECOND;
        plan
    },
};
