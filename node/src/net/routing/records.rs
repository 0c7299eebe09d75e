//! The provider records that this node keeps for the DHT.
//!
//! libp2p's own memory store takes 4 KiB a key, keeps expired records until somebody asks for
//! them, lets one stranger fill it, and counts this node's own records against the same limit.
//! Here a record takes some 100 octets, each peer has a share, and what has expired makes room.

use libp2p::kad::store::{Error, RecordStore, Result};
use libp2p::kad::{ProviderRecord, Record, RecordKey};
use libp2p::{Multiaddr, PeerId};
use narswarm_protocol::limits::{
    MAX_PEER_ADDRESSES, MAX_PROVIDER_RECORDS, MAX_PROVIDER_RECORDS_PER_PEER, MAX_PROVIDERS_PER_ITEM,
};
use parking_lot::Mutex;
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Octets of every key; see `provider_key`.
type Key = [u8; 32];

/// How often expired records are looked for while the store is full.
const PRUNE_INTERVAL: Duration = Duration::from_secs(60);

/// A peer that provides something; its records share it, so their number is its count of owners.
struct Holder {
    peer: PeerId,
    addresses: Mutex<Vec<Multiaddr>>,
}

/// One peer's record under one key.
struct Held {
    holder: Arc<Holder>,
    expires: Option<Instant>,
}

/// See the module.
pub struct ProviderRecords {
    local: PeerId,
    holders: HashMap<PeerId, Arc<Holder>>,
    keys: HashMap<Key, Vec<Held>>,
    records: usize,
    pruned: Option<Instant>,
}

impl ProviderRecords {
    /// An empty store of the node `local`.
    #[must_use]
    pub fn new(local: PeerId) -> Self {
        let (holders, keys) = (HashMap::new(), HashMap::new());
        Self { local, holders, keys, records: 0, pruned: None }
    }

    /// Drops what has expired, at most once in a while.
    fn prune(&mut self, now: Instant) {
        if self.pruned.is_some_and(|pruned| now < pruned + PRUNE_INTERVAL) {
            return;
        }
        self.pruned = Some(now);
        self.keys.retain(|_, held| {
            held.retain(|held| !held.is_expired(now));
            !held.is_empty()
        });
        self.records = self.keys.values().map(Vec::len).sum();
        self.holders.retain(|_, holder| Arc::strong_count(holder) > 1);
    }

    /// The holder of a new record, if it may have another.
    fn holder(&mut self, peer: PeerId) -> Result<Arc<Holder>> {
        let holder = self
            .holders
            .entry(peer)
            .or_insert_with(|| Arc::new(Holder { peer, addresses: Mutex::default() }));
        // One owner is the map of holders.
        if Arc::strong_count(holder) > MAX_PROVIDER_RECORDS_PER_PEER {
            return Err(Error::MaxProvidedKeys);
        }
        Ok(holder.clone())
    }

    fn drop_if_idle(&mut self, peer: &PeerId) {
        if self.holders.get(peer).is_some_and(|holder| Arc::strong_count(holder) == 1) {
            self.holders.remove(peer);
        }
    }
}

impl Held {
    fn is_expired(&self, now: Instant) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }

    fn record(&self, key: &Key) -> ProviderRecord {
        ProviderRecord {
            key: RecordKey::new(key),
            provider: self.holder.peer,
            expires: self.expires,
            addresses: self.holder.addresses.lock().clone(),
        }
    }
}

impl RecordStore for ProviderRecords {
    type RecordsIter<'a> = std::iter::Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = Box<dyn Iterator<Item = Cow<'a, ProviderRecord>> + 'a>;

    fn get(&self, _: &RecordKey) -> Option<Cow<'_, Record>> {
        None
    }

    fn put(&mut self, _: Record) -> Result<()> {
        // Values have no place in this network.
        Err(Error::MaxRecords)
    }

    fn remove(&mut self, _: &RecordKey) {}

    fn records(&self) -> Self::RecordsIter<'_> {
        std::iter::empty()
    }

    fn add_provider(&mut self, record: ProviderRecord) -> Result<()> {
        let ProviderRecord { key, provider, expires, mut addresses } = record;
        let key: Key = key.as_ref().try_into().map_err(|_| Error::ValueTooLarge)?;
        let now = Instant::now();
        let own = provider == self.local;
        tracing::trace!(%provider, ?addresses, "a provider");
        if self.records >= MAX_PROVIDER_RECORDS && !own {
            self.prune(now);
        }
        addresses.truncate(MAX_PEER_ADDRESSES);
        if let Some(held) = self.keys.get_mut(&key) {
            if let Some(known) = held.iter_mut().find(|held| held.holder.peer == provider) {
                known.expires = expires;
                *known.holder.addresses.lock() = addresses;
                return Ok(());
            }
            let before = held.len();
            held.retain(|held| !held.is_expired(now));
            self.records -= before - held.len();
            if held.len() >= MAX_PROVIDERS_PER_ITEM && !own {
                // Enough are known; libp2p's store is silent here too.
                return Ok(());
            }
        }
        if self.records >= MAX_PROVIDER_RECORDS && !own {
            return Err(Error::MaxProvidedKeys);
        }
        let holder = self.holder(provider)?;
        *holder.addresses.lock() = addresses;
        let held = self.keys.entry(key).or_insert_with(|| Vec::with_capacity(1));
        held.push(Held { holder, expires });
        self.records += 1;
        Ok(())
    }

    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        let Ok(key) = Key::try_from(key.as_ref()) else { return Vec::new() };
        let now = Instant::now();
        let held = self.keys.get(&key).into_iter().flatten();
        held.filter(|held| !held.is_expired(now)).map(|held| held.record(&key)).collect()
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        let own = self.keys.iter().filter_map(|(key, held)| {
            let own = held.iter().find(|held| held.holder.peer == self.local)?;
            Some(Cow::Owned(own.record(key)))
        });
        Box::new(own)
    }

    fn remove_provider(&mut self, key: &RecordKey, provider: &PeerId) {
        let Ok(key) = Key::try_from(key.as_ref()) else { return };
        let Some(held) = self.keys.get_mut(&key) else { return };
        let before = held.len();
        held.retain(|held| held.holder.peer != *provider);
        self.records -= before - held.len();
        if held.is_empty() {
            self.keys.remove(&key);
        }
        self.drop_if_idle(provider);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: u32, provider: PeerId, expires: Option<Instant>) -> ProviderRecord {
        let mut octets = [0; 32];
        octets[..4].copy_from_slice(&key.to_be_bytes());
        ProviderRecord {
            key: RecordKey::new(&octets),
            provider,
            expires,
            addresses: vec!["/ip4/10.0.0.1/tcp/1".parse().expect("an address")],
        }
    }

    #[test]
    fn keeps_and_forgets() {
        let (local, other) = (PeerId::random(), PeerId::random());
        let mut store = ProviderRecords::new(local);
        let (mine, theirs) = (record(1, local, None), record(1, other, None));
        store.add_provider(mine.clone()).expect("room");
        store.add_provider(theirs.clone()).expect("room");
        assert_eq!(store.providers(&mine.key), [mine.clone(), theirs.clone()]);
        assert_eq!(
            store.provided().map(Cow::into_owned).collect::<Vec<_>>(),
            std::slice::from_ref(&mine)
        );
        store.remove_provider(&mine.key, &local);
        assert_eq!(store.providers(&mine.key), std::slice::from_ref(&theirs));
        assert_eq!(store.provided().count(), 0);
        store.remove_provider(&mine.key, &other);
        assert!(store.keys.is_empty() && store.holders.is_empty() && store.records == 0);
    }

    #[test]
    fn refreshing_is_not_adding() {
        let mut store = ProviderRecords::new(PeerId::random());
        let other = PeerId::random();
        for _ in 0..3 {
            store.add_provider(record(1, other, None)).expect("room");
        }
        assert_eq!(store.records, 1);
    }

    #[test]
    fn expired_records_are_gone() {
        let mut store = ProviderRecords::new(PeerId::random());
        let now = Instant::now();
        let expired = record(1, PeerId::random(), Some(now));
        store.add_provider(expired.clone()).expect("room");
        store.add_provider(record(2, PeerId::random(), None)).expect("room");
        assert!(store.providers(&expired.key).is_empty());
        store.prune(now);
        assert_eq!((store.records, store.holders.len()), (1, 1));
    }

    #[test]
    fn one_stranger_has_a_share_and_all_have_a_limit() {
        let local = PeerId::random();
        let mut store = ProviderRecords::new(local);
        let share = MAX_PROVIDER_RECORDS_PER_PEER as u32;
        let strangers = MAX_PROVIDER_RECORDS as u32 / share;
        for stranger in 0..strangers {
            let peer = PeerId::random();
            for key in 0..share {
                store.add_provider(record(stranger * share + key, peer, None)).expect("room");
            }
            assert!(store.add_provider(record(u32::MAX, peer, None)).is_err(), "beyond its share");
        }
        assert!(store.add_provider(record(u32::MAX, PeerId::random(), None)).is_err(), "full");
        store.add_provider(record(u32::MAX, local, None)).expect("our own records have room");
    }

    #[test]
    fn items_with_many_providers_keep_the_first() {
        let local = PeerId::random();
        let mut store = ProviderRecords::new(local);
        for _ in 0..2 * MAX_PROVIDERS_PER_ITEM {
            store.add_provider(record(1, PeerId::random(), None)).expect("silently ignored");
        }
        let key = record(1, local, None).key;
        assert_eq!(store.providers(&key).len(), MAX_PROVIDERS_PER_ITEM);
        store.add_provider(record(1, local, None)).expect("our own");
        assert_eq!(store.provided().count(), 1);
    }

    #[test]
    fn keys_of_another_length_are_refused() {
        let mut store = ProviderRecords::new(PeerId::random());
        let odd =
            ProviderRecord { key: RecordKey::new(b"short"), ..record(1, PeerId::random(), None) };
        assert!(store.add_provider(odd.clone()).is_err());
        assert!(store.providers(&odd.key).is_empty());
    }
}
