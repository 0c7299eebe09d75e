//! Which nodes the table of the DHT takes: not many of one network.
//!
//! Whoever makes up peer ids near a key can fill the buckets around it, and then answers for it
//! alone. Ids cost nothing, networks do. Neighbours, on this machine or a private network, are
//! taken without number: what they have in common is that they are near.

use super::records::NoRecords;
use crate::net::networks::Customer;
use libp2p::PeerId;
use libp2p::kad;
use narswarm_protocol::limits::{MAX_BUCKET_NODES_PER_NETWORK, MAX_TABLE_NODES_PER_NETWORK};
use std::collections::{HashMap, HashSet};

/// Networks of nodes that are remembered before those of nodes that have left the table are
/// forgotten.
const REMEMBERED: usize = 1024;

/// See the module.
#[derive(Default)]
pub struct Diversity {
    networks: HashMap<PeerId, Customer>,
}

impl Diversity {
    /// Whether the table may take, or keep, a node that connects from this network.
    pub fn admits(
        &mut self,
        kad: &mut kad::Behaviour<NoRecords>,
        peer: PeerId,
        network: Option<Customer>,
    ) -> bool {
        let Some(network) = network else { return true };
        let table: HashSet<PeerId> = kad
            .kbuckets()
            .flat_map(|bucket| bucket.iter().map(|e| *e.node.key.preimage()).collect::<Vec<_>>())
            .collect();
        if self.networks.len() >= REMEMBERED {
            self.networks.retain(|peer, _| table.contains(peer));
        }
        let same = |other: &PeerId| *other != peer && self.networks.get(other) == Some(&network);
        let in_table = table.iter().filter(|other| same(other)).count();
        let in_bucket = kad.kbucket(peer).map_or(0, |bucket| {
            bucket.iter().filter(|entry| same(entry.node.key.preimage())).count()
        });
        let admitted =
            in_table < MAX_TABLE_NODES_PER_NETWORK && in_bucket < MAX_BUCKET_NODES_PER_NETWORK;
        if admitted && self.networks.len() < 2 * REMEMBERED {
            self.networks.insert(peer, network);
        }
        admitted
    }
}

/// Whether the table has this node or room for it. A node offered to a full bucket makes libp2p call
/// the one there that was silent longest, which then is offered to full buckets over there, and so on:
/// in a quiet network of sixty nodes that made hundreds of connections a second.
pub fn has_room(kad: &mut kad::Behaviour<NoRecords>, peer: PeerId) -> bool {
    kad.kbucket(peer).is_some_and(|bucket| {
        bucket.num_entries() < kad::K_VALUE.get()
            || bucket.iter().any(|entry| *entry.node.key.preimage() == peer)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::behaviour::KAD_PROTOCOL;
    use crate::net::networks::customer_of;
    use libp2p::Multiaddr;

    fn table() -> kad::Behaviour<NoRecords> {
        let local = PeerId::random();
        let mut config = kad::Config::new(KAD_PROTOCOL);
        config.set_kbucket_inserts(kad::BucketInserts::Manual);
        kad::Behaviour::with_config(local, NoRecords, config)
    }

    #[test]
    fn a_full_bucket_takes_nobody_else() {
        let mut kad = table();
        let address: Multiaddr = "/ip4/10.0.0.1/tcp/1".parse().expect("an address");
        let mut known = Vec::new();
        for _ in 0..200 {
            let peer = PeerId::random();
            if has_room(&mut kad, peer) {
                kad.add_address(&peer, address.clone());
                known.push(peer);
            }
        }
        let fullest = kad.kbuckets().map(|bucket| bucket.num_entries()).max();
        assert_eq!(fullest, Some(kad::K_VALUE.get()), "half of all ids share the first bucket");
        assert!(known.len() < 200, "some were turned away");
        assert!(known.iter().all(|peer| has_room(&mut kad, *peer)), "who is in stays in");
    }

    /// Offers many nodes at this address; how many were taken in all and of one bucket at most.
    fn offer(address: &str) -> (usize, usize) {
        let (mut kad, mut diversity) = (table(), Diversity::default());
        let address: Multiaddr = address.parse().expect("an address");
        for _ in 0..500 {
            let peer = PeerId::random();
            if diversity.admits(&mut kad, peer, customer_of(&address)) {
                kad.add_address(&peer, address.clone());
                assert!(
                    diversity.admits(&mut kad, peer, customer_of(&address)),
                    "it is in already"
                );
            }
        }
        let buckets: Vec<_> = kad.kbuckets().map(|bucket| bucket.num_entries()).collect();
        (buckets.iter().sum(), buckets.into_iter().max().unwrap_or(0))
    }

    #[test]
    fn one_network_gets_few_places_and_neighbours_all() {
        let (all, most) = offer("/ip4/198.51.100.1/tcp/1");
        assert_eq!((all, most), (MAX_TABLE_NODES_PER_NETWORK, MAX_BUCKET_NODES_PER_NETWORK));
        let (all, most) = offer("/ip4/192.168.1.1/tcp/1");
        assert!(all > 50 && most == 20, "{all} {most}");
    }
}
