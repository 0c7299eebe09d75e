//! From store hashes to signed narinfos: what is at hand, then peers and upstream at once.
//!
//! Hashes that are asked for together are resolved together: one query to each peer, one
//! pipelined batch to upstream. The DHT is asked only for what nobody near has, and never keeps an
//! answer waiting that upstream could give.

mod search;
mod swarm;

use super::Inner;
use crate::http::NarinfoAnswer;
use crate::metrics::{VerificationKind, VerificationLabels};
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt, Shared};
use narswarm_protocol::acl::Acl;
use narswarm_protocol::limits;
use narswarm_protocol::narinfo::{Compression, NarSource, UnverifiedNarinfo, VerifiedNarinfo};
use narswarm_protocol::store_path::StoreHash;
use search::Search;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::oneshot;
use tracing::{debug, warn};

/// A narinfo ready to be served.
#[derive(Debug)]
pub(super) struct Known {
    /// What is signed.
    pub narinfo: VerifiedNarinfo,
    /// What clients get: the signed part untouched, our tail below it.
    pub body: Bytes,
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

    fn new(narinfo: VerifiedNarinfo) -> Self {
        let group = NarSource {
            url: format!("nar/{}", escape(narinfo.item().as_str())),
            compression: Compression::None,
            file_size: Some(narinfo.nar_size()),
        };
        let body = narinfo.relay(&[group]).into();
        Self { narinfo, body }
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
    }
    let found = lookup(inner, hashes);
    found
        .into_iter()
        .map(|found| match found {
            Found::Known(known) => std::future::ready(hit(&known)).boxed(),
            Found::Miss => std::future::ready(miss()).boxed(),
            Found::Pending(pending) => {
                pending.map(|known| known.map_or_else(miss, |known| hit(&known))).boxed()
            }
        })
        .collect()
}

/// Resolves one hash and waits for it.
pub(super) async fn one(inner: &Arc<Inner>, hash: StoreHash) -> Option<Arc<Known>> {
    match lookup(inner, &[hash]).pop()? {
        Found::Known(known) => Some(known),
        Found::Miss => None,
        Found::Pending(pending) => pending.await,
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
            if let Some(known) = inner.known.get(hash) {
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
    if let Some(known) = inner.known.get(hash) {
        return Some(known);
    }
    let bytes = match inner.store.narinfo(hash) {
        Ok(bytes) => bytes?,
        Err(error) => {
            warn!("{error}");
            return None;
        }
    };
    let known = verify(inner, hash, &bytes, &inner.acl.load())?;
    let known = Arc::new(known);
    inner.known.insert(*hash, known.clone());
    Some(known)
}

/// Believes a narinfo if it is for the very item that was asked for, in our store, and signed by
/// an authorised key.
fn verify(inner: &Inner, hash: &StoreHash, bytes: &[u8], acl: &Acl) -> Option<Known> {
    let verified = UnverifiedNarinfo::parse(bytes)
        .map_err(|error| error.to_string())
        .and_then(|narinfo| narinfo.verify(acl).map_err(|refusal| refusal.to_string()));
    let reason = match verified {
        Ok(narinfo) if narinfo.item().hash() != *hash => {
            format!("it is for another item, {}", narinfo.item())
        }
        Ok(narinfo) if narinfo.store_path().directory() != inner.config.store_dir => {
            format!("it is for another store, {}", narinfo.store_path().directory())
        }
        Ok(narinfo) => return Some(Known::new(narinfo)),
        Err(reason) => reason,
    };
    debug!(%hash, "a narinfo is not believed: {reason}");
    let labels = VerificationLabels { kind: VerificationKind::Narinfo };
    inner.metrics.verification_failures.get_or_create(&labels).inc();
    None
}

type Waiting = HashMap<StoreHash, oneshot::Sender<Option<Arc<Known>>>>;

/// Answers a batch: first from disk, then by search.
async fn resolve_batch(
    inner: Arc<Inner>,
    batch: Vec<(StoreHash, oneshot::Sender<Option<Arc<Known>>>)>,
) {
    let reader = inner.clone();
    let from_disk = tokio::task::spawn_blocking(move || {
        let mut waiting = Waiting::new();
        for (hash, sender) in batch {
            match from_store(&reader, &hash) {
                Some(known) => {
                    reader.pending.lock().remove(&hash);
                    let _ = sender.send(Some(known));
                }
                None => {
                    waiting.insert(hash, sender);
                }
            }
        }
        waiting
    });
    let Ok(waiting) = from_disk.await else { return };
    if !waiting.is_empty() {
        Search::new(inner, waiting).run().await;
    }
}
