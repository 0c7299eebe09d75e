//! From store hashes to signed narinfos: what is at hand, then peers and upstream at once.
//!
//! Hashes that are asked for together are resolved together: one query to each peer, one
//! pipelined batch to upstream. The DHT is asked only for what nobody near has, and never keeps an
//! answer waiting that upstream could give.

mod believe;
mod search;
mod swarm;

use super::Inner;
use crate::http::NarinfoAnswer;
pub(super) use believe::verify;
use believe::{Offer, VERIFIED_AT_ONCE, Verdict, believe, cores};
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt, Shared};
use futures::stream::{self, StreamExt};
use narswarm_protocol::acl::Acl;
use narswarm_protocol::fetch::UpstreamMode;
use narswarm_protocol::limits;
use narswarm_protocol::narinfo::{Compression, NarSource, UnverifiedNarinfo, VerifiedNarinfo};
use narswarm_protocol::store_path::{ItemName, StoreHash};
use search::Search;
pub(super) use search::{HEARD, Heard};
use std::collections::HashMap;
use std::sync::Arc;
pub(super) use swarm::{ask_swarm, ask_upstream};
use tokio::sync::oneshot;
use tracing::warn;

/// A narinfo ready to be served.
#[derive(Debug)]
pub(super) struct Known {
    /// What is signed.
    pub narinfo: VerifiedNarinfo,
    /// What clients get: the signed part untouched, our tail below it.
    pub body: Bytes,
    /// The server that gave it: the URLs in it are then this server's.
    pub upstream: Option<usize>,
    /// Under which keys it is believed.
    acl: Arc<Acl>,
}

/// An answer on its way, for any number who wait.
pub(super) type Pending = Shared<BoxFuture<'static, Option<Arc<Known>>>>;

impl Known {
    /// Octets that it takes in memory, roughly.
    pub fn weight(&self) -> u32 {
        // The parsed fields of a narinfo take about as much as its text.
        let bytes = self.body.len() + 2 * self.narinfo.original().len();
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }

    fn new(narinfo: VerifiedNarinfo, upstream: Option<usize>, acl: Arc<Acl>) -> Self {
        let group = NarSource {
            url: format!("nar/{}", escape(narinfo.item().as_str())),
            compression: Compression::None,
            file_size: Some(narinfo.nar_size()),
        };
        let body = narinfo.relay(&[group]).into();
        Self { narinfo, body, upstream, acl }
    }
}

impl Inner {
    /// A narinfo at hand that is believed under the keys of now.
    pub(super) fn known(&self, hash: &StoreHash) -> Option<Arc<Known>> {
        self.known.get(hash).filter(|known| self.still_believes(known))
    }

    /// Whether the keys haven't changed since. Whoever has been waiting for an answer asks this.
    fn still_believes(&self, known: &Known) -> bool {
        Arc::ptr_eq(&known.acl, &self.acl.load())
    }
}

/// Percent-encodes what item names may hold besides unreserved characters, as `guix publish` does.
fn escape(item: &str) -> String {
    item.replace('+', "%2B").replace('=', "%3D").replace('?', "%3F")
}

/// Begins to resolve `hashes` together.
pub(super) fn resolve(
    inner: &Arc<Inner>,
    hashes: &[StoreHash],
) -> Vec<BoxFuture<'static, NarinfoAnswer>> {
    if let Some(upstreams) = &inner.upstreams {
        // Whoever asks for something known may ask for something unknown next.
        upstreams.connect_ahead();
        if inner.config.upstream_mode != UpstreamMode::SwarmOnly {
            upstreams.connect_ahead_for_nars();
        }
    }
    let found = lookup(inner, hashes);
    found
        .into_iter()
        .map(|found| match found {
            Found::Known(known) => std::future::ready(hit(&known)).boxed(),
            Found::Miss => std::future::ready(miss()).boxed(),
            Found::Pending(pending) => {
                let inner = inner.clone();
                let current = move |known: &Arc<Known>| inner.still_believes(known);
                pending
                    .map(move |known| known.filter(current).map_or_else(miss, |known| hit(&known)))
                    .boxed()
            }
        })
        .collect()
}

/// Resolves one hash and waits for it.
pub(super) async fn one(inner: &Arc<Inner>, hash: StoreHash) -> Option<Arc<Known>> {
    match lookup(inner, &[hash]).pop()? {
        Found::Known(known) => Some(known),
        Found::Miss => None,
        Found::Pending(pending) => pending.await.filter(|known| inner.still_believes(known)),
    }
}

fn hit(known: &Known) -> NarinfoAnswer {
    NarinfoAnswer::Hit { body: known.body.clone(), max_age: limits::HIT_MAX_AGE }
}

fn miss() -> NarinfoAnswer {
    NarinfoAnswer::Miss { max_age: limits::MISS_LIFE }
}

enum Found {
    Known(Arc<Known>),
    Miss,
    Pending(Pending),
}

fn lookup(inner: &Arc<Inner>, hashes: &[StoreHash]) -> Vec<Found> {
    let mut fresh = Vec::new();
    let found = hashes
        .iter()
        .map(|hash| {
            if let Some(known) = inner.known(hash) {
                return Found::Known(known);
            }
            if inner.misses.contains_key(hash) {
                return Found::Miss;
            }
            let mut pending = inner.pending.lock();
            let answer = pending.entry(*hash).or_insert_with(|| {
                let (sender, receiver) = oneshot::channel();
                fresh.push((*hash, sender));
                receiver.map(|known| known.ok().flatten()).boxed().shared()
            });
            Found::Pending(answer.clone())
        })
        .collect();
    if !fresh.is_empty() {
        tokio::spawn(resolve_batch(inner.clone(), fresh));
    }
    found
}

/// A narinfo that is kept, verified anew: the ACL may have changed since, and disks rot.
pub(super) fn from_store(inner: &Inner, hash: &StoreHash) -> Option<Arc<Known>> {
    all_from_store(inner, std::slice::from_ref(hash)).pop()?.known
}

/// What an item is called by the narinfo that is kept of it, which is believed only for this.
pub(super) fn kept_name(inner: &Inner, hash: &StoreHash) -> Option<ItemName> {
    let narinfo = inner.store.narinfo(hash).ok().flatten()?;
    UnverifiedNarinfo::item_of(&narinfo)
}

/// As [`from_store`], for those of `hashes` that are kept.
fn all_from_store(inner: &Inner, hashes: &[StoreHash]) -> Vec<Verdict> {
    let kept = hashes.iter().filter_map(|hash| {
        if inner.known(hash).is_some() {
            return Some(Offer::new(*hash, Bytes::new()));
        }
        let bytes = inner.store.narinfo(hash).unwrap_or_else(|error| {
            warn!("{error}");
            None
        });
        Some(Offer::new(*hash, bytes?))
    });
    believe(inner, &kept.collect::<Vec<_>>())
}

type Waiting = HashMap<StoreHash, oneshot::Sender<Option<Arc<Known>>>>;

/// Answers a batch: first from disk, then by search.
async fn resolve_batch(
    inner: Arc<Inner>,
    mut batch: Vec<(StoreHash, oneshot::Sender<Option<Arc<Known>>>)>,
) {
    let mut parts = Vec::with_capacity(batch.len().div_ceil(VERIFIED_AT_ONCE));
    while !batch.is_empty() {
        let rest = batch.split_off(batch.len().min(VERIFIED_AT_ONCE));
        parts.push(std::mem::replace(&mut batch, rest));
    }
    let mut read = stream::iter(parts)
        .map(|part| {
            let inner = inner.clone();
            tokio::task::spawn_blocking(move || answer_from_store(&inner, part))
        })
        .buffer_unordered(cores());
    let mut waiting = Waiting::new();
    while let Some(unanswered) = read.next().await {
        // A thread that panicked has dropped its senders, which is an answer: a miss.
        waiting.extend(unanswered.unwrap_or_default());
    }
    drop(read);
    if !waiting.is_empty() {
        Search::new(inner, waiting).run().await;
    }
}

/// Answers what is kept and returns the rest.
fn answer_from_store(
    inner: &Inner,
    part: Vec<(StoreHash, oneshot::Sender<Option<Arc<Known>>>)>,
) -> Waiting {
    let hashes: Vec<_> = part.iter().map(|(hash, _)| *hash).collect();
    let mut waiting: Waiting = part.into_iter().collect();
    for Verdict { hash, known, .. } in all_from_store(inner, &hashes) {
        let Some(known) = known else { continue };
        if let Some(sender) = waiting.remove(&hash) {
            inner.pending.lock().remove(&hash);
            let _ = sender.send(Some(known));
        }
    }
    waiting
}
