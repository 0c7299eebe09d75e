//! Which network a peer is in, for counting independent voices.
//!
//! One attacker easily has many addresses in one network, so agreement between peers counts only
//! between different ones: a /16 of IPv4, a /32 of IPv6 (what providers are given), as Bitcoin's
//! and libtorrent's address groups. All of a local network is one.

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use std::net::IpAddr;

/// The number of the network that a peer's connections come from. A peer that isn't connected
/// counts as one of the first network, which weighs least.
pub fn of(addresses: &[Multiaddr]) -> u64 {
    let ip = addresses.iter().flat_map(|address| address.iter()).find_map(|part| match part {
        Protocol::Ip4(ip) => Some(IpAddr::V4(ip)),
        Protocol::Ip6(ip) => Some(IpAddr::V6(ip).to_canonical()),
        _ => None,
    });
    match ip {
        Some(IpAddr::V4(ip)) if !ip.is_private() && !ip.is_loopback() && !ip.is_link_local() => {
            let [a, b, ..] = ip.octets();
            1 << 32 | u64::from(a) << 8 | u64::from(b)
        }
        Some(IpAddr::V6(ip)) if !ip.is_loopback() && !ip.is_unique_local() => {
            let [a, b, ..] = ip.segments();
            2 << 32 | u64::from(a) << 16 | u64::from(b)
        }
        _ => 0,
    }
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
