//! Peers that ask this node for what it keeps, and may want to ask again: their connections stay open
//! when idle until they close them themselves, or others have asked since.

use crate::net::streams::{Control, Keep};
use libp2p::PeerId;
use lru::LruCache;
use narswarm_protocol::limits::MAX_GUESTS;
use parking_lot::Mutex;
use std::num::NonZeroUsize;

/// See the module.
pub struct Guests {
    control: Control,
    peers: Mutex<LruCache<PeerId, ()>>,
}

impl Guests {
    /// Nobody yet.
    pub fn new(control: Control) -> Self {
        let most = NonZeroUsize::new(MAX_GUESTS).unwrap_or(NonZeroUsize::MIN);
        Self { control, peers: Mutex::new(LruCache::new(most)) }
    }

    /// A peer has asked something. Whoever hasn't for the longest time is a guest no longer.
    pub fn came(&self, peer: PeerId) {
        let mut peers = self.peers.lock();
        let evicted = peers.push(peer, ()).map(|(other, ())| other);
        self.control.keep_for(Keep::Guest, peer, true);
        if let Some(other) = evicted.filter(|other| *other != peer) {
            self.control.keep_for(Keep::Guest, other, false);
        }
    }

    /// A peer is no longer connected.
    pub fn left(&self, peer: PeerId) {
        if self.peers.lock().pop(&peer).is_some() {
            self.control.keep_for(Keep::Guest, peer, false);
        }
    }
}
