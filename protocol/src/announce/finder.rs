//! Finds who holds items: asks the nodes that keep their buckets, several at once, and goes on
//! while somebody is late, knows nothing or may be hiding something.
//!
//! Whoever is found is only said to hold an item. The driver asks it before it relies on that, and
//! tells who turned out to be gone, so that they are left out for a while.

use super::contacts::Contacts;
use super::holders::{Holders, Named};
use super::place::{Bucket, ItemKey, NodeId};
use super::walk::Walk;
use super::{Message, ProviderHint, Reply, SearchId};
use crate::fetch::Time;
use crate::limits::{
    ENOUGH_WITNESSES, FIND_PARALLEL, FIND_PARALLEL_WIDE, GONE_PROVIDER_LIFE, MAX_GONE_PROVIDERS,
    MAX_NOBODY, MAX_PROVIDERS_PER_ITEM, MAX_SEARCHES, NOBODY_LIFE, NOBODY_LIFE_AT_MOST, REPLICAS,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// A search over so many buckets asks fewer at a time in each.
const WIDE: usize = 8;

/// Somebody found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// In which search.
    pub search: SearchId,
    /// What they are said to hold.
    pub key: ItemKey,
    /// Who.
    pub provider: NodeId,
    /// How long ago somebody has had to do with them.
    pub seen: Duration,
}

/// One key of a search.
#[derive(Debug, Default)]
struct Wanted {
    providers: BTreeSet<NodeId>,
    /// Nodes that knew a provider.
    witnesses: usize,
}

/// The part of a search in one bucket.
#[derive(Debug)]
struct Quest {
    walk: Walk,
    wanted: BTreeMap<ItemKey, Wanted>,
    /// What each node that was asked was asked for.
    asked: BTreeMap<NodeId, Vec<ItemKey>>,
}

#[derive(Debug)]
struct Search {
    /// Providers of each key that suffice.
    enough: usize,
    quests: BTreeMap<Bucket, Quest>,
    /// Who was named.
    holders: BTreeMap<ItemKey, Holders>,
    /// Who was given out, for any item.
    given: BTreeSet<NodeId>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Finder {
    searches: BTreeMap<SearchId, Search>,
    found: VecDeque<Found>,
    done: VecDeque<SearchId>,
    /// Keys of which nobody knew a provider: until when that is believed, and for how long it was.
    nobody: BTreeMap<ItemKey, (Time, Duration)>,
    /// Providers that were gone when they were asked, and until when they are left out.
    gone: BTreeMap<NodeId, Time>,
    /// Who is connected.
    connected: BTreeSet<NodeId>,
    /// Holders may have to be given out now, or else at this time.
    unsettled: bool,
    give_out_at: Option<Time>,
}

impl Finder {
    /// Begins to search.
    pub fn search(
        &mut self,
        id: SearchId,
        keys: &[ItemKey],
        enough: usize,
        contacts: &mut Contacts,
        now: Time,
    ) {
        let mut by_bucket: BTreeMap<Bucket, BTreeMap<ItemKey, Wanted>> = BTreeMap::new();
        for key in keys {
            let believed = self.nobody.get(key).is_some_and(|(until, _)| *until > now);
            if !believed {
                by_bucket.entry(key.bucket()).or_default().insert(*key, Wanted::default());
            }
        }
        let parallel = if by_bucket.len() > WIDE { FIND_PARALLEL_WIDE } else { FIND_PARALLEL };
        let quests = by_bucket.into_iter().map(|(bucket, wanted)| {
            let walk = Walk::new(bucket.position(), REPLICAS, parallel, contacts, now);
            (bucket, Quest { walk, wanted, asked: BTreeMap::new() })
        });
        let (quests, enough) = (quests.collect(), enough.max(1));
        let search = Search { enough, quests, holders: BTreeMap::new(), given: BTreeSet::new() };
        if search.quests.is_empty() || contacts.is_empty() || self.searches.len() >= MAX_SEARCHES {
            self.done.push_back(id);
        } else {
            self.searches.insert(id, search);
        }
    }

    pub fn cancel(&mut self, id: SearchId) {
        self.searches.remove(&id);
    }

    /// A provider was gone, or held nothing of what it was said to hold.
    pub fn provider_gone(&mut self, provider: NodeId, now: Time) {
        if self.gone.len() >= MAX_GONE_PROVIDERS {
            self.gone.retain(|_, until| *until > now);
        }
        if self.gone.len() < MAX_GONE_PROVIDERS {
            self.gone.insert(provider, now + GONE_PROVIDER_LIFE);
        }
        self.heard(provider, false);
    }

    /// A provider has answered.
    pub fn provider_there(&mut self, provider: NodeId) {
        self.gone.remove(&provider);
        self.heard(provider, true);
    }

    fn heard(&mut self, provider: NodeId, there: bool) {
        let holders = self.searches.values_mut().flat_map(|search| search.holders.values_mut());
        holders.for_each(|holders| holders.heard(provider, there));
        self.unsettled = true;
    }

    /// A node is connected, or no longer.
    pub fn connected(&mut self, node: NodeId, connected: bool) {
        if connected {
            self.connected.insert(node);
        } else {
            self.connected.remove(&node);
        }
    }

    pub fn poll_found(&mut self, now: Time) -> Option<Found> {
        self.give_out(now);
        self.found.pop_front()
    }

    /// Says who is to be asked by now, of those who were named; ends searches that are over.
    fn give_out(&mut self, now: Time) {
        if !self.unsettled && self.give_out_at.is_none_or(|at| now < at) {
            return;
        }
        (self.unsettled, self.give_out_at) = (false, None);
        let connected = &self.connected;
        let mut over = Vec::new();
        for (&search, Search { quests, holders, given, .. }) in &mut self.searches {
            for (&key, holders) in holders.iter_mut() {
                let is_near = |node| connected.contains(&node) || given.contains(&node);
                if let Some(Named { provider, seen, .. }) = holders.next(is_near, now) {
                    given.insert(provider);
                    self.found.push_back(Found { search, key, provider, seen });
                }
                let again = holders.poll_timeout(now);
                self.give_out_at = self.give_out_at.into_iter().chain(again).min();
            }
            if quests.is_empty() && holders.values().all(Holders::is_over) {
                over.push(search);
            }
        }
        for search in over {
            self.searches.remove(&search);
            self.done.push_back(search);
        }
    }

    pub fn poll_done(&mut self) -> Option<SearchId> {
        self.done.pop_front()
    }

    /// The next message to send, if one is to be sent now.
    pub fn poll(
        &mut self,
        contacts: &Contacts,
        now: Time,
    ) -> Option<(SearchId, Bucket, NodeId, Message)> {
        for (&id, search) in &mut self.searches {
            for (&bucket, quest) in &mut search.quests {
                let Some(node) = quest.walk.next(contacts, now) else { continue };
                let enough = search.enough;
                let open = quest.wanted.iter().filter(|(_, wanted)| !wanted.suffices(enough));
                let keys: Vec<_> = open.map(|(key, _)| *key).collect();
                quest.asked.insert(node, keys.clone());
                return Some((id, bucket, node, Message::Find { keys }));
            }
        }
        None
    }

    /// A node has answered.
    pub fn answered(
        &mut self,
        id: SearchId,
        bucket: Bucket,
        node: NodeId,
        reply: &Reply,
        contacts: &mut Contacts,
        now: Time,
    ) {
        let Some(search) = self.searches.get_mut(&id) else { return };
        let Some(quest) = search.quests.get_mut(&bucket) else { return };
        quest.walk.answered(node);
        let asked = quest.asked.remove(&node).unwrap_or_default();
        let mut seen = BTreeSet::new();
        let mut hints: Vec<_> = reply.providers.iter().collect();
        hints.sort_by_key(|hint| hint.seen);
        for hint in hints {
            let Some(key) = asked.get(hint.key_index as usize) else { continue };
            let Some(wanted) = quest.wanted.get_mut(key) else { continue };
            if self.gone.get(&hint.provider).is_some_and(|until| *until > now) {
                continue;
            }
            if seen.insert(*key) {
                wanted.witnesses += 1;
            }
            if wanted.providers.len() < MAX_PROVIDERS_PER_ITEM
                && wanted.providers.insert(hint.provider)
            {
                let ProviderHint { provider, seen, relayed, share, .. } = *hint;
                let holders = search.holders.entry(*key);
                let holders = holders.or_insert_with(|| Holders::new(contacts.usual_rtt()));
                holders.name(Named { provider, seen, relayed, share });
                self.unsettled = true;
            }
        }
        self.settle(id, bucket, contacts, now);
    }

    pub fn failed(
        &mut self,
        id: SearchId,
        bucket: Bucket,
        node: NodeId,
        contacts: &mut Contacts,
        now: Time,
    ) {
        let quest = self.searches.get_mut(&id).and_then(|search| search.quests.get_mut(&bucket));
        if let Some(quest) = quest {
            quest.walk.failed(node);
            self.settle(id, bucket, contacts, now);
        }
    }

    pub fn walk(&mut self, id: SearchId, bucket: Bucket) -> Option<&mut Walk> {
        let quest = self.searches.get_mut(&id)?.quests.get_mut(&bucket)?;
        Some(&mut quest.walk)
    }

    /// Ends what is over.
    fn settle(&mut self, id: SearchId, bucket: Bucket, contacts: &mut Contacts, now: Time) {
        let Some(search) = self.searches.get_mut(&id) else { return };
        let Some(quest) = search.quests.get_mut(&bucket) else { return };
        let satisfied = quest.wanted.values().all(|wanted| wanted.suffices(search.enough));
        let over = quest.walk.is_over();
        if !satisfied && !over {
            return;
        }
        // Only what nodes have answered is a reason to believe that nobody has it.
        let asked = !quest.walk.who_answered().is_empty();
        if asked && over {
            contacts.explored(bucket);
        }
        let missed = quest.wanted.iter().filter(|(_, w)| asked && w.providers.is_empty());
        let missed: Vec<_> = missed.map(|(key, _)| *key).collect();
        for (key, _) in quest.wanted.iter().filter(|(_, wanted)| !wanted.providers.is_empty()) {
            self.nobody.remove(key);
        }
        search.quests.remove(&bucket);
        self.unsettled = true;
        missed.into_iter().for_each(|key| self.note_nobody(key, now));
    }

    fn note_nobody(&mut self, key: ItemKey, now: Time) {
        if self.nobody.len() >= MAX_NOBODY && !self.nobody.contains_key(&key) {
            self.nobody.retain(|_, (until, life)| *until + *life > now);
            if self.nobody.len() >= MAX_NOBODY {
                return;
            }
        }
        // What is missed again and again is asked for less and less.
        let before = self.nobody.get(&key).map_or(Duration::ZERO, |(_, life)| *life);
        let life = (before * 2).clamp(NOBODY_LIFE, NOBODY_LIFE_AT_MOST);
        self.nobody.insert(key, (now + life, life));
    }

    /// When time alone will make something happen.
    pub fn poll_timeout(&self, now: Time) -> Option<Time> {
        let quests = self.searches.values().flat_map(|search| search.quests.values());
        let walks = quests.filter_map(|quest| quest.walk.poll_timeout(now));
        walks.chain(self.give_out_at.filter(|at| *at > now)).min()
    }
}

impl Wanted {
    fn suffices(&self, enough: usize) -> bool {
        self.providers.len() >= enough || self.witnesses >= ENOUGH_WITNESSES
    }
}
