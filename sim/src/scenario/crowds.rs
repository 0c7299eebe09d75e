//! Peers that all behave: how fast can they be?

use super::{LEECH, Options, Scenario, calm};
use crate::agenda::{MILLI, SECOND};
use crate::plan::{Plan, Role};

/// One seed, one that fetches.
pub const ONE_PEER: Scenario = Scenario {
    name: "one-peer",
    about: "one host fetches from one seed over a gigabit",
    plan: |options, _| {
        let mut plan = calm(
            options.bytes.unwrap_or(200 << 20),
            vec![options.rack(1, Role::Seed), options.rack(2, LEECH)],
        );
        plan.demands.ratio_percent = Some(110);
        plan.demands.longest_gap = Some(SECOND);
        plan
    },
};

fn crowd(options: Options, peers: u32, bytes: u64) -> Plan {
    let peers = options.peers.unwrap_or(peers);
    let mut hosts = vec![options.home(0, Role::Seed)];
    hosts.extend((0..peers).map(|peer| options.home(1 + u64::from(peer), LEECH)));
    calm(options.bytes.unwrap_or(bytes), hosts)
}

/// The flash crowd of the targets.
pub const FLASH_CROWD: Scenario = Scenario {
    name: "flash-crowd",
    about: "16 homes want 64 MB of one home's at once, 20 Mbit/s up and 100 down",
    plan: |options, _| {
        let mut plan = crowd(options, 16, 64_000_000);
        // It once took until the end: a seed passes over what it has given once.
        plan.demands.first_octet_within = Some(5 * SECOND);
        // A crowd that fetches in any order gives its readers the head at the end.
        plan.demands.half_read_within = Some(20 * SECOND);
        plan.demands.ratio_percent = Some(116);
        plan.demands.egress_percent = Some(106);
        plan.demands.duplicates_per_mille = Some(10);
        plan
    },
};

/// A larger one.
pub const FLASH_CROWD_64: Scenario = Scenario {
    name: "flash-crowd-64",
    about: "the same with 64 homes",
    plan: |options, _| {
        let mut plan = crowd(options, 64, 64_000_000);
        plan.demands.ratio_percent = Some(145);
        plan.demands.duplicates_per_mille = Some(20);
        plan
    },
};

/// A large one. A smaller nar, since it takes a minute of computing as it is.
pub const FLASH_CROWD_1000: Scenario = Scenario {
    name: "flash-crowd-1000",
    about: "1,000 homes want 8 MB of one home's at once",
    plan: |options, _| crowd(options, 1000, 8_000_000),
};

/// Everything 40 ms away.
pub const FAR: Scenario = Scenario {
    name: "far",
    about: "one host fetches from three seeds 40 ms of round trip away, over a gigabit",
    plan: |options, _| {
        let far = Options { access: Some(options.access.unwrap_or(10 * MILLI)), ..options };
        let mut hosts = vec![far.rack(9, LEECH)];
        hosts.extend((0..3).map(|seed| far.rack(seed, Role::Seed)));
        let mut plan = calm(options.bytes.unwrap_or(200 << 20), hosts);
        plan.demands.longest_gap = Some(SECOND);
        plan.demands.ratio_percent = Some(1000);
        plan
    },
};
