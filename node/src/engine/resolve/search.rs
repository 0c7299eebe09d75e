//! One search for a batch of hashes: peers and upstream are asked at once, each answer goes out
//! as soon as it is known, and none waits longer than it is worth.

use super::super::{Holder, Inner};
use super::believe::Verdict;
use super::swarm::{ask_swarm, ask_upstream};
use super::{Known, Waiting};
use crate::upstream::NarinfoReply;
use bytes::Bytes;
use libp2p::PeerId;
use narswarm_protocol::fetch::UpstreamMode;
use narswarm_protocol::limits;
use narswarm_protocol::store_path::StoreHash;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::warn;

/// What a search hears.
pub(in crate::engine) enum Heard {
    /// Upstream has no narinfo of this hash to give.
    Upstream(StoreHash, NarinfoReply),
    /// Narinfos that upstream gave have been judged.
    Judged(Vec<Verdict>),
    /// Upstream has answered everything that it will.
    UpstreamDone,
    /// What a peer holds, judged.
    Peer(PeerId, Vec<(Verdict, crate::net::Held)>),
    /// All peers that were asked have answered or failed, the DHT's included.
    SwarmDone,
}

/// One search for a batch of hashes.
pub(super) struct Search {
    inner: Arc<Inner>,
    waiting: Waiting,
    /// Hashes that upstream definitely lacks.
    refused: HashSet<StoreHash>,
    /// Whether upstream's word is still to come.
    upstream: bool,
    upstream_broken: bool,
    swarm: bool,
    found: Vec<Arc<Known>>,
    started: Instant,
    /// For asking further while the search goes on.
    say: Option<mpsc::Sender<Heard>>,
}

/// Events that wait for the search: replies are small.
pub(in crate::engine) const HEARD: usize = 256;

impl Search {
    pub fn new(inner: Arc<Inner>, waiting: Waiting) -> Self {
        let mode = inner.config.upstream_mode;
        let upstream = inner.upstreams.is_some() && mode != UpstreamMode::SwarmOnly;
        let swarm = inner.net.get().is_some() && mode != UpstreamMode::UpstreamOnly;
        Self {
            inner,
            waiting,
            refused: HashSet::new(),
            upstream,
            upstream_broken: false,
            swarm,
            found: Vec::new(),
            started: Instant::now(),
            say: None,
        }
    }

    pub async fn run(mut self) {
        let (say, mut heard) = mpsc::channel(HEARD);
        let hashes: Vec<_> = self.waiting.keys().copied().collect();
        if self.upstream {
            tokio::spawn(ask_upstream(self.inner.clone(), hashes.clone(), say.clone()));
        }
        if self.swarm {
            tokio::spawn(ask_swarm(self.inner.clone(), hashes, !self.upstream, say.clone()));
        }
        self.say = Some(say);
        while !self.waiting.is_empty() {
            let Some(deadline) = self.deadline() else { break };
            match tokio::time::timeout_at(deadline, heard.recv()).await {
                Ok(Some(event)) => self.hear(event),
                Ok(None) => break,
                Err(_) if self.upstream && !self.swarm_is_late() => break,
                Err(_) => self.give_up_late(),
            }
        }
        self.settle();
        self.say = None;
        self.store_found().await;
        // What is said from now on is no longer needed for these answers, but who holds what is.
        while let Some(event) = heard.recv().await {
            self.hear(event);
        }
        self.store_found().await;
    }

    fn swarm_is_late(&self) -> bool {
        self.swarm && self.started.elapsed() >= self.swarm_patience()
    }

    /// How long the swarm may keep an answer waiting.
    fn swarm_patience(&self) -> Duration {
        let upstream_speaks = self.inner.upstreams.is_some()
            && self.inner.config.upstream_mode != UpstreamMode::SwarmOnly
            && !self.upstream_broken;
        if upstream_speaks { limits::PEER_GRACE } else { limits::SWARM_DEADLINE }
    }

    /// When to stop waiting, if there is anything to wait for.
    fn deadline(&self) -> Option<Instant> {
        let swarm =
            (self.swarm && !self.swarm_is_late()).then(|| self.started + self.swarm_patience());
        let upstream = self.upstream.then(|| self.started + limits::NARINFO_DEADLINE);
        match (swarm, upstream) {
            (Some(swarm), Some(upstream)) => Some(swarm.min(upstream)),
            (one, other) => one.or(other),
        }
    }

    /// The swarm has had its time: what upstream lacks is a miss.
    fn give_up_late(&mut self) {
        let refused: Vec<_> = self.refused.drain().collect();
        for hash in refused {
            self.answer(&hash, None);
        }
    }

    fn hear(&mut self, event: Heard) {
        match event {
            Heard::Judged(verdicts) => verdicts.into_iter().for_each(|verdict| self.take(verdict)),
            Heard::Upstream(_, NarinfoReply::Found { .. }) => {}
            Heard::Upstream(hash, NarinfoReply::NotFound { .. }) => {
                if self.swarm && !self.swarm_is_late() {
                    self.refused.insert(hash);
                } else {
                    self.answer(&hash, None);
                }
            }
            Heard::Upstream(_, NarinfoReply::Failed(error)) => {
                if !std::mem::replace(&mut self.upstream_broken, true) {
                    warn!("upstream: {error}");
                }
            }
            Heard::UpstreamDone => {
                self.upstream = false;
                self.search_thoroughly();
            }
            Heard::SwarmDone => {
                self.swarm = false;
                self.give_up_late();
            }
            Heard::Peer(peer, answers) => {
                for (verdict, held) in answers {
                    let is_believed = verdict.known.is_some();
                    if is_believed && held.root.is_some() {
                        self.inner.note_holder(verdict.hash, Holder::new(peer, &held));
                    }
                    self.take(verdict);
                }
            }
        }
    }

    /// What upstream failed to answer is looked for in the whole swarm.
    fn search_thoroughly(&mut self) {
        let allowed = self.inner.config.upstream_mode != UpstreamMode::UpstreamOnly;
        let Some(say) = self.say.clone().filter(|_| self.upstream_broken && allowed) else {
            return;
        };
        let open = self.waiting.keys().filter(|hash| !self.refused.contains(*hash));
        let open: Vec<_> = open.copied().collect();
        if !open.is_empty() && self.inner.net.get().is_some() {
            self.swarm = true;
            tokio::spawn(ask_swarm(self.inner.clone(), open, true, say));
        }
    }

    fn take(&mut self, verdict: Verdict) {
        let Some(known) = verdict.known else { return };
        if verdict.is_new {
            self.inner.misses.invalidate(&verdict.hash);
            self.found.push(known.clone());
        }
        self.answer(&verdict.hash, Some(known));
    }

    fn answer(&mut self, hash: &StoreHash, known: Option<Arc<Known>>) {
        let Some(sender) = self.waiting.remove(hash) else { return };
        if known.is_none() {
            self.inner.misses.insert(*hash, ());
        }
        self.inner.pending.lock().remove(hash);
        let _ = sender.send(known);
    }

    /// Whatever is still open is a miss for now.
    fn settle(&mut self) {
        let open: Vec<_> = self.waiting.keys().copied().collect();
        for hash in open {
            self.answer(&hash, None);
        }
    }

    /// Keeps what was found for the next start.
    async fn store_found(&mut self) {
        let found = std::mem::take(&mut self.found);
        if found.is_empty() {
            return;
        }
        let inner = self.inner.clone();
        let kept = tokio::task::spawn_blocking(move || {
            let original = |known: &Arc<Known>| Bytes::copy_from_slice(known.narinfo.original());
            let batch: Vec<_> = found
                .iter()
                .map(|k| (k.narinfo.item().hash(), k.narinfo.nar_hash(), original(k)))
                .collect();
            let kept = inner.store.put_narinfos(&batch);
            if let Some(store) = inner.own_store.get() {
                let items: Vec<_> = batch.iter().map(|(hash, _, _)| *hash).collect();
                store.note_signed(&items);
            }
            kept
        });
        if let Ok(Err(error)) = kept.await {
            warn!("narinfos were served but not kept: {error}");
        }
    }
}
