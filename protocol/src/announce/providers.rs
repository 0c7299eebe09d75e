//! What a node keeps for others: who says to hold which items, until when.
//!
//! A record takes some 40 octets of memory. Each peer has a share, and so has each network; when
//! everything is full, whoever has most gives way to whoever has little. Of one item a few providers
//! are kept, not many of one network. Only who announced a record can withdraw it. Providers that
//! are asked for are to be probed now and then ([`Providers::poll_probe`]), so that those who are
//! gone aren't named for two days.

mod snapshot;
#[cfg(test)]
mod tests;

pub use crate::octets::SnapshotError;

use super::mix;
use super::place::ItemKey;
use super::presence::Share;
use crate::limits::{
    ANNOUNCED_LIFE, ITEMS_IN_SHORT_ANSWER, MAX_PEER_ADDRESSES, MAX_PROBES, MAX_PROVIDER_RECORDS,
    MAX_PROVIDER_RECORDS_PER_PEER, MAX_PROVIDERS_PER_ITEM, NETWORK_SHARE, PROBE_AFTER,
    PROVIDERS_IN_ANSWER, PRUNE_EVERY,
};
use hashbrown::HashMap;
use rustc_hash::FxBuildHasher;
use slab::Slab;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Records of the largest owner that are looked for near a new one, when it has to give way.
const MAX_STEPS: usize = 4096;

/// A moment on the wall clock, in seconds since 1970: records outlive the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Seconds(pub u64);

impl Seconds {
    fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(wait.as_secs()))
    }

    fn since(self, earlier: Self) -> Duration {
        Duration::from_secs(self.0.saturating_sub(earlier.0))
    }
}

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProviderLimits {
    /// Records in all.
    pub records: usize,
    /// Records of one peer.
    pub per_peer: usize,
    /// Records of one network.
    pub per_network: usize,
    /// Providers of one item.
    pub per_item: usize,
}

impl Default for ProviderLimits {
    fn default() -> Self {
        Self {
            records: MAX_PROVIDER_RECORDS,
            per_peer: MAX_PROVIDER_RECORDS_PER_PEER,
            per_network: MAX_PROVIDER_RECORDS / 4,
            per_item: MAX_PROVIDERS_PER_ITEM,
        }
    }
}

/// Somebody who announces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provider {
    /// The octets of the peer id.
    pub peer: Vec<u8>,
    /// Where it says it is reached, as octets of multiaddresses.
    pub addresses: Vec<Vec<u8>>,
    /// A number for the network it is in; see [`Contact::network`](super::Contact::network).
    pub network: Option<u64>,
    /// What share of the time it says to be there.
    pub share: Share,
    /// When this node has last had to do with it.
    pub seen: Seconds,
    /// It was not there when it was last probed.
    pub gone: bool,
}

/// Whoever announces, as they are known when they do.
#[derive(Debug, Clone, Copy)]
pub struct Sender<'a> {
    /// The octets of the peer id.
    pub peer: &'a [u8],
    /// See [`Provider::network`].
    pub network: Option<u64>,
    /// See [`Provider::addresses`].
    pub addresses: &'a [Vec<u8>],
    /// See [`Provider::share`].
    pub share: Share,
}

/// A provider of a key that was looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit<'a> {
    /// Which of the keys, counted from zero.
    pub key_index: u32,
    /// A number that stands for the provider within this answer.
    pub slot: u32,
    /// Who.
    pub provider: &'a Provider,
    /// How long ago this node has had to do with it.
    pub seen: Duration,
}

#[derive(Debug, Clone)]
struct Owner {
    provider: Provider,
    records: usize,
    probed: Seconds,
}

/// Stands for a peer id where peers are looked up, which every connection does: a number is compared at
/// once, octets elsewhere in memory aren't. Nobody finds two ids with the same.
type PeerDigest = u128;

fn digest(peer: &[u8]) -> PeerDigest {
    let mut octets = [0; 16];
    octets.copy_from_slice(&blake3::hash(peer).as_bytes()[..16]);
    u128::from_le_bytes(octets)
}

/// Whether a record was there, and how many its item has and how many of those haven't expired.
struct Renewed {
    taken: bool,
    all: usize,
    live: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Providers {
    limits: ProviderLimits,
    owners: Slab<Owner>,
    /// Never walked through, so its order doesn't matter; to slow it down takes millions of peer ids.
    by_peer: HashMap<PeerDigest, u32, FxBuildHasher>,
    /// Owners by how many records they have.
    by_size: BTreeSet<(usize, u32)>,
    /// Until when, by key and owner.
    records: BTreeMap<(ItemKey, u32), u32>,
    networks: BTreeMap<u64, usize>,
    probes: VecDeque<u32>,
    pruned: Seconds,
}

impl Providers {
    /// Nothing yet.
    #[must_use]
    pub fn new(limits: ProviderLimits) -> Self {
        Self {
            limits,
            owners: Slab::new(),
            by_peer: HashMap::default(),
            by_size: BTreeSet::new(),
            records: BTreeMap::new(),
            networks: BTreeMap::new(),
            probes: VecDeque::new(),
            pruned: Seconds::default(),
        }
    }

    /// How many records there are, those included that have expired and wait to be dropped.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// How many peers have records here.
    #[must_use]
    pub fn owners(&self) -> usize {
        self.owners.len()
    }

    /// A peer says that it holds items. Gives, of each, how many providers are known now, itself
    /// included; 0 where there was no room.
    pub fn announce(
        &mut self,
        sender: Sender<'_>,
        keys: &[ItemKey],
        life: Duration,
        now: Seconds,
    ) -> Vec<u8> {
        let (slot, network) = (self.owner(sender, now), sender.network);
        let expires = now.after(life.min(ANNOUNCED_LIFE));
        let expires = u32::try_from(expires.0).unwrap_or(u32::MAX);
        let known = keys.iter().map(|key| {
            let Renewed { mut taken, all, live: mut count } = self.renew(*key, slot, expires, now);
            if !taken {
                taken = self.take(*key, slot, all, network, expires, now);
                count = if taken { self.live(*key, now).count() } else { count };
            }
            if taken || count >= self.limits.per_item {
                u8::try_from(count).unwrap_or(u8::MAX)
            } else {
                0
            }
        });
        let known = known.collect();
        self.drop_if_idle(slot);
        known
    }

    /// A peer says that it no longer holds items.
    pub fn withdraw(&mut self, peer: &[u8], keys: &[ItemKey], now: Seconds) {
        let Some(&slot) = self.by_peer.get(&digest(peer)) else { return };
        if let Some(owner) = self.owners.get_mut(slot as usize) {
            owner.provider.seen = now;
        }
        for key in keys {
            self.remove(*key, slot);
        }
        self.drop_if_idle(slot);
    }

    /// Who holds these keys, as far as was announced: of each a few, those first that were seen
    /// last, not all of one network. `salt` decides between equals, so that not all are sent to the
    /// same few. Providers that were seen long ago are put down to be probed.
    pub fn find(&mut self, keys: &[ItemKey], salt: u64, most: usize, now: Seconds) -> Vec<Hit<'_>> {
        let (mut chosen, mut likely): (Vec<(u32, u32)>, Vec<u32>) = (Vec::new(), Vec::new());
        let is_short = keys.len() <= ITEMS_IN_SHORT_ANSWER;
        let of_each = if is_short { self.limits.per_item } else { PROVIDERS_IN_ANSWER };
        for (index, key) in (0..).zip(keys) {
            let mut live: Vec<_> = self
                .live(*key, now)
                .filter(|slot| !self.owners[*slot as usize].provider.gone)
                .map(|slot| {
                    let provider = &self.owners[slot as usize].provider;
                    // Quarters of an hour: within one, all are as good.
                    let age = now.since(provider.seen).as_secs() / PROBE_AFTER.as_secs();
                    (age, mix(salt, slot.into(), 0), slot, provider.network)
                })
                .collect();
            live.sort_unstable();
            let mut networks: BTreeMap<u64, usize> = BTreeMap::new();
            let (few, many): (Vec<_>, Vec<_>) = live.into_iter().partition(|(.., network)| {
                network.is_none_or(|network| {
                    let share = networks.entry(network).or_default();
                    *share += 1;
                    *share <= NETWORK_SHARE
                })
            });
            let slots = few.into_iter().chain(many).take(of_each).map(|(_, _, slot, _)| slot);
            let from = chosen.len();
            chosen.extend(slots.map(|slot| (index, slot)));
            // The first of them are the ones that will be asked.
            likely.extend(chosen[from..].iter().take(PROVIDERS_IN_ANSWER).map(|(_, slot)| *slot));
            if chosen.len() >= most {
                break;
            }
        }
        chosen.truncate(most);
        for slot in likely.into_iter().take(most) {
            self.note_asked_for(slot, now);
        }
        let hits = chosen.into_iter().filter_map(|(key_index, slot)| {
            let provider = &self.owners.get(slot as usize)?.provider;
            Some(Hit { key_index, slot, provider, seen: now.since(provider.seen) })
        });
        hits.collect()
    }

    /// This node has to do with a peer: it is there.
    pub fn handle_seen(&mut self, peer: &[u8], now: Seconds) {
        let owner =
            self.by_peer.get(&digest(peer)).and_then(|slot| self.owners.get_mut(*slot as usize));
        if let Some(owner) = owner {
            owner.provider.seen = now;
            owner.provider.gone = false;
        }
    }

    /// A peer was not there when it was probed: it isn't named until it is seen again.
    pub fn handle_gone(&mut self, peer: &[u8]) {
        let owner =
            self.by_peer.get(&digest(peer)).and_then(|slot| self.owners.get_mut(*slot as usize));
        if let Some(owner) = owner {
            owner.provider.gone = true;
        }
    }

    /// Somebody to be probed: see whether it can be connected to.
    pub fn poll_probe(&mut self) -> Option<Provider> {
        while let Some(slot) = self.probes.pop_front() {
            if let Some(owner) = self.owners.get(slot as usize) {
                return Some(owner.provider.clone());
            }
        }
        None
    }

    /// Drops what has expired, at most once in a while; to be called now and then.
    pub fn prune(&mut self, now: Seconds) {
        if now.since(self.pruned) < PRUNE_EVERY {
            return;
        }
        self.pruned = now;
        let expired: Vec<_> = self
            .records
            .iter()
            .filter(|(_, expires)| is_over(**expires, now))
            .map(|(record, _)| *record)
            .collect();
        for (key, slot) in expired {
            self.remove(key, slot);
            self.drop_if_idle(slot);
        }
    }

    /// The slots of those who hold a key and have said so lately.
    fn live(&self, key: ItemKey, now: Seconds) -> impl Iterator<Item = u32> {
        let records = self.records.range((key, 0)..=(key, u32::MAX));
        records.filter(move |(_, expires)| !is_over(**expires, now)).map(|((_, slot), _)| *slot)
    }

    /// The slot of a peer, one that has no records yet included.
    fn owner(&mut self, sender: Sender<'_>, now: Seconds) -> u32 {
        let Sender { peer, network, addresses, share } = sender;
        let addresses = addresses.iter().take(MAX_PEER_ADDRESSES).cloned().collect();
        let number = digest(peer);
        if let Some(&slot) = self.by_peer.get(&number)
            && let Some(owner) = self.owners.get_mut(slot as usize)
        {
            if owner.provider.network != network {
                let (before, records) = (owner.provider.network, owner.records);
                count(&mut self.networks, before, |count| count.saturating_sub(records));
                count(&mut self.networks, network, |count| count + records);
            }
            let provider = &mut owner.provider;
            (provider.network, provider.seen, provider.gone) = (network, now, false);
            provider.share = share;
            provider.addresses = addresses;
            return slot;
        }
        let peer = peer.to_vec();
        let provider = Provider { peer, addresses, network, share, seen: now, gone: false };
        let slot = self.owners.insert(Owner { provider, records: 0, probed: now }) as u32;
        self.by_peer.insert(number, slot);
        self.by_size.insert((0, slot));
        slot
    }

    /// Puts off the end of a record, if it is there.
    fn renew(&mut self, key: ItemKey, slot: u32, expires: u32, now: Seconds) -> Renewed {
        let mut renewed = Renewed { taken: false, all: 0, live: 0 };
        for ((_, other), until) in self.records.range_mut((key, 0)..=(key, u32::MAX)) {
            if *other == slot {
                *until = expires;
                renewed.taken = true;
            }
            renewed.all += 1;
            renewed.live += usize::from(!is_over(*until, now));
        }
        renewed
    }

    /// Puts a record down that isn't there, if it may have a place; says whether it has.
    fn take(
        &mut self,
        key: ItemKey,
        slot: u32,
        of_item: usize,
        network: Option<u64>,
        expires: u32,
        now: Seconds,
    ) -> bool {
        let records = self.owners[slot as usize].records;
        let of_network = network.and_then(|network| self.networks.get(&network));
        if records >= self.limits.per_peer
            || of_network.is_some_and(|count| *count >= self.limits.per_network)
            || (of_item >= self.limits.per_item && !self.make_place_for(key, network, now))
        {
            return false;
        }
        if self.records.len() >= self.limits.records {
            self.prune(now);
        }
        if self.records.len() >= self.limits.records && !self.make_room(key, records) {
            return false;
        }
        self.records.insert((key, slot), expires);
        self.resize(slot, |records| records + 1);
        count(&mut self.networks, network, |count| count + 1);
        true
    }

    /// Whether another provider of this item may be put down, of which there are as many as may be. One
    /// network's share beyond its own gives way to other networks.
    fn make_place_for(&mut self, key: ItemKey, network: Option<u64>, now: Seconds) -> bool {
        let all: Vec<_> = self.records.range((key, 0)..=(key, u32::MAX)).collect();
        if let Some(&(&(key, slot), _)) = all.iter().find(|(_, expires)| is_over(**expires, now)) {
            self.remove(key, slot);
            self.drop_if_idle(slot);
            return true;
        }
        let mut networks: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        for (&(_, slot), _) in all {
            if let Some(network) = self.owners[slot as usize].provider.network {
                networks.entry(network).or_default().push(slot);
            }
        }
        let mine = network.and_then(|network| networks.get(&network)).map_or(0, Vec::len);
        let largest = networks.values().max_by_key(|slots| slots.len());
        let Some(&slot) =
            largest.filter(|slots| slots.len() > NETWORK_SHARE).and_then(|s| s.first())
        else {
            return false;
        };
        if mine >= NETWORK_SHARE {
            return false;
        }
        self.remove(key, slot);
        self.drop_if_idle(slot);
        true
    }

    /// Takes a record near this key from who has most, for somebody who has `records`.
    fn make_room(&mut self, key: ItemKey, records: usize) -> bool {
        let Some(&(most, largest)) = self.by_size.last() else { return false };
        if most <= records + 1 {
            return false;
        }
        let after = self.records.range((key, 0)..).map(|(record, _)| *record);
        let before = self.records.range(..(key, 0)).rev().map(|(record, _)| *record);
        let found = after.chain(before).take(MAX_STEPS).find(|(_, slot)| *slot == largest);
        let Some((key, slot)) = found else { return false };
        self.remove(key, slot);
        true
    }

    fn remove(&mut self, key: ItemKey, slot: u32) {
        if self.records.remove(&(key, slot)).is_none() {
            return;
        }
        let network = self.owners[slot as usize].provider.network;
        self.resize(slot, |records| records - 1);
        count(&mut self.networks, network, |count| count.saturating_sub(1));
    }

    fn resize(&mut self, slot: u32, change: impl FnOnce(usize) -> usize) {
        let Some(owner) = self.owners.get_mut(slot as usize) else { return };
        self.by_size.remove(&(owner.records, slot));
        owner.records = change(owner.records);
        self.by_size.insert((owner.records, slot));
    }

    fn drop_if_idle(&mut self, slot: u32) {
        let Some(owner) = self.owners.get(slot as usize).filter(|owner| owner.records == 0) else {
            return;
        };
        self.by_peer.remove(&digest(&owner.provider.peer));
        self.by_size.remove(&(0, slot));
        self.owners.remove(slot as usize);
    }

    fn note_asked_for(&mut self, slot: u32, now: Seconds) {
        let Some(owner) = self.owners.get_mut(slot as usize) else { return };
        let last = owner.provider.seen.max(owner.probed);
        if now.since(last) >= PROBE_AFTER && self.probes.len() < MAX_PROBES {
            owner.probed = now;
            self.probes.push_back(slot);
        }
    }
}

fn is_over(expires: u32, now: Seconds) -> bool {
    u64::from(expires) <= now.0
}

/// Changes the count of a network, if it is one.
fn count(
    networks: &mut BTreeMap<u64, usize>,
    network: Option<u64>,
    change: impl FnOnce(usize) -> usize,
) {
    let Some(network) = network else { return };
    match networks.entry(network) {
        Entry::Vacant(none) => match change(0) {
            0 => {}
            count => drop(none.insert(count)),
        },
        Entry::Occupied(mut some) => match change(*some.get()) {
            0 => drop(some.remove()),
            count => *some.get_mut() = count,
        },
    }
}
