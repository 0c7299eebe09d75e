//! The nodes that this one knows of, as far as finding and announcing need them: who is near the
//! meeting points, who answers, how fast.
//!
//! Kademlia's table knows a few nodes everywhere; this remembers, beyond that, the neighbourhood
//! of every bucket from one lookup to the next, so that most lookups take one step.

mod density;

use super::by_distance::{ByDistance, NetworkTag, Place, Standing};
use super::mix;
use super::place::{Bucket, Contact, NodeId, Position};
use crate::fetch::Time;
use crate::limits::{
    CONTACT_REST, CROWDED_FACTOR, MAX_CONTACT_FAILURES, MAX_WALK_NODES, REPLICAS, UNKNOWN_LATENCY,
};
use density::{Density, Knowledge, size_by_radius};
use hashbrown::HashMap;
use rustc_hash::FxBuildHasher;
use std::time::Duration;

/// How long a vicinity in which nothing has changed is told without looking: where it is crowded
/// depends on the density, which changes slowly.
const VICINITY_LIFE: Duration = Duration::from_secs(600);

/// Vicinities that are remembered: most nodes keep one bucket or none.
const MAX_VICINITIES: usize = 4;

/// How many round trips the usual one is a mean of: a lookup or two.
const USUAL_OF: u32 = 16;

/// A longer round trip says that somebody was busy, not how far away they are.
const MAX_RTT: Duration = Duration::from_secs(1);

/// Room that is made for nodes at first.
const LEAST_ROOM: usize = 32;

/// What is known of one node: fits a line of the processor's cache, since there are many.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub contact: Contact,
    /// Not asked before, after a failure.
    rests_until: Time,
    /// Round trip, when it was measured.
    rtt: Option<Nanos>,
    failures: u8,
    /// It has answered, and not failed since: so it doesn't rest.
    pub proven: bool,
    /// There is a connection to it.
    pub connected: bool,
}

/// A time of less than four seconds in nanoseconds; longer round trips count as that.
type Nanos = std::num::NonZeroU32;

/// Who is near a meeting point: a keeper is asked for the same again and again. Forgotten when
/// somebody within its reach changes.
#[derive(Debug)]
struct Vicinity {
    bucket: Bucket,
    count: usize,
    at: Time,
    /// How far the farthest is that was looked at.
    reach: u64,
    /// As many were looked at as ever are, or all: whoever becomes known within reach counts too.
    is_whole: bool,
    proven: Vec<Contact>,
    /// How many of them are as near as [`REPLICAS`] are anywhere.
    inside: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Contacts {
    limit: usize,
    /// In no order; the places in `free` are empty.
    nodes: Vec<Known>,
    free: Vec<u32>,
    /// Where in `nodes` each is. Never walked through, so that the order in it doesn't matter, and
    /// with so few entries that those who make numbers collide gain nothing.
    index: HashMap<NodeId, u32, FxBuildHasher>,
    /// All of `nodes`, in the order of the key space.
    places: Vec<Place>,
    /// All of `nodes`, by how near they are to the nearest meeting point: the farthest is the
    /// first to be forgotten.
    nearness: Vec<(u64, NodeId)>,
    density: Density,
    /// What round trips usually take, as far as they were measured.
    usual_rtt: Option<Duration>,
    /// How often a node has become known.
    arrivals: u64,
    /// The oldest first.
    vicinities: Vec<Vicinity>,
}

impl Contacts {
    /// Knows nobody, and will know `limit` nodes at most.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit: limit.max(1),
            nodes: Vec::new(),
            free: Vec::new(),
            index: HashMap::default(),
            places: Vec::new(),
            nearness: Vec::new(),
            density: Density::default(),
            usual_rtt: None,
            arrivals: 0,
            vicinities: Vec::new(),
        }
    }

    /// How many nodes are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// How often a node has become known: whoever waits for newcomers compares it.
    pub(super) fn arrivals(&self) -> u64 {
        self.arrivals
    }

    pub(super) fn get(&self, node: NodeId) -> Option<&Known> {
        self.index.get(&node).map(|at| &self.nodes[*at as usize])
    }

    fn get_mut(&mut self, node: NodeId) -> Option<&mut Known> {
        self.index.get(&node).map(|at| &mut self.nodes[*at as usize])
    }

    /// Somebody speaks of a node.
    pub(super) fn hear_of(&mut self, contact: Contact) {
        // Those that are named together stand together, so this looks at little memory; and most are known.
        let network = NetworkTag::of(contact.network);
        let there = self.find(contact.position);
        if there.is_some_and(|there| contact.network.is_none() || there.network == network) {
            return;
        }
        let place = self.place(&contact);
        let there = self.places.get(place).filter(|there| there.position == contact.position);
        let known = there.map(|there| &mut self.nodes[there.at as usize]);
        if let Some(known) = known.filter(|known| known.contact.node == contact.node) {
            // Positions don't change, networks may.
            if contact.network.is_some() && contact.network != known.contact.network {
                known.contact.network = contact.network;
                self.places[place].network = network;
                self.changed(contact.position, |_| true);
            }
            return;
        }
        let nearness = contact.position.nearness();
        if self.len() >= self.limit {
            let Some(&(farthest, node)) = self.nearness.last() else { return };
            if farthest <= nearness {
                return;
            }
            self.forget(node);
        }
        // A node has one position, and whoever says otherwise isn't listened to.
        if self.index.contains_key(&contact.node) {
            return;
        }
        self.arrivals += 1;
        let known = Known {
            contact,
            proven: false,
            connected: false,
            rtt: None,
            failures: 0,
            rests_until: Time::default(),
        };
        if self.len() == self.places.capacity() {
            self.grow();
        }
        let at = self.free.pop().unwrap_or(self.nodes.len() as u32);
        if let Some(place) = self.nodes.get_mut(at as usize) {
            *place = known;
        } else {
            self.nodes.push(known);
        }
        let place = self.place(&contact);
        self.changed(contact.position, |vicinity| vicinity.is_whole);
        let (position, standing, connected) = (contact.position, Standing::New, false);
        let new = Place { position, at, network, standing, connected };
        self.places.insert(place, new);
        let place = self.nearness.partition_point(|other| *other < (nearness, contact.node));
        self.nearness.insert(place, (nearness, contact.node));
        self.index.insert(contact.node, at);
    }

    /// Makes room for twice as many, but no more than will ever be known.
    fn grow(&mut self) {
        let more = self.len().max(LEAST_ROOM).min(self.limit - self.len());
        self.nodes.reserve_exact(more);
        self.places.reserve_exact(more);
        self.nearness.reserve_exact(more);
    }

    /// What is kept of whoever is at this position. That another is there too has a chance of one in
    /// 2^64 for each two: it would count as the same.
    fn find(&self, position: Position) -> Option<&Place> {
        let at = self.places.partition_point(|place| place.position < position);
        self.places.get(at).filter(|place| place.position == position)
    }

    /// Whether whoever is at this position is connected, and whether it has answered, and not failed
    /// since.
    pub(super) fn standing(&self, position: Position) -> (bool, bool) {
        let place = self.find(position);
        place.map_or((false, false), |at| (at.connected, at.standing == Standing::Proven))
    }

    /// Where among the places a contact is, or would be.
    fn place(&self, contact: &Contact) -> usize {
        let before = self.places.partition_point(|place| place.position < contact.position);
        let same = self.places[before..].iter();
        let same = same.take_while(|place| {
            let node = self.nodes[place.at as usize].contact.node;
            place.position == contact.position && node < contact.node
        });
        before + same.count()
    }

    pub(super) fn forget(&mut self, node: NodeId) {
        let Some(contact) = self.get(node).map(|known| known.contact) else { return };
        let place = self.place(&contact);
        self.places.remove(place);
        self.changed(contact.position, |_| true);
        if let Ok(place) = self.nearness.binary_search(&(contact.position.nearness(), node)) {
            self.nearness.remove(place);
        }
        self.free.extend(self.index.remove(&node));
    }

    pub(super) fn connected(&mut self, node: NodeId, connected: bool) {
        if let Some(known) = self.get_mut(node) {
            known.connected = connected;
            let contact = known.contact;
            let place = self.place(&contact);
            self.places[place].connected = connected;
            if let Some(known) = self.get_mut(node).filter(|_| connected) {
                known.rests_until = Time::default();
                self.set_standing(node, Standing::Proven);
            }
        }
    }

    /// It has answered, after so long, unless it had to be dialled first.
    pub(super) fn answered(&mut self, node: NodeId, took: Option<Duration>) {
        let Some(known) = self.get_mut(node) else { return };
        known.failures = 0;
        known.rests_until = Time::default();
        if let Some(took) = took {
            let nanos = u32::try_from(took.as_nanos()).unwrap_or(u32::MAX);
            let before = known.rtt.map_or(nanos, Nanos::get);
            let mean = (u64::from(before) * 3 + u64::from(nanos)) / 4;
            known.rtt = Nanos::new((mean as u32).max(1));
            let usual = self.usual_rtt.unwrap_or(took);
            self.usual_rtt = Some((usual * (USUAL_OF - 1) + took.min(MAX_RTT)) / USUAL_OF);
        }
        self.set_standing(node, Standing::Proven);
    }

    pub(super) fn failed(&mut self, node: NodeId, now: Time) {
        let Some(known) = self.get_mut(node) else { return };
        // Several messages that were under way when it failed are one failure.
        if known.rests_until > now {
            return;
        }
        known.failures += 1;
        known.rests_until = now + CONTACT_REST * (1 << known.failures.min(5));
        let failures = known.failures;
        self.set_standing(node, Standing::Failed);
        if failures >= MAX_CONTACT_FAILURES {
            self.forget(node);
        }
    }

    fn set_standing(&mut self, node: NodeId, standing: Standing) {
        let Some(known) = self.get_mut(node) else { return };
        let changes = known.proven != (standing == Standing::Proven) || known.failures == 1;
        known.proven = standing == Standing::Proven;
        if changes {
            let contact = known.contact;
            let place = self.place(&contact);
            self.places[place].standing = standing;
            self.changed(contact.position, |_| true);
        }
    }

    /// What a round trip to anybody usually takes, if one was measured.
    pub(super) fn usual_rtt(&self) -> Option<Duration> {
        self.usual_rtt
    }

    /// Somebody at this position counts now, or no longer, for those vicinities that this `concerns`.
    fn changed(&mut self, position: Position, concerns: impl Fn(&Vicinity) -> bool) {
        let within = |near: &Vicinity| position.distance(near.bucket.position()) <= near.reach;
        self.vicinities.retain(|vicinity| !(within(vicinity) && concerns(vicinity)));
    }

    /// How long an answer of this node may take before it pays to ask another as well.
    pub(super) fn patience(&self, node: NodeId) -> Duration {
        match self.get(node).filter(|known| known.connected).map(|known| known.rtt) {
            Some(Some(rtt)) => {
                Duration::from_nanos(rtt.get().into()) * 2 + Duration::from_millis(20)
            }
            Some(None) => UNKNOWN_LATENCY * 2,
            // It is dialled first, which takes some three round trips.
            None => UNKNOWN_LATENCY * 3,
        }
    }

    /// The nodes that may be asked now, by their distance to a place, nearest first.
    pub(super) fn nearest(&self, target: Position, now: Time) -> impl Iterator<Item = &Known> {
        self.awake(target, now).map(|place| &self.nodes[place.at as usize])
    }

    fn awake(&self, target: Position, now: Time) -> impl Iterator<Item = &Place> {
        let rests = move |place: &Place| {
            place.standing == Standing::Failed && self.nodes[place.at as usize].rests_until > now
        };
        ByDistance::new(&self.places, target).filter(move |place| !rests(place))
    }

    /// Those of them that have answered, and not failed since.
    pub(super) fn nearest_proven(&self, target: Position) -> impl Iterator<Item = &Known> {
        let proven = |place: &&Place| place.standing == Standing::Proven;
        let places = ByDistance::new(&self.places, target).filter(proven);
        places.map(|place| &self.nodes[place.at as usize])
    }

    /// A walk has come to its end at this meeting point.
    pub(super) fn explored(&mut self, bucket: Bucket) {
        self.density.explored(bucket);
    }

    /// Whether so few neighbourhoods are known that it can't be told whether one is crowded, while
    /// there are others to get to know.
    pub(super) fn is_new_here(&self) -> bool {
        self.density.is_unknown()
    }

    /// How dense the network was lately, as far as is known: see [`Contacts::usual_radius`].
    pub(super) fn last_radius(&self) -> u64 {
        self.density.last_radius()
    }

    /// How dense it was when an earlier run of this node ended.
    pub(super) fn recall_radius(&mut self, radius: u64) {
        self.density.recall(radius);
    }

    /// Nodes near a meeting point that have answered lately, `count` at most. Where it is crowded, any
    /// of those around: `salt` says which, so that whoever asks several learns of those who are honest.
    pub(super) fn near(
        &mut self,
        bucket: Bucket,
        count: usize,
        salt: u64,
        now: Time,
    ) -> Vec<Contact> {
        let fresh = |vicinity: &Vicinity| {
            vicinity.bucket == bucket
                && vicinity.count == count
                && now.since(vicinity.at) < VICINITY_LIFE
        };
        let vicinity = match self.vicinities.iter().position(fresh) {
            Some(at) => &self.vicinities[at],
            None => {
                let vicinity = self.look_around(bucket, count, now);
                self.vicinities.retain(|other| other.bucket != bucket);
                if self.vicinities.len() >= MAX_VICINITIES {
                    self.vicinities.remove(0);
                }
                self.vicinities.push(vicinity);
                &self.vicinities[self.vicinities.len() - 1]
            }
        };
        if vicinity.inside < CROWDED_FACTOR * REPLICAS {
            return vicinity.proven.iter().take(count).copied().collect();
        }
        let mut proven = vicinity.proven[..vicinity.inside].to_vec();
        if count < proven.len() {
            proven.select_nth_unstable_by_key(count, |contact| mix(salt, contact.node.0, 3));
            proven.truncate(count);
        }
        proven
    }

    fn look_around(&mut self, bucket: Bucket, count: usize, now: Time) -> Vicinity {
        let (target, radius) = (bucket.position(), self.usual_radius(now));
        let (mut proven, mut inside) = (Vec::with_capacity(count), 0);
        let (mut reach, mut is_whole) = (u64::MAX, true);
        for place in ByDistance::new(&self.places, target).take(MAX_WALK_NODES) {
            reach = place.position.distance(target);
            if place.standing != Standing::Proven {
                continue;
            }
            let usual = radius != u64::MAX && reach <= radius;
            if !usual && proven.len() >= count {
                is_whole = false;
                break;
            }
            inside += usize::from(usual);
            proven.push(self.nodes[place.at as usize].contact);
        }
        if self.len() < MAX_WALK_NODES && is_whole {
            reach = u64::MAX;
        }
        Vicinity { bucket, count, at: now, reach, is_whole, proven, inside }
    }

    /// The nearest to a meeting point that haven't failed, first those that have answered; at most so
    /// many.
    pub(super) fn neighbours(&self, bucket: Bucket, most: usize) -> Vec<NodeId> {
        let (mut proven, mut new) = (Vec::with_capacity(most), Vec::with_capacity(most));
        for place in ByDistance::new(&self.places, bucket.position()).take(MAX_WALK_NODES) {
            let of_its_kind = match place.standing {
                Standing::Proven => &mut proven,
                Standing::New => &mut new,
                Standing::Failed => continue,
            };
            if of_its_kind.len() < most {
                of_its_kind.push(self.nodes[place.at as usize].contact.node);
            }
            if proven.len() >= most {
                break;
            }
        }
        new.truncate(most - proven.len());
        proven.extend(new);
        proven
    }

    /// The distance within which [`REPLICAS`] nodes are to be expected anywhere: see
    /// [`Density::radius`].
    pub(super) fn usual_radius(&mut self, now: Time) -> u64 {
        let known = Knowledge { nodes: self.len(), arrivals: self.arrivals, at: now };
        if let Some(radius) = self.density.radius(&known) {
            return radius;
        }
        let radius = |bucket: Bucket| {
            let target = bucket.position();
            let farthest = self.awake(target, now).nth(REPLICAS - 1);
            farthest.map_or(u64::MAX, |place| place.position.distance(target))
        };
        let radii = self.density.explored_ones().map(radius).collect();
        self.density.estimate(radii, known)
    }

    /// How many nodes that answer others the network has, by how dense those known are.
    #[must_use]
    pub fn network_size(&mut self, now: Time) -> u64 {
        size_by_radius(self.usual_radius(now)).unwrap_or(self.len() as u64)
    }
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
            let nearest = contacts.nearest(Position(target), Time::default()).take(wanted);
            let nearest: Vec<_> = nearest.map(|known| known.contact).collect();
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
            let nearest = contacts.nearest(bucket.position(), Time::default()).next();
            let nearest = nearest.map(|known| known.contact);
            assert_eq!(nearest, Some(all[0]), "the nearest of all is kept");
        }
    }

    #[test]
    fn a_vicinity_is_told_without_looking_until_something_changes_there() {
        let mut contacts = contacts(100, 1000);
        (0..100).for_each(|number| contacts.answered(NodeId(number), None));
        let (bucket, now) = (Bucket::all().next().expect("a bucket"), Time::default());
        let before = contacts.near(bucket, 5, 0, now);
        assert_eq!(before.len(), 5);
        assert_eq!(contacts.near(bucket, 3, 0, now).len(), 3);
        let nearest: Vec<_> = contacts.nearest(bucket.position(), now).map(|k| k.contact).collect();
        contacts.near(bucket, 5, 0, now);
        contacts.failed(nearest[50].node, now);
        assert_eq!(contacts.vicinities.len(), 1, "far away");
        contacts.failed(nearest[0].node, now);
        assert_eq!(contacts.vicinities.len(), 0);
        let later = contacts.near(bucket, 5, 0, now);
        assert_eq!((later.len(), later.contains(&nearest[0])), (5, false));
        contacts.answered(nearest[0].node, None);
        assert_eq!(contacts.near(bucket, 5, 0, now), before);
        contacts.forget(nearest[0].node);
        assert_eq!(contacts.near(bucket, 5, 0, now), later);
        // Many others in between push it out, and it is looked up anew.
        Bucket::all().take(2 * MAX_VICINITIES).for_each(|other| {
            contacts.near(other, 5, 0, now);
        });
        assert_eq!(contacts.vicinities.len(), MAX_VICINITIES);
        assert_eq!(contacts.near(bucket, 5, 0, now), later);
    }

    proptest! {
        /// Whatever happens, what is told is what would be seen by looking.
        #[test]
        fn a_vicinity_is_never_out_of_date(
            steps in proptest::collection::vec((0_u64..300, 0_u8..7), 1..200),
        ) {
            let (mut contacts, now) = (contacts(60, 250), Time::default());
            let bucket = Bucket::all().next().expect("a bucket");
            for (number, what) in steps {
                let node = NodeId(number);
                match what {
                    0 => contacts.failed(node, now),
                    1 => contacts.forget(node),
                    2 | 4 => contacts.connected(node, what == 2),
                    3 => contacts.hear_of(Contact { network: Some(what.into()), ..contact(number) }),
                    _ => {
                        contacts.hear_of(contact(number));
                        contacts.answered(node, None);
                    }
                }
                let told = contacts.near(bucket, 5, 0, now);
                contacts.vicinities.clear();
                prop_assert_eq!(told, contacts.near(bucket, 5, 0, now));
                let known = contacts.get(node).map_or((false, false), |k| (k.connected, k.proven));
                prop_assert_eq!(contacts.standing(contact(number).position), known);
            }
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
    fn how_dense_the_network_was_counts_until_enough_is_known() {
        let mut contacts = contacts(1000, 2000);
        assert!(contacts.is_new_here());
        assert_eq!(contacts.last_radius(), u64::MAX);
        let radius = 1 << 57;
        contacts.recall_radius(radius);
        assert!(!contacts.is_new_here());
        assert_eq!(
            (contacts.last_radius(), contacts.network_size(Time::default())),
            (radius, 1024)
        );
        Bucket::all().for_each(|bucket| contacts.explored(bucket));
        let estimate = contacts.network_size(Time::default());
        assert!((700..1400).contains(&estimate) && estimate != 1024, "{estimate}");
        assert_ne!(contacts.last_radius(), radius);
    }

    #[test]
    fn who_fails_rests_and_is_forgotten_when_it_fails_again_and_again() {
        let mut contacts = contacts(2, 10);
        let (now, node) = (Time::default(), NodeId(1));
        contacts.failed(node, now);
        assert_eq!(contacts.nearest(Position(0), now).count(), 1);
        let later = now + CONTACT_REST * 2;
        assert_eq!(contacts.nearest(Position(0), later).count(), 2);
        (1..MAX_CONTACT_FAILURES).for_each(|_| contacts.failed(node, now));
        assert!(contacts.get(node).is_some(), "several messages at once are one failure");
        (1..MAX_CONTACT_FAILURES).for_each(|times| {
            contacts.failed(node, now + CONTACT_REST * 40 * u32::from(times));
        });
        assert!(contacts.get(node).is_none());
    }
}
