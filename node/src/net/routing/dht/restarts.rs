//! What a node has announced, from one run to the next: so that a restart costs the network nothing.

use super::{Machine, number};
use crate::net::routing::keeper::wall_clock;
use libp2p::{Multiaddr, PeerId};
use narswarm_protocol::announce::{Announced, NodeId, SavedAnnounced};
use narswarm_protocol::limits::MAX_SAVED_OWN_ADDRESSES;
use std::collections::BTreeSet;

impl Machine {
    /// This node's addresses haven't changed for a moment. If others were told something else,
    /// everything is announced anew; while not `all` addresses may be known again after a start, only
    /// if there are new ones.
    pub fn settled(&self, all: bool) {
        let here = self.all_addresses();
        let known = self.state.lock().told.clone();
        let Some(told) = known else { return };
        let has_new = here.iter().any(|address| !told.contains(address));
        if has_new || (all && here != told) {
            tracing::debug!("this node is reached elsewhere now");
            self.change(|state, now| {
                state.told = Some(here);
                state.discovery.announce_again(now);
            });
        }
    }

    /// Goes on announcing where an earlier run left off, by what it has written down; to be called
    /// when it is known where this node listens.
    pub fn restore(&self, written: &[u8]) {
        let saved = match SavedAnnounced::from_octets(written) {
            Ok(saved) => saved,
            Err(error) => {
                if !written.is_empty() {
                    tracing::warn!(%error, "what was announced before is announced anew");
                }
                return;
            }
        };
        let Some(away) = saved.away(wall_clock()) else { return };
        let here = self.all_addresses();
        // It may take a while until all addresses are known again. But a node that is at none of
        // those it was at has moved.
        let moved = !here.iter().any(|address| saved.addresses.contains(address));
        self.change(|state, now| {
            let mut keepers = |peers: Vec<Vec<u8>>| -> Vec<NodeId> {
                let known = peers.iter().filter_map(|peer| PeerId::from_bytes(peer).ok());
                known
                    .map(|peer| {
                        state.peers.put(number(&peer), peer);
                        number(&peer)
                    })
                    .collect()
            };
            let buckets = saved.buckets.into_iter();
            let buckets = buckets.map(|(bucket, due, peers)| (bucket, due, keepers(peers)));
            let announced = Announced { items: saved.items, buckets: buckets.collect() };
            state.discovery.restore(&announced, away, now);
            state.told = Some(saved.addresses);
            if moved {
                state.told = Some(here);
                state.discovery.announce_again(now);
            }
        });
    }

    /// What is worth keeping for [`Machine::restore`].
    pub fn announced(&self) -> Vec<u8> {
        let here = self.all_addresses();
        let state = self.state.lock();
        let announced = state.discovery.announced(self.now());
        let octets = |node: &NodeId| Some(state.peers.peek(node)?.to_bytes());
        let buckets = announced.buckets.iter().map(|(bucket, due, keepers)| {
            (*bucket, *due, keepers.iter().filter_map(octets).collect())
        });
        let saved = SavedAnnounced {
            written: wall_clock(),
            addresses: state.told.clone().unwrap_or(here),
            buckets: buckets.collect(),
            items: announced.items,
        };
        saved.to_octets()
    }

    /// How often [`Machine::announced`] has changed.
    pub fn announced_changes(&self) -> u64 {
        self.state.lock().discovery.announced_changes()
    }

    /// Everywhere that this node is reached, in an order that doesn't change.
    pub(super) fn all_addresses(&self) -> Vec<Vec<u8>> {
        let view = self.view.lock();
        let all: BTreeSet<_> =
            view.external.iter().chain(&view.listen).map(Multiaddr::to_vec).collect();
        drop(view);
        all.into_iter().take(MAX_SAVED_OWN_ADDRESSES).collect()
    }
}
