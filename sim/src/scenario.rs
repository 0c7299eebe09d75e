//! Named scenarios: each draws a plan from its options and the seed, and says what must come of
//! it.

mod crowds;
mod faults;
mod liars;
mod mixed;
mod upstreams;

use crate::agenda::{MILLI, Nanos, SECOND};
use crate::network::Link;
use crate::plan::{Demands, HostPlan, Nature, Plan, Reader, Role};
use crate::random::Chance;
use narswarm_protocol::fetch::UpstreamMode;

/// Octets a second of a megabit a second.
pub const MEGABIT: u64 = 125_000;

/// What may be chosen beside the seed; a scenario has its own defaults.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Hosts that fetch.
    pub peers: Option<u32>,
    /// Octets of the nar.
    pub bytes: Option<u64>,
    /// Octets a second that each can send.
    pub up: Option<u64>,
    /// Octets a second that each can receive.
    pub down: Option<u64>,
    /// One way from each host to the middle of the network.
    pub access: Option<Nanos>,
}

/// A scenario.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// Its name on the command line.
    pub name: &'static str,
    /// What happens in it.
    pub about: &'static str,
    /// Draws its plan.
    pub plan: fn(Options, &mut Chance) -> Plan,
}

/// All scenarios.
pub const ALL: &[Scenario] = &[
    crowds::ONE_PEER,
    crowds::FLASH_CROWD,
    crowds::FLASH_CROWD_64,
    crowds::FLASH_CROWD_1000,
    crowds::FAR,
    faults::FROZEN_SOURCE,
    faults::KILLED_SOURCE,
    faults::CUT_OFF,
    faults::CHURN,
    faults::PARTITION_HEALS,
    upstreams::ALL_DEAD_UPSTREAM_ALIVE,
    upstreams::NO_USEFUL_PEER,
    upstreams::UPSTREAM_ALONE,
    upstreams::UPSTREAM_AND_PEERS,
    upstreams::UPSTREAM_SLOW,
    upstreams::UPSTREAM_FAST,
    liars::LIARS_30,
    liars::FALSE_ROOTS_30,
    mixed::MIXED,
];

/// The scenario of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}

impl Scenario {
    /// Its plan under a seed.
    #[must_use]
    pub fn plan(&self, options: Options, seed: u64) -> Plan {
        (self.plan)(options, &mut Chance::new(seed, self.name))
    }
}

/// A reader with a disk behind it that takes everything as it comes.
pub const EAGER: Reader = Reader { rate: None, ahead: None };

impl Options {
    fn link(&self, up: u64, down: u64) -> Link {
        Link { up: self.up.unwrap_or(up), down: self.down.unwrap_or(down) }
    }

    fn access(&self, access: Nanos) -> Nanos {
        self.access.unwrap_or(access)
    }

    /// A home's access link: 20 megabits up, 100 down, 5 ms from the middle of the network.
    fn home(&self, network: u64, role: Role) -> HostPlan {
        HostPlan {
            link: self.link(20 * MEGABIT, 100 * MEGABIT),
            access: self.access(5 * MILLI),
            network,
            role,
            nature: Nature::Honest,
        }
    }

    /// A host in a data centre: a gigabit both ways.
    fn rack(&self, network: u64, role: Role) -> HostPlan {
        HostPlan {
            link: Link { up: 1000 * MEGABIT, down: 1000 * MEGABIT },
            access: self.access(2 * MILLI),
            network,
            role,
            nature: Nature::Honest,
        }
    }
}

/// Begins at once, reads eagerly.
const LEECH: Role = Role::Leech { start: 0, reader: EAGER };

/// A plan in which nothing befalls anybody, and everything must end well within ten minutes.
fn calm(nar_bytes: u64, hosts: Vec<HostPlan>) -> Plan {
    Plan {
        nar_bytes,
        hosts,
        upstream: None,
        mode: UpstreamMode::SwarmFirst,
        upstream_rate: None,
        events: vec![],
        discovery: (2 * MILLI, 20 * MILLI),
        demands: Demands {
            deadline: 600 * SECOND,
            all_done: true,
            longest_gap: None,
            ratio_percent: None,
            last_within: None,
            first_octet_within: None,
            half_read_within: None,
            egress_percent: None,
            duplicates_per_mille: None,
            waste_per_mille: None,
            collusion: false,
        },
    }
}
