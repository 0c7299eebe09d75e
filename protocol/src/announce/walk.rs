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
use std::collections::BTreeSet;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    New,
    Asked,
    Answered,
    Failed,
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    distance: u64,
    node: NodeId,
    network: Option<u64>,
    proven: bool,
    state: State,
}

/// Somebody who has been asked and hasn't answered.
#[derive(Debug, Clone, Copy)]
struct Asked {
    node: NodeId,
    distance: u64,
    /// From when on another is asked as well.
    overdue: Time,
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
    /// Nearest first.
    candidates: Vec<Candidate>,
    asked: Vec<Asked>,
    /// Whom the walk is about, by their places among the candidates; `None` after a change.
    frontier: Option<Vec<u16>>,
    /// Nobody is left to ask, until something is heard.
    exhausted: bool,
}

/// Candidates that are remembered.
const MAX_CANDIDATES: usize = 2 * MAX_WALK_NODES;

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
        let (mut proven, mut known) = (0, 0);
        let mut candidates = Vec::with_capacity(4 * REPLICAS);
        let near = contacts.nearest(target, now).take(MAX_WALK_NODES);
        for Known { contact, proven: is_proven, .. } in near {
            let distance = contact.position.distance(target);
            if proven >= want.max(REPLICAS) && known >= 2 * REPLICAS && distance > radius {
                break;
            }
            let Contact { node, network, .. } = *contact;
            let state = State::New;
            candidates.push(Candidate { distance, node, network, proven: *is_proven, state });
            proven += usize::from(*is_proven);
            known += 1;
        }
        let (asked, frontier, exhausted) = (Vec::new(), None, false);
        Self { target, want, parallel, radius, candidates, asked, frontier, exhausted }
    }

    fn place(&self, distance: u64, node: NodeId) -> Result<usize, usize> {
        self.candidates.binary_search_by_key(&(distance, node), |c| (c.distance, c.node))
    }

    /// Somebody has named a node that is near. What doesn't come near is not remembered.
    pub fn hear_of(&mut self, contact: Contact, contacts: &Contacts) {
        if self.candidates.len() >= MAX_CANDIDATES {
            return;
        }
        let Contact { node, network, position } = contact;
        let distance = position.distance(self.target);
        if let Err(place) = self.place(distance, node) {
            let (_, proven) = contacts.standing(position);
            let candidate = Candidate { distance, node, network, proven, state: State::New };
            self.candidates.insert(place, candidate);
            (self.frontier, self.exhausted) = (None, false);
        }
    }

    /// Whether the `want` nearest are all known to answer, so that nobody need ask who is near.
    pub fn is_settled(&self, want: usize) -> bool {
        self.candidates.iter().take(want).all(|candidate| candidate.proven)
    }

    /// All that stay candidates are asked again, the `want` nearest of them.
    pub fn ask_again(&mut self, want: usize, parallel: usize) {
        (self.want, self.parallel, self.exhausted) = (want, parallel, false);
        for candidate in &mut self.candidates {
            if candidate.state == State::Answered {
                (candidate.proven, candidate.state) = (true, State::New);
            }
        }
        self.frontier = None;
    }

    /// Whom the walk is about: the nearest, fewer of each network, more where it is crowded, and
    /// those who are known to answer.
    fn frontier(&self) -> Vec<u16> {
        let alive = || (0_u16..).zip(&self.candidates).filter(|(_, c)| c.state != State::Failed);
        let crowded = self.radius != u64::MAX && {
            let inside = alive().take_while(|(_, c)| c.distance <= self.radius).count();
            inside >= CROWDED_FACTOR * REPLICAS
        };
        let (mut chosen, mut passed_over) = (Vec::with_capacity(2 * REPLICAS), Vec::new());
        let mut networks: Vec<(u64, usize)> = Vec::with_capacity(2 * REPLICAS);
        let mut proven = 0;
        for (at, candidate) in alive() {
            let enough =
                chosen.len() >= self.want && (!crowded || candidate.distance > self.radius);
            if chosen.len() >= MAX_WALK_NODES || (enough && proven >= self.want) {
                break;
            }
            let counts = candidate.proven || candidate.state == State::Answered;
            if enough && !counts {
                continue;
            }
            if let Some(network) = candidate.network {
                let known = networks.iter_mut().find(|(other, _)| *other == network);
                match known {
                    Some((_, share)) if *share >= NETWORK_SHARE => {
                        passed_over.push(at);
                        continue;
                    }
                    Some((_, share)) => *share += 1,
                    None => networks.push((network, 1)),
                }
            }
            proven += usize::from(counts);
            chosen.push(at);
        }
        // A small network that one operator runs works too.
        let missing = self.want.saturating_sub(chosen.len());
        chosen.extend(passed_over.into_iter().take(missing));
        chosen
    }

    /// The nearest of those who are to be asked and haven't been: first whoever is connected, then
    /// whoever is known to answer.
    fn fresh(&mut self, contacts: &Contacts) -> Option<usize> {
        let frontier = self.frontier.take().unwrap_or_else(|| self.frontier());
        let candidates = &self.candidates;
        let fresh = frontier.iter().map(|at| usize::from(*at));
        let fresh = fresh.filter(|at| candidates[*at].state == State::New).min_by_key(|at| {
            let Candidate { distance, node, .. } = candidates[*at];
            let (connected, proven) = contacts.standing(Position(distance ^ self.target.0));
            (!connected, !proven, distance, node)
        });
        self.frontier = Some(frontier);
        fresh
    }

    /// Whom to ask next, if anybody is to be asked now.
    pub fn next(&mut self, contacts: &Contacts, now: Time) -> Option<NodeId> {
        let waiting = self.asked.iter().filter(|asked| now < asked.overdue).count();
        if self.exhausted || waiting >= self.parallel {
            return None;
        }
        let Some(at) = self.fresh(contacts) else {
            self.exhausted = true;
            return None;
        };
        let candidate = &mut self.candidates[at];
        // Who is asked stays in the frontier, so that this one needn't be made anew.
        candidate.state = State::Asked;
        let Candidate { node, distance, .. } = *candidate;
        let overdue = now + contacts.patience(node);
        self.asked.push(Asked { node, distance, overdue });
        Some(node)
    }

    fn heard(&mut self, node: NodeId, state: State) {
        let Some(at) = self.asked.iter().position(|asked| asked.node == node) else { return };
        let Asked { distance, .. } = self.asked.swap_remove(at);
        self.exhausted = false;
        if let Ok(at) = self.place(distance, node) {
            self.candidates[at].state = state;
            self.frontier = None;
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
        let overdue = self.asked.iter().map(|asked| asked.overdue);
        overdue.filter(|overdue| !self.exhausted && *overdue > now).min()
    }

    /// Whether everybody has been asked and has answered or failed.
    pub fn is_over(&mut self) -> bool {
        if !self.asked.is_empty() {
            return false;
        }
        let frontier = self.frontier.take().unwrap_or_else(|| self.frontier());
        let is_new = |at: &u16| self.candidates[usize::from(*at)].state == State::New;
        let over = self.exhausted || !frontier.iter().any(is_new);
        self.frontier = Some(frontier);
        over
    }

    /// Whether somebody didn't answer.
    pub fn has_failures(&self) -> bool {
        self.candidates.iter().any(|candidate| candidate.state == State::Failed)
    }

    /// Who has answered, nearest first.
    pub fn who_answered(&self) -> BTreeSet<NodeId> {
        let answered = self.candidates.iter().filter(|c| c.state == State::Answered);
        answered.map(|candidate| candidate.node).collect()
    }
}
