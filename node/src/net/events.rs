//! What the network tells of its own accord.

use super::peers::PeerInfo;
use libp2p::{Multiaddr, PeerId};

/// Something has happened. Whoever falls behind misses the oldest; everything can also be asked
/// for at any time.
#[derive(Debug, Clone)]
pub enum NetEvent {
    /// The first connection to a peer was made.
    PeerConnected(PeerInfo),
    /// A connected peer has told what it speaks.
    PeerIdentified(PeerInfo),
    /// The last connection to a peer has ended.
    PeerDisconnected(PeerId),
    /// A peer of this network was met, and where: worth remembering across restarts.
    PeerLearned {
        /// Who.
        peer: PeerId,
        /// Where, the best first.
        addresses: Vec<Multiaddr>,
    },
    /// An address is listened on.
    ListenAddress(Multiaddr),
    /// An address is no longer listened on.
    ListenAddressGone(Multiaddr),
    /// Others reach this node at these addresses from now on, and at no others from afar: what was
    /// announced with others leads nowhere.
    ExternalAddresses(Vec<Multiaddr>),
}
