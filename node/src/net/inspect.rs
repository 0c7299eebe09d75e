//! A look at the network from outside, for those who run a node: how the sources of entry nodes
//! fare, how large the DHT is, who is known.

use super::dialing::{Source, SourceState};
use super::swarm::{Command, Task};
use super::{Net, PeerInfo};
use libp2p::{Multiaddr, PeerId, kad};
use narswarm_protocol::dht_size::{self, DhtSize};
use std::collections::BTreeMap;
use tokio::sync::oneshot;

/// What there is to see.
#[derive(Debug, Clone, Default)]
pub struct NetView {
    /// How the sources of entry nodes fare.
    pub sources: BTreeMap<Source, SourceState>,
    /// Peers that have announced themselves on the local network; `None` when nobody listens.
    pub lan_peers: Option<usize>,
    /// Peers in the table of the DHT.
    pub table: usize,
    /// How many nodes the DHT has, as far as can be told.
    pub size: Option<DhtSize>,
    /// Connected peers.
    pub connected: Vec<PeerInfo>,
    /// Peers with known addresses, those heard of last first.
    pub known: Vec<(PeerId, Vec<Multiaddr>)>,
}

impl Net {
    /// A look at everything; `None` when the network is shut down.
    pub async fn inspect(&self) -> Option<NetView> {
        let (reply, view) = oneshot::channel();
        self.0.commands.send(Command::Inspect { reply }).await.ok()?;
        view.await.ok()
    }

    /// Octets of queries and nars received from a peer and sent to it, over the connections that are
    /// open.
    #[must_use]
    pub fn traffic(&self, peer: &PeerId) -> (u64, u64) {
        self.0.control.traffic(peer)
    }

    /// Addresses to enter the network by, from one source, in place of what it said before.
    /// `trusted`: whoever says so may name near addresses.
    pub async fn enter(&self, source: Source, addresses: Vec<Multiaddr>, trusted: bool) {
        let _ = self.0.commands.send(Command::Enter { source, addresses, trusted }).await;
    }
}

impl Task {
    /// See [`Net::inspect`].
    pub(super) fn inspect(&mut self) -> NetView {
        let local = kad::KBucketKey::from(*self.swarm.local_peer_id());
        let mut distances = Vec::new();
        for bucket in self.swarm.behaviour_mut().kad.kbuckets() {
            distances.extend(bucket.iter().map(|entry| distance(&local, entry.node.key)));
        }
        let view = self.view.lock();
        NetView {
            sources: self.dialing.states(),
            lan_peers: self.swarm.behaviour().mdns.is_enabled().then(|| view.peers.local_count()),
            table: distances.len(),
            size: dht_size::estimate(&distances, distances.len()),
            connected: view.peers.infos(),
            known: self.book.all(),
        }
    }
}

/// The XOR distance between two keys of the DHT.
fn distance(a: &kad::KBucketKey<PeerId>, b: &kad::KBucketKey<PeerId>) -> [u8; 32] {
    let mut distance = [0; 32];
    let octets = a.hashed_bytes().iter().zip(b.hashed_bytes());
    distance.iter_mut().zip(octets).for_each(|(out, (a, b))| *out = a ^ b);
    distance
}
