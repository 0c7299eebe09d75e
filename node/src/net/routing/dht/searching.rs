//! Searches that somebody waits for.

use super::{ENOUGH_OF_MANY, FEW_KEYS, Machine, QUEUED_PROVIDERS};
use crate::net::routing::{Provider, ProviderKey};
use libp2p::PeerId;
use narswarm_protocol::announce::{Discovery, ItemKey, SearchId};
use narswarm_protocol::fetch::Time;
use narswarm_protocol::limits::{MAX_FIND_KEYS, MAX_PROVIDERS_PER_ITEM};
use std::collections::{BTreeSet, HashMap};
use std::time::Instant;
use tokio::sync::mpsc;

/// A search that somebody waits for.
pub(super) struct Search {
    pub(super) keys: HashMap<ItemKey, ProviderKey>,
    pub(super) found: mpsc::Sender<Provider>,
    pub(super) deadline: Instant,
    /// Whom this node knew itself.
    pub(super) given: BTreeSet<(ItemKey, PeerId)>,
}

impl Machine {
    /// Begins a search in this way.
    pub(super) fn search(
        &self,
        keys: &[ProviderKey],
        begin: fn(&mut Discovery, SearchId, &[ItemKey], usize, Time),
    ) -> mpsc::Receiver<Provider> {
        let (found, receiver) = mpsc::channel(QUEUED_PROVIDERS);
        if self.stop.is_cancelled() {
            return receiver;
        }
        let keys: BTreeSet<_> = keys.iter().take(MAX_FIND_KEYS).copied().collect();
        let keys: HashMap<_, _> =
            keys.into_iter().map(|key| (ItemKey::from_provider_key(&key), key)).collect();
        let enough = if keys.len() <= FEW_KEYS { MAX_PROVIDERS_PER_ITEM } else { ENOUGH_OF_MANY };
        let deadline = Instant::now() + self.timing.find;
        // What was announced to this node itself needn't be asked of others.
        let mut given = BTreeSet::new();
        for (short, &key) in &keys {
            for (peer, addresses) in self.keeper.known(*short) {
                self.book.add(peer, addresses.clone());
                let _ = found.try_send(Provider { key, peer, addresses });
                given.insert((*short, peer));
            }
        }
        self.change(|state, now| {
            let id = SearchId(state.next_search);
            state.next_search += 1;
            let wanted: Vec<_> = keys.keys().copied().collect();
            state.searches.insert(id, Search { keys, found, deadline, given });
            begin(&mut state.discovery, id, &wanted, enough, now);
        });
        receiver
    }

    /// Ends searches that nobody waits for or whose time is over.
    pub(super) fn end_searches(&self) {
        let (mut state, now) = (self.state.lock(), Instant::now());
        let is_over = |search: &Search| search.found.is_closed() || now >= search.deadline;
        let over = state.searches.iter().filter(|(_, search)| is_over(search));
        for id in over.map(|(id, _)| *id).collect::<Vec<_>>() {
            state.searches.remove(&id);
            state.discovery.handle_search_dropped(id);
        }
    }
}
