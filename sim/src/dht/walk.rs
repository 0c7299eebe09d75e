//! An iterative lookup as libp2p-kad walks it: towards a target, three questions at a time, until
//! the twenty closest have answered; optionally over three paths that share no node.
//!
//! It decides whom to ask next and when it is over; it sends nothing and reads no clock.

use super::table::{BUCKET, NodeId, Position};

/// Questions under way while a path makes progress.
pub const PARALLEL: usize = 3;

/// Candidates remembered: far more than any walk gets to, so that lies cost no memory.
const MAX_CANDIDATES: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    New,
    Waiting,
    Answered,
    Failed,
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    distance: Position,
    node: NodeId,
    state: State,
    /// How many were asked in a row to hear of it.
    hop: u8,
}

/// What a path wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Ask this node.
    Ask(NodeId),
    /// Wait for answers.
    Wait,
    /// It is over.
    Done,
}

/// One path.
#[derive(Debug, Clone, Default)]
struct Path {
    /// Closest first.
    candidates: Vec<Candidate>,
    waiting: usize,
    idle: usize,
    stalled: bool,
    done: bool,
}

impl Path {
    fn begin(&mut self, known: &[(Position, NodeId)]) {
        self.candidates.clear();
        let candidate = |&(distance, node)| Candidate { distance, node, state: State::New, hop: 1 };
        self.candidates.extend(known.iter().map(candidate));
        (self.waiting, self.idle, self.stalled, self.done) = (0, 0, false, false);
    }

    fn full(&self, wanted: usize) -> bool {
        let most = if self.stalled { wanted.max(PARALLEL) } else { PARALLEL };
        self.waiting >= most
    }

    fn at(&self, distance: Position) -> Result<usize, usize> {
        self.candidates.binary_search_by_key(&distance, |candidate| candidate.distance)
    }

    fn next(&mut self, wanted: usize) -> Next {
        if self.done {
            return Next::Done;
        }
        let full = self.full(wanted);
        // Counts the answers of the closest, until one closer is still waited for.
        let mut answers = Some(0);
        for candidate in &mut self.candidates {
            match candidate.state {
                State::Waiting if full => return Next::Wait,
                State::Waiting => answers = None,
                State::Answered => {
                    if let Some(count) = &mut answers {
                        *count += 1;
                        if *count >= wanted {
                            self.done = true;
                            return Next::Done;
                        }
                    }
                }
                State::New if full => return Next::Wait,
                State::New => {
                    candidate.state = State::Waiting;
                    self.waiting += 1;
                    return Next::Ask(candidate.node);
                }
                State::Failed => {}
            }
        }
        if self.waiting > 0 {
            return Next::Wait;
        }
        self.done = true;
        Next::Done
    }

    /// An answer, with the nodes that it names.
    fn answered(&mut self, distance: Position, closer: &[(Position, NodeId)], wanted: usize) {
        let Ok(at) = self.at(distance) else { return };
        if self.done || self.candidates[at].state != State::Waiting {
            return;
        }
        self.waiting -= 1;
        self.candidates[at].state = State::Answered;
        let hop = self.candidates[at].hop.saturating_add(1);
        let few = self.candidates.len() < wanted;
        let last = self.candidates.len().min(wanted) - 1;
        let range = self.candidates[last].distance;
        let new = self.add(closer, hop);
        let progress = few || new.is_some_and(|closest| closest < range);
        if progress {
            (self.idle, self.stalled) = (0, false);
        } else {
            self.idle += 1;
            self.stalled |= self.idle >= PARALLEL;
        }
    }

    /// Adds nodes, closest first, that aren't known yet; gives the distance of the closest new one.
    fn add(&mut self, closer: &[(Position, NodeId)], hop: u8) -> Option<Position> {
        // Where each goes is found from the front, and then all are moved once, from the back.
        let mut new = [(0, 0); BUCKET];
        let (mut count, mut from) = (0, 0);
        for (which, &(distance, _)) in closer.iter().enumerate().take(BUCKET) {
            let rest = &self.candidates[from..];
            match rest.binary_search_by_key(&distance, |candidate| candidate.distance) {
                Ok(at) => from += at,
                Err(at) => {
                    from += at;
                    new[count] = (from, which);
                    count += 1;
                }
            }
        }
        let mut end = self.candidates.len();
        let none = Candidate { distance: 0, node: 0, state: State::New, hop };
        self.candidates.resize(end + count, none);
        for number in (0..count).rev() {
            let (at, which) = new[number];
            let (distance, node) = closer[which];
            self.candidates.copy_within(at..end, at + number + 1);
            self.candidates[at + number] = Candidate { distance, node, ..none };
            end = at;
        }
        self.candidates.truncate(MAX_CANDIDATES);
        (count > 0).then(|| closer[new[0].1].0)
    }

    fn failed(&mut self, distance: Position) {
        if let Ok(at) = self.at(distance)
            && self.candidates[at].state == State::Waiting
        {
            self.waiting -= 1;
            self.candidates[at].state = State::Failed;
        }
    }
}

/// A lookup.
#[derive(Debug, Clone, Default)]
pub struct Walk {
    /// Who looks.
    pub owner: NodeId,
    /// For what.
    pub target: Position,
    /// How many of the closest are to answer.
    pub wanted: usize,
    /// Questions asked.
    pub asked: u32,
    /// Answers received.
    pub answers: u32,
    /// Questions that failed.
    pub failures: u32,
    paths: [Path; PARALLEL],
    /// Paths in use: one, or all.
    ways: usize,
    turn: usize,
    /// Who was asked on which path, and what came of it, if paths must not meet.
    contacted: Vec<(NodeId, usize, State)>,
}

impl Walk {
    /// Begins a walk from the nodes that its owner knows closest.
    pub fn begin(
        &mut self,
        owner: NodeId,
        target: Position,
        wanted: usize,
        disjoint: bool,
        known: &[(Position, NodeId)],
    ) {
        (self.owner, self.target, self.wanted) = (owner, target, wanted.clamp(1, BUCKET));
        (self.asked, self.answers, self.failures, self.turn) = (0, 0, 0, 0);
        self.ways = if disjoint { PARALLEL } else { 1 };
        self.contacted.clear();
        for path in &mut self.paths[..self.ways] {
            path.begin(known);
        }
    }

    /// What to do now; to be asked again until it says to wait or that it is over.
    pub fn proceed(&mut self) -> Next {
        let next =
            if self.ways == 1 { self.paths[0].next(self.wanted) } else { self.next_of_all() };
        if matches!(next, Next::Ask(_)) {
            self.asked += 1;
        }
        next
    }

    fn next_of_all(&mut self) -> Next {
        let mut waits = false;
        for _ in 0..self.ways {
            let way = self.turn;
            self.turn = (self.turn + 1) % self.ways;
            loop {
                let next = self.paths[way].next(self.wanted);
                let Next::Ask(node) = next else {
                    waits |= next == Next::Wait;
                    break;
                };
                let before = self.contacted.iter().find(|contact| contact.0 == node);
                let Some(&(_, _, state)) = before else {
                    self.contacted.push((node, way, State::Waiting));
                    return Next::Ask(node);
                };
                // Another path has asked it, and keeps what it named to itself.
                let known = self.paths[way].candidates.iter().find(|c| c.node == node);
                let Some(distance) = known.map(|candidate| candidate.distance) else { break };
                match state {
                    State::Answered => self.paths[way].answered(distance, &[], self.wanted),
                    State::Failed => self.paths[way].failed(distance),
                    State::New | State::Waiting => {}
                }
            }
        }
        if waits { Next::Wait } else { Next::Done }
    }

    /// An answer of the node at this distance, and the nodes that it names.
    pub fn answered(&mut self, node: NodeId, distance: Position, closer: &[(Position, NodeId)]) {
        self.answers += 1;
        if self.ways == 1 {
            self.paths[0].answered(distance, closer, self.wanted);
            return;
        }
        let Some(contact) = self.contacted.iter_mut().find(|contact| contact.0 == node) else {
            return;
        };
        contact.2 = State::Answered;
        let asked_by = contact.1;
        for way in 0..self.ways {
            let closer = if way == asked_by { closer } else { &[] };
            self.paths[way].answered(distance, closer, self.wanted);
        }
    }

    /// The node at this distance can't be asked or doesn't answer.
    pub fn failed(&mut self, node: NodeId, distance: Position) {
        self.failures += 1;
        if let Some(contact) = self.contacted.iter_mut().find(|contact| contact.0 == node) {
            contact.2 = State::Failed;
        }
        for path in &mut self.paths[..self.ways] {
            path.failed(distance);
        }
    }

    /// The closest that have answered, closest first, at most as many as wanted.
    pub fn result(&self, found: &mut Vec<(Position, NodeId)>) {
        found.clear();
        let all = self.paths[..self.ways].iter().flat_map(|path| &path.candidates);
        let answered = all.filter(|candidate| candidate.state == State::Answered);
        found.extend(answered.map(|candidate| (candidate.distance, candidate.node)));
        found.sort_unstable();
        found.dedup();
        found.truncate(self.wanted);
    }

    /// How many were asked in a row to hear of the closest that has answered.
    #[must_use]
    pub fn hops(&self) -> u8 {
        let all = self.paths[..self.ways].iter().flat_map(|path| &path.candidates);
        let answered = all.filter(|candidate| candidate.state == State::Answered);
        answered.min_by_key(|candidate| candidate.distance).map_or(0, |candidate| candidate.hop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Chance;

    /// Walks over nodes that each know everybody within reach of `knows`.
    fn walk(disjoint: bool, dead: impl Fn(NodeId) -> bool) -> (Walk, Vec<(Position, NodeId)>) {
        let mut chance = Chance::new(3, "walk");
        let positions: Vec<Position> = (0..400).map(|_| chance.between(0, u64::MAX)).collect();
        let target = chance.between(0, u64::MAX);
        let mut all: Vec<_> = (0..400).map(|n| (positions[n as usize] ^ target, n)).collect();
        all.sort_unstable();
        let mut walk = Walk::default();
        walk.begin(0, target, BUCKET, disjoint, &all[300..320]);
        let mut under_way = std::collections::VecDeque::new();
        loop {
            match walk.proceed() {
                Next::Ask(node) => under_way.push_back(node),
                Next::Wait => {
                    let node = under_way.pop_front().expect("somebody is waited for");
                    let at = all.iter().position(|a| a.1 == node).expect("a node");
                    if dead(node) {
                        walk.failed(node, all[at].0);
                    } else {
                        // Each knows some closer than itself, down to half of its rank.
                        let from = (at / 2).saturating_sub(8);
                        walk.answered(node, all[at].0, &all[from..(from + 20).min(400)]);
                    }
                }
                Next::Done => break,
            }
        }
        (walk, all)
    }

    #[test]
    fn a_walk_ends_with_the_closest() {
        for disjoint in [false, true] {
            let (walk, all) = walk(disjoint, |_| false);
            let mut found = Vec::new();
            walk.result(&mut found);
            assert_eq!(found, all[..20], "disjoint: {disjoint}");
            assert!((20..200).contains(&walk.asked), "{} asked", walk.asked);
            assert!(walk.hops() > 3);
        }
    }

    #[test]
    fn the_dead_are_passed_over() {
        let (walk, all) = walk(false, |node| node % 3 == 0);
        let mut found = Vec::new();
        walk.result(&mut found);
        let alive: Vec<_> = all.iter().copied().filter(|a| a.1 % 3 != 0).take(20).collect();
        assert_eq!(found, alive);
        assert!(walk.failures > 5);
        assert!(walk.asked >= walk.answers + walk.failures);
    }
}
