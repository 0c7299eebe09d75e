//! Answers messages of discovery from what this node keeps for others.
//!
//! Bounded in all: the records by `protocol`, the messages of a peer and of a network by their rates.
//! Keeps nothing on disk: it gives its records as octets, and takes them back at the next start.

use super::dht::Machine;
use crate::net::book::{Book, Reach, is_plausible};
use libp2p::{Multiaddr, PeerId};
use lru::LruCache;
use narswarm_protocol::announce::providers::{ProviderLimits, Providers, Seconds, Sender};
use narswarm_protocol::announce::{Bucket, ItemKey, Position};
use narswarm_protocol::limits::{
    DISCOVERY_BURST_PER_NETWORK, DISCOVERY_BURST_PER_PEER, DISCOVERY_RATE_PER_NETWORK,
    DISCOVERY_RATE_PER_PEER, MAX_HITS, MAX_KNOWN_PEERS, MAX_NAMED_NODES, MAX_NAMED_PROVIDERS,
    MAX_WIRE_ADDRESS_BYTES, NAMED_ADDRESSES,
};
use narswarm_protocol::wire::announce::{AnnounceReply, AnnounceRequest, NamedPeer};
use parking_lot::Mutex;
use serde_bytes::ByteBuf;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant, SystemTime};

/// What may still be sent, by whoever it is.
struct Allowance {
    left: f64,
    at: Instant,
}

/// Who may send how much.
struct Rates<K> {
    known: LruCache<K, Allowance>,
    burst: u32,
    per_second: u32,
}

impl<K: std::hash::Hash + Eq> Rates<K> {
    fn new(burst: u32, per_second: u32) -> Self {
        let capacity = NonZeroUsize::new(MAX_KNOWN_PEERS).unwrap_or(NonZeroUsize::MIN);
        Self { known: LruCache::new(capacity), burst, per_second }
    }

    /// Whether one more is allowed.
    fn take(&mut self, who: K, now: Instant) -> bool {
        let burst = f64::from(self.burst);
        let allowance = self.known.get_or_insert_mut(who, || Allowance { left: burst, at: now });
        let passed = now.saturating_duration_since(allowance.at).as_secs_f64();
        allowance.left = (allowance.left + passed * f64::from(self.per_second)).min(burst);
        allowance.at = now;
        let allowed = allowance.left >= 1.0;
        if allowed {
            allowance.left -= 1.0;
        }
        allowed
    }
}

struct Books {
    providers: Providers,
    peers: Rates<PeerId>,
    networks: Rates<u64>,
}

/// See the module.
pub struct Keeper {
    books: Mutex<Books>,
    book: Book,
}

impl Keeper {
    /// Keeps what `snapshot` has, if it is one, and no more than `limits` allow.
    pub fn new(snapshot: &[u8], limits: ProviderLimits, book: Book) -> Self {
        let providers = match Providers::from_snapshot(snapshot, limits, wall_clock()) {
            Ok(providers) => providers,
            Err(error) => {
                if !snapshot.is_empty() {
                    tracing::warn!(%error, "what was kept for others is forgotten");
                }
                Providers::new(limits)
            }
        };
        let peers = Rates::new(DISCOVERY_BURST_PER_PEER, DISCOVERY_RATE_PER_PEER);
        let networks = Rates::new(DISCOVERY_BURST_PER_NETWORK, DISCOVERY_RATE_PER_NETWORK);
        Self { books: Mutex::new(Books { providers, peers, networks }), book }
    }

    /// All records, as octets.
    pub fn snapshot(&self) -> Vec<u8> {
        self.books.lock().providers.snapshot(wall_clock())
    }

    /// How many records there are.
    pub fn records(&self) -> usize {
        self.books.lock().providers.len()
    }

    /// Whether this peer, which is in this network, may send one more message.
    pub fn admits(&self, peer: PeerId, network: Option<u64>) -> bool {
        let (mut books, now) = (self.books.lock(), Instant::now());
        let books = &mut *books;
        books.peers.take(peer, now) && network.is_none_or(|n| books.networks.take(n, now))
    }

    /// This node is connected with a peer, or has failed to be.
    pub fn saw(&self, peer: PeerId, there: bool) {
        let mut books = self.books.lock();
        if there {
            books.providers.handle_seen(&peer.to_bytes(), wall_clock());
        } else {
            books.providers.handle_gone(&peer.to_bytes());
        }
    }

    /// Drops what is over; gives peers to be probed, with their addresses.
    pub fn tend(&self) -> Vec<(PeerId, Vec<Multiaddr>)> {
        let mut books = self.books.lock();
        books.providers.prune(wall_clock());
        let probes = std::iter::from_fn(|| books.providers.poll_probe());
        probes
            .filter_map(|provider| {
                let peer = PeerId::from_bytes(&provider.peer).ok()?;
                Some((peer, parse(provider.addresses)))
            })
            .collect()
    }

    /// The answer to what a peer has sent.
    pub fn answer(
        &self,
        peer: PeerId,
        network: Option<u64>,
        from: Reach,
        request: AnnounceRequest,
        machine: &Machine,
    ) -> AnnounceReply {
        let now = wall_clock();
        let mut reply = AnnounceReply::default();
        let octets = peer.to_bytes();
        let bucket = match request {
            AnnounceRequest::Look { bucket } => bucket,
            AnnounceRequest::Announce { bucket, keys, life, addresses, share } => {
                let mut addresses = parse(addresses);
                addresses.retain(|address| is_plausible(address, from));
                let addresses: Vec<_> = addresses.iter().map(Multiaddr::to_vec).collect();
                let providers = &mut self.books.lock().providers;
                let sender = Sender { peer: &octets, network, addresses: &addresses, share };
                reply.known = providers.announce(sender, &keys, life, now);
                bucket
            }
            AnnounceRequest::Withdraw { bucket, keys } => {
                self.books.lock().providers.withdraw(&octets, &keys, now);
                bucket
            }
            AnnounceRequest::Find { bucket, keys } => {
                self.find(&keys, &octets, now, &mut reply);
                own(&keys, machine, &mut reply);
                bucket
            }
        };
        reply.nearer = self.nearer(bucket, peer, machine);
        reply
    }

    fn find(&self, keys: &[ItemKey], asker: &[u8], now: Seconds, reply: &mut AnnounceReply) {
        let salt = Position::of(asker).0;
        let mut books = self.books.lock();
        let mut numbers: BTreeMap<u32, u16> = BTreeMap::new();
        for hit in books.providers.find(keys, salt, MAX_HITS, now) {
            if hit.provider.peer == asker {
                continue;
            }
            let next = reply.providers.len();
            let known = numbers.get(&hit.slot).copied();
            let Some(number) = known.or_else(|| {
                (next < MAX_NAMED_PROVIDERS).then(|| {
                    let seen = u32::try_from(hit.seen.as_secs()).unwrap_or(u32::MAX);
                    let addresses = hit.provider.addresses.iter().take(NAMED_ADDRESSES);
                    let addresses = addresses.cloned().map(ByteBuf::from).collect();
                    let peer = hit.provider.peer.clone();
                    let share = Some(hit.provider.share.in_percent());
                    reply.providers.push(NamedPeer { peer, addresses, seen, share });
                    next as u16
                })
            }) else {
                continue;
            };
            numbers.insert(hit.slot, number);
            reply.hits.push((hit.key_index as u16, number));
        }
    }

    /// Who holds a key, as far as this node was told.
    pub fn known(&self, key: ItemKey) -> Vec<(PeerId, Vec<Multiaddr>)> {
        let mut books = self.books.lock();
        let hits = books.providers.find(&[key], 0, MAX_NAMED_PROVIDERS, wall_clock());
        let known = hits.into_iter().filter_map(|hit| {
            let peer = PeerId::from_bytes(&hit.provider.peer).ok()?;
            Some((peer, parse(hit.provider.addresses.clone())))
        });
        known.collect()
    }

    fn nearer(&self, bucket: Bucket, asker: PeerId, machine: &Machine) -> Vec<NamedPeer> {
        let near = machine.near(bucket, asker, MAX_NAMED_NODES);
        let named = near.into_iter().filter_map(|peer| {
            let addresses = self.book.addresses(&peer);
            let addresses: Vec<_> = encode(&addresses).map(ByteBuf::from).collect();
            let peer = peer.to_bytes();
            (!addresses.is_empty()).then_some(NamedPeer { peer, addresses, seen: 0, share: None })
        });
        named.collect()
    }
}

/// Adds this node itself to an answer, for what it holds.
fn own(keys: &[ItemKey], machine: &Machine, reply: &mut AnnounceReply) {
    let held = machine.holds(keys);
    let number = reply.providers.len();
    if held.is_empty() || number >= MAX_NAMED_PROVIDERS {
        return;
    }
    let addresses = machine.own_addresses().into_iter().map(ByteBuf::from).collect();
    let peer = machine.local().to_bytes();
    reply.providers.push(NamedPeer { peer, addresses, seen: 0, share: None });
    let room = MAX_HITS.saturating_sub(reply.hits.len());
    reply.hits.extend(held.into_iter().take(room).map(|index| (index as u16, number as u16)));
}

/// Addresses as octets, the best few.
pub fn encode(addresses: &[Multiaddr]) -> impl Iterator<Item = Vec<u8>> {
    let octets = addresses.iter().map(Multiaddr::to_vec);
    octets.filter(|octets| octets.len() <= MAX_WIRE_ADDRESS_BYTES).take(NAMED_ADDRESSES)
}

/// Those octets that are addresses.
pub fn parse(octets: impl IntoIterator<Item = Vec<u8>>) -> Vec<Multiaddr> {
    octets.into_iter().filter_map(|octets| Multiaddr::try_from(octets).ok()).collect()
}

/// Now, for what outlives the process.
pub fn wall_clock() -> Seconds {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Seconds(since.unwrap_or(Duration::ZERO).as_secs())
}
