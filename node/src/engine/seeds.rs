//! Finds the seeds of the build farms that are believed, and stays with the best few of each: one
//! question to them answers most of what would else be looked up item by item.
//!
//! Each is asked only for what its filter says that it has. One whose filter often says yes in vain is
//! forgotten for a day.

mod filters;

use super::{Engine, Inner};
use crate::config::Role;
use crate::net::Net;
use crate::store::FilterFile;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use libp2p::PeerId;
use moka::sync::Cache;
use narswarm_protocol::announce::mirror_key;
use narswarm_protocol::filter::choice::{Candidate, choose};
use narswarm_protocol::filter::credit::Credit;
use narswarm_protocol::limits;
use narswarm_protocol::wire::filter::FilterRequest;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;
use tracing::{debug, info, warn};

/// One that is used.
#[derive(Debug)]
struct Seed {
    peer: PeerId,
    farms: BTreeSet<[u8; 32]>,
    filter: Option<Arc<FilterFile>>,
    /// When its whole filter was last fetched.
    whole_at: Option<Instant>,
    /// Filters that weren't what it had signed.
    bad_filters: u32,
    credit: Credit,
}

/// Those that are used, and those that aren't any more.
pub(super) struct Seeds {
    used: Mutex<Vec<Seed>>,
    forgotten: Cache<PeerId, ()>,
}

impl Default for Seeds {
    fn default() -> Self {
        let forgotten = Cache::builder()
            .max_capacity(limits::MAX_REMEMBERED)
            .time_to_live(limits::FALSE_SEED_LIFE)
            .build();
        Self { used: Mutex::default(), forgotten }
    }
}

impl Seeds {
    /// Whether a peer is one that is used.
    pub fn contains(&self, peer: &PeerId) -> bool {
        self.used.lock().iter().any(|seed| seed.peer == *peer)
    }

    /// Whether there are some, and the filter of each is here.
    fn are_known(&self) -> bool {
        let used = self.used.lock();
        !used.is_empty() && used.iter().all(|seed| seed.filter.is_some())
    }

    /// The farms of each that is used.
    fn farms(&self) -> BTreeMap<PeerId, BTreeSet<[u8; 32]>> {
        self.used.lock().iter().map(|seed| (seed.peer, seed.farms.clone())).collect()
    }

    /// The filters of those that are used and have one.
    pub fn filters(&self) -> Vec<(PeerId, Arc<FilterFile>)> {
        let used = self.used.lock();
        used.iter().filter_map(|seed| Some((seed.peer, seed.filter.clone()?))).collect()
    }

    /// What came of asking a seed: of `considered` items its filter said yes to `asked`, and it had
    /// `had`. Says whether it is forgotten for that.
    pub fn note(&self, peer: &PeerId, considered: usize, asked: usize, had: usize) -> bool {
        let mut used = self.used.lock();
        let Some(seed) = used.iter_mut().find(|seed| seed.peer == *peer) else { return false };
        let Some(filter) = &seed.filter else { return false };
        seed.credit.note(considered, asked, had);
        let is_false = seed.credit.is_false(filter.density());
        drop(used);
        if is_false {
            self.forget(peer, "its filter says yes where it has nothing");
        }
        is_false
    }

    fn forget(&self, peer: &PeerId, why: &str) {
        info!(%peer, "a seed is not used any more: {why}");
        self.used.lock().retain(|seed| seed.peer != *peer);
        self.forgotten.insert(*peer, ());
    }
}

impl Inner {
    /// The keys under which seeds of the believed farms are found.
    fn mirror_keys(&self) -> Vec<[u8; 32]> {
        let acl = self.acl.load();
        let guix = acl.keys().map(|key| mirror_key(key.octets()));
        guix.chain(acl.nix_keys().map(|key| mirror_key(key.octets()))).collect()
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
    let (mut looked, mut again) = (None::<Instant>, limits::SEEDS_AGAIN);
    loop {
        // The first look is made as soon as there is somebody to ask.
        let mut changed = inner.peers_changed.subscribe();
        while !net.routing().ready() {
            if changed.changed().await.is_err() {
                return;
            }
        }
        let has_some = !inner.seeds.used.lock().is_empty();
        if !has_some || looked.is_none_or(|at| at.elapsed() >= limits::SEEDS_EVERY) {
            looked = Some(Instant::now());
            look(inner, net).await;
        }
        filters::refresh(inner, net).await;
        if inner.seeds.are_known() {
            again = limits::SEEDS_AGAIN;
            tokio::time::sleep(limits::FILTER_EVERY).await;
        } else {
            tokio::time::sleep(again).await;
            again = (again * 2).min(limits::SEEDS_AGAIN_AT_MOST);
        }
    }
}

/// Finds seeds, connects with some of them, and keeps the best.
async fn look(inner: &Inner, net: &Net) {
    let mut farms = inner.seeds.farms();
    let mut found = net.routing().find_for_upkeep(&inner.mirror_keys()).await;
    while let Some(provider) = found.recv().await {
        let peer = provider.peer;
        let is_bad = inner.is_banned(&peer) || inner.seeds.forgotten.contains_key(&peer);
        if !is_bad && (farms.len() < limits::MAX_SEEDS_TRIED || farms.contains_key(&peer)) {
            farms.entry(peer).or_default().insert(provider.key);
        }
    }
    let mut tried: FuturesUnordered<_> =
        farms.into_iter().map(|(peer, farms)| meet(inner, net, peer, farms)).collect();
    let mut candidates = Vec::new();
    while let Some(met) = tried.next().await {
        candidates.extend(met);
    }
    let (peers, candidates): (Vec<_>, Vec<_>) = candidates.into_iter().unzip();
    let chosen = choose(&candidates);
    let mut used = inner.seeds.used.lock();
    let mut before: BTreeMap<_, _> = used.drain(..).map(|seed| (seed.peer, seed)).collect();
    for place in chosen {
        let (peer, farms) = (peers[place], candidates[place].farms.clone());
        net.keep(peer);
        let mut seed = before.remove(&peer).unwrap_or_else(|| Seed {
            peer,
            farms: BTreeSet::new(),
            filter: None,
            whole_at: None,
            bad_filters: 0,
            credit: Credit::default(),
        });
        seed.farms = farms;
        used.push(seed);
    }
    debug!(seeds = used.len(), "seeds of the farms that are believed");
}

/// Sees how far away a seed is and how much it has.
async fn meet(
    inner: &Inner,
    net: &Net,
    peer: PeerId,
    farms: BTreeSet<[u8; 32]>,
) -> Option<(PeerId, Candidate)> {
    // The first question makes the connection, the second is timed.
    let asked = net.query(peer, &[inner.nothing]).await;
    let begin = Instant::now();
    match (asked, net.query(peer, &[inner.nothing]).await) {
        (Ok(_), Ok(_)) => {}
        (Err(error), _) | (_, Err(error)) => {
            debug!("a seed: {error}");
            net.routing().note_gone(peer);
            return None;
        }
    }
    let round_trip = begin.elapsed();
    let head = net.filter(peer, FilterRequest { have: None, head_only: true }, false).await;
    // What it says is punished by being believed.
    let items = head.ok().map(|answer| answer.head.unverified().items);
    Some((peer, Candidate { farms, round_trip, items }))
}
