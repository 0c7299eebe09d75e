//! Which network an address is in, as far as one operator may own all of it.
//!
//! One attacker easily has many addresses in one network: a /16 of IPv4, a /32 of IPv6 (what
//! providers are given), as Bitcoin's and libtorrent's address groups.

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use std::net::IpAddr;

/// The number of the network that the first of these addresses is in; `None` for private ones and
/// for names, which say nothing.
#[must_use]
pub fn network_of(addresses: &[Multiaddr]) -> Option<u64> {
    let ip = addresses.iter().flat_map(|address| address.iter()).find_map(|part| match part {
        Protocol::Ip4(ip) => Some(IpAddr::V4(ip)),
        Protocol::Ip6(ip) => Some(IpAddr::V6(ip).to_canonical()),
        _ => None,
    });
    match ip? {
        IpAddr::V4(ip) if !ip.is_private() && !ip.is_loopback() && !ip.is_link_local() => {
            let [a, b, ..] = ip.octets();
            Some(1 << 32 | u64::from(a) << 8 | u64::from(b))
        }
        IpAddr::V6(ip) if !ip.is_loopback() && !ip.is_unique_local() => {
            let [a, b, ..] = ip.segments();
            Some(2 << 32 | u64::from(a) << 16 | u64::from(b))
        }
        _ => None,
    }
}
