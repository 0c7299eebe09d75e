//! The nodes that this one knows of, as far as finding and announcing need them: who is near the
//! meeting points, who answers, how fast.
//!
//! Kademlia's table knows a few nodes everywhere; this remembers, beyond that, the neighbourhood
//! of every bucket from one lookup to the next, so that most lookups take one step.

use super::mix;
use super::place::{Bucket, Contact, NodeId, Position};
use crate::fetch::Time;
use crate::limits::{
    CONTACT_REST, CROWDED_FACTOR, MAX_CONTACT_FAILURES, MAX_WALK_NODES, REPLICAS, UNKNOWN_LATENCY,
};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long the estimate of the network's density is used before it is made anew.
const DENSITY_LIFE: Duration = Duration::from_secs(300);

/// So many neighbourhoods have to be known for an estimate: as many as nobody can crowd around
/// unnoticed, as the median counts.
const LEAST_EXPLORED: usize = 8;

/// What is known of one node.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub contact: Contact,
    /// It has answered, and not failed since.
    pub proven: bool,
    /// There is a connection to it.
    pub connected: bool,
    /// Round trip, when it was measured.
    rtt: Option<Duration>,
    failures: u8,
    /// Not asked before, after a failure.
    rests_until: Time,
}

/// See the module.
#[derive(Debug)]
pub struct Contacts {
    limit: usize,
    nodes: BTreeMap<NodeId, Known>,
    /// All of `nodes`, in the order of the key space.
    places: BTreeSet<(Position, NodeId)>,
    /// All of `nodes`, by how near they are to the nearest meeting point: the farthest is the
    /// first to be forgotten.
    nearness: BTreeSet<(u64, NodeId)>,
    /// Meeting points whose neighbourhood has been walked to.
    explored: BTreeSet<Bucket>,
    density: Option<(Time, usize, u64)>,
    /// How often a node has become known.
    arrivals: u64,
}

impl Contacts {
    /// Knows nobody, and will know `limit` nodes at most.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit: limit.max(1),
            nodes: BTreeMap::new(),
            places: BTreeSet::new(),
            nearness: BTreeSet::new(),
            explored: BTreeSet::new(),
            density: None,
            arrivals: 0,
        }
    }

    /// How many nodes are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// How often a node has become known: whoever waits for newcomers compares it.
    pub(super) fn arrivals(&self) -> u64 {
        self.arrivals
    }

    pub(super) fn get(&self, node: NodeId) -> Option<&Known> {
        self.nodes.get(&node)
    }

    /// Somebody speaks of a node.
    pub(super) fn hear_of(&mut self, contact: Contact) {
        if let Some(known) = self.nodes.get_mut(&contact.node) {
            // Positions don't change, networks may.
            known.contact.network = contact.network.or(known.contact.network);
            return;
        }
        let nearness = nearness(contact.position);
        if self.nodes.len() >= self.limit {
            let Some(&(farthest, node)) = self.nearness.last() else { return };
            if farthest <= nearness {
                return;
            }
            self.forget(node);
        }
        self.arrivals += 1;
        self.places.insert((contact.position, contact.node));
        self.nearness.insert((nearness, contact.node));
        let known = Known {
            contact,
            proven: false,
            connected: false,
            rtt: None,
            failures: 0,
            rests_until: Time::default(),
        };
        self.nodes.insert(contact.node, known);
    }

    pub(super) fn forget(&mut self, node: NodeId) {
        let Some(known) = self.nodes.remove(&node) else { return };
        self.places.remove(&(known.contact.position, node));
        self.nearness.remove(&(nearness(known.contact.position), node));
    }

    pub(super) fn connected(&mut self, node: NodeId, connected: bool) {
        if let Some(known) = self.nodes.get_mut(&node) {
            known.connected = connected;
            if connected {
                (known.proven, known.rests_until) = (true, Time::default());
            }
        }
    }

    pub(super) fn answered(&mut self, node: NodeId, took: Duration) {
        let Some(known) = self.nodes.get_mut(&node) else { return };
        known.proven = true;
        known.failures = 0;
        known.rests_until = Time::default();
        // Of a node that had to be dialled first it says little.
        if known.connected {
            let before = known.rtt.unwrap_or(took);
            known.rtt = Some((before * 3 + took) / 4);
        }
    }

    pub(super) fn failed(&mut self, node: NodeId, now: Time) {
        let Some(known) = self.nodes.get_mut(&node) else { return };
        known.proven = false;
        known.failures += 1;
        known.rests_until = now + CONTACT_REST * (1 << known.failures.min(5));
        if known.failures >= MAX_CONTACT_FAILURES {
            self.forget(node);
        }
    }

    /// How long an answer of this node may take before it pays to ask another as well.
    pub(super) fn patience(&self, node: NodeId) -> Duration {
        let known = self.nodes.get(&node);
        match known.filter(|known| known.connected).map(|known| known.rtt) {
            Some(Some(rtt)) => rtt * 2 + Duration::from_millis(20),
            Some(None) => UNKNOWN_LATENCY * 2,
            // It is dialled first, which takes some three round trips.
            None => UNKNOWN_LATENCY * 3,
        }
    }

    /// The `count` nodes nearest to a place that may be asked now, nearest first.
    pub(super) fn nearest(&self, target: Position, count: usize, now: Time) -> Vec<&Known> {
        let usable = |(_, node): &(Position, NodeId)| {
            self.nodes.get(node).filter(|known| known.rests_until <= now)
        };
        // Those that share the most leading bits stand together, and are nearer than all others.
        let range = |bits: u32| {
            let spread = u64::MAX.checked_shr(bits).unwrap_or(0);
            let (least, greatest) = (target.0 & !spread, target.0 | spread);
            (Position(least), NodeId(0))..=(Position(greatest), NodeId(u64::MAX))
        };
        let holds_enough = |bits| self.places.range(range(bits)).take(count).count() >= count;
        let mut bits = self.places.len().checked_div(count).unwrap_or(0).max(1).ilog2();
        while bits < u64::BITS && holds_enough(bits + 1) {
            bits += 1;
        }
        let mut found: Vec<&Known>;
        loop {
            found = self.places.range(range(bits)).filter_map(usable).collect();
            if found.len() >= count || bits == 0 {
                break;
            }
            bits -= 1;
        }
        found.sort_by_key(|known| (known.contact.position.distance(target), known.contact.node));
        found.truncate(count);
        found
    }

    /// A walk has come to its end at this meeting point.
    pub(super) fn explored(&mut self, bucket: Bucket) {
        self.explored.insert(bucket);
    }

    /// Whether so few neighbourhoods are known that it can't be told whether one is crowded, while
    /// there are others to get to know.
    pub(super) fn is_new_here(&self) -> bool {
        self.explored.len() < LEAST_EXPLORED
    }

    /// Nodes near a meeting point that have answered lately. Where it is crowded, any of those
    /// around: `salt` says which, so that whoever asks several learns of those who are honest.
    pub(super) fn near(
        &mut self,
        target: Position,
        count: usize,
        salt: u64,
        now: Time,
    ) -> Vec<Contact> {
        let radius = self.usual_radius(now);
        let near = self.nearest(target, MAX_WALK_NODES, now);
        let mut proven: Vec<Contact> =
            near.iter().filter(|known| known.proven).map(|known| known.contact).collect();
        let inside = proven.iter().take_while(|c| c.position.distance(target) <= radius).count();
        if radius != u64::MAX && inside >= CROWDED_FACTOR * REPLICAS {
            proven.truncate(inside);
            proven.sort_by_key(|contact| mix(salt, contact.node.0, 3));
        }
        proven.truncate(count);
        proven
    }

    /// The distance within which [`REPLICAS`] nodes are to be expected anywhere: the median over
    /// the meeting points that were walked to, which whoever crowds around one of them hardly
    /// moves. Everywhere, while few were.
    pub(super) fn usual_radius(&mut self, now: Time) -> u64 {
        let explored = self.explored.len();
        if explored < LEAST_EXPLORED {
            return u64::MAX;
        }
        if let Some((at, of, radius)) = self.density
            && (of == explored && now.since(at) < DENSITY_LIFE)
        {
            return radius;
        }
        let radius = |bucket: &Bucket| {
            let target = bucket.position();
            let nearest = self.nearest(target, REPLICAS, now);
            let farthest = nearest.get(REPLICAS - 1);
            farthest.map_or(u64::MAX, |known| known.contact.position.distance(target))
        };
        let mut radii: Vec<u64> = self.explored.iter().map(radius).collect();
        radii.sort_unstable();
        let median = radii[radii.len() / 2];
        self.density = Some((now, explored, median));
        median
    }

    /// How many nodes that answer others the network has, by how dense those known are.
    #[must_use]
    pub fn network_size(&mut self, now: Time) -> u64 {
        let radius = self.usual_radius(now);
        if radius == u64::MAX {
            return self.len() as u64;
        }
        // `radius` is where the REPLICAS-th of n nodes is expected: n = REPLICAS · 2^64 / radius.
        let size = (REPLICAS as u128) << 64;
        u64::try_from(size / u128::from(radius.max(1))).unwrap_or(u64::MAX)
    }
}

/// How near a place is to the nearest meeting point.
fn nearness(position: Position) -> u64 {
    Bucket::all().map(|bucket| bucket.position().distance(position)).min().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn contact(number: u64) -> Contact {
        let position = Position::of(&number.to_be_bytes());
        Contact { node: NodeId(number), position, network: None }
    }

    fn contacts(count: u64, limit: usize) -> Contacts {
        let mut contacts = Contacts::new(limit);
        (0..count).for_each(|number| contacts.hear_of(contact(number)));
        contacts
    }

    proptest! {
        #[test]
        fn the_nearest_are_the_nearest(count in 0_u64..200, target: u64, wanted in 1_usize..30) {
            let contacts = contacts(count, 1000);
            let mut all: Vec<_> = (0..count).map(contact).collect();
            all.sort_by_key(|c| c.position.distance(Position(target)));
            all.truncate(wanted);
            let nearest = contacts.nearest(Position(target), wanted, Time::default());
            let nearest: Vec<_> = nearest.iter().map(|known| known.contact).collect();
            prop_assert_eq!(nearest, all);
        }
    }

    #[test]
    fn whoever_is_far_from_all_meeting_points_is_forgotten_first() {
        let contacts = contacts(20_000, 512);
        assert_eq!(contacts.len(), 512);
        assert_eq!((contacts.places.len(), contacts.nearness.len()), (512, 512));
        let mut all: Vec<_> = (0..20_000).map(contact).collect();
        for bucket in Bucket::all().take(8) {
            all.sort_by_key(|c| c.position.distance(bucket.position()));
            let nearest = contacts.nearest(bucket.position(), 3, Time::default());
            assert_eq!(nearest[0].contact, all[0], "the nearest of all is kept");
        }
    }

    #[test]
    fn the_size_of_the_network_is_estimated() {
        for size in [1_000, 10_000] {
            let mut contacts = contacts(size, 2000);
            Bucket::all().for_each(|bucket| contacts.explored(bucket));
            let estimate = contacts.network_size(Time::default());
            assert!((size * 7 / 10..size * 14 / 10).contains(&estimate), "{estimate} of {size}");
        }
        assert_eq!(contacts(3, 100).network_size(Time::default()), 3);
    }

    #[test]
    fn who_fails_rests_and_is_forgotten_when_it_fails_again_and_again() {
        let mut contacts = contacts(2, 10);
        let (now, node) = (Time::default(), NodeId(1));
        contacts.failed(node, now);
        assert_eq!(contacts.nearest(Position(0), 5, now).len(), 1);
        let later = now + CONTACT_REST * 2;
        assert_eq!(contacts.nearest(Position(0), 5, later).len(), 2);
        (1..MAX_CONTACT_FAILURES).for_each(|_| contacts.failed(node, now));
        assert!(contacts.get(node).is_none());
    }
}
