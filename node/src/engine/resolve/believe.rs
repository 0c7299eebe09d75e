//! Which narinfos are believed: those for the very item that was asked for, in our store, signed
//! by an authorised key. Signatures are the work of a search, so they are verified some at a time,
//! on all cores, while the next answers arrive.

use super::{Known, StoreHash};
use crate::engine::Inner;
use crate::metrics::{VerificationKind, VerificationLabels};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, StreamExt};
use narswarm_protocol::narinfo::{UnverifiedNarinfo, VerifiedNarinfo};
use std::sync::{Arc, LazyLock};
use std::thread::available_parallelism;
use tracing::debug;

/// Narinfos verified together: enough that they share the cost of being handed to another thread
/// and of inverting numbers, few enough that the first is answered after a millisecond.
pub(super) const VERIFIED_AT_ONCE: usize = 32;

/// What somebody says of an item.
#[derive(Debug, Clone)]
pub(super) struct Offer {
    pub hash: StoreHash,
    pub narinfo: Bytes,
    /// The substitute server that says it.
    pub upstream: Option<usize>,
}

impl Offer {
    /// What a peer or this node's disk says.
    pub fn new(hash: StoreHash, narinfo: Bytes) -> Self {
        Self { hash, narinfo, upstream: None }
    }
}

/// What became of an offer.
pub(in crate::engine) struct Verdict {
    pub hash: StoreHash,
    /// The narinfo, if it is believed.
    pub known: Option<Arc<Known>>,
    /// Whether it wasn't known before.
    pub is_new: bool,
}

/// Judges offers, in their order. What is believed is known from now on.
pub(super) fn believe(inner: &Inner, offers: &[Offer]) -> Vec<Verdict> {
    let mut verdicts = Vec::with_capacity(offers.len());
    let (mut candidates, mut positions) = (Vec::new(), Vec::new());
    for Offer { hash, narinfo, upstream } in offers {
        let known = inner.known(hash);
        if known.is_none() {
            match UnverifiedNarinfo::parse(narinfo) {
                Ok(narinfo) => {
                    candidates.push(narinfo);
                    positions.push((verdicts.len(), *upstream));
                }
                Err(error) => refuse(inner, hash, &error.to_string()),
            }
        }
        verdicts.push(Verdict { hash: *hash, known, is_new: false });
    }
    let acl = inner.acl.load_full();
    let judged = UnverifiedNarinfo::verify_all(candidates, &acl);
    for ((position, upstream), verdict) in positions.into_iter().zip(judged) {
        let Verdict { hash, known, is_new } = &mut verdicts[position];
        let checked = verdict.map_err(|refusal| refusal.to_string());
        match checked.and_then(|narinfo| fitting(inner, hash, narinfo)) {
            Ok(narinfo) => {
                let believed = Arc::new(Known::new(narinfo, upstream, acl.clone()));
                inner.known.insert(*hash, believed.clone());
                (*known, *is_new) = (Some(believed), true);
            }
            Err(reason) => refuse(inner, hash, &reason),
        }
    }
    verdicts
}

/// Judges narinfos, each for the item of a hash, without making them known: there may be many, and
/// nobody has asked for them.
pub(in crate::engine) fn verify(
    inner: &Inner,
    offers: &[(StoreHash, Bytes)],
) -> Vec<Option<VerifiedNarinfo>> {
    let mut verified = vec![None; offers.len()];
    let (mut candidates, mut positions) = (Vec::new(), Vec::new());
    for (position, (hash, narinfo)) in offers.iter().enumerate() {
        match UnverifiedNarinfo::parse(narinfo) {
            Ok(narinfo) => {
                candidates.push(narinfo);
                positions.push(position);
            }
            Err(error) => refuse(inner, hash, &error.to_string()),
        }
    }
    let judged = UnverifiedNarinfo::verify_all(candidates, &inner.acl.load());
    for (position, verdict) in positions.into_iter().zip(judged) {
        let hash = &offers[position].0;
        let checked = verdict.map_err(|refusal| refusal.to_string());
        match checked.and_then(|narinfo| fitting(inner, hash, narinfo)) {
            Ok(narinfo) => verified[position] = Some(narinfo),
            Err(reason) => refuse(inner, hash, &reason),
        }
    }
    verified
}

/// Whether it is what was asked for.
fn fitting(
    inner: &Inner,
    hash: &StoreHash,
    narinfo: VerifiedNarinfo,
) -> Result<VerifiedNarinfo, String> {
    if narinfo.item().hash() != *hash {
        return Err(format!("it is for another item, {}", narinfo.item()));
    }
    if narinfo.store_path().directory() != inner.config.store_dir {
        return Err(format!("it is for another store, {}", narinfo.store_path().directory()));
    }
    Ok(narinfo)
}

fn refuse(inner: &Inner, hash: &StoreHash, reason: &str) {
    debug!(%hash, "a narinfo is not believed: {reason}");
    let labels = VerificationLabels { kind: VerificationKind::Narinfo };
    inner.metrics.verification_failures.get_or_create(&labels).inc();
}

/// Judgements under way, at most one a core; their verdicts come in the order of the offers.
pub(super) struct Judgements {
    inner: Arc<Inner>,
    under_way: FuturesOrdered<BoxFuture<'static, Vec<Verdict>>>,
}

impl Judgements {
    pub fn new(inner: Arc<Inner>) -> Self {
        Self { inner, under_way: FuturesOrdered::new() }
    }

    /// Whether another judgement may begin.
    pub fn has_room(&self) -> bool {
        self.under_way.len() < cores()
    }

    /// Begins to judge.
    pub fn begin(&mut self, offers: Vec<Offer>) {
        let inner = self.inner.clone();
        let judging = tokio::task::spawn_blocking(move || believe(&inner, &offers));
        // A thread that panicked has said so; its offers go unanswered, as if nobody made them.
        self.under_way.push_back(Box::pin(async move { judging.await.unwrap_or_default() }));
    }

    /// The next verdicts; `None` when nothing is under way.
    pub async fn next(&mut self) -> Option<Vec<Verdict>> {
        self.under_way.next().await
    }
}

/// Cores that this process may use, asked once: the answer is read from files.
pub(super) fn cores() -> usize {
    static CORES: LazyLock<usize> =
        LazyLock::new(|| available_parallelism().map_or(1, usize::from));
    *CORES
}
