//! The filters of the seeds that are used: fetched once, kept on disk, and followed by what changes.

use super::{Inner, Net, Seed};
use crate::net::{FilterAnswer, FilterContent};
use crate::store::{FilterFile, FilterFileError, FilterFiles};
use crate::voucher_peer::key_of;
use futures::future::join_all;
use libp2p::PeerId;
use narswarm_protocol::announce::ItemKey;
use narswarm_protocol::filter::FilterError;
use narswarm_protocol::limits;
use narswarm_protocol::store_path::StoreHash;
use narswarm_protocol::wire::filter::FilterRequest;
use std::sync::Arc;
use std::time::Instant;
use tokio::task::spawn_blocking;
use tracing::{debug, warn};

/// Sees what has changed of the filters of all seeds that are used.
pub(super) async fn refresh(inner: &Arc<Inner>, net: &Net) {
    let seeds: Vec<_> = inner.seeds.used.lock().iter().map(|seed| seed.peer).collect();
    join_all(seeds.iter().map(|peer| refresh_one(inner, net, *peer))).await;
    let files = inner.config.filters.clone();
    // A panic has been told.
    let _ = spawn_blocking(move || files.prune(&seeds)).await;
}

async fn refresh_one(inner: &Arc<Inner>, net: &Net, peer: PeerId) {
    let Some(key) = key_of(&peer) else { return };
    let known = inner.with_seed(&peer, |seed| (seed.filter.clone(), seed.whole_at));
    let Some((held, whole_at)) = known else { return };
    let files = inner.config.filters.clone();
    let held = match held {
        Some(held) => Some(held),
        None => spawn_blocking(move || files.load(&peer, &key)).await.ok().flatten().map(Arc::new),
    };
    let have = held.as_ref().map(|held| (held.head().series, held.head().generation));
    let takes_whole = whole_at.is_none_or(|at| at.elapsed() >= limits::WHOLE_FILTER_AGAIN);
    let request = FilterRequest { have, head_only: false };
    let answer = match net.filter(peer, request, takes_whole).await {
        Ok(answer) => answer,
        Err(error) => {
            debug!("the filter of a seed: {error}");
            // What is held may be old, but mostly true.
            inner.with_seed(&peer, |seed| seed.filter = held);
            return;
        }
    };
    if matches!(answer.content, FilterContent::Whole(_)) {
        inner.with_seed(&peer, |seed| seed.whole_at = Some(Instant::now()));
    }
    let files = inner.config.filters.clone();
    let taken = spawn_blocking(move || take(&files, &peer, &key, held, answer)).await;
    match taken {
        Ok(Ok(filter)) => {
            debug!(%peer, items = filter.head().items, "the filter of a seed");
            inner.with_seed(&peer, |seed| {
                seed.filter = Some(filter);
                seed.bad_filters = 0;
            });
        }
        Ok(Err(FilterFileError::Io(error))) => warn!("the filter of a seed is not kept: {error}"),
        Ok(Err(FilterFileError::Filter(error))) => {
            debug!(%peer, "the filter of a seed: {error}");
            inner.config.filters.forget(&peer);
            let bad = inner.with_seed(&peer, |seed| {
                seed.filter = None;
                seed.bad_filters += 1;
                seed.bad_filters
            });
            if bad.is_some_and(|bad| bad >= limits::MAX_BAD_FILTERS) {
                inner.seeds.forget(&peer, "its filters aren't what it has signed");
            }
        }
        // A panic has been told.
        Err(_) => {}
    }
}

/// The filter of a seed with this key, as its answer makes it.
fn take(
    files: &FilterFiles,
    peer: &PeerId,
    key: &[u8; 32],
    held: Option<Arc<FilterFile>>,
    answer: FilterAnswer,
) -> Result<Arc<FilterFile>, FilterFileError> {
    let signed = answer.head;
    let head = signed.verify(key)?;
    match (answer.content, held) {
        (FilterContent::Whole(octets), _) => {
            files.keep(peer, key, &signed, octets.into()).map(Arc::new)
        }
        (FilterContent::Changes(octets), Some(held)) => {
            files.change(peer, key, &held, &signed, &octets).map(Arc::new)
        }
        (FilterContent::Nothing, Some(held)) if *held.head() == head => Ok(held),
        (FilterContent::Nothing | FilterContent::Changes(_), _) => {
            Err(FilterError::Unfitting.into())
        }
    }
}

impl Inner {
    fn with_seed<T>(&self, peer: &PeerId, work: impl FnOnce(&mut Seed) -> T) -> Option<T> {
        self.seeds.used.lock().iter_mut().find(|seed| seed.peer == *peer).map(work)
    }

    /// What each of these peers is to be asked for: everything, or what its filter says yes to.
    pub(in crate::engine) async fn worth_asking(
        &self,
        peers: Vec<PeerId>,
        hashes: &[StoreHash],
    ) -> Vec<(PeerId, Vec<StoreHash>)> {
        let all = |peers: Vec<PeerId>| {
            peers.into_iter().map(|peer| (peer, hashes.to_vec())).collect::<Vec<_>>()
        };
        let filters = self.seeds.filters();
        if !peers.iter().any(|peer| filters.iter().any(|(seed, _)| seed == peer)) {
            return all(peers);
        }
        let items = hashes.to_vec();
        let looked = spawn_blocking(move || {
            let keys: Vec<_> = items.iter().map(|item| (*item, ItemKey::of(item))).collect();
            let said = filters.into_iter().map(|(peer, filter)| {
                // What the disk doesn't tell is worth asking for.
                let says_yes =
                    |(_, key): &&(StoreHash, ItemKey)| filter.says_yes(key).unwrap_or(true);
                (peer, keys.iter().filter(says_yes).map(|(item, _)| *item).collect())
            });
            said.collect::<Vec<(PeerId, Vec<StoreHash>)>>()
        });
        let Ok(said) = looked.await else { return all(peers) };
        let wanted = peers.into_iter().map(|peer| {
            let of_seed = said.iter().find(|(seed, _)| *seed == peer).map(|(_, items)| items);
            (peer, of_seed.cloned().unwrap_or_else(|| hashes.to_vec()))
        });
        wanted.filter(|(_, items)| !items.is_empty()).collect()
    }
}
