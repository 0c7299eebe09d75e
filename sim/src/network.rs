//! A fluid model of links: what hosts send each other shares their uplinks and downlinks fairly.
//!
//! From one host to another there is one *flow*, a queue of parcels that leave one after the
//! other, as over one TCP connection. All flows with something to send share the links max-min
//! fairly ([`share`]). Octets are whole numbers and rates too, so nothing is lost to rounding and
//! every machine computes the same. Slow start, loss and buffers within the network are not
//! modelled.

mod share;

use crate::agenda::{Nanos, SECOND};
use std::collections::{BTreeMap, VecDeque};

/// A host, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(pub u32);

impl std::fmt::Display for HostId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "host {}", self.0)
    }
}

/// The capacity of a host's access link.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    /// Octets a second that it can send.
    pub up: u64,
    /// Octets a second that it can receive.
    pub down: u64,
}

/// Of so many octets that a link carries in a full frame, so many are of the message: headers of
/// Ethernet, IP and TCP take the rest.
const FRAME_OCTETS: u64 = 1514;
/// See [`FRAME_OCTETS`].
const SEGMENT_OCTETS: u64 = 1448;

impl Link {
    /// What it can carry of messages.
    #[must_use]
    pub fn of_messages(self) -> Self {
        let of = |rate: u64| rate * SEGMENT_OCTETS / FRAME_OCTETS;
        Self { up: of(self.up), down: of(self.down) }
    }
}

/// A flow, by its number; it stays valid for the whole run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowId(u32);

/// When the first parcel of a flow will have left, unless rates change before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Departure {
    /// The flow.
    pub flow: FlowId,
    /// When.
    pub at: Nanos,
    /// Says whether this is still so: see [`Network::depart`].
    pub version: u32,
}

#[derive(Debug)]
struct Parcel<P> {
    octets: u64,
    payload: P,
}

/// Octets are counted in billionths, so that octets a second times nanoseconds is exact.
const UNITS: u64 = SECOND;

#[derive(Debug)]
struct Flow<P> {
    from: HostId,
    to: HostId,
    queue: VecDeque<Parcel<P>>,
    /// Of the first parcel, what has not left yet.
    left_units: u64,
    /// Octets of parcels that have left entirely.
    departed: u64,
    rate: u64,
    since: Nanos,
    version: u32,
    blocked: bool,
}

impl<P> Flow<P> {
    fn moving(&self) -> bool {
        !self.blocked && !self.queue.is_empty()
    }

    fn advance(&mut self, now: Nanos) {
        let moved = self.rate.saturating_mul(now - self.since);
        self.left_units = self.left_units.saturating_sub(moved);
        self.since = now;
    }
}

/// All links and flows.
#[derive(Debug)]
pub struct Network<P> {
    links: Vec<Link>,
    flows: Vec<Flow<P>>,
    pairs: BTreeMap<(HostId, HostId), FlowId>,
    /// Flows that have something to send and may, rising.
    moving: Vec<FlowId>,
    stale: bool,
    shares: share::Shares,
}

impl<P> Network<P> {
    /// A network of hosts with these links; host `n` has the `n`th.
    #[must_use]
    pub fn new(links: Vec<Link>) -> Self {
        Self {
            links,
            flows: Vec::new(),
            pairs: BTreeMap::new(),
            moving: Vec::new(),
            stale: false,
            shares: share::Shares::default(),
        }
    }

    /// The flow from one host to another.
    pub fn flow(&mut self, from: HostId, to: HostId) -> FlowId {
        let flows = &mut self.flows;
        *self.pairs.entry((from, to)).or_insert_with(|| {
            flows.push(Flow {
                from,
                to,
                queue: VecDeque::new(),
                left_units: 0,
                departed: 0,
                rate: 0,
                since: 0,
                version: 0,
                blocked: false,
            });
            FlowId(flows.len() as u32 - 1)
        })
    }

    /// Both ends of a flow: from, to.
    #[must_use]
    pub fn ends(&self, flow: FlowId) -> (HostId, HostId) {
        let flow = &self.flows[flow.0 as usize];
        (flow.from, flow.to)
    }

    /// Queues a parcel, last or, if urgent, right after the one that is leaving.
    pub fn send(&mut self, flow: FlowId, octets: u64, payload: P, urgent: bool, now: Nanos) {
        let entry = &mut self.flows[flow.0 as usize];
        let parcel = Parcel { octets: octets.max(1), payload };
        let first = entry.queue.is_empty();
        if first {
            entry.left_units = parcel.octets * UNITS;
            entry.since = now;
        }
        match urgent && !first {
            true => entry.queue.insert(1, parcel),
            false => entry.queue.push_back(parcel),
        }
        if first && !entry.blocked {
            self.start(flow);
        }
    }

    fn start(&mut self, flow: FlowId) {
        if let Err(place) = self.moving.binary_search(&flow) {
            self.moving.insert(place, flow);
        }
        self.stale = true;
    }

    fn stop(&mut self, flow: FlowId, now: Nanos) {
        let entry = &mut self.flows[flow.0 as usize];
        entry.advance(now);
        entry.rate = 0;
        entry.version += 1;
        if let Ok(place) = self.moving.binary_search(&flow) {
            self.moving.remove(place);
            self.stale = true;
        }
    }

    /// Takes parcels back that have not begun to leave; gives them in their order.
    pub fn take_back(&mut self, flow: FlowId, unwanted: impl Fn(&P) -> bool) -> Vec<P> {
        let queue = &mut self.flows[flow.0 as usize].queue;
        let mut taken = Vec::new();
        let mut place = 1;
        while place < queue.len() {
            if unwanted(&queue[place].payload) {
                taken.extend(queue.remove(place).map(|parcel| parcel.payload));
            } else {
                place += 1;
            }
        }
        taken
    }

    /// Forgets everything queued, what is leaving as well: the connection is gone.
    pub fn reset(&mut self, flow: FlowId, now: Nanos) {
        self.stop(flow, now);
        let entry = &mut self.flows[flow.0 as usize];
        if let Some(first) = entry.queue.front() {
            entry.departed += first.octets - entry.left_units.div_ceil(UNITS).min(first.octets);
        }
        entry.queue.clear();
        entry.left_units = 0;
    }

    /// Halts a flow where it is, or lets it go on.
    pub fn block(&mut self, flow: FlowId, blocked: bool, now: Nanos) {
        let was = std::mem::replace(&mut self.flows[flow.0 as usize].blocked, blocked);
        if blocked && !was {
            self.stop(flow, now);
        } else if was && !blocked && !self.flows[flow.0 as usize].queue.is_empty() {
            self.flows[flow.0 as usize].since = now;
            self.start(flow);
        }
    }

    /// Whether flows began or stopped since rates were last computed.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.stale
    }

    /// Computes all rates anew; gives the departures that have changed.
    pub fn settle(&mut self, now: Nanos) -> Vec<Departure> {
        self.stale = false;
        let ends = self.moving.iter().map(|flow| {
            let flow = &self.flows[flow.0 as usize];
            (flow.from, flow.to)
        });
        self.shares.compute(&self.links, ends);
        let mut changed = Vec::new();
        for (&id, &rate) in self.moving.iter().zip(self.shares.rates()) {
            let flow = &mut self.flows[id.0 as usize];
            if flow.rate != rate {
                flow.advance(now);
                flow.rate = rate;
                flow.version += 1;
                changed.extend(departure(id, flow));
            }
        }
        changed
    }

    /// Lets the first parcel of a flow go if it leaves now, and says when the next one will; for
    /// a departure that no longer holds nothing.
    pub fn depart(&mut self, due: Departure, now: Nanos) -> Option<(P, Option<Departure>)> {
        let flow = &mut self.flows[due.flow.0 as usize];
        if flow.version != due.version || !flow.moving() {
            return None;
        }
        flow.advance(now);
        let parcel = flow.queue.pop_front()?;
        flow.departed += parcel.octets;
        flow.left_units = flow.queue.front().map_or(0, |next| next.octets * UNITS);
        if flow.queue.is_empty() {
            self.stop(due.flow, now);
            return Some((parcel.payload, None));
        }
        flow.version += 1;
        Some((parcel.payload, departure(due.flow, flow)))
    }

    /// How many octets have left through a flow until now.
    #[must_use]
    pub fn departed(&self, flow: FlowId, now: Nanos) -> u64 {
        let flow = &self.flows[flow.0 as usize];
        let Some(first) = flow.queue.front() else { return flow.departed };
        let moved = flow.rate.saturating_mul(now - flow.since);
        let left = flow.left_units.saturating_sub(moved).div_ceil(UNITS);
        flow.departed + first.octets.saturating_sub(left)
    }

    /// The parcel of a flow that is leaving, if any is and the flow isn't halted.
    #[must_use]
    pub fn leaving(&self, flow: FlowId) -> Option<&P> {
        let flow = &self.flows[flow.0 as usize];
        flow.queue.front().filter(|_| flow.moving()).map(|parcel| &parcel.payload)
    }

    /// How many parcels a flow holds that have not left.
    #[must_use]
    pub fn waiting(&self, flow: FlowId) -> usize {
        self.flows[flow.0 as usize].queue.len()
    }

    /// Octets that a host has sent until now.
    #[must_use]
    pub fn sent_by(&self, host: HostId, now: Nanos) -> u64 {
        let flows = (0..self.flows.len()).filter(|&flow| self.flows[flow].from == host);
        flows.map(|flow| self.departed(FlowId(flow as u32), now)).sum()
    }

    /// Octets that have been sent to a host until now.
    #[must_use]
    pub fn sent_to(&self, host: HostId, now: Nanos) -> u64 {
        let flows = (0..self.flows.len()).filter(|&flow| self.flows[flow].to == host);
        flows.map(|flow| self.departed(FlowId(flow as u32), now)).sum()
    }
}

fn departure<P>(id: FlowId, flow: &Flow<P>) -> Option<Departure> {
    (flow.rate > 0).then(|| Departure {
        flow: id,
        at: flow.since + flow.left_units.div_ceil(flow.rate),
        version: flow.version,
    })
}

#[cfg(test)]
mod tests;
