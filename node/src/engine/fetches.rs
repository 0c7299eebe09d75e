//! The fetches that run: joining one or beginning it, the file that it writes to, and what becomes
//! of that file.

use super::progress::{Cause, Progress};
use super::{Inner, ahead, announce, fetch};
use crate::http::NarRefusal;
use crate::store::{HeldNar, PartialNar, StoreError};
use bytes::Bytes;
use libp2p::PeerId;
use narswarm_protocol::hash::{NarHash, PieceHash};
use narswarm_protocol::limits;
use narswarm_protocol::narinfo::VerifiedNarinfo;
use narswarm_protocol::piece::{PieceLayout, PieceList, hash_piece};
use narswarm_protocol::store_path::ItemName;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

/// A fetch that runs.
#[derive(Debug, Clone)]
pub struct Fetching {
    /// What is fetched.
    pub item: ItemName,
    /// What has come.
    pub progress: Arc<Progress>,
    /// Where to tell who asks this node for the nar: he fetches it too, so he may have pieces.
    askers: mpsc::Sender<PeerId>,
}

impl Fetching {
    /// Notes that a peer asks for the nar.
    pub fn note_asker(&self, peer: PeerId) {
        // While the fetch hasn't taken up those before, there are enough.
        let _ = self.askers.try_send(peer);
    }
}

impl Inner {
    /// A running fetch.
    pub(super) fn fetching(&self, nar: &NarHash) -> Option<Fetching> {
        self.fetches.lock().get(nar).cloned()
    }

    /// The running fetch of a nar, or a new one as soon as there is a place for it.
    pub(super) async fn fetch_of(
        self: &Arc<Self>,
        narinfo: &VerifiedNarinfo,
    ) -> Result<Arc<Progress>, NarRefusal> {
        let wait = async {
            loop {
                // Before looking, so that no place is missed.
                let left = self.place_left.notified();
                match self.try_fetch(narinfo) {
                    Err(NarRefusal::Busy { .. }) => left.await,
                    result => return result,
                }
            }
        };
        let waited = tokio::time::timeout(limits::FETCH_PATIENCE, wait).await;
        waited.unwrap_or(Err(NarRefusal::Busy { retry_after: limits::BUSY_PAUSE }))
    }

    /// The running fetch of a nar, or a new one.
    fn try_fetch(self: &Arc<Self>, narinfo: &VerifiedNarinfo) -> Result<Arc<Progress>, NarRefusal> {
        let nar = narinfo.nar_hash();
        let mut fetches = self.fetches.lock();
        if let Some(fetching) = fetches.get(&nar) {
            fetching.progress.set_wanted();
            return Ok(fetching.progress.clone());
        }
        // What is fetched ahead takes nobody's place.
        if fetches.values().filter(|f| f.progress.is_wanted()).count() >= limits::MAX_FETCHES {
            return Err(NarRefusal::Busy { retry_after: limits::BUSY_PAUSE });
        }
        let layout = PieceLayout::new(narinfo.nar_size()).ok_or(NarRefusal::NotFound)?;
        let progress = Arc::new(Progress::new(layout));
        self.begin_fetch(&mut fetches, narinfo, progress.clone());
        Ok(progress)
    }

    /// Fetches a nar that nobody has asked for yet, from peers, unless it is being fetched. What is
    /// returned besides is dropped when the fetch has ended.
    pub(super) fn fetch_ahead(
        self: &Arc<Self>,
        narinfo: &VerifiedNarinfo,
    ) -> Option<(Arc<Progress>, oneshot::Receiver<()>)> {
        let layout = PieceLayout::new(narinfo.nar_size())?;
        let mut fetches = self.fetches.lock();
        if fetches.contains_key(&narinfo.nar_hash()) {
            return None;
        }
        let progress = Arc::new(Progress::ahead(layout));
        let end = self.begin_fetch(&mut fetches, narinfo, progress.clone());
        Some((progress, end))
    }

    fn begin_fetch(
        self: &Arc<Self>,
        fetches: &mut HashMap<NarHash, Fetching>,
        narinfo: &VerifiedNarinfo,
        progress: Arc<Progress>,
    ) -> oneshot::Receiver<()> {
        let nar = narinfo.nar_hash();
        let (askers, came) = mpsc::channel(limits::MAX_SOURCES);
        let item = narinfo.item().clone();
        fetches.insert(nar, Fetching { item, progress: progress.clone(), askers });
        let (inner, narinfo) = (self.clone(), narinfo.clone());
        let (ended, end) = oneshot::channel();
        tokio::spawn(async move {
            let off_the_books = FetchEnd { inner: inner.clone(), nar, progress: progress.clone() };
            tokio::select! {
                () = fetch::drive(inner, narinfo, progress.clone(), came) => {}
                () = ahead::given_up(progress) => {}
            }
            drop(off_the_books);
            drop::<oneshot::Sender<()>>(ended);
        });
        end
    }

    /// A file for the pieces of a fetch, or none when there is no room; with the hashes of the
    /// pieces that an earlier attempt has left in it.
    pub(super) async fn begin_partial(
        self: &Arc<Self>,
        narinfo: &VerifiedNarinfo,
        layout: PieceLayout,
    ) -> (Option<Arc<PartialNar>>, BTreeMap<u32, PieceHash>) {
        let (inner, nar) = (self.clone(), narinfo.nar_hash());
        let begun = tokio::task::spawn_blocking(move || {
            let partial = inner.store.resume(&nar, layout)?;
            let resumed = resumed_pieces(&partial, layout);
            Ok::<_, StoreError>((partial, resumed))
        });
        match begun.await {
            Ok(Ok((partial, resumed))) => {
                if !resumed.is_empty() {
                    let pieces = resumed.len();
                    info!(item = %narinfo.item(), pieces, "going on where an earlier fetch stopped");
                }
                (Some(Arc::new(partial)), resumed)
            }
            Ok(Err(error)) => {
                warn!(item = %narinfo.item(), "this nar won't be kept: {error}");
                (None, BTreeMap::new())
            }
            Err(_) => (None, BTreeMap::new()),
        }
    }

    /// Moves a fetched and verified nar into the cache, and announces it.
    pub(super) async fn finish_partial(
        self: &Arc<Self>,
        narinfo: &VerifiedNarinfo,
        partial: Arc<PartialNar>,
        hashes: Vec<PieceHash>,
    ) -> Result<Arc<HeldNar>, StoreError> {
        let (inner, narinfo) = (self.clone(), narinfo.clone());
        let kept = tokio::task::spawn_blocking(move || {
            let layout = PieceLayout::new(narinfo.nar_size())
                .expect("a fetch begins only for sizes that have a layout");
            let list = PieceList::new(layout, hashes).expect("the sink hashes every piece");
            let root = list.root(&narinfo.nar_hash());
            inner.keep_narinfo(&narinfo)?;
            let held = partial.finish(&list, root)?;
            // Whether others may have it is decided when one asks.
            inner.public.invalidate(&narinfo.nar_hash());
            if let Some(store) = inner.own_store.get() {
                store.note_fetched(&narinfo.item().hash());
            }
            Ok::<_, StoreError>((held, narinfo.item().hash()))
        });
        let (held, item) = match kept.await {
            Ok(result) => result?,
            Err(panic) => return Err(StoreError::from(io::Error::other(panic))),
        };
        announce::announce(self, &[item]).await;
        announce::withdraw_evicted(self).await;
        Ok(held)
    }

    fn keep_narinfo(&self, narinfo: &VerifiedNarinfo) -> Result<(), StoreError> {
        let bytes = Bytes::copy_from_slice(narinfo.original());
        self.store.put_narinfos(&[(narinfo.item().hash(), narinfo.nar_hash(), bytes)])
    }
}

/// The pieces in a file that an earlier fetch has left, hashed anew; blocking.
fn resumed_pieces(partial: &PartialNar, layout: PieceLayout) -> BTreeMap<u32, PieceHash> {
    let mut resumed = BTreeMap::new();
    for index in (0..layout.piece_count()).filter(|&index| partial.has(index)) {
        match partial.read_piece(index, layout.piece_len(index)) {
            Ok(raw) => {
                resumed.insert(index, hash_piece(&raw));
            }
            Err(_) => partial.discard(index),
        }
    }
    resumed
}

/// Takes a fetch off the books however its task ends.
struct FetchEnd {
    inner: Arc<Inner>,
    nar: NarHash,
    progress: Arc<Progress>,
}

impl Drop for FetchEnd {
    fn drop(&mut self) {
        self.inner.fetches.lock().remove(&self.nar);
        self.inner.place_left.notify_waiters();
        // Does nothing when the fetch ended well; readers must not wait for a task that is gone.
        self.progress.fail(Cause::Local);
    }
}
