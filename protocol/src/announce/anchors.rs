//! Keepers that a node stays connected with while it searches a lot.
//!
//! A search over a connection takes one round trip, and three without. A connection costs some
//! octets a second at both ends and a place at the keeper, and there are as many keepers whatever
//! the size of the network: nobody can be connected with one of each bucket all the time. So whoever
//! has begun to search, as when a system is built, is connected with one keeper of each bucket until
//! a while after the last search.

use super::contacts::Contacts;
use super::mix;
use super::place::{BUCKETS, Bucket, NodeId};
use crate::fetch::Time;
use crate::limits::{ANCHOR_CHECK, ANCHOR_LIFE, BUSY_KEYS, REPLICAS, SEARCH_AGAIN};
use std::collections::{BTreeSet, VecDeque};

/// See the module.
#[derive(Debug)]
pub(super) struct Anchors {
    seed: u64,
    /// The last search.
    searched: Option<Time>,
    /// Until when connections are kept, and when they are looked after next.
    until: Option<Time>,
    due: Time,
    of: [Option<NodeId>; BUCKETS],
    /// Whom the driver is to be connected with, and what it hasn't been told of that yet.
    kept: BTreeSet<NodeId>,
    news: VecDeque<(NodeId, bool)>,
}

impl Anchors {
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            searched: None,
            until: None,
            due: Time::default(),
            of: [None; BUCKETS],
            kept: BTreeSet::new(),
            news: VecDeque::new(),
        }
    }

    /// Something is searched for. Once in a while nothing follows from it, as when seeds are looked
    /// for.
    pub fn note_search(&mut self, keys: usize, now: Time) {
        let again = self.searched.is_some_and(|at| now.since(at) < SEARCH_AGAIN);
        self.searched = Some(now);
        if again || keys >= BUSY_KEYS || self.until.is_some() {
            if self.until.is_none() {
                self.due = now;
            }
            self.until = Some(now + ANCHOR_LIFE);
        }
    }

    /// With whom to be connected from now on, or no longer.
    pub fn poll(&mut self, contacts: &Contacts, now: Time) -> Option<(NodeId, bool)> {
        if let Some(until) = self.until
            && now >= self.due
        {
            self.due = now + ANCHOR_CHECK;
            if now >= until {
                (self.until, self.of) = (None, [None; BUCKETS]);
            } else {
                for bucket in Bucket::all() {
                    self.of[usize::from(bucket.number())] = self.choose(bucket, contacts);
                }
            }
            self.compare(contacts);
        }
        self.news.pop_front()
    }

    /// The one there is while it is connected, or near and answers, else one that is connected, else
    /// any, so that not all nodes choose the same.
    fn choose(&self, bucket: Bucket, contacts: &Contacts) -> Option<NodeId> {
        let before = self.of[usize::from(bucket.number())];
        let known = before.and_then(|before| contacts.get(before));
        if known.is_some_and(|known| known.proven && known.connected) {
            return before;
        }
        let near = contacts.nearest_proven(bucket.position());
        let rank = |node: NodeId, connected: bool| {
            (Some(node) != before, !connected, mix(self.seed, node.0, bucket.number().into()))
        };
        let near = near.take(REPLICAS).map(|known| (known.contact.node, known.connected));
        near.min_by_key(|(node, connected)| rank(*node, *connected)).map(|(node, _)| node)
    }

    fn compare(&mut self, contacts: &Contacts) {
        let now: BTreeSet<NodeId> = self.of.iter().flatten().copied().collect();
        let is_away = |node: &NodeId| !contacts.get(*node).is_some_and(|known| known.connected);
        let let_go = self.kept.difference(&now).map(|node| (*node, false));
        // Who was connected and isn't any more is to be dialled again.
        let wanted = now.iter().filter(|node| !self.kept.contains(*node) || is_away(node));
        self.news.extend(let_go.chain(wanted.map(|node| (*node, true))));
        self.kept = now;
    }

    /// When they are looked after next.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.until.map(|_| self.due)
    }
}

#[cfg(test)]
mod tests {
    use super::super::place::{Contact, Position};
    use super::*;
    use std::time::Duration;

    fn contacts(count: u64) -> Contacts {
        let mut contacts = Contacts::new(1000);
        for number in 0..count {
            let position = Position::of(&number.to_be_bytes());
            let node = NodeId(number);
            contacts.hear_of(Contact { node, position, network: None });
            contacts.connected(node, true);
            contacts.connected(node, false);
        }
        contacts
    }

    fn news(anchors: &mut Anchors, contacts: &Contacts, now: Time) -> Vec<(NodeId, bool)> {
        std::iter::from_fn(|| anchors.poll(contacts, now)).collect()
    }

    #[test]
    fn whoever_searches_a_lot_is_connected_with_a_keeper_of_each_bucket_for_a_while() {
        let (contacts, mut anchors) = (contacts(300), Anchors::new(7));
        let now = Time::default();
        anchors.note_search(1, now);
        assert!(news(&mut anchors, &contacts, now).is_empty() && anchors.poll_timeout().is_none());
        let now = now + Duration::from_secs(3);
        anchors.note_search(1, now);
        let kept = news(&mut anchors, &contacts, now);
        assert!((30..=BUCKETS).contains(&kept.len()) && kept.iter().all(|(_, stay)| *stay));
        let kept: BTreeSet<_> = kept.into_iter().map(|(node, _)| node).collect();
        for bucket in Bucket::all() {
            let near = contacts.nearest(bucket.position(), now).take(REPLICAS);
            let anchored = near.filter(|known| kept.contains(&known.contact.node)).count();
            assert!(anchored >= 1, "{bucket:?}");
        }
        let end = now + ANCHOR_LIFE + ANCHOR_CHECK;
        let let_go: BTreeSet<_> = news(&mut anchors, &contacts, end).into_iter().collect();
        assert_eq!(let_go, kept.into_iter().map(|node| (node, false)).collect());
        assert_eq!(anchors.poll_timeout(), None);
    }

    #[test]
    fn searches_now_and_then_keep_nothing() {
        let (contacts, mut anchors) = (contacts(300), Anchors::new(7));
        for round in 0..10 {
            let now = Time::default() + Duration::from_secs(300) * round;
            anchors.note_search(2, now);
            assert_eq!(anchors.poll(&contacts, now), None);
        }
    }

    #[test]
    fn who_fails_is_replaced_and_who_is_away_is_dialled_again() {
        let (mut contacts, mut anchors) = (contacts(300), Anchors::new(7));
        let now = Time::default();
        anchors.note_search(BUSY_KEYS, now);
        let kept = news(&mut anchors, &contacts, now);
        let (first, second) = (kept[0].0, kept[1].0);
        kept.iter().for_each(|(node, _)| contacts.connected(*node, true));
        let later = now + ANCHOR_CHECK;
        assert!(news(&mut anchors, &contacts, later).is_empty());
        contacts.connected(first, false);
        contacts.connected(second, false);
        contacts.failed(second, later);
        let news = news(&mut anchors, &contacts, later + ANCHOR_CHECK);
        assert!(news.contains(&(first, true)) && news.contains(&(second, false)), "{news:?}");
        assert!(anchors.of.iter().all(|node| node.is_some_and(|node| node != second)));
    }
}
