//! What a node has announced and whom it knows near the meeting points, from one run to the next: so
//! that a restart costs the network nothing.

use super::{Machine, State};
use crate::net::networks::operator_of;
use crate::net::routing::keeper::{encode, parse, wall_clock};
use libp2p::{Multiaddr, PeerId};
use narswarm_protocol::announce::{Announced, NodeId, SavedAnnounced, SavedPeer};
use narswarm_protocol::limits::MAX_SAVED_OWN_ADDRESSES;
use std::collections::{BTreeSet, HashMap};

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
        if SavedAnnounced::is_forgotten(away) {
            let announced = Announced { presence: saved.presence, ..Announced::default() };
            return self.change(|state, now| state.discovery.restore(&announced, away, now));
        }
        let here = self.all_addresses();
        // It may take a while until all addresses are known again. But a node that is at none of
        // those it was at has moved.
        let moved = !here.iter().any(|address| saved.addresses.contains(address));
        let peers: Vec<_> = saved.peers.into_iter().map(|peer| self.recall(peer)).collect();
        let peer = |place: u16| peers.get(usize::from(place)).copied().flatten();
        self.change(|state, now| {
            let contact = |state: &mut State, place: u16| {
                let peer = peer(place)?;
                Some(state.contact(peer, operator_of(&self.book.addresses(&peer))))
            };
            for near in saved.buckets.iter().flat_map(|bucket| &bucket.near) {
                if let Some(contact) = contact(state, *near) {
                    state.discovery.handle_contact(contact);
                }
            }
            let buckets = saved.buckets.into_iter();
            let mut named = |place: u16| Some(contact(state, place)?.node);
            let buckets = buckets.map(|bucket| bucket.renamed(&mut named)).collect();
            let announced = Announced {
                items: saved.items,
                buckets,
                presence: saved.presence,
                radius: saved.radius,
            };
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
        let mut peers = Vec::new();
        let mut places: HashMap<NodeId, u16> = HashMap::new();
        let mut place = |node: NodeId| {
            if let Some(place) = places.get(&node) {
                return Some(*place);
            }
            let (peer, place) = (state.peers.peek(&node)?, u16::try_from(peers.len()).ok()?);
            let addresses = encode(&self.book.addresses(peer)).collect();
            peers.push(SavedPeer { peer: peer.to_bytes(), addresses });
            places.insert(node, place);
            Some(place)
        };
        let buckets = announced.buckets.into_iter();
        let buckets = buckets.map(|bucket| bucket.renamed(&mut place)).collect();
        let saved = SavedAnnounced {
            written: wall_clock(),
            presence: announced.presence,
            radius: announced.radius,
            addresses: state.told.clone().unwrap_or(here),
            items: announced.items,
            peers,
            buckets,
        };
        saved.to_octets()
    }

    /// Remembers where somebody was reached.
    fn recall(&self, saved: SavedPeer) -> Option<PeerId> {
        let peer = PeerId::from_bytes(&saved.peer).ok()?;
        self.book.add(peer, parse(saved.addresses));
        Some(peer)
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
