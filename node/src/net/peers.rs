//! What is known of the peers that are connected.

use super::book::{Reach, reach};
use libp2p::core::ConnectedPoint;
use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, PeerId};
use narswarm_protocol::limits::MAX_KNOWN_PEERS;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

/// A connected peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// Who it is.
    pub peer: PeerId,
    /// The remote address of each connection.
    pub addresses: Vec<Multiaddr>,
    /// The last round trip measured, none before the first.
    pub rtt: Option<Duration>,
    /// Whether it has told that it belongs to this network and answers queries; unknown, and so
    /// false, in the first moments of a connection.
    pub ours: bool,
    /// What it says it runs.
    pub agent: String,
    /// Whether it is on the same machine or local network.
    pub lan: bool,
    /// Connections that this node has made, the others the peer has.
    pub dialled: usize,
}

impl PeerInfo {
    /// Who has connected: `out` if this node has, `in` if the peer has, or `both`.
    #[must_use]
    pub fn direction(&self) -> &'static str {
        match self.dialled {
            0 => "in",
            all if all == self.addresses.len() => "out",
            _ => "both",
        }
    }
}

/// What is kept of a connected peer.
#[derive(Default)]
struct Connected {
    connections: BTreeMap<ConnectionId, ConnectedPoint>,
    rtt: Option<Duration>,
    identified: bool,
    ours: bool,
    agent: String,
}

/// All connected peers.
#[derive(Default)]
pub struct Peers {
    connected: HashMap<PeerId, Connected>,
    /// Peers that announced themselves on the local network.
    local: HashSet<PeerId>,
}

impl Peers {
    /// A connection was made; says whether it is the peer's first.
    pub fn connect(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint) -> bool {
        let entry = self.connected.entry(peer).or_default();
        entry.connections.insert(id, endpoint.clone());
        entry.connections.len() == 1
    }

    /// A connection has ended; says whether it was the peer's last.
    pub fn disconnect(&mut self, peer: &PeerId, id: ConnectionId) -> bool {
        let Some(entry) = self.connected.get_mut(peer) else { return false };
        entry.connections.remove(&id);
        let last = entry.connections.is_empty();
        if last {
            self.connected.remove(peer);
        }
        last
    }

    /// A round trip was measured.
    pub fn measured(&mut self, peer: &PeerId, rtt: Duration) {
        if let Some(entry) = self.connected.get_mut(peer) {
            entry.rtt = Some(rtt);
        }
    }

    /// The peer has told what it runs; says whether it hadn't told the same before.
    pub fn identified(&mut self, peer: &PeerId, ours: bool, agent: &str) -> bool {
        /// Agents are shown to people; a longer one is no name.
        const MAX_AGENT_CHARACTERS: usize = 64;
        let Some(entry) = self.connected.get_mut(peer) else { return false };
        let shown = agent.chars().filter(|c| !c.is_control());
        let agent: String = shown.take(MAX_AGENT_CHARACTERS).collect();
        let news = !entry.identified || entry.ours != ours || entry.agent != agent;
        (entry.identified, entry.ours, entry.agent) = (true, ours, agent);
        news
    }

    /// The peer has announced itself on the local network, or no longer does.
    pub fn on_local_network(&mut self, peer: PeerId, there: bool) {
        if there && self.local.len() < MAX_KNOWN_PEERS {
            self.local.insert(peer);
        } else if !there {
            self.local.remove(&peer);
        }
    }

    /// How many peers have announced themselves on the local network.
    pub fn local_count(&self) -> usize {
        self.local.len()
    }

    /// From how near the nearest connection comes: addresses that reach no further may be of use.
    pub fn nearest(&self) -> Reach {
        let connections = self.connected.values().flat_map(|entry| entry.connections.values());
        let addresses = connections.map(ConnectedPoint::get_remote_address);
        addresses.filter_map(reach).min().unwrap_or(Reach::Everywhere)
    }

    /// Whether the peer is connected.
    pub fn contains(&self, peer: &PeerId) -> bool {
        self.connected.contains_key(peer)
    }

    /// How many are connected.
    pub fn count(&self) -> usize {
        self.connected.len()
    }

    /// What is known of a connected peer.
    pub fn info(&self, peer: &PeerId) -> Option<PeerInfo> {
        let entry = self.connected.get(peer)?;
        let connections = entry.connections.values();
        let dialled = connections.clone().filter(|connection| connection.is_dialer()).count();
        let addresses: Vec<_> = connections.map(|c| c.get_remote_address().clone()).collect();
        let near = |address| reach(address).is_some_and(|reach| reach < Reach::Everywhere);
        Some(PeerInfo {
            peer: *peer,
            lan: self.local.contains(peer) || addresses.iter().any(near),
            addresses,
            rtt: entry.rtt,
            ours: entry.ours,
            agent: entry.agent.clone(),
            dialled,
        })
    }

    /// What is known of all connected peers.
    pub fn infos(&self) -> Vec<PeerInfo> {
        self.connected.keys().filter_map(|peer| self.info(peer)).collect()
    }
}
