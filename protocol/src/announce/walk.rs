//! One walk towards a meeting point: asks the nodes known to be near, who name nearer ones, until
//! the nearest of all have been asked.
//!
//! What an attacker can do here is to name nodes that don't exist and to crowd around a point. So
//! nodes that have answered before are asked whatever nearer ones are named; one network has few
//! places among those asked; and where far more nodes stand than anywhere else, all are asked up to
//! the distance at which honest ones are to be expected.

use super::contacts::{Contacts, Known};
use super::place::{Contact, NodeId, Position};
use crate::fetch::Time;
use crate::limits::{CROWDED_FACTOR, MAX_WALK_NODES, NETWORK_SHARE, REPLICAS};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    New,
    Asked,
    Answered,
    Failed,
}

#[derive(Debug)]
struct Candidate {
    network: Option<u64>,
    proven: bool,
    state: State,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Walk {
    target: Position,
    /// How many of the nearest are to be asked.
    want: usize,
    /// How many are asked at once, besides those that are overdue.
    parallel: usize,
    /// The distance within which that many nodes are usual.
    radius: u64,
    candidates: BTreeMap<(u64, NodeId), Candidate>,
    /// Who has been asked and hasn't answered: how far away it is, and from when on another is
    /// asked as well.
    asked: BTreeMap<NodeId, (u64, Time)>,
    /// Nobody is left to ask, until something is heard.
    exhausted: bool,
}

impl Walk {
    /// Towards `target`, from the nodes that `contacts` knows to be near.
    pub fn new(
        target: Position,
        want: usize,
        parallel: usize,
        contacts: &mut Contacts,
        now: Time,
    ) -> Self {
        let radius = contacts.usual_radius(now);
        let candidates = BTreeMap::new();
        let (asked, exhausted) = (BTreeMap::new(), false);
        let mut walk = Self { target, want, parallel, radius, candidates, asked, exhausted };
        let (mut proven, mut known) = (0, 0);
        for Known { contact, proven: is_proven, .. } in
            contacts.nearest(target, MAX_WALK_NODES, now)
        {
            let inside = contact.position.distance(target) <= radius;
            if proven >= want.max(REPLICAS) && known >= 2 * REPLICAS && !inside {
                break;
            }
            walk.add(*contact, *is_proven);
            proven += usize::from(*is_proven);
            known += 1;
        }
        walk
    }

    fn add(&mut self, contact: Contact, proven: bool) {
        let place = (contact.position.distance(self.target), contact.node);
        let state = State::New;
        let network = contact.network;
        self.candidates.entry(place).or_insert_with(|| {
            self.exhausted = false;
            Candidate { network, proven, state }
        });
    }

    /// Somebody has named a node that is near. What doesn't come near is not remembered.
    pub fn hear_of(&mut self, contact: Contact, contacts: &Contacts) {
        if self.candidates.len() < 2 * MAX_WALK_NODES {
            let proven = contacts.get(contact.node).is_some_and(|known| known.proven);
            self.add(contact, proven);
        }
    }

    /// Whether the `want` nearest are all known to answer, so that nobody need ask who is near.
    pub fn is_settled(&self, want: usize) -> bool {
        self.candidates.values().take(want).all(|candidate| candidate.proven)
    }

    /// All that stay candidates are asked again, the `want` nearest of them.
    pub fn ask_again(&mut self, want: usize, parallel: usize) {
        (self.want, self.parallel, self.exhausted) = (want, parallel, false);
        for candidate in self.candidates.values_mut() {
            if candidate.state == State::Answered {
                (candidate.proven, candidate.state) = (true, State::New);
            }
        }
    }

    /// Whom the walk is about: the nearest, fewer of each network, more where it is crowded, and
    /// those who are known to answer.
    fn frontier(&self) -> Vec<(u64, NodeId)> {
        let alive = || self.candidates.iter().filter(|(_, c)| c.state != State::Failed);
        let inside = alive().take_while(|((distance, _), _)| *distance <= self.radius).count();
        let crowded = self.radius != u64::MAX && inside >= CROWDED_FACTOR * REPLICAS;
        let (mut chosen, mut passed_over) = (Vec::new(), Vec::new());
        let mut networks: BTreeMap<u64, usize> = BTreeMap::new();
        let mut proven = 0;
        for (place, candidate) in alive() {
            let enough = chosen.len() >= self.want && (!crowded || place.0 > self.radius);
            if chosen.len() >= MAX_WALK_NODES {
                break;
            }
            let counts = candidate.proven || candidate.state == State::Answered;
            if enough && (proven >= self.want || !counts) {
                continue;
            }
            if let Some(network) = candidate.network {
                let share = networks.entry(network).or_default();
                if *share >= NETWORK_SHARE {
                    passed_over.push(*place);
                    continue;
                }
                *share += 1;
            }
            proven += usize::from(counts);
            chosen.push(*place);
        }
        // A small network that one operator runs works too.
        let missing = self.want.saturating_sub(chosen.len());
        chosen.extend(passed_over.into_iter().take(missing));
        chosen
    }

    /// Whom to ask next, if anybody is to be asked now.
    pub fn next(&mut self, contacts: &Contacts, now: Time) -> Option<NodeId> {
        let waiting = self.asked.values().filter(|(_, overdue)| now < *overdue).count();
        if self.exhausted || waiting >= self.parallel {
            return None;
        }
        let rank = |&(distance, node): &(u64, NodeId)| {
            let known = contacts.get(node);
            let connected = known.is_some_and(|known| known.connected);
            let proven = known.is_some_and(|known| known.proven);
            (!connected, !proven, distance, node)
        };
        let frontier = self.frontier();
        let fresh = frontier.iter().filter(|place| self.candidates[*place].state == State::New);
        let Some(&place) = fresh.min_by_key(|place| rank(place)) else {
            self.exhausted = true;
            return None;
        };
        let (distance, node) = place;
        self.candidates.get_mut(&place)?.state = State::Asked;
        self.asked.insert(node, (distance, now + contacts.patience(node)));
        Some(node)
    }

    fn heard(&mut self, node: NodeId, state: State) {
        let Some((distance, _)) = self.asked.remove(&node) else { return };
        self.exhausted = false;
        if let Some(candidate) = self.candidates.get_mut(&(distance, node)) {
            candidate.state = state;
        }
    }

    pub fn answered(&mut self, node: NodeId) {
        self.heard(node, State::Answered);
    }

    pub fn failed(&mut self, node: NodeId) {
        self.heard(node, State::Failed);
    }

    /// When it will be time to ask another, because somebody takes long.
    pub fn poll_timeout(&self, now: Time) -> Option<Time> {
        let overdue = self.asked.values().map(|(_, overdue)| *overdue);
        overdue.filter(|overdue| !self.exhausted && *overdue > now).min()
    }

    /// Whether everybody has been asked and has answered or failed.
    pub fn is_over(&self) -> bool {
        let open = || self.frontier().iter().any(|p| self.candidates[p].state == State::New);
        self.asked.is_empty() && (self.exhausted || !open())
    }

    /// Who has answered, nearest first.
    pub fn who_answered(&self) -> BTreeSet<NodeId> {
        let answered = self.candidates.iter().filter(|(_, c)| c.state == State::Answered);
        answered.map(|((_, node), _)| *node).collect()
    }
}
