//! Routing by a registry in memory, shared by the nodes of one process: for tests, and as the
//! plainest statement of what routing promises.

use super::{Provider, ProviderKey, Routing, RoutingError};
use async_trait::async_trait;
use libp2p::{Multiaddr, PeerId};
use narswarm_protocol::limits::{MAX_FIND_KEYS, MAX_PROVIDER_RECORDS_PER_PEER};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::mpsc;

/// What all nodes of a process have announced.
#[derive(Clone, Default)]
pub struct Registry(Arc<Mutex<BTreeMap<ProviderKey, Holders>>>);

/// Who holds an item, and where they are reached.
type Holders = BTreeMap<PeerId, Vec<Multiaddr>>;

/// One node's view of a [`Registry`].
pub struct MemoryRouting {
    registry: Registry,
    peer: PeerId,
    addresses: Vec<Multiaddr>,
    /// What this run has provided; the registry knows earlier ones of the same peer too.
    provided: Mutex<BTreeSet<ProviderKey>>,
}

impl MemoryRouting {
    /// The routing of `peer`, which is reached at `addresses`.
    #[must_use]
    pub fn new(registry: Registry, peer: PeerId, addresses: Vec<Multiaddr>) -> Self {
        Self { registry, peer, addresses, provided: Mutex::default() }
    }
}

#[async_trait]
impl Routing for MemoryRouting {
    fn ready(&self) -> bool {
        true
    }

    async fn find(&self, keys: &[ProviderKey]) -> mpsc::Receiver<Provider> {
        let mut found = Vec::new();
        let keys: BTreeSet<_> = keys.iter().take(MAX_FIND_KEYS).collect();
        let registry = self.registry.0.lock();
        for &key in keys {
            let others = registry.get(&key).into_iter().flatten();
            for (&peer, addresses) in others.filter(|(peer, _)| **peer != self.peer) {
                found.push(Provider { key, peer, addresses: addresses.clone() });
            }
        }
        drop(registry);
        let (sender, receiver) = mpsc::channel(found.len().max(1));
        for provider in found {
            // The channel has room for all of them.
            let _ = sender.try_send(provider);
        }
        receiver
    }

    async fn provide(&self, keys: &[ProviderKey]) -> Result<(), RoutingError> {
        let mut registry = self.registry.0.lock();
        let mine = |registry: &BTreeMap<_, Holders>, key: &ProviderKey| {
            registry.get(key).is_some_and(|peers| peers.contains_key(&self.peer))
        };
        let provided: Vec<_> = keys.to_vec();
        let keys: BTreeSet<_> = keys.iter().filter(|key| !mine(&registry, key)).collect();
        let held = registry.values().filter(|peers| peers.contains_key(&self.peer)).count();
        let limit = MAX_PROVIDER_RECORDS_PER_PEER;
        if held + keys.len() > limit {
            return Err(RoutingError::Full { keys: held + keys.len() - limit, limit });
        }
        self.provided.lock().extend(&provided);
        for &key in keys {
            registry.entry(key).or_default().insert(self.peer, self.addresses.clone());
        }
        Ok(())
    }

    async fn withdraw(&self, keys: &[ProviderKey]) {
        let mut registry = self.registry.0.lock();
        for key in keys {
            self.provided.lock().remove(key);
            if let Some(peers) = registry.get_mut(key) {
                peers.remove(&self.peer);
                if peers.is_empty() {
                    registry.remove(key);
                }
            }
        }
    }

    async fn provided_all(&self) {
        let provided = self.provided.lock();
        self.registry.0.lock().retain(|key, peers| {
            if !provided.contains(key) {
                peers.remove(&self.peer);
            }
            !peers.is_empty()
        });
    }

    fn note_gone(&self, _: PeerId) {
        // Whoever is in the registry is there.
    }

    fn note_there(&self, _: PeerId) {}
}
