//! Who is connected with whom, and what a question costs: round trips, or the wait for nothing.
//!
//! A connection lives as long as it is used and a while longer. When a node leaves in order, the
//! others are told; when it crashes, they find out by waiting.

use super::table::{NOBODY, NodeId};
use super::terrain::Terrain;
use crate::agenda::{MILLI, Nanos, SECOND};
use crate::random::Chance;
use narswarm_protocol::limits;

/// Waits and round trips; what production has, and what real nodes were seen to take.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Hundredths of a round trip that it takes to connect: TCP, the handshake, and negotiation.
    pub connect_percent: u64,
    /// Hundredths of a round trip of a question over an open connection.
    pub ask_percent: u64,
    /// Until a dialling that nobody answers is given up; also the walk's patience with one node.
    pub dial_timeout: Nanos,
    /// Until a question over an open connection is given up.
    pub ask_timeout: Nanos,
    /// For which an idle connection is kept, in seconds.
    pub idle_seconds: u32,
    /// How many of a hundred dead addresses refuse at once; the others swallow what they get.
    pub refuse_percent: u64,
    /// For each answer: the work of both sides, mostly cryptography when the connection is new.
    pub work: Nanos,
    /// The same when the connection is new.
    pub connect_work: Nanos,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect_percent: 200,
            ask_percent: 100,
            dial_timeout: 10 * SECOND,
            ask_timeout: 10 * SECOND,
            idle_seconds: 60,
            refuse_percent: 25,
            work: 0,
            connect_work: 2 * MILLI,
        }
    }
}

/// Connections of a node at most, as in production: those unused the longest make room.
const MAX_LINKS: usize = limits::MAX_CONNECTIONS as usize;

/// A node's connections.
#[derive(Debug, Clone, Default)]
struct Ends {
    /// With whom, apart from the rest, since they are searched through all the time.
    peers: Vec<NodeId>,
    ends: Vec<End>,
}

#[derive(Debug, Clone, Copy)]
struct End {
    /// When it closes unless it is used, in seconds.
    until: u32,
    /// The owner's machine believes that it is there.
    told: bool,
}

/// Peers compared at once: what processors do in one step.
const STRIDE: usize = 16;

impl Ends {
    fn find(&self, peer: NodeId) -> Option<usize> {
        let mut strides = self.peers.chunks(STRIDE);
        let is_in =
            |stride: &[NodeId]| stride.iter().fold(false, |is, &other| is | (other == peer));
        let stride = strides.position(is_in)? * STRIDE;
        let within = self.peers[stride..].iter().position(|&other| other == peer)?;
        Some(stride + within)
    }

    fn get(&mut self, peer: NodeId) -> Option<&mut End> {
        self.find(peer).map(|at| &mut self.ends[at])
    }

    fn push(&mut self, peer: NodeId, until: u32) {
        self.peers.push(peer);
        self.ends.push(End { until, told: false });
    }

    /// Takes those out that are over; `noted` hears of those of which the machine doesn't know.
    fn prune(&mut self, now: u32, mut noted: impl FnMut(NodeId)) {
        let mut kept = 0;
        for at in 0..self.peers.len() {
            let (peer, end) = (self.peers[at], self.ends[at]);
            if end.until >= now {
                (self.peers[kept], self.ends[kept]) = (peer, end);
                kept += 1;
            } else if end.told {
                noted(peer);
            }
        }
        self.peers.truncate(kept);
        self.ends.truncate(kept);
    }
}

/// How a question ends, and how much later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// With an answer, over a connection that was made for it or was there.
    Answer {
        /// When it comes.
        after: Nanos,
        /// Whether a connection was made for it.
        fresh: bool,
    },
    /// With none.
    Nothing {
        /// When that is known.
        after: Nanos,
    },
}

/// What a node is like to those who ask it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Nature {
    /// Does what it should.
    #[default]
    Honest,
    /// Takes connections and never answers.
    Silent,
    /// Names accomplices only, and false holders.
    Liar,
}

/// How a node is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Nat {
    /// By everybody: it serves the DHT.
    #[default]
    Open,
    /// By hole punching, a relay introducing the two.
    Cone,
    /// Over a relay, unless the other side is open.
    Symmetric,
}

/// All nodes' connections, and what of each matters for them.
#[derive(Debug)]
pub struct Links {
    /// Whether each is there.
    pub online: Vec<bool>,
    /// How each is reached.
    pub nat: Vec<Nat>,
    /// What each is like.
    pub nature: Vec<Nature>,
    /// Which part of a divided network each is in.
    pub part: Vec<u8>,
    /// Whether the network is divided.
    pub divided: bool,
    /// How far everybody is.
    pub terrain: Terrain,
    /// Waits and round trips.
    pub timing: Timing,
    /// Octets that each has sent and received.
    pub octets: Vec<u64>,
    links: Vec<Ends>,
    /// The second before which surely none of a node's connections closes.
    lasting: Vec<u32>,
    /// Connections that each node's machine believes to be there, and that were taken away.
    closed: Vec<Vec<NodeId>>,
    chance: Chance,
    /// Connections made.
    pub connections: u64,
    /// Attempts to connect to nobody.
    pub dialled_in_vain: u64,
}

/// Octets of a connection's handshakes, identify included, in both directions.
pub const CONNECT_OCTETS: u64 = 5200;

/// What an idle connection costs at each end, sent and received: pings of libp2p and yamux from both ends
/// and what TCP says to them, as measured with real nodes.
const PING_OCTETS_A_SECOND: u64 = 87;

impl Links {
    /// Nodes that are all there, open and honest.
    #[must_use]
    pub fn new(count: usize, terrain: Terrain, timing: Timing, chance: Chance) -> Self {
        Self {
            online: vec![true; count],
            nat: vec![Nat::Open; count],
            nature: vec![Nature::Honest; count],
            part: vec![0; count],
            divided: false,
            terrain,
            timing,
            octets: vec![0; count],
            links: vec![Ends::default(); count],
            lasting: vec![u32::MAX; count],
            closed: vec![Vec::new(); count],
            chance,
            connections: 0,
            dialled_in_vain: 0,
        }
    }

    /// Whether one believes to be connected to the other.
    #[must_use]
    pub fn connected(&self, from: NodeId, to: NodeId, now: u32) -> bool {
        let links = &self.links[from as usize];
        links.find(to).is_some_and(|at| links.ends[at].until >= now)
    }

    /// A node's machine is told that a connection is there.
    pub fn tell(&mut self, of: NodeId, peer: NodeId) {
        match self.links[of as usize].get(peer) {
            Some(link) => link.told = true,
            None => self.take_away(of, peer, true),
        }
        self.lasting[of as usize] = 0;
    }

    /// Notes that a connection is no longer there, for the machine that may believe it is.
    fn take_away(&mut self, of: NodeId, peer: NodeId, told: bool) {
        self.lasting[of as usize] = 0;
        if told {
            self.closed[of as usize].push(peer);
        }
    }

    fn remove(&mut self, of: NodeId, peer: NodeId) {
        let links = &mut self.links[of as usize];
        if let Some(at) = links.find(peer) {
            // The order decides who makes room among equals.
            links.peers.remove(at);
            let told = links.ends.remove(at).told;
            self.take_away(of, peer, told);
        }
    }

    /// The connections whose end a node's machine hasn't heard of.
    pub fn take_closed(&mut self, of: NodeId, now: u32, closed: &mut Vec<NodeId>) {
        closed.clear();
        if self.lasting[of as usize] > now {
            return;
        }
        let mut lasting = u32::MAX;
        let Ends { peers, ends } = &mut self.links[of as usize];
        for (peer, link) in peers.iter().zip(ends) {
            if link.until >= now {
                lasting = lasting.min(link.until.saturating_add(1));
            } else if std::mem::take(&mut link.told) {
                closed.push(*peer);
            }
        }
        self.lasting[of as usize] = lasting;
        for peer in std::mem::take(&mut self.closed[of as usize]) {
            let again = self.links[of as usize].get(peer);
            match again.filter(|link| link.until >= now) {
                Some(link) => link.told = true,
                None => closed.push(peer),
            }
        }
    }

    /// How many connections a node has.
    #[must_use]
    pub fn degree(&self, of: NodeId, now: u32) -> usize {
        self.links[of as usize].ends.iter().filter(|link| link.until >= now).count()
    }

    /// Whether packets get from one to the other, if it is there.
    #[must_use]
    pub fn joined(&self, a: NodeId, b: NodeId) -> bool {
        !self.divided || self.part[a as usize] == self.part[b as usize]
    }

    /// Counts octets that the two exchange.
    pub fn count(&mut self, a: NodeId, b: NodeId, octets: u64) {
        self.octets[a as usize] += octets;
        self.octets[b as usize] += octets;
    }

    fn keep(&mut self, of: NodeId, peer: NodeId, now: u32, until: u32) {
        let links = &mut self.links[of as usize];
        let lasting = &mut self.lasting[of as usize];
        *lasting = (*lasting).min(until.saturating_add(1));
        let octets = &mut self.octets[of as usize];
        if let Some(link) = links.get(peer) {
            *octets += PING_OCTETS_A_SECOND * u64::from(until.saturating_sub(link.until.max(now)));
            link.until = link.until.max(until);
            return;
        }
        *octets += PING_OCTETS_A_SECOND * u64::from(until - now);
        let count = links.peers.len();
        if count == links.peers.capacity() || count >= MAX_LINKS {
            // Before it grows: most are over.
            let unheard = &mut self.closed[of as usize];
            links.prune(now, |peer| {
                unheard.push(peer);
                *lasting = 0;
            });
        }
        let (mut closed, mut told) = (NOBODY, false);
        if links.peers.len() >= MAX_LINKS
            && let Some(at) = (0..links.peers.len()).min_by_key(|&at| links.ends[at].until)
        {
            (closed, told) = (links.peers.swap_remove(at), links.ends.swap_remove(at).told);
        }
        links.push(peer, until);
        if closed != NOBODY {
            self.take_away(of, closed, told);
            self.remove(closed, of);
        }
    }

    /// Makes or uses a connection.
    fn link(&mut self, a: NodeId, b: NodeId, now: u32, for_seconds: u32) {
        let until = now.saturating_add(for_seconds);
        self.keep(a, b, now, until);
        self.keep(b, a, now, until);
    }

    /// Keeps a connection for longer than it would live unused.
    pub fn hold(&mut self, a: NodeId, b: NodeId, now: u32, for_seconds: u32) {
        if self.connected(a, b, now) && self.connected(b, a, now) {
            self.link(a, b, now, for_seconds);
        }
    }

    /// A connection that was held is kept no longer than an unused one.
    pub fn let_go(&mut self, a: NodeId, b: NodeId, now: u32) {
        let until = now.saturating_add(self.timing.idle_seconds);
        for (of, peer) in [(a, b), (b, a)] {
            if let Some(link) = self.links[of as usize].get(peer) {
                let rest = u64::from(link.until.saturating_sub(until));
                self.octets[of as usize] -= PING_OCTETS_A_SECOND * rest;
                link.until = link.until.min(until);
                self.lasting[of as usize] = 0;
            }
        }
    }

    /// The node is gone; those connected to it are told if it goes in order.
    pub fn leave(&mut self, node: NodeId, in_order: bool) {
        self.online[node as usize] = false;
        let links = std::mem::take(&mut self.links[node as usize]);
        // Its machine is gone as well.
        self.closed[node as usize].clear();
        if in_order {
            for peer in links.peers {
                self.remove(peer, node);
            }
        }
    }

    /// Asks another, over a connection if there is one, else over one that is made. `holder` says
    /// that a node behind a NAT may be reached through a relay.
    pub fn ask(&mut self, now: Nanos, from: NodeId, to: NodeId, holder: bool) -> Fate {
        let seconds = (now / SECOND) as u32;
        let trip = self.terrain.sample(from, to, &mut self.chance);
        let timing = self.timing;
        let there = self.online[to as usize] && self.joined(from, to);
        let mut after = 0;
        let fresh = if self.connected(from, to, seconds) {
            if !there {
                self.remove(from, to);
                return Fate::Nothing { after: timing.ask_timeout };
            }
            // It has come back meanwhile, and knows nothing of the connection.
            !self.connected(to, from, seconds)
        } else {
            true
        };
        if fresh {
            let nat = self.nat[to as usize];
            if !there || (nat != Nat::Open && !holder) {
                self.dialled_in_vain += 1;
                let refused = !self.chance.percent(100 - timing.refuse_percent.min(100));
                let after =
                    if refused && self.joined(from, to) { trip } else { timing.dial_timeout };
                return Fate::Nothing { after: after.min(timing.dial_timeout) };
            }
            self.connections += 1;
            self.count(from, to, CONNECT_OCTETS);
            // Through a relay first: its way, and what it takes to punch a hole at the same time.
            let detours = if nat == Nat::Open { 0 } else { 2 };
            after += trip * (timing.connect_percent + 100 * detours) / 100 + timing.connect_work;
        }
        self.link(from, to, seconds, timing.idle_seconds);
        if self.nature[to as usize] == Nature::Silent {
            return Fate::Nothing { after: after + timing.ask_timeout };
        }
        after += trip * timing.ask_percent / 100 + timing.work;
        Fate::Answer { after, fresh }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Links {
        let terrain = Terrain::Uniform(50 * MILLI);
        let timing = Timing { connect_work: 0, refuse_percent: 0, ..Timing::default() };
        Links::new(3, terrain, timing, Chance::new(1, "links"))
    }

    #[test]
    fn the_first_question_pays_for_the_connection() {
        let mut links = three();
        let answer = |ms, fresh| Fate::Answer { after: ms * MILLI, fresh };
        assert_eq!(links.ask(0, 0, 1, false), answer(150, true));
        assert_eq!(links.ask(SECOND, 1, 0, false), answer(50, false));
        assert_eq!(links.ask(62 * SECOND, 0, 1, false), answer(150, true), "it was idle");
    }

    #[test]
    fn the_dead_cost_time_and_those_that_left_in_order_are_known() {
        let mut links = three();
        let nothing = Fate::Nothing { after: 10 * SECOND };
        links.ask(0, 0, 1, false);
        links.leave(1, false);
        assert!(links.connected(0, 1, 1));
        assert_eq!(links.ask(SECOND, 0, 1, false), nothing);
        assert!(!links.connected(0, 1, 1));
        assert_eq!((links.ask(SECOND, 0, 1, false), links.dialled_in_vain), (nothing, 1));
        links.ask(SECOND, 0, 2, false);
        links.leave(2, true);
        assert!(!links.connected(0, 2, 1));
    }

    #[test]
    fn behind_a_nat_only_holders_are_reached() {
        let mut links = three();
        links.nat[1] = Nat::Cone;
        assert_eq!(links.ask(0, 0, 1, false), Fate::Nothing { after: 10 * SECOND });
        assert_eq!(links.ask(0, 0, 1, true), Fate::Answer { after: 250 * MILLI, fresh: true });
        links.divided = true;
        links.part[2] = 1;
        assert_eq!(links.ask(0, 0, 2, false), Fate::Nothing { after: 10 * SECOND });
    }
}
