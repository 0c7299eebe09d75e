//! The address book: where peers were reached, or are said to be.

use super::pacing::peer_of;
use libp2p::PeerId;
use libp2p::multiaddr::{Multiaddr, Protocol};
use lru::LruCache;
use narswarm_protocol::limits::{MAX_KNOWN_PEERS, MAX_PEER_ADDRESSES};
use parking_lot::Mutex;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroUsize;
use std::sync::Arc;

/// From how far an address can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// From the same machine only.
    Machine,
    /// From the same network only.
    Network,
    /// From anywhere, as far as can be told; names belong here.
    Everywhere,
}

/// From how far an address can be reached; `None` if it doesn't begin with a host, or with one
/// that nobody can be reached at.
#[must_use]
pub fn reach(address: &Multiaddr) -> Option<Reach> {
    let ip = match address.iter().next()? {
        Protocol::Ip4(ip) => IpAddr::V4(ip),
        Protocol::Ip6(ip) => IpAddr::V6(ip),
        Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_) | Protocol::Dnsaddr(_) => {
            return Some(Reach::Everywhere);
        }
        _ => return None,
    };
    let ip = ip.to_canonical();
    let near = match ip {
        IpAddr::V4(ip) => ip.is_private() || ip.is_link_local() || is_shared(ip),
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_unicast_link_local(),
    };
    match ip {
        IpAddr::V4(ip) if ip.octets()[0] == 0 || ip.octets()[0] >= 240 => None,
        _ if ip.is_unspecified() || ip.is_multicast() => None,
        _ if ip.is_loopback() => Some(Reach::Machine),
        _ if near => Some(Reach::Network),
        _ => Some(Reach::Everywhere),
    }
}

/// Whether an address is one of those that providers share among their customers (RFC 6598).
fn is_shared(ip: Ipv4Addr) -> bool {
    ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64
}

/// Whether an address that somebody names at a distance of `from` can be of use: a stranger far
/// away has no business sending us to our own machine or network.
#[must_use]
pub fn is_plausible(address: &Multiaddr, from: Reach) -> bool {
    reach(address).is_some_and(|reach| reach >= from)
}

/// The addresses of the peers heard of lately, shared by all that dial.
#[derive(Clone)]
pub struct Book(Arc<Mutex<LruCache<PeerId, Vec<Multiaddr>>>>);

impl Default for Book {
    fn default() -> Self {
        let capacity = NonZeroUsize::new(MAX_KNOWN_PEERS).unwrap_or(NonZeroUsize::MIN);
        Self(Arc::new(Mutex::new(LruCache::new(capacity))))
    }
}

impl Book {
    /// Adds addresses behind those known; says whether any is new.
    pub fn add(&self, peer: PeerId, addresses: impl IntoIterator<Item = Multiaddr>) -> bool {
        let mut addresses = addresses.into_iter().map(without_peer).peekable();
        if addresses.peek().is_none() {
            return false;
        }
        let mut book = self.0.lock();
        let known = book.get_or_insert_mut(peer, Vec::new);
        let before = known.len();
        for address in addresses {
            if known.len() < MAX_PEER_ADDRESSES && !known.contains(&address) {
                known.push(address);
            }
        }
        known.len() > before
    }

    /// Puts an address first, as it has just worked.
    pub fn prefer(&self, peer: PeerId, address: &Multiaddr) {
        let address = without_peer(address.clone());
        let mut book = self.0.lock();
        let known = book.get_or_insert_mut(peer, Vec::new);
        known.retain(|other| *other != address);
        known.insert(0, address);
        known.truncate(MAX_PEER_ADDRESSES);
    }

    /// The addresses of a peer, the best first.
    #[must_use]
    pub fn addresses(&self, peer: &PeerId) -> Vec<Multiaddr> {
        self.0.lock().get(peer).cloned().unwrap_or_default()
    }

    /// How many peers are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.lock().len()
    }
}

/// An address without the peer id at its end, under which it is kept.
fn without_peer(mut address: Multiaddr) -> Multiaddr {
    if peer_of(&address).is_some() {
        address.pop();
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Multiaddr {
        text.parse().expect("a multiaddress")
    }

    #[test]
    fn addresses_reach_as_far_as_they_reach() {
        let of = |text| reach(&address(text));
        assert_eq!(of("/ip4/127.0.0.1/tcp/1"), Some(Reach::Machine));
        assert_eq!(of("/ip6/::ffff:127.0.0.1/tcp/1"), Some(Reach::Machine));
        assert_eq!(of("/ip4/192.168.1.1/udp/1/quic-v1"), Some(Reach::Network));
        assert_eq!(of("/ip6/fe80::1/tcp/1"), Some(Reach::Network));
        assert_eq!(of("/ip4/141.80.181.40/tcp/1"), Some(Reach::Everywhere));
        assert_eq!(of("/dns/ci.guix.gnu.org/tcp/1"), Some(Reach::Everywhere));
        assert_eq!(of("/ip4/0.0.0.0/tcp/1"), None);
        assert_eq!(of("/memory/1"), None);
        assert_eq!(of("/ip4/100.64.0.1/tcp/1"), Some(Reach::Network));
        assert_eq!(of("/ip4/100.128.0.1/tcp/1"), Some(Reach::Everywhere));
        assert_eq!(of("/ip4/255.255.255.255/udp/1/quic-v1"), None);
        assert!(!is_plausible(&address("/ip4/127.0.0.1/tcp/22"), Reach::Network));
        assert!(is_plausible(&address("/ip4/127.0.0.1/tcp/22"), Reach::Machine));
    }

    #[test]
    fn the_book_is_bounded_and_puts_what_works_first() {
        let (book, peer) = (Book::default(), PeerId::random());
        let many = (1..100).map(|port| address(&format!("/ip4/10.0.0.1/tcp/{port}")));
        assert!(book.add(peer, many.clone()));
        assert!(!book.add(peer, many));
        assert_eq!(book.addresses(&peer).len(), MAX_PEER_ADDRESSES);
        let works = address(&format!("/ip4/10.0.0.2/tcp/1/p2p/{peer}"));
        book.prefer(peer, &works);
        assert_eq!(book.addresses(&peer).first(), Some(&address("/ip4/10.0.0.2/tcp/1")));
        assert_eq!(book.addresses(&peer).len(), MAX_PEER_ADDRESSES);
        for _ in 0..MAX_KNOWN_PEERS {
            book.add(PeerId::random(), [works.clone()]);
        }
        assert_eq!(book.len(), MAX_KNOWN_PEERS);
        assert!(book.addresses(&peer).is_empty(), "the peer heard of longest ago is forgotten");
        assert!(!book.add(peer, []), "a peer without addresses is not known");
        assert_eq!(book.len(), MAX_KNOWN_PEERS);
    }
}
