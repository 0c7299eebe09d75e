//! Which network a peer is in, for counting independent voices.
//!
//! One attacker easily has many addresses in one network, so agreement between peers counts only
//! between different ones: a /16 of IPv4, a /32 of IPv6 (what providers are given), as Bitcoin's
//! and libtorrent's address groups. All of a local network is one.

use crate::net::network_of;
use libp2p::Multiaddr;

/// The number of the network that a peer's connections come from. A peer that isn't connected
/// counts as one of the first network, which weighs least, and so does one of a local network.
pub fn of(addresses: &[Multiaddr]) -> u64 {
    network_of(addresses).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(address: &str) -> u64 {
        of(&[address.parse().expect("an address")])
    }

    #[test]
    fn neighbours_are_one_network_and_strangers_are_not() {
        assert_eq!(network("/ip4/203.0.113.7/tcp/1"), network("/ip4/203.0.1.9/udp/2/quic-v1"));
        assert_ne!(network("/ip4/203.0.113.7/tcp/1"), network("/ip4/198.51.100.1/tcp/1"));
        assert_eq!(network("/ip6/2001:db8:1::1/tcp/1"), network("/ip6/2001:db8:2::1/tcp/1"));
        assert_eq!(network("/ip6/::ffff:203.0.113.7/tcp/1"), network("/ip4/203.0.113.7/tcp/1"));
        assert_eq!(network("/ip4/192.168.1.2/tcp/1"), network("/ip4/10.0.0.1/tcp/1"));
        assert_eq!(of(&[]), 0);
    }
}
