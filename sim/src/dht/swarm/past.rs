//! What nodes bring along when they come for the first time in a run: hardly anybody installs narswarm
//! on the day that is simulated.

use super::Swarm;
use crate::dht::table::{NodeId, Position};
use crate::random::Chance;
use narswarm_protocol::announce::providers::{ProviderLimits, Providers, Seconds, Sender};
use narswarm_protocol::announce::{
    Announced, Bucket, BucketState, ItemKey, Message, NodeId as Peer,
};
use narswarm_protocol::limits::{EXPLORE_AGAIN, MIN_REANNOUNCE, REPLICAS, SAVED_NEIGHBOURS};
use std::time::Duration;

/// Of so many nearest to a meeting point each node has met some: sixteen are named in an answer.
const NEIGHBOURS: usize = 16;

/// What nodes know of a network that has existed for long; nothing where it is new.
#[derive(Debug, Default)]
pub(super) struct Lore {
    /// The nearest to each meeting point of those who answer others, whether they are there or not.
    neighbours: Vec<Vec<NodeId>>,
    /// See [`Announced::radius`].
    radius: u64,
}

impl Swarm {
    /// What is known of this network.
    pub(super) fn lore(&self) -> Lore {
        let serving: Vec<NodeId> =
            (0..self.setup.nodes).filter(|node| self.kad.serves(*node)).collect();
        let nearest = |bucket: Bucket| {
            let target = bucket.position().0;
            let distance = |node: &NodeId| self.kad.positions[*node as usize] ^ target;
            let mut all: Vec<(Position, NodeId)> =
                serving.iter().map(|node| (distance(node), *node)).collect();
            all.sort_unstable();
            all.truncate(NEIGHBOURS);
            all.into_iter().map(|(_, node)| node).collect()
        };
        // Half of them are there.
        let radius = (REPLICAS as u128) << 65;
        let radius = u64::try_from(radius / serving.len().max(1) as u128).unwrap_or(0);
        Lore { neighbours: Bucket::all().map(nearest).collect(), radius }
    }

    /// What a node had written down before the run: of which share of the time it was there, and, in a
    /// network that has existed for long, how dense that is, whom it knows near the meeting points, and
    /// what it has announced to whom.
    pub(super) fn past(&self, node: NodeId) -> Announced {
        let mut chance = Chance::new(self.seed ^ u64::from(node) << 20, "past");
        let presence = self.nodes[node as usize].habit.past(&mut chance);
        let mut announced =
            Announced { presence, radius: self.lore.radius, ..Announced::default() };
        let all = self.keys(node);
        for (bucket, neighbours) in Bucket::all().zip(&self.lore.neighbours) {
            let mut near = neighbours.clone();
            near.retain(|other| *other != node);
            chance.shuffle(&mut near);
            let near = |count| near.iter().take(count).map(|node| Peer((*node).into())).collect();
            let look = Duration::from_secs(chance.between(0, EXPLORE_AGAIN.as_secs()));
            let due = Duration::from_secs(chance.between(0, MIN_REANNOUNCE.as_secs()));
            let keys = of(&all, bucket);
            let due = Some(due).filter(|_| !keys.is_empty());
            let keepers = if keys.is_empty() { Vec::new() } else { near(REPLICAS) };
            announced.items.extend(keys.iter().map(|key| (*key, 0)));
            let near = near(SAVED_NEIGHBOURS);
            announced.buckets.push(BucketState { bucket, due, look, keepers, near });
        }
        announced
    }

    /// What a node holds, rising.
    fn keys(&self, node: NodeId) -> Vec<ItemKey> {
        let items = self.nodes[node as usize].items.iter();
        let mut keys: Vec<_> = items.map(|item| self.catalogue.key(*item)).collect();
        keys.sort_unstable();
        keys
    }

    /// Everybody has announced within the last day what they hold: those who are near keep it.
    pub(super) fn keep_the_past(&mut self) {
        let mut told: Vec<Vec<Telling>> = vec![Vec::new(); self.nodes.len()];
        let mut held = Vec::with_capacity(self.nodes.len());
        for node in 0..self.setup.nodes {
            let Announced { buckets, presence, .. } = self.past(node);
            for BucketState { bucket, due, keepers, .. } in buckets {
                let Some(due) = due else { continue };
                let at = Seconds(self.wall().0 - (MIN_REANNOUNCE - due).as_secs());
                for keeper in keepers {
                    told[keeper.0 as usize].push(Telling { node, bucket, at });
                }
            }
            held.push((self.keys(node), presence.share()));
        }
        // One keeper after the other, as what one keeps fits the processor's cache.
        for (keeper, told) in told.into_iter().enumerate().filter(|(_, told)| !told.is_empty()) {
            let mut providers = Box::new(Providers::new(ProviderLimits::default()));
            for Telling { node, bucket, at } in told {
                let (keys, share) = &held[node as usize];
                let (network, peer) = (Some(self.networks[node as usize]), node.to_le_bytes());
                let sender = Sender { peer: &peer, network, addresses: &[], share: *share };
                providers.announce(sender, of(keys, bucket), Message::LIFE, at);
            }
            self.nodes[keeper].providers = Some(providers);
        }
    }
}

/// That a node has told a keeper what it holds of a bucket.
#[derive(Debug, Clone, Copy)]
struct Telling {
    node: NodeId,
    bucket: Bucket,
    at: Seconds,
}

/// Those of rising keys that are of a bucket.
fn of(keys: &[ItemKey], bucket: Bucket) -> &[ItemKey] {
    let from = keys.partition_point(|key| key.bucket() < bucket);
    let count = keys[from..].partition_point(|key| key.bucket() == bucket);
    &keys[from..from + count]
}
