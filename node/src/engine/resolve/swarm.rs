//! Whom a search asks: upstream, the nearest peers, and whoever the DHT names.

use super::super::{Holder, Inner};
use super::believe::{Judgements, Offer, VERIFIED_AT_ONCE, Verdict};
use super::search::{HEARD, Heard};
use crate::net::{Held, Net, PeerError};
use crate::upstream::NarinfoReply;
use futures::stream::{FuturesUnordered, StreamExt};
use libp2p::PeerId;
use narswarm_protocol::limits;
use narswarm_protocol::provider_key::provider_key;
use narswarm_protocol::store_path::StoreHash;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::debug;

/// For so few items the DHT is asked at the same time as the peers that are connected.
const ASKED_AT_ONCE: usize = 4;

/// Has upstream answer for `hashes`.
pub(in crate::engine) async fn ask_upstream(
    inner: Arc<Inner>,
    hashes: Vec<StoreHash>,
    say: mpsc::Sender<Heard>,
) {
    let Some(upstreams) = &inner.upstreams else { return };
    let mut replies = upstreams.narinfos(hashes);
    let mut judgements = Judgements::new(inner.clone());
    let (mut arrived, mut is_open) = (Vec::new(), true);
    loop {
        tokio::select! {
            Some(verdicts) = judgements.next() => {
                if say.send(Heard::Judged(verdicts)).await.is_err() {
                    return;
                }
            }
            count = replies.next_many(&mut arrived, VERIFIED_AT_ONCE),
                if is_open && judgements.has_room() =>
            {
                is_open = count > 0;
                let mut offers = Vec::with_capacity(count);
                for (hash, reply) in arrived.drain(..) {
                    match reply {
                        NarinfoReply::Found { upstream, body } => {
                            let upstream = Some(upstream);
                            offers.push(Offer { hash, narinfo: body, upstream });
                        }
                        other => {
                            if say.send(Heard::Upstream(hash, other)).await.is_err() {
                                return;
                            }
                        }
                    }
                }
                if !offers.is_empty() {
                    judgements.begin(offers);
                }
            }
            else => break,
        }
    }
    let _ = say.send(Heard::UpstreamDone).await;
}

/// Asks connected peers about everything at once, then (`thoroughly`) whoever the DHT names for
/// what none of them has.
pub(in crate::engine) async fn ask_swarm(
    inner: Arc<Inner>,
    hashes: Vec<StoreHash>,
    thoroughly: bool,
    say: mpsc::Sender<Heard>,
) {
    let Some(net) = inner.net.get().cloned() else { return };
    if inner.config.expects_peers && thoroughly {
        inner.first_peer().await;
    }
    let mut missing: HashSet<_> = hashes.iter().copied().collect();
    let wanted = inner.worth_asking(inner.peers_to_ask(), &hashes).await;
    let asked: Vec<_> = wanted.iter().map(|(peer, _)| *peer).collect();
    if thoroughly && hashes.len() <= ASKED_AT_ONCE {
        // So few messages are worth the round trip that they save.
        let all = missing.clone();
        tokio::join!(
            query_peers(&inner, &net, wanted, hashes.len(), &mut missing, &say),
            ask_dht(&inner, &net, &asked, all, &say)
        );
    } else {
        query_peers(&inner, &net, wanted, hashes.len(), &mut missing, &say).await;
        if thoroughly && !missing.is_empty() {
            ask_dht(&inner, &net, &asked, missing, &say).await;
        }
    }
    let _ = say.send(Heard::SwarmDone).await;
}

/// Asks each of these peers for what it may have of `considered` items.
async fn query_peers(
    inner: &Arc<Inner>,
    net: &Net,
    wanted: Vec<(PeerId, Vec<StoreHash>)>,
    considered: usize,
    missing: &mut HashSet<StoreHash>,
    say: &mpsc::Sender<Heard>,
) {
    let queries = wanted.into_iter().map(|(peer, hashes)| async move {
        let asked = hashes.len();
        (asked, query(inner, net, peer, hashes).await)
    });
    let mut queries: FuturesUnordered<_> = queries.collect();
    while let Some((asked, Answered { peer, held, is_answer })) = queries.next().await {
        if is_answer {
            inner.seeds.note(&peer, considered, asked, held.len());
        }
        for (verdict, _) in &held {
            missing.remove(&verdict.hash);
        }
        if say.send(Heard::Peer(peer, held)).await.is_err() {
            return;
        }
    }
}

/// Looks up what is missing, some of it at a time, and asks whoever provides one item for all that
/// is missing: who holds one mostly holds its neighbours too. What was named in vain is looked up
/// again, since those who said so may have lied. Ends when a round finds nobody new.
async fn ask_dht(
    inner: &Arc<Inner>,
    net: &Net,
    asked: &[PeerId],
    mut missing: HashSet<StoreHash>,
    say: &mpsc::Sender<Heard>,
) {
    let mut asked: HashSet<_> = asked.iter().copied().collect();
    let mut looked_up: HashMap<StoreHash, u32> = HashMap::new();
    loop {
        let is_open = |hash: &&StoreHash| {
            looked_up.get(*hash).is_none_or(|times| *times < limits::SEARCH_TRIES)
        };
        let open = missing.iter().filter(is_open).take(limits::MAX_LOOKED_UP_HASHES);
        let round: Vec<_> = open.copied().collect();
        if round.is_empty() {
            return;
        }
        let before = asked.len();
        let named = ask_providers(inner, net, &round, &mut asked, &mut missing, say).await;
        for hash in round {
            let times = looked_up.entry(hash).or_default();
            *times = if named.contains(&hash) { *times + 1 } else { limits::SEARCH_TRIES };
        }
        if missing.is_empty() || (asked.len() == before && named.is_empty()) {
            return;
        }
    }
}

/// One round: finds providers of `hashes` and asks each new one for everything missing. Gives those of
/// `hashes` of which somebody was named.
async fn ask_providers(
    inner: &Arc<Inner>,
    net: &Net,
    hashes: &[StoreHash],
    asked: &mut HashSet<PeerId>,
    missing: &mut HashSet<StoreHash>,
    say: &mpsc::Sender<Heard>,
) -> HashSet<StoreHash> {
    let by_key: HashMap<_, _> = hashes.iter().map(|hash| (provider_key(hash), *hash)).collect();
    let keys: Vec<_> = by_key.keys().copied().collect();
    let mut named = HashSet::new();
    let mut providers = net.routing().find(&keys).await;
    let mut queries = FuturesUnordered::new();
    let mut open = true;
    while open || !queries.is_empty() {
        tokio::select! {
            provider = providers.recv(), if open => {
                let Some(provider) = provider else { open = false; continue };
                named.extend(by_key.get(&provider.key));
                if !inner.is_banned(&provider.peer) && asked.insert(provider.peer) {
                    let wanted: Vec<_> =
                        missing.iter().copied().take(limits::MAX_QUERY_HASHES).collect();
                    queries.push(query(inner, net, provider.peer, wanted));
                }
            }
            Some(Answered { peer, held, .. }) = queries.next() => {
                for (verdict, _) in &held {
                    missing.remove(&verdict.hash);
                }
                if held.is_empty() {
                    net.routing().note_gone(peer);
                } else {
                    net.routing().note_there(peer);
                }
                if say.send(Heard::Peer(peer, held)).await.is_err() {
                    return named;
                }
            }
        }
    }
    named
}

/// What came of asking a peer.
struct Answered {
    peer: PeerId,
    /// What it holds, judged.
    held: Vec<(Verdict, Held)>,
    /// Whether it has answered at all.
    is_answer: bool,
}

/// Asks one peer, and judges what it says; nothing when it fails.
async fn query(inner: &Arc<Inner>, net: &Net, peer: PeerId, hashes: Vec<StoreHash>) -> Answered {
    let answers = net.query(peer, &hashes).await;
    let is_answer = answers.is_ok();
    let answers = answers.unwrap_or_else(|error| {
        debug!("query: {error}");
        if matches!(error, PeerError::Unreachable { .. } | PeerError::TimedOut { .. }) {
            inner.metrics.stale_providers.inc();
            net.routing().note_gone(peer);
        }
        Vec::new()
    });
    let held = hashes.into_iter().zip(answers);
    let held: Vec<_> = held.filter_map(|(hash, held)| Some((hash, held?))).collect();
    let (mut judgements, mut verdicts) = (Judgements::new(inner.clone()), Vec::new());
    for part in held.chunks(VERIFIED_AT_ONCE) {
        if !judgements.has_room() {
            verdicts.extend(judgements.next().await.unwrap_or_default());
        }
        let offers = part.iter().map(|(hash, held)| Offer::new(*hash, held.narinfo.clone()));
        judgements.begin(offers.collect());
    }
    while let Some(more) = judgements.next().await {
        verdicts.extend(more);
    }
    // Both are in the same order, but a judgement that failed leaves a gap.
    let mut held = held.into_iter();
    let judged = verdicts.into_iter().filter_map(|verdict| {
        let (_, held) = held.find(|(hash, _)| *hash == verdict.hash)?;
        Some((verdict, held))
    });
    Answered { peer, held: judged.collect(), is_answer }
}

impl Inner {
    pub(super) fn note_holder(&self, hash: StoreHash, holder: Holder) {
        let mut holders = self.holders.get(&hash).map(|h| h.to_vec()).unwrap_or_default();
        holders.retain(|known| known.peer != holder.peer);
        holders.push(holder);
        holders.truncate(limits::MAX_SOURCES);
        self.holders.insert(hash, Arc::new(holders));
    }

    /// Seeds and the nearest peers, as far as they speak our protocols.
    fn peers_to_ask(&self) -> Vec<PeerId> {
        let mut peers = self.net.get().map(Net::connected).unwrap_or_default();
        peers.retain(|peer| peer.ours && !self.is_banned(&peer.peer));
        peers.sort_by_key(|peer| peer.rtt.unwrap_or(limits::UNKNOWN_LATENCY));
        let (seeds, others): (Vec<_>, Vec<_>) =
            peers.iter().map(|peer| peer.peer).partition(|peer| self.seeds.contains(peer));
        seeds.into_iter().chain(others.into_iter().take(limits::MAX_QUERIED_PEERS)).collect()
    }

    /// Waits a little for the first peer of a node that was told of some.
    async fn first_peer(&self) {
        let mut changed = self.peers_changed.subscribe();
        let deadline = Instant::now() + limits::FIRST_PEER_PATIENCE;
        while self.peers_to_ask().is_empty() {
            if tokio::time::timeout_at(deadline, changed.changed()).await.is_err() {
                return;
            }
        }
    }

    /// Waits a little for a peer that can be asked besides those there are.
    pub(in crate::engine) async fn another_peer(&self) {
        let mut changed = self.peers_changed.subscribe();
        let _ = tokio::time::timeout(limits::ANOTHER_PEER_PATIENCE, changed.changed()).await;
    }

    /// Peers that hold an item's nar, asked anew: those connected, then whoever the DHT names.
    pub(in crate::engine) fn find_holders(
        self: &Arc<Self>,
        hash: StoreHash,
    ) -> mpsc::Receiver<Holder> {
        self.ask_for_holders(vec![hash], true)
    }

    /// Connected peers that hold nars of these items, asked anew.
    pub(in crate::engine) fn find_near_holders(
        self: &Arc<Self>,
        hashes: Vec<StoreHash>,
    ) -> mpsc::Receiver<Holder> {
        self.ask_for_holders(hashes, false)
    }

    fn ask_for_holders(
        self: &Arc<Self>,
        hashes: Vec<StoreHash>,
        thoroughly: bool,
    ) -> mpsc::Receiver<Holder> {
        let (found, receiver) = mpsc::channel(limits::MAX_SOURCES);
        let (say, mut heard) = mpsc::channel(HEARD);
        tokio::spawn(ask_swarm(self.clone(), hashes, thoroughly, say));
        let inner = self.clone();
        tokio::spawn(async move {
            while let Some(event) = heard.recv().await {
                let Heard::Peer(peer, answers) = event else { continue };
                for (Verdict { hash, .. }, held) in answers {
                    if held.root.is_none() {
                        continue;
                    }
                    let holder = Holder::new(peer, &held);
                    inner.note_holder(hash, holder);
                    if found.send(holder).await.is_err() {
                        return;
                    }
                }
            }
        });
        receiver
    }
}
