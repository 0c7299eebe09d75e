//! A node's routing table, as libp2p-kad keeps it: a bucket for each length of the prefix that a
//! node shares with its owner, twenty nodes in each, and one that waits for a place.
//!
//! A node that is gone stays until another wants its place: nothing removes it before. That is
//! libp2p's rule, and why tables of a network with churn hold many dead.

use std::cmp::Reverse;

/// Nodes in a bucket, and in an answer.
pub const BUCKET: usize = 20;

/// A node's number.
pub type NodeId = u32;

/// The first 64 bits of a key in Kademlia's space; among 100,000 nodes no two agree in them.
pub type Position = u64;

/// No node.
pub const NOBODY: NodeId = NodeId::MAX;

/// How long whoever wants a place waits for the one who has it to answer.
pub const PENDING_SECONDS: u32 = 60;

#[derive(Debug, Clone, Copy)]
struct Entry {
    node: NodeId,
    /// When it was last heard, in seconds.
    seen: u32,
}

#[derive(Debug, Clone)]
struct Bucket {
    entries: [Entry; BUCKET],
    len: u8,
    pending: NodeId,
    due: u32,
}

impl Default for Bucket {
    fn default() -> Self {
        Self { entries: [Entry { node: NOBODY, seen: 0 }; BUCKET], len: 0, pending: NOBODY, due: 0 }
    }
}

impl Bucket {
    fn entries(&self) -> &[Entry] {
        &self.entries[..usize::from(self.len)]
    }

    fn find(&self, node: NodeId) -> Option<usize> {
        self.entries().iter().position(|entry| entry.node == node)
    }

    /// Notes that a node was heard. If it is the one whose place is wanted, it has defended it.
    fn heard(&mut self, at: usize, now: u32) {
        let oldest = self.entries().iter().map(|entry| entry.seen).min();
        if Some(self.entries[at].seen) == oldest {
            self.pending = NOBODY;
        }
        self.entries[at].seen = now;
    }

    /// Gives the waiting node the place of the one longest unheard, if its time has come.
    fn apply(&mut self, now: u32) {
        if self.pending == NOBODY || now < self.due {
            return;
        }
        let oldest = (0..usize::from(self.len)).min_by_key(|&at| self.entries[at].seen);
        if let Some(at) = oldest {
            // Heard since it was challenged: it keeps its place.
            if self.entries[at].seen + PENDING_SECONDS <= self.due {
                self.entries[at] = Entry { node: self.pending, seen: now };
            }
        }
        self.pending = NOBODY;
    }
}

/// What became of a node that was offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// It has a place, or had one.
    Held,
    /// It waits for the place of this one, which is to be called meanwhile.
    Challenges(NodeId),
    /// There is no place.
    Full,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Table {
    own: Position,
    len: usize,
    /// By the length of the shared prefix; short ones, that is far nodes, first.
    buckets: Vec<Bucket>,
}

impl Table {
    /// The empty table of a node at this position.
    #[must_use]
    pub fn new(own: Position) -> Self {
        Self { own, len: 0, buckets: Vec::new() }
    }

    /// Forgets everybody.
    pub fn clear(&mut self) {
        // With its memory: most of a large network's nodes are away.
        self.buckets = Vec::new();
        self.len = 0;
    }

    fn place(&self, position: Position) -> usize {
        (self.own ^ position).leading_zeros() as usize
    }

    /// Makes a bucket for each prefix up to this length.
    fn reach(&mut self, place: usize) {
        let missing = (place + 1).saturating_sub(self.buckets.len());
        self.buckets.reserve_exact(missing);
        self.buckets.extend(std::iter::repeat_n(Bucket::default(), missing));
    }

    /// How many nodes it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nobody.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Everybody in it.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.buckets.iter().flat_map(|bucket| bucket.entries().iter().map(|entry| entry.node))
    }

    /// Prefix lengths of the buckets to refresh after a walk to oneself: all farther than the
    /// closest that holds anybody.
    pub fn to_refresh(&self) -> impl Iterator<Item = u8> + '_ {
        let closest = self.buckets.iter().rposition(|bucket| bucket.len > 0).unwrap_or(0);
        (0..closest).rev().map(|place| place as u8)
    }

    /// Notes that a node was heard.
    pub fn heard(&mut self, node: NodeId, position: Position, now: u32) {
        let place = self.place(position);
        if let Some(bucket) = self.buckets.get_mut(place)
            && let Some(at) = bucket.find(node)
        {
            bucket.heard(at, now);
        }
    }

    /// Takes a node out.
    pub fn remove(&mut self, node: NodeId, position: Position) {
        let place = self.place(position);
        if let Some(bucket) = self.buckets.get_mut(place)
            && let Some(at) = bucket.find(node)
        {
            bucket.len -= 1;
            self.len -= 1;
            bucket.entries[at] = bucket.entries[usize::from(bucket.len)];
        }
    }

    /// Takes a node that is connected, if there is room for it.
    pub fn take_if_room(&mut self, node: NodeId, position: Position, now: u32) {
        let place = self.place(position);
        if place >= 64 {
            return;
        }
        self.reach(place);
        let bucket = &mut self.buckets[place];
        if let Some(at) = bucket.find(node) {
            bucket.entries[at].seen = now;
        } else if usize::from(bucket.len) < BUCKET {
            bucket.entries[usize::from(bucket.len)] = Entry { node, seen: now };
            bucket.len += 1;
            self.len += 1;
        }
    }

    /// Offers a node that is connected. `connected` tells who else is.
    pub fn offer(
        &mut self,
        node: NodeId,
        position: Position,
        now: u32,
        connected: impl Fn(NodeId) -> bool,
    ) -> Offer {
        let place = self.place(position);
        if place >= 64 {
            return Offer::Full;
        }
        self.reach(place);
        let bucket = &mut self.buckets[place];
        bucket.apply(now);
        if let Some(at) = bucket.find(node) {
            bucket.heard(at, now);
            return Offer::Held;
        }
        if usize::from(bucket.len) < BUCKET {
            bucket.entries[usize::from(bucket.len)] = Entry { node, seen: now };
            bucket.len += 1;
            self.len += 1;
            return Offer::Held;
        }
        if bucket.pending != NOBODY {
            return Offer::Full;
        }
        let away = bucket.entries.iter().filter(|entry| !connected(entry.node));
        match away.min_by_key(|entry| entry.seen) {
            None => Offer::Full,
            Some(oldest) => {
                (bucket.pending, bucket.due) = (node, now + PENDING_SECONDS);
                Offer::Challenges(oldest.node)
            }
        }
    }

    /// Puts the nodes of the table closest to `target` into `found`, closest first, without
    /// `except`, at most [`BUCKET`].
    pub fn closest(
        &mut self,
        target: Position,
        except: NodeId,
        now: u32,
        positions: &[Position],
        found: &mut Vec<(Position, NodeId)>,
    ) {
        found.clear();
        let (count, distance) = (self.buckets.len(), self.own ^ target);
        let first = self.place(target).min(count);
        // Nodes that share the target's own bucket are closest, then those of nearer buckets, and
        // then bucket after bucket outwards. In the nearer ones nodes differ from the owner in the
        // bit of their bucket first: where the owner differs from the target as well, they are
        // closer than the owner, the more the higher the bit; elsewhere farther.
        let differs = |place: &usize| distance >> (63 - place) & 1 == 1;
        let closer = (first + 1..count).filter(differs);
        let farther = (first + 1..count).rev().filter(|place| !differs(place));
        let own = (first < count).then_some(first).into_iter();
        for place in own.chain(closer).chain(farther).chain((0..first).rev()) {
            if found.len() >= BUCKET {
                break;
            }
            let (bucket, from) = (&mut self.buckets[place], found.len());
            bucket.apply(now);
            let others = bucket.entries().iter().filter(|entry| entry.node != except);
            found.extend(others.map(|e| (positions[e.node as usize] ^ target, e.node)));
            found[from..].sort_unstable();
        }
        found.truncate(BUCKET);
    }

    /// The nodes heard last, at most so many: what is remembered over a restart.
    #[must_use]
    pub fn latest(&self, most: usize) -> Vec<NodeId> {
        let entries = self.buckets.iter().flat_map(Bucket::entries);
        let mut all: Vec<_> = entries.map(|entry| (Reverse(entry.seen), entry.node)).collect();
        all.sort_unstable();
        all.truncate(most);
        all.into_iter().map(|(_, node)| node).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Chance;

    fn filled(seed: u64, count: usize) -> (Table, Vec<Position>) {
        let mut chance = Chance::new(seed, "table");
        let positions: Vec<_> = (0..count).map(|_| chance.between(0, u64::MAX)).collect();
        let mut table = Table::new(chance.between(0, u64::MAX));
        for (node, &position) in positions.iter().enumerate() {
            let _ = table.offer(node as NodeId, position, 1, |_| true);
        }
        (table, positions)
    }

    #[test]
    fn the_closest_are_the_closest_of_the_table() {
        let (mut table, positions) = filled(1, 500);
        let mut chance = Chance::new(2, "targets");
        let mut found = Vec::new();
        for _ in 0..200 {
            let target = chance.between(0, u64::MAX);
            let mut all: Vec<_> =
                table.nodes().map(|node| (positions[node as usize] ^ target, node)).collect();
            all.sort_unstable();
            let except = all[3].1;
            all.remove(3);
            all.truncate(BUCKET);
            table.closest(target, except, 2, &positions, &mut found);
            assert_eq!(found, all);
        }
    }

    #[test]
    fn a_full_bucket_gives_way_only_to_who_outlasts_a_challenge() {
        let mut table = Table::new(0);
        let far = |node: NodeId| (1 << 63) | u64::from(node);
        for node in 0..20 {
            assert_eq!(table.offer(node, far(node), node, |_| true), Offer::Held);
        }
        assert_eq!(table.offer(20, far(20), 100, |_| true), Offer::Full, "all are connected");
        assert_eq!(table.offer(20, far(20), 100, |node| node > 5), Offer::Challenges(0));
        assert_eq!(table.offer(21, far(21), 100, |_| false), Offer::Full, "one waits");
        table.heard(0, far(0), 101);
        assert_eq!(table.offer(20, far(20), 102, |node| node == 0), Offer::Challenges(1));
        assert_eq!(table.offer(20, far(20), 162, |_| true), Offer::Held);
        let nodes: Vec<_> = table.nodes().collect();
        assert!(nodes.contains(&20) && !nodes.contains(&1) && nodes.contains(&0));
        assert_eq!(table.latest(1), [20]);
    }
}
