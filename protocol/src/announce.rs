//! Who holds what: announcing it, finding it, and keeping what others announce.
//!
//! Items belong to one of 64 *buckets* by their keys, the same for all nodes whatever the size of
//! the network. The nodes nearest to a bucket's meeting point keep it: a list of keys, and of each
//! who says to hold it. So an announcement of all that a workstation holds is 64 buckets to 8 nodes
//! each, about 512 messages however many its items and however large the network, once in some
//! thirty hours; and a search for any number of items asks the nodes of at most 64 buckets, whose
//! neighbourhoods a node soon knows by heart, so that most searches take one round trip.
//!
//! Why not regions as wide as the network is dense, which spread the load over all nodes: with
//! 10,000 nodes they are 500, each with a lookup of its own, and a day of a workstation would cost
//! ten thousand messages; and nodes would have to agree on how dense the network is. Why 64: with
//! fewer, more is kept by few; with more, announcing costs more. With 64 buckets of 8 keepers, 500
//! nodes carry the load of all. What they keep doesn't grow with the network, but with the number of
//! different items, since of each item at most twenty providers are kept and what has many is
//! announced by few ([`Announced`] says how thinly). A hundred thousand workstations, each with a
//! round in thirty hours, send each keeper one message of 1.5 kB a second.
//!
//! [`Discovery`] is a state machine without I/O, one for a node. Events go in by `handle_*`, each
//! with the time; [`Discovery::poll_action`] says what is to be done, until it says nothing;
//! [`Discovery::poll_timeout`] when to poll again if nothing has happened. The driver sends each
//! [`Message`] and reports its [`Reply`] or its failure, always one of the two.
//!
//! ```text
//!  hold, release ──► announcer ──┐                    ┌──► Look, Announce, Withdraw, Find
//!                                ├── walks ── Ask ────┤
//!  search ─────────► finder ─────┘     │              └──◄ Reply: nearer nodes, providers, counts
//!                       │              └── contacts: who is near, who answers, how fast
//!                       └──► Found, Done
//! ```
//!
//! - `place`: keys, buckets, positions.
//! - `contacts`: the nodes known; how dense the network is.
//! - `walk`: towards a meeting point, against those who would lead it astray.
//! - `announcer`, `finder`: see there; `announced`: what of the former outlives a restart.
//! - `holders`: whom of those found to ask, and when; `presence`: how likely one is there.
//! - `anchors`: with whom to stay connected while searching.
//! - `mirror`: where seeds are found, who hold too much to announce it, and who knows nobody.
//! - [`providers`]: what a node keeps for others. Not part of [`Discovery`], since not every node
//!   keeps something.

mod anchors;
mod announced;
mod announcer;
mod by_distance;
mod contacts;
mod finder;
mod holders;
mod mirror;
mod place;
mod presence;
pub mod providers;
#[cfg(test)]
mod tests;
mod walk;

pub use announced::{Announced, BucketState, SavedAnnounced, SavedPeer};
pub use contacts::Contacts;
pub use finder::Found;
pub use mirror::{lonely_key, mirror_key};
pub use place::{BUCKETS, Bucket, Contact, ItemKey, NodeId, Position};
pub use presence::{Presence, Share};

use crate::fetch::Time;
use crate::limits::{ANNOUNCED_LIFE, MAX_ASKED_AT_ONCE};
use anchors::Anchors;
use announcer::Announcer;
use finder::Finder;
use std::time::Duration;
use walk::Walk;

/// One message and its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// One search, by a number of the driver's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SearchId(pub u64);

/// What a node is asked. Every answer names nodes near the meeting point of the bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Only who is near.
    Look,
    /// The sender holds these, for [`Message::LIFE`].
    Announce {
        /// Keys of one bucket, rising.
        keys: Vec<ItemKey>,
        /// What share of the time the sender is there.
        share: Share,
    },
    /// The sender no longer holds these.
    Withdraw {
        /// Keys of one bucket, rising.
        keys: Vec<ItemKey>,
    },
    /// Who holds these?
    Find {
        /// Keys of one bucket, rising.
        keys: Vec<ItemKey>,
    },
}

impl Message {
    /// How long an announcement is to be remembered.
    pub const LIFE: Duration = ANNOUNCED_LIFE;
}

/// A provider, as the node that was asked knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProviderHint {
    /// Which of the keys that were asked for, counted from zero.
    pub key_index: u32,
    /// Who.
    pub provider: NodeId,
    /// How long ago the node that was asked has had to do with it.
    pub seen: Duration,
    /// It is reached through relays only.
    pub relayed: bool,
    /// What share of the time it says to be there.
    pub share: Share,
}

/// What a node answers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reply {
    /// Nodes near the meeting point.
    pub nearer: Vec<Contact>,
    /// To an announcement: of each key, how many providers are known now, the sender included;
    /// none for keys that were not taken.
    pub known: Vec<u8>,
    /// To a search.
    pub providers: Vec<ProviderHint>,
}

/// What the driver is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send this, and report what comes of it.
    Ask {
        /// To be named in the report.
        request: RequestId,
        /// To whom.
        node: NodeId,
        /// The bucket that it is about.
        bucket: Bucket,
        /// What.
        message: Message,
    },
    /// Somebody is said to hold what was searched for: ask them now, and report whether they were
    /// there ([`Discovery::handle_provider_there`], [`Discovery::handle_provider_gone`]).
    Found(Found),
    /// Be connected with a node, or no longer for this purpose. That it can't be reached is to be
    /// reported ([`Discovery::handle_unreachable`]).
    Stay {
        /// With whom.
        node: NodeId,
        /// Or no longer.
        stay: bool,
    },
    /// The search is over.
    Done(SearchId),
}

/// How a node takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiscoveryConfig {
    /// What is chance in production.
    pub seed: u64,
    /// Nodes remembered.
    pub max_contacts: usize,
    /// Whether to find out who is near each meeting point before there is anything to announce or
    /// to search for, so that the first searches are quick as well.
    pub explores: bool,
}

/// Whom a request was made for.
#[derive(Debug, Clone, Copy)]
enum Purpose {
    Announcing,
    Withdrawing,
    Searching(SearchId),
}

#[derive(Debug)]
struct Asked {
    node: NodeId,
    bucket: Bucket,
    purpose: Purpose,
    at: Time,
    /// It had to be dialled first.
    dialled: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Discovery {
    contacts: Contacts,
    announcer: Announcer,
    /// Announcements wait.
    held_back: bool,
    finder: Finder,
    anchors: Anchors,
    /// What was asked and isn't answered, in the order of the requests.
    asked: Vec<(RequestId, Asked)>,
    requests: u64,
}

impl Discovery {
    /// A node that knows nobody and holds nothing.
    #[must_use]
    pub fn new(config: DiscoveryConfig, now: Time) -> Self {
        Self {
            contacts: Contacts::new(config.max_contacts),
            announcer: Announcer::new(config.seed, config.explores, now),
            held_back: false,
            finder: Finder::default(),
            anchors: Anchors::new(config.seed),
            asked: Vec::new(),
            requests: 0,
        }
    }

    /// Goes on where an earlier run of this node left off `away` ago. Those that were near a meeting
    /// point are to be told of by [`Discovery::handle_contact`] as well, if it is known where they are.
    pub fn restore(&mut self, announced: &Announced, away: Duration, now: Time) {
        if announced.radius > 0 {
            self.contacts.recall_radius(announced.radius);
        }
        self.announcer.restore(announced, away, now);
    }

    /// Everything held has been said to be: what an earlier run announced beyond that is withdrawn.
    pub fn handle_all_held(&mut self, now: Time) {
        self.announcer.forget_recalled(now);
    }

    /// The computer has slept for so long, which isn't part of the times that this machine is given.
    pub fn handle_slept(&mut self, span: Duration, now: Time) {
        self.announcer.slept(span, now);
    }

    /// How often [`Discovery::announced`] has changed, by more than by time passing.
    #[must_use]
    pub fn announced_changes(&self) -> u64 {
        self.announcer.changes()
    }

    /// What is worth keeping for [`Discovery::restore`].
    #[must_use]
    pub fn announced(&self, now: Time) -> Announced {
        self.announcer.announced(&self.contacts, now)
    }

    // --- who is there

    /// A node that answers others has become known, by Kademlia or by having connected.
    pub fn handle_contact(&mut self, contact: Contact) {
        self.contacts.hear_of(contact);
    }

    /// A node is connected, or no longer.
    pub fn handle_connected(&mut self, node: NodeId, connected: bool) {
        self.contacts.connected(node, connected);
        self.finder.connected(node, connected);
    }

    /// A node that this one was to be connected with ([`Action::Stay`]) can't be reached.
    pub fn handle_unreachable(&mut self, node: NodeId, now: Time) {
        self.contacts.failed(node, now);
    }

    /// A node doesn't answer others any more.
    pub fn handle_contact_gone(&mut self, node: NodeId) {
        self.contacts.forget(node);
    }

    /// Nodes near a meeting point that have answered lately: what others may be told. `salt` is to
    /// differ between those who ask.
    pub fn near(&mut self, bucket: Bucket, count: usize, salt: u64, now: Time) -> Vec<Contact> {
        self.contacts.near(bucket, count, salt, now)
    }

    /// The nodes known.
    #[must_use]
    pub fn contacts(&self) -> &Contacts {
        &self.contacts
    }

    /// How many nodes the network seems to have that answer others.
    #[must_use]
    pub fn network_size(&mut self, now: Time) -> u64 {
        self.contacts.network_size(now)
    }

    // --- what is held

    /// An item is held now, of which `providers` others are known. Says nothing new when it is
    /// held already.
    pub fn handle_held(&mut self, key: ItemKey, providers: usize, now: Time) {
        self.announcer.hold(key, providers, now);
    }

    /// An item is no longer held.
    pub fn handle_released(&mut self, key: ItemKey, now: Time) {
        self.announcer.release(key, now);
    }

    /// Announcements wait, until this node knows where it is reached; or no longer.
    pub fn hold_announcements(&mut self, hold: bool) {
        self.held_back = hold;
    }

    /// Everything is announced anew: this node is reached elsewhere now.
    pub fn announce_again(&mut self, now: Time) {
        self.announcer.announce_again(now);
    }

    /// How many items are held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.announcer.len()
    }

    /// Whether an item is held, as far as was said.
    #[must_use]
    pub fn holds(&self, key: &ItemKey) -> bool {
        self.announcer.holds(key)
    }

    /// Everything held, rising.
    pub fn held_keys(&self) -> impl Iterator<Item = ItemKey> {
        self.announcer.keys()
    }

    // --- searching

    /// Begins to search for holders of `keys`, for somebody who waits; `enough` of each key suffice.
    pub fn handle_search(&mut self, id: SearchId, keys: &[ItemKey], enough: usize, now: Time) {
        self.anchors.note_search(keys.len(), now);
        self.handle_upkeep_search(id, keys, enough, now);
    }

    /// The same, for what the node looks for by itself now and then: no reason to expect that more is
    /// searched for soon.
    pub fn handle_upkeep_search(
        &mut self,
        id: SearchId,
        keys: &[ItemKey],
        enough: usize,
        now: Time,
    ) {
        self.finder.search(id, keys, enough, &mut self.contacts, now);
    }

    /// Nobody waits for a search any more.
    pub fn handle_search_dropped(&mut self, id: SearchId) {
        self.finder.cancel(id);
    }

    /// A provider that was found was not there, or didn't hold what it was said to hold.
    pub fn handle_provider_gone(&mut self, provider: NodeId, now: Time) {
        self.finder.provider_gone(provider, now);
    }

    /// A provider has answered.
    pub fn handle_provider_there(&mut self, provider: NodeId) {
        self.finder.provider_there(provider);
    }

    // --- what comes of it

    /// An answer has come.
    pub fn handle_reply(&mut self, request: RequestId, reply: &Reply, now: Time) {
        let Some(asked) = self.take_asked(request) else { return };
        let Asked { node, bucket, purpose, at, dialled } = asked;
        self.contacts.answered(node, (!dialled).then(|| now.since(at)));
        for contact in &reply.nearer {
            self.contacts.hear_of(*contact);
        }
        let walk = match purpose {
            Purpose::Announcing => self.announcer.walk(bucket),
            Purpose::Searching(id) => self.finder.walk(id, bucket),
            Purpose::Withdrawing => None,
        };
        hear_of(walk, &reply.nearer, &self.contacts);
        match purpose {
            Purpose::Announcing => self.announcer.answered(bucket, node, &reply.known),
            Purpose::Searching(id) => {
                self.finder.answered(id, bucket, node, reply, &mut self.contacts, now);
            }
            Purpose::Withdrawing => {}
        }
    }

    /// No answer will come: the node wasn't reached, refused, took too long, or talked nonsense.
    pub fn handle_failure(&mut self, request: RequestId, now: Time) {
        let Some(asked) = self.take_asked(request) else { return };
        let Asked { node, bucket, purpose, .. } = asked;
        self.contacts.failed(node, now);
        match purpose {
            Purpose::Announcing => self.announcer.failed(bucket, node),
            Purpose::Searching(id) => {
                self.finder.failed(id, bucket, node, &mut self.contacts, now);
            }
            Purpose::Withdrawing => {}
        }
    }

    /// What is to be done now.
    pub fn poll_action(&mut self, now: Time) -> Option<Action> {
        if let Some(found) = self.finder.poll_found(now) {
            return Some(Action::Found(found));
        }
        if self.asked.len() < MAX_ASKED_AT_ONCE {
            if let Some((id, bucket, node, message)) = self.finder.poll(&self.contacts, now) {
                return Some(self.ask(node, bucket, message, Purpose::Searching(id), now));
            }
            if !self.held_back
                && let Some((bucket, node, message)) = self.announcer.poll(&mut self.contacts, now)
            {
                let withdrawing = matches!(message, Message::Withdraw { .. });
                let purpose = if withdrawing { Purpose::Withdrawing } else { Purpose::Announcing };
                return Some(self.ask(node, bucket, message, purpose, now));
            }
        }
        if let Some(search) = self.finder.poll_done() {
            return Some(Action::Done(search));
        }
        let (node, stay) = self.anchors.poll(&self.contacts, now)?;
        Some(Action::Stay { node, stay })
    }

    fn ask(
        &mut self,
        node: NodeId,
        bucket: Bucket,
        message: Message,
        purpose: Purpose,
        at: Time,
    ) -> Action {
        let request = RequestId(self.requests);
        self.requests += 1;
        let dialled = !self.contacts.get(node).is_some_and(|known| known.connected);
        self.asked.push((request, Asked { node, bucket, purpose, at, dialled }));
        Action::Ask { request, node, bucket, message }
    }

    fn take_asked(&mut self, request: RequestId) -> Option<Asked> {
        let at = self.asked.binary_search_by_key(&request, |(request, _)| *request).ok()?;
        Some(self.asked.remove(at).1)
    }

    /// When to poll again if nothing happens before.
    #[must_use]
    pub fn poll_timeout(&mut self, now: Time) -> Option<Time> {
        let others = [self.announcer.poll_timeout(now), self.anchors.poll_timeout()];
        self.finder.poll_timeout(now).into_iter().chain(others.into_iter().flatten()).min()
    }
}

/// Tells a walk of nodes that were named.
fn hear_of(walk: Option<&mut Walk>, named: &[Contact], contacts: &Contacts) {
    let Some(walk) = walk else { return };
    for contact in named {
        walk.hear_of(*contact, contacts);
    }
}

/// Mixes numbers into one that looks like chance: a seed and what it is for.
fn mix(seed: u64, a: u64, b: u64) -> u64 {
    // The finalizer of SplitMix64, once for each number.
    [a, b].into_iter().fold(seed, |state, number| {
        let mut z = (state ^ number).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}
