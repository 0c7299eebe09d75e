//! What a run consists of: the nodes, what they hold and want, and what befalls them.

use super::links::Timing;
use crate::agenda::{Nanos, SECOND};

/// One hour.
pub const HOUR: Nanos = 3600 * SECOND;

/// What is wanted, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wants {
    /// Everybody wants so many items a day, by popularity.
    Daily(u32),
    /// Everybody wants so many items a day, and besides, so often, the same new ones within half an
    /// hour, which one seed has built.
    Waves {
        /// Daily wants.
        daily: u32,
        /// From one wave to the next.
        every: Nanos,
        /// Items of a wave.
        items: u32,
    },
    /// At the start of the measurement everybody wants the one item that one node has.
    Crowd,
    /// This many searches in all, by anybody for anything that somebody holds.
    Searches(u32),
    /// So many nodes search so many times each, one to three seconds apart, as when a system is built.
    Sessions {
        /// Who search.
        seekers: u32,
        /// How often each.
        searches: u32,
    },
    /// This many times somebody makes something new, and somebody else wants it two seconds later.
    Novelties(u32),
    /// Nothing.
    Nothing,
}

/// What befalls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Befalls {
    /// Nothing.
    Nothing,
    /// When the measurement begins, so many of a hundred die, without a word.
    Deaths(u32),
    /// When the measurement begins, the entry dies, for good.
    EntryDies,
    /// The network is divided into halves for so long, from the start of the measurement.
    Division(Nanos),
}

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// Nodes, the entry included.
    pub nodes: u32,
    /// Within how long all nodes come that aren't away at the beginning.
    pub arrival: Nanos,
    /// Whether the network has existed for long, so that nodes know each other by earlier sessions.
    pub settled: bool,
    /// How long everything goes on before anything is measured.
    pub warm_up: Nanos,
    /// How long is measured.
    pub measured: Nanos,
    /// The same round trip between any two; none: the world.
    pub uniform: Option<Nanos>,
    /// Whether nodes come and go.
    pub churn: bool,
    /// How many of a hundred sit behind a NAT.
    pub nat_percent: u32,
    /// Items that there are.
    pub items: u32,
    /// Tenths of the exponent of their popularity.
    pub zipf_tenths: u32,
    /// Items that each node holds at the start.
    pub held: u32,
    /// What is wanted.
    pub wants: Wants,
    /// What befalls.
    pub befalls: Befalls,
    /// How many of a hundred don't answer or lie, half and half.
    pub byzantine_percent: u32,
    /// Nodes of one operator that crowd around one bucket.
    pub sybils: u32,
    /// Nodes remembered for discovery.
    pub contacts: u32,
    /// How often Kademlia's table is refreshed.
    pub refresh: Option<Nanos>,
    /// Waits and round trips.
    pub timing: Timing,
}

impl Setup {
    /// Whether what is found isn't kept, so that every search finds the network the same.
    #[must_use]
    pub fn searches_only(&self) -> bool {
        matches!(self.wants, Wants::Searches(_) | Wants::Sessions { .. } | Wants::Novelties(_))
    }
}

/// What must come of a run; checked at its end.
#[derive(Debug, Clone, Copy, Default)]
pub struct Demands {
    /// Searches that find a live holder, in thousandths of those that could.
    pub success: Option<u32>,
    /// Octets from peers, in thousandths of what an oracle would get from them.
    pub offload: Option<u32>,
    /// Median of the time until a holder has answered, in milliseconds.
    pub p50_ms: Option<u32>,
    /// The 99th percentile of it.
    pub p99_ms: Option<u32>,
    /// Holders dialled in vain for each item that was got, in thousandths.
    pub stale: Option<u32>,
    /// Messages of a workstation a day.
    pub messages_a_day: Option<u32>,
    /// Octets a second of an idle node, median.
    pub idle_octets: Option<u32>,
}
