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
use std::time::{Duration, Instant};

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

/// How long a peer that could not be reached is left alone at first, and at most: twice as long each
/// time, so that many who want it don't all dial it in vain.
const REST: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(600));

/// What is known of one peer.
#[derive(Default)]
struct Entry {
    /// The best first.
    addresses: Vec<Multiaddr>,
    /// Attempts that have failed since the last that didn't.
    failures: u32,
    rests_until: Option<Instant>,
}

/// The addresses of the peers heard of lately, shared by all that dial.
#[derive(Clone)]
pub struct Book(Arc<Mutex<LruCache<PeerId, Entry>>>);

impl Default for Book {
    fn default() -> Self {
        let capacity = NonZeroUsize::new(MAX_KNOWN_PEERS).unwrap_or(NonZeroUsize::MIN);
        Self(Arc::new(Mutex::new(LruCache::new(capacity))))
    }
}

impl Book {
    /// Adds addresses behind those known; says whether any is new. A peer with a new one may be
    /// dialled again at once.
    pub fn add(&self, peer: PeerId, addresses: impl IntoIterator<Item = Multiaddr>) -> bool {
        let mut addresses = addresses.into_iter().map(without_peer).peekable();
        if addresses.peek().is_none() {
            return false;
        }
        let mut book = self.0.lock();
        let entry = book.get_or_insert_mut(peer, Entry::default);
        let before = entry.addresses.len();
        for address in addresses {
            if entry.addresses.len() < MAX_PEER_ADDRESSES && !entry.addresses.contains(&address) {
                entry.addresses.push(address);
            }
        }
        let news = entry.addresses.len() > before;
        if news {
            entry.rests_until = None;
        }
        news
    }

    /// Puts an address first, as it has just worked.
    pub fn prefer(&self, peer: PeerId, address: &Multiaddr) {
        let address = without_peer(address.clone());
        let mut book = self.0.lock();
        let entry = book.get_or_insert_mut(peer, Entry::default);
        entry.addresses.retain(|other| *other != address);
        entry.addresses.insert(0, address);
        entry.addresses.truncate(MAX_PEER_ADDRESSES);
        (entry.failures, entry.rests_until) = (0, None);
    }

    /// Replaces what is known but for what has worked, as the peer itself has told where it is.
    /// Addresses that it no longer has would only be dialled in vain.
    pub fn tell(&self, peer: PeerId, addresses: Vec<Multiaddr>) {
        if addresses.is_empty() {
            return;
        }
        let mut book = self.0.lock();
        let entry = book.get_or_insert_mut(peer, Entry::default);
        entry.addresses.truncate(1);
        drop(book);
        self.add(peer, addresses);
    }

    /// A peer could not be reached at these addresses: others are tried before them. If there are no
    /// others it is left alone for a while; says whether so.
    pub fn failed(&self, peer: PeerId, addresses: &[Multiaddr], now: Instant) -> bool {
        let failed: Vec<_> = addresses.iter().cloned().map(without_peer).collect();
        let mut book = self.0.lock();
        let Some(entry) = book.get_mut(&peer) else { return true };
        // Whoever is reached through a relay only is dialled elsewhere as well, to punch a hole.
        if !entry.addresses.iter().all(|address| failed.contains(address)) {
            // The sort is stable.
            entry.addresses.sort_by_key(|address| failed.contains(address));
            return false;
        }
        let rest = REST.0.saturating_mul(1 << entry.failures.min(16)).min(REST.1);
        entry.failures = entry.failures.saturating_add(1);
        entry.rests_until = Some(now + rest);
        true
    }

    /// Somebody else answers at this address.
    pub fn forget(&self, peer: PeerId, address: &Multiaddr) {
        let address = without_peer(address.clone());
        if let Some(entry) = self.0.lock().get_mut(&peer) {
            entry.addresses.retain(|other| *other != address);
        }
    }

    /// Whether a peer is left alone, since it could not be reached a moment ago.
    #[must_use]
    pub fn rests(&self, peer: &PeerId, now: Instant) -> bool {
        self.0.lock().peek(peer).and_then(|entry| entry.rests_until).is_some_and(|at| now < at)
    }

    /// The addresses of a peer, the best first.
    #[must_use]
    pub fn addresses(&self, peer: &PeerId) -> Vec<Multiaddr> {
        self.0.lock().get(peer).map(|entry| entry.addresses.clone()).unwrap_or_default()
    }

    /// All peers with their addresses, those heard of last first.
    #[must_use]
    pub fn all(&self) -> Vec<(PeerId, Vec<Multiaddr>)> {
        self.0.lock().iter().map(|(peer, entry)| (*peer, entry.addresses.clone())).collect()
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

    #[test]
    fn who_could_not_be_reached_is_left_alone_for_longer_each_time() {
        let (book, peer, mut now) = (Book::default(), PeerId::random(), Instant::now());
        let (dead, other) = (address("/ip4/10.0.0.1/tcp/1"), address("/ip4/10.0.0.1/tcp/2"));
        book.add(peer, [dead.clone(), other.clone()]);
        assert!(!book.failed(peer, std::slice::from_ref(&dead), now));
        assert_eq!(book.addresses(&peer), [other.clone(), dead.clone()]);
        assert!(!book.rests(&peer, now), "the other address wasn't tried");
        assert!(book.failed(peer, &[other, dead.clone()], now));
        assert!(book.rests(&peer, now) && !book.rests(&peer, now + REST.0));
        let fails = |now| assert!(book.failed(peer, &book.addresses(&peer), now));
        for _ in 0..40 {
            now += REST.1;
            assert!(!book.rests(&peer, now));
            fails(now);
        }
        assert!(book.rests(&peer, now + REST.1 / 2));
        book.add(peer, [address("/ip4/10.0.0.1/tcp/3")]);
        assert!(!book.rests(&peer, now), "it may be somewhere else");
        fails(now);
        book.prefer(peer, &dead);
        fails(now);
        assert!(!book.rests(&peer, now + REST.0), "it was reached meanwhile");
        book.forget(peer, &dead);
        assert!(!book.addresses(&peer).contains(&dead));
    }

    #[test]
    fn what_a_peer_tells_of_itself_replaces_what_was_heard() {
        let (book, peer) = (Book::default(), PeerId::random());
        let works = address("/ip4/10.0.0.1/tcp/1");
        book.add(peer, (2..9).map(|port| address(&format!("/ip4/10.0.0.1/tcp/{port}"))));
        book.prefer(peer, &works);
        let told = address("/ip4/10.0.0.1/tcp/100");
        book.tell(peer, vec![told.clone()]);
        assert_eq!(book.addresses(&peer), [works, told]);
    }
}
