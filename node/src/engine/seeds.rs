//! Finds the seeds of the build farms that are believed, and stays with the best few: one question to
//! them answers most of what would else be looked up item by item.

use super::{Engine, Inner};
use crate::config::Role;
use libp2p::PeerId;
use narswarm_protocol::announce::mirror_key;
use narswarm_protocol::limits;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tracing::{debug, warn};

/// One that is used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seed {
    peer: PeerId,
    round_trip: Duration,
}

impl Inner {
    /// The keys under which seeds of the believed farms are found.
    fn mirror_keys(&self) -> Vec<[u8; 32]> {
        let acl = self.acl.load();
        let guix = acl.keys().map(|key| mirror_key(key.octets()));
        guix.chain(acl.nix_keys().map(|key| mirror_key(key.octets()))).collect()
    }

    /// Whether a peer is one of the seeds that are used.
    pub(super) fn is_seed(&self, peer: &PeerId) -> bool {
        self.seeds.lock().iter().any(|seed| seed.peer == *peer)
    }
}

/// Announces a seed as one, and looks for those of others, again and again.
pub async fn follow_seeds(engine: &Engine) {
    let inner = &engine.inner;
    let Some(net) = inner.net.get() else { return };
    if inner.config.role == Role::Seed
        && !inner.config.shares_nothing()
        && let Err(error) = net.routing().provide(&inner.mirror_keys()).await
    {
        warn!("this seed is not announced as one: {error}");
    }
    loop {
        // The first look is made as soon as there is somebody to ask.
        let mut changed = inner.peers_changed.subscribe();
        while !net.routing().ready() {
            if changed.changed().await.is_err() {
                return;
            }
        }
        look(inner).await;
        let found = !inner.seeds.lock().is_empty();
        let pause = if found { limits::SEEDS_EVERY } else { limits::SEEDS_AGAIN };
        tokio::time::sleep(pause).await;
    }
}

/// Finds seeds, connects with some of them, and keeps the nearest.
async fn look(inner: &Inner) {
    let Some(net) = inner.net.get() else { return };
    let mut peers: BTreeSet<PeerId> = inner.seeds.lock().iter().map(|seed| seed.peer).collect();
    let mut found = net.routing().find(&inner.mirror_keys()).await;
    while let Some(provider) = found.recv().await {
        if peers.len() < limits::MAX_SEEDS_TRIED && !inner.is_banned(&provider.peer) {
            peers.insert(provider.peer);
        }
    }
    let mut seeds = Vec::new();
    for peer in peers {
        // The first question makes the connection, the second is timed.
        let asked = net.query(peer, &[inner.nothing]).await;
        let begin = Instant::now();
        match (asked, net.query(peer, &[inner.nothing]).await) {
            (Ok(_), Ok(_)) => seeds.push(Seed { peer, round_trip: begin.elapsed() }),
            (Err(error), _) | (_, Err(error)) => {
                debug!("a seed: {error}");
                net.routing().note_gone(peer);
            }
        }
    }
    seeds.sort_by_key(|seed| seed.round_trip);
    seeds.truncate(limits::MAX_SEEDS);
    for seed in &seeds {
        net.keep(seed.peer);
    }
    debug!(seeds = seeds.len(), "seeds of the farms that are believed");
    *inner.seeds.lock() = seeds;
}
