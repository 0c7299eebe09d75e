//! Named scenarios of the DHT: what each run consists of, and what must come of it.

use super::links::Timing;
use super::setup::{Befalls, Demands, HOUR, Setup, Wants};
use crate::agenda::{MILLI, Nanos};

/// What may be chosen beside the seed; a scenario has its own defaults.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Nodes.
    pub nodes: Option<u32>,
    /// How long is measured.
    pub measured: Option<Nanos>,
    /// How often Kademlia's table is refreshed.
    pub refresh: Option<Nanos>,
}

/// A scenario.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// Its name on the command line.
    pub name: &'static str,
    /// What happens in it.
    pub about: &'static str,
    setup: fn(u32) -> Setup,
    /// Nodes, unless others are chosen.
    pub nodes: u32,
    /// What must come of it.
    pub demands: Demands,
}

impl Scenario {
    /// What a run consists of.
    #[must_use]
    pub fn setup(&self, options: Options) -> Setup {
        let setup = (self.setup)(options.nodes.unwrap_or(self.nodes));
        Setup {
            measured: options.measured.unwrap_or(setup.measured),
            refresh: options.refresh.or(setup.refresh),
            ..setup
        }
    }

    /// The same, but with other demands: for finding out whether they are checked.
    #[must_use]
    pub fn demanding(&self, demands: Demands) -> Self {
        Self { demands, ..*self }
    }
}

/// How often Kademlia's table is refreshed: what idle nodes can afford. Production does so too;
/// libp2p's users do it every half hour and less, which `--refresh 30` chooses.
const REFRESH: Nanos = 12 * HOUR;

/// A calm network: nobody comes or goes, everybody is open and honest.
fn calm(nodes: u32) -> Setup {
    Setup {
        nodes,
        arrival: HOUR / 6,
        settled: false,
        warm_up: HOUR,
        measured: HOUR / 2,
        uniform: None,
        churn: false,
        nat_percent: 0,
        items: nodes.saturating_mul(3).max(2000),
        zipf_tenths: 10,
        held: 20,
        wants: Wants::Searches(2000),
        befalls: Befalls::Nothing,
        byzantine_percent: 0,
        sybils: 0,
        contacts: 1024,
        refresh: Some(REFRESH),
        timing: Timing::default(),
    }
}

/// Nodes come and go, half of them behind NATs, and want things day in, day out.
fn wild(nodes: u32) -> Setup {
    Setup {
        churn: true,
        nat_percent: 50,
        warm_up: 6 * HOUR,
        measured: 18 * HOUR,
        wants: Wants::Daily(20),
        contacts: 768,
        ..calm(nodes)
    }
}

const NO_DEMANDS: Demands = Demands {
    success: None,
    offload: None,
    p50_ms: None,
    p99_ms: None,
    stale: None,
    messages_a_day: None,
    idle_octets: None,
};

const FOUND: Demands = Demands { success: Some(990), ..NO_DEMANDS };

const fn scenario(
    name: &'static str,
    about: &'static str,
    nodes: u32,
    setup: fn(u32) -> Setup,
    demands: Demands,
) -> Scenario {
    Scenario { name, about, setup, nodes, demands }
}

/// All scenarios.
pub const ALL: &[Scenario] = &[
    scenario(
        "lookups",
        "searches at 50 ms round trip, a tenth of the nodes just dead",
        1000,
        |nodes| Setup {
            uniform: Some(50 * MILLI),
            befalls: Befalls::Deaths(10),
            measured: HOUR / 6,
            ..calm(nodes)
        },
        Demands { stale: Some(200), p99_ms: Some(500), ..FOUND },
    ),
    scenario(
        "sessions",
        "a hundred nodes search forty times each, at 50 ms round trip, a tenth of the nodes just dead",
        1000,
        |nodes| Setup {
            uniform: Some(50 * MILLI),
            befalls: Befalls::Deaths(10),
            wants: Wants::Sessions { seekers: nodes / 10, searches: 40 },
            ..calm(nodes)
        },
        Demands { stale: Some(200), p50_ms: Some(150), p99_ms: Some(500), ..FOUND },
    ),
    scenario(
        "novelties",
        "what was made two seconds ago is looked for",
        1000,
        |nodes| Setup { wants: Wants::Novelties(600), measured: HOUR / 4, ..calm(nodes) },
        FOUND,
    ),
    scenario(
        "churn",
        "nodes come and go as in apt-p2p and IPFS, half behind NATs; Zipf 1.0",
        2000,
        wild,
        Demands { offload: Some(950), ..NO_DEMANDS },
    ),
    scenario(
        "churn-flat",
        "the same with the flatter popularity of Zipf 0.8",
        2000,
        |nodes| Setup { zipf_tenths: 8, ..wild(nodes) },
        Demands { offload: Some(950), ..NO_DEMANDS },
    ),
    scenario(
        "waves",
        "every six hours everybody wants the same ten new items within half an hour",
        2000,
        |nodes| Setup {
            wants: Wants::Waves { daily: 10, every: 6 * HOUR, items: 10 },
            ..wild(nodes)
        },
        Demands { offload: Some(950), ..NO_DEMANDS },
    ),
    scenario(
        "crowd",
        "everybody wants one item within a minute, which one node has",
        2000,
        |nodes| Setup { wants: Wants::Crowd, nat_percent: 50, ..calm(nodes) },
        FOUND,
    ),
    scenario(
        "byzantine",
        "a fifth of the nodes doesn't answer or lies",
        1000,
        |nodes| Setup { byzantine_percent: 20, ..calm(nodes) },
        FOUND,
    ),
    scenario(
        "sybils",
        "45 nodes of one operator crowd around one bucket; only its items are looked for",
        1000,
        |nodes| Setup { sybils: 45, ..calm(nodes) },
        Demands { success: Some(950), ..NO_DEMANDS },
    ),
    scenario(
        "entry-dies",
        "all bootstrap nodes die for good, and the others come and go for a day",
        1000,
        |nodes| Setup {
            befalls: Befalls::EntryDies,
            nat_percent: 30,
            // Who comes for the first time when they are dead knows nobody and stays alone.
            warm_up: 24 * HOUR,
            measured: 24 * HOUR,
            ..wild(nodes)
        },
        Demands { offload: Some(950), ..NO_DEMANDS },
    ),
    scenario(
        "division",
        "the network is divided into halves for two hours, and heals",
        1000,
        |nodes| Setup { befalls: Befalls::Division(2 * HOUR), measured: 8 * HOUR, ..wild(nodes) },
        Demands { offload: Some(950), ..NO_DEMANDS },
    ),
    scenario(
        "workstations",
        "everybody holds 3,000 items and does nothing for a day",
        300,
        |nodes| Setup {
            items: 30_000,
            held: 3600,
            zipf_tenths: 8,
            wants: Wants::Nothing,
            warm_up: 4 * HOUR,
            measured: 24 * HOUR,
            ..calm(nodes)
        },
        Demands { messages_a_day: Some(2000), idle_octets: Some(300), ..NO_DEMANDS },
    ),
    scenario(
        "idle",
        "nobody wants anything, and everybody holds twenty items",
        1000,
        |nodes| Setup {
            wants: Wants::Nothing,
            measured: 12 * HOUR,
            warm_up: 3 * HOUR,
            ..calm(nodes)
        },
        Demands { idle_octets: Some(300), ..NO_DEMANDS },
    ),
    scenario(
        "large",
        "a day of a hundred thousand nodes that come and go",
        100_000,
        |nodes| Setup {
            settled: true,
            warm_up: 4 * HOUR,
            measured: 20 * HOUR,
            items: 200_000,
            held: 10,
            wants: Wants::Daily(6),
            contacts: 384,
            ..wild(nodes)
        },
        Demands { offload: Some(950), ..NO_DEMANDS },
    ),
];

/// The scenario of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}
