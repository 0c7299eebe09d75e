//! What nodes answer: honest ones as the node of production does, from what they keep; liars with
//! accomplices, false holders, and thanks for what they throw away.

use super::{Letter, Swarm};
use crate::agenda::{SECOND, time};
use crate::dht::event::Event;
use crate::dht::links::{Fate, Nat, Nature};
use crate::dht::table::NodeId;
use narswarm_protocol::announce::providers::{Hit, ProviderLimits, Providers, Seconds, Sender};
use narswarm_protocol::announce::{Message, NodeId as Peer, ProviderHint, Reply, Share};
use std::time::Duration;

/// Nodes named in an answer.
const NAMED: usize = 16;

/// Providers named in an answer at most.
const MAX_HINTS: usize = 4000;

/// Accomplices that a liar names, and false holders of each key.
const LIES: usize = 8;

/// Simulated time begins here on the wall clock, which the store reads.
const EPOCH_SECONDS: u64 = 1_800_000_000;

impl Swarm {
    pub(super) fn wall(&self) -> Seconds {
        Seconds(EPOCH_SECONDS + self.agenda.now() / SECOND)
    }

    /// What a node answers to a message.
    pub(super) fn answer(&mut self, letter: &Letter) -> Reply {
        if self.kad.links.nature[letter.to as usize] == Nature::Liar {
            return self.lie(letter);
        }
        let (now, wall) = (time(self.agenda.now()), self.wall());
        let (from, network) = (letter.from, self.networks[letter.from as usize]);
        let node = &mut self.nodes[letter.to as usize];
        let mut reply = Reply::default();
        if let Some(discovery) = &mut node.discovery {
            reply.nearer = discovery.near(letter.bucket, NAMED, from.into(), now);
            reply.nearer.retain(|contact| contact.node != Peer(from.into()));
        }
        let peer = from.to_le_bytes();
        match &letter.message {
            Message::Look => {}
            Message::Announce { keys, share } => {
                let empty = || Box::new(Providers::new(ProviderLimits::default()));
                let providers = node.providers.get_or_insert_with(empty);
                let (network, share) = (Some(network), *share);
                let sender = Sender { peer: &peer, network, addresses: &[], share };
                reply.known = providers.announce(sender, keys, Message::LIFE, wall);
                providers.prune(wall);
                self.tally.most_kept = self.tally.most_kept.max(providers.len() as u64);
            }
            Message::Withdraw { keys } => {
                if let Some(providers) = &mut node.providers {
                    providers.withdraw(&peer, keys, wall);
                }
            }
            Message::Find { keys } => {
                let Some(providers) = &mut node.providers else { return reply };
                providers.handle_seen(&peer, wall);
                let hits = providers.find(keys, from.into(), MAX_HINTS, wall);
                let nat = &self.kad.links.nat;
                reply.providers = hits.iter().map(|hit| hint(hit, nat)).collect();
                self.probe(letter.to);
            }
        }
        reply
    }

    /// A node is connected with another, which it may keep something of.
    pub(super) fn saw(&mut self, node: NodeId, other: NodeId) {
        let wall = self.wall();
        let this = &mut self.nodes[node as usize];
        if let Some(providers) = this.providers.as_mut().filter(|_| this.discovery.is_some()) {
            providers.handle_seen(&other.to_le_bytes(), wall);
        }
    }

    /// Looks after those who announced and haven't been heard of for long.
    fn probe(&mut self, keeper: NodeId) {
        loop {
            let Some(providers) = &mut self.nodes[keeper as usize].providers else { return };
            let Some(provider) = providers.poll_probe() else { return };
            let other = number(&provider.peer);
            self.tally.probes += 1;
            let (after, there) = match self.kad.links.ask(self.agenda.now(), keeper, other, true) {
                Fate::Answer { after, .. } => (after, true),
                Fate::Nothing { after } => (after, false),
            };
            self.agenda.after(after, Event::Probed { keeper, other, there });
        }
    }

    pub(super) fn probed(&mut self, keeper: NodeId, other: NodeId, there: bool) {
        let wall = self.wall();
        if let Some(providers) = &mut self.nodes[keeper as usize].providers {
            if there {
                providers.handle_seen(&other.to_le_bytes(), wall);
            } else {
                providers.handle_gone(&other.to_le_bytes());
            }
        }
    }

    fn lie(&mut self, letter: &Letter) -> Reply {
        let liars = &self.kad.liars;
        let target = letter.bucket.position().0;
        let at = liars.partition_point(|liar| liar.0 < target);
        let around = at.saturating_sub(LIES)..(at + LIES).min(liars.len());
        let accomplices: Vec<NodeId> = liars[around].iter().map(|liar| liar.1).collect();
        let nearer = accomplices.iter().map(|&node| self.contact(node)).collect();
        let mut reply = Reply { nearer, ..Reply::default() };
        match &letter.message {
            Message::Look | Message::Withdraw { .. } => {}
            Message::Announce { keys, .. } => reply.known = vec![1; keys.len()],
            Message::Find { keys } => {
                for key_index in 0..keys.len().min(LIES) as u32 {
                    let hint = |&node: &NodeId| ProviderHint {
                        key_index,
                        provider: Peer(node.into()),
                        seen: Duration::ZERO,
                        relayed: false,
                        share: Share::percent(100),
                    };
                    reply.providers.extend(accomplices.iter().take(LIES).map(hint));
                }
            }
        }
        reply
    }
}

fn hint(hit: &Hit<'_>, nat: &[Nat]) -> ProviderHint {
    let node = number(&hit.provider.peer);
    let relayed = nat.get(node as usize).is_some_and(|nat| *nat != Nat::Open);
    let (key_index, seen, share) = (hit.key_index, hit.seen, hit.provider.share);
    ProviderHint { key_index, provider: Peer(node.into()), seen, relayed, share }
}

/// Whose octets these are.
fn number(peer: &[u8]) -> NodeId {
    u32::from_le_bytes(peer.first_chunk().copied().unwrap_or_default())
}
