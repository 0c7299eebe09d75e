//! Who makes room: when nearly all connections are taken, those made longest ago are closed.
//!
//! Whoever has been here for long has found others by now, and whoever comes new has nobody else.
//! Those who are reached through this node are spared while others can go.

use libp2p::PeerId;
use libp2p::swarm::ConnectionId;
use std::collections::{BTreeMap, HashMap, HashSet};

/// The part of all connections, in eighths, from which on room is made.
const CROWDED_EIGHTHS: usize = 7;

/// Connections in the order in which they were made.
pub struct Connections {
    crowded: usize,
    next: u64,
    by_age: BTreeMap<u64, (ConnectionId, PeerId)>,
    ages: HashMap<ConnectionId, u64>,
    closing: HashSet<ConnectionId>,
}

impl Connections {
    /// Makes room before there are `most`.
    #[must_use]
    pub fn new(most: u32) -> Self {
        let crowded = (most as usize * CROWDED_EIGHTHS / 8).max(1);
        let (by_age, ages, closing) = Default::default();
        Self { crowded, next: 0, by_age, ages, closing }
    }

    /// A connection was made. Returns one that is to be closed, if there are too many.
    pub fn made(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        spared: impl Fn(&PeerId) -> bool,
    ) -> Option<ConnectionId> {
        self.by_age.insert(self.next, (id, peer));
        self.ages.insert(id, self.next);
        self.next += 1;
        if self.ages.len() - self.closing.len() <= self.crowded {
            return None;
        }
        let mut candidates =
            self.by_age.values().filter(|(other, _)| *other != id && !self.closing.contains(other));
        let oldest = candidates.clone().next();
        let (goes, _) = candidates.find(|(_, peer)| !spared(peer)).or(oldest)?;
        let goes = *goes;
        self.closing.insert(goes);
        Some(goes)
    }

    /// A connection has ended.
    pub fn ended(&mut self, id: ConnectionId) {
        if let Some(age) = self.ages.remove(&id) {
            self.by_age.remove(&age);
        }
        self.closing.remove(&id);
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ages.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ages.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> ConnectionId {
        ConnectionId::new_unchecked(number)
    }

    #[test]
    fn the_oldest_make_room_and_the_spared_last() {
        let mut connections = Connections::new(8);
        let spared = PeerId::random();
        assert_eq!(connections.made(id(0), spared, |peer| *peer == spared), None);
        for number in 1..7 {
            assert_eq!(connections.made(id(number), PeerId::random(), |p| *p == spared), None);
        }
        assert_eq!(connections.made(id(7), PeerId::random(), |p| *p == spared), Some(id(1)));
        assert_eq!(connections.made(id(8), PeerId::random(), |p| *p == spared), Some(id(2)));
        connections.ended(id(1));
        connections.ended(id(2));
        assert_eq!(connections.len(), 7);
        connections.ended(id(3));
        assert_eq!(connections.made(id(9), PeerId::random(), |p| *p == spared), None, "room again");
        assert_eq!(connections.made(id(10), PeerId::random(), |_| true), Some(id(0)));
    }

    #[test]
    fn nothing_is_left_of_what_has_ended() {
        let mut connections = Connections::new(16);
        for number in 0..10_000 {
            if let Some(goes) = connections.made(id(number), PeerId::random(), |_| false) {
                connections.ended(goes);
            }
        }
        assert_eq!(connections.len(), 14);
        assert_eq!((connections.by_age.len(), connections.closing.len()), (14, 0));
    }
}
