//! What a running node shows to `narswarm peers` and `narswarm doctor`: more than the status page,
//! since only who may enter the data directory can ask.

use crate::entry::{Entry, SourceReport};
use crate::net::{Net, PeerInfo};
use narswarm_protocol::dht_size::DhtSize;
use serde::{Deserialize, Serialize};

/// Everything that is shown.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    /// How the sources of entry nodes fare.
    pub sources: Vec<SourceReport>,
    /// What is known of the DHT.
    pub dht: DhtView,
    /// Who is connected and who is known.
    pub peers: PeersView,
}

/// What is known of the DHT.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DhtView {
    /// Peers in the table.
    pub table: usize,
    /// Nodes in all, most likely; none when nobody is known.
    pub nodes: Option<u64>,
    /// With nineteen of twenty at least so many.
    pub low: Option<u64>,
    /// And at most so many.
    pub high: Option<u64>,
}

impl DhtView {
    fn new(table: usize, size: Option<DhtSize>) -> Self {
        let part = |of: fn(DhtSize) -> u64| size.map(of);
        Self { table, nodes: part(|s| s.nodes), low: part(|s| s.low), high: part(|s| s.high) }
    }
}

/// Who is connected and who is known.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PeersView {
    /// Connected peers, the nearest first.
    pub connected: Vec<ConnectedPeer>,
    /// Peers with known addresses that aren't connected, those heard of last first.
    pub known: Vec<KnownPeer>,
}

/// A connected peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConnectedPeer {
    /// Who it is.
    pub peer_id: String,
    /// Where it is, one address a connection.
    pub addresses: Vec<String>,
    /// `out` if this node has connected, `in` if the peer has, `both`.
    pub direction: String,
    /// The last round trip.
    pub rtt_ms: Option<f64>,
    /// What it says it runs.
    pub agent: String,
    /// Whether it is on the local network.
    pub lan: bool,
    /// Octets of queries and nars received over the connections that are open.
    pub received_bytes: u64,
    /// And sent.
    pub sent_bytes: u64,
}

/// A peer that isn't connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownPeer {
    /// Who it is.
    pub peer_id: String,
    /// Where it was or is said to be, the best first.
    pub addresses: Vec<String>,
}

/// Looks at a running node.
pub async fn view(net: &Net, entry: &Entry) -> NodeView {
    let seen = net.inspect().await.unwrap_or_default();
    let mut connected = seen.connected;
    connected.sort_by_key(|peer| (!peer.lan, peer.rtt.is_none(), peer.rtt));
    let is_connected = |peer: &libp2p::PeerId| connected.iter().any(|info| info.peer == *peer);
    let known = seen.known.iter().filter(|(peer, _)| !is_connected(peer));
    let text =
        |addresses: &[libp2p::Multiaddr]| addresses.iter().map(ToString::to_string).collect();
    let known = known.map(|(peer, addresses)| KnownPeer {
        peer_id: peer.to_string(),
        addresses: text(addresses),
    });
    let shown = |info: &PeerInfo| {
        let traffic = net.traffic(&info.peer);
        ConnectedPeer {
            peer_id: info.peer.to_string(),
            addresses: text(&info.addresses),
            direction: info.direction().to_owned(),
            rtt_ms: info.rtt.map(|rtt| (rtt.as_secs_f64() * 1e4).round() / 10.0),
            agent: info.agent.clone(),
            lan: info.lan,
            received_bytes: traffic.0,
            sent_bytes: traffic.1,
        }
    };
    NodeView {
        sources: entry.report().await,
        dht: DhtView::new(seen.table, seen.size),
        peers: PeersView {
            known: known.collect(),
            connected: connected.iter().map(shown).collect(),
        },
    }
}
