//! What a running fetch shares with its readers: the pieces that came lately, and where to find
//! the others.
//!
//! Readers follow the fetch from memory; one that falls behind reads from the file being written.
//! When nothing can be kept on disk, the fetch may run only so far ahead of its readers
//! ([`Progress::horizon`]). The last piece is withheld until the whole nar has hashed to the
//! signed value.

mod reader;

use crate::http::NarAborted;
use crate::store::{HeldNar, PartialNar};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use narswarm_protocol::hash::Root;
use narswarm_protocol::limits;
use narswarm_protocol::piece::{PieceLayout, PieceList};
use narswarm_protocol::piece_set::PieceSet;
use parking_lot::Mutex;
use reader::Reader;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::watch;

/// The shared state of one fetch.
#[derive(Debug)]
pub struct Progress {
    layout: PieceLayout,
    state: Mutex<State>,
    changed: watch::Sender<()>,
    readers_moved: tokio::sync::Notify,
    tried_peers: AtomicBool,
    /// Whether a client has asked for it.
    wanted: watch::Sender<bool>,
    began_ahead: bool,
}

#[derive(Debug)]
struct State {
    held: PieceSet,
    held_bytes: u64,
    /// By which the pieces were checked, once there is one.
    list: Option<(Root, Arc<PieceList>)>,
    /// Whether pieces may go to readers before the whole nar is verified.
    may_deliver: bool,
    recent: BTreeMap<u32, Bytes>,
    recent_bytes: usize,
    growing: Growing,
    disk: Option<Arc<PartialNar>>,
    kept: Option<Arc<HeldNar>>,
    verified: bool,
    failed: Option<Cause>,
    /// Octet that each reader will want next.
    readers: BTreeMap<u64, u64>,
    next_reader: u64,
    /// How many sources give now, for reports.
    sources: usize,
}

/// The piece that upstream's stream is in the middle of: readers on a slow line need not wait for
/// the whole of it.
#[derive(Debug, Default)]
struct Growing {
    index: u32,
    chunks: Vec<Bytes>,
}

/// Why a fetch failed, as far as its readers care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The content doesn't have the signed hash.
    Mismatch,
    /// Nobody is left to ask.
    NoSource,
    /// Something on this machine.
    Local,
}

impl From<Cause> for NarAborted {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::Mismatch => Self::Mismatch,
            Cause::NoSource => Self::SourcesLost,
            Cause::Local => Self::Local(io::Error::other("the piece is no longer at hand")),
        }
    }
}

/// Where a piece is, for those who share it.
pub enum Shareable {
    /// In memory, uncompressed.
    Raw(Bytes),
    /// In the file being written.
    OnDisk(Arc<PartialNar>),
    /// In the cache.
    Kept(Arc<HeldNar>),
}

/// What a reader finds at its place.
enum Next {
    Chunk(Bytes),
    OnDisk(Arc<PartialNar>, u32),
    Kept(Arc<HeldNar>, u32),
    Wait,
    End,
    Failed(Cause),
}

impl Progress {
    /// A fetch of a nar of this layout, of which nothing has come yet.
    pub fn new(layout: PieceLayout) -> Self {
        Self::of(layout, false)
    }

    /// The same of a nar that no client has asked for yet.
    pub fn ahead(layout: PieceLayout) -> Self {
        Self::of(layout, true)
    }

    fn of(layout: PieceLayout, began_ahead: bool) -> Self {
        let state = State {
            held: PieceSet::none(layout.piece_count()),
            held_bytes: 0,
            list: None,
            may_deliver: true,
            recent: BTreeMap::new(),
            recent_bytes: 0,
            growing: Growing::default(),
            disk: None,
            kept: None,
            verified: false,
            failed: None,
            readers: BTreeMap::new(),
            next_reader: 0,
            sources: 0,
        };
        Self {
            layout,
            state: Mutex::new(state),
            changed: watch::Sender::new(()),
            readers_moved: tokio::sync::Notify::new(),
            tried_peers: AtomicBool::new(false),
            wanted: watch::Sender::new(!began_ahead),
            began_ahead,
        }
    }

    /// A client asks for the nar.
    pub fn set_wanted(&self) {
        self.wanted.send_replace(true);
    }

    /// Whether a client has asked for the nar.
    pub fn is_wanted(&self) -> bool {
        *self.wanted.borrow()
    }

    /// Resolves when a client has asked for the nar.
    pub async fn wanted(&self) {
        // The sender lives in `self`.
        let _ = self.wanted.subscribe().wait_for(|&wanted| wanted).await;
    }

    /// Whether the fetch began before any client asked for the nar.
    pub fn began_ahead(&self) -> bool {
        self.began_ahead
    }

    /// Notes that a peer was asked for the nar.
    pub fn set_tried_peers(&self) {
        self.tried_peers.store(true, Ordering::Relaxed);
    }

    /// Whether any peer was asked for the nar.
    pub fn tried_peers(&self) -> bool {
        self.tried_peers.load(Ordering::Relaxed)
    }

    /// The nar's layout.
    pub fn layout(&self) -> PieceLayout {
        self.layout
    }

    /// Octets held so far, and sources that give now.
    pub fn report(&self) -> (u64, usize) {
        let state = self.state.lock();
        (state.held_bytes, state.sources)
    }

    /// Notes how many sources give now.
    pub fn set_sources(&self, sources: usize) {
        self.state.lock().sources = sources;
    }

    /// Pieces are kept in `disk`.
    pub fn use_disk(&self, disk: Arc<PartialNar>) {
        self.state.lock().disk = Some(disk);
    }

    /// A piece has come and may be read.
    pub fn insert(&self, index: u32, raw: Bytes) {
        let mut state = self.state.lock();
        if state.held.insert(index) {
            state.held_bytes += raw.len() as u64;
        }
        state.recent_bytes += raw.len();
        if let Some(old) = state.recent.insert(index, raw) {
            state.recent_bytes -= old.len();
        }
        if state.growing.index == index {
            state.growing.chunks.clear();
        }
        state.forget_old(self.layout);
        drop(state);
        self.changed.send_replace(());
    }

    /// A piece that an earlier attempt has left on disk may be read.
    pub fn resume(&self, index: u32) {
        let mut state = self.state.lock();
        if state.held.insert(index) {
            state.held_bytes += self.layout.piece_len(index) as u64;
        }
    }

    /// A piece turned out wrong, before any reader came to it.
    pub fn forget(&self, index: u32) {
        let mut state = self.state.lock();
        if state.held.remove(index) {
            state.held_bytes -= self.layout.piece_len(index) as u64;
        }
        if let Some(old) = state.recent.remove(&index) {
            state.recent_bytes -= old.len();
        }
    }

    /// Whether pieces may go to readers as they come, or only when the whole nar is verified.
    pub fn set_may_deliver(&self, may: bool) {
        let mut state = self.state.lock();
        if std::mem::replace(&mut state.may_deliver, may) != may {
            drop(state);
            self.changed.send_replace(());
        }
    }

    /// Pieces are checked by this list from now on, so that they can be shared.
    pub fn set_list(&self, list: Option<(Root, Arc<PieceList>)>) {
        self.state.lock().list = list;
    }

    /// The piece list in use, if there is one.
    pub fn list(&self) -> Option<(Root, Arc<PieceList>)> {
        self.state.lock().list.clone()
    }

    /// Which pieces can be given to others.
    pub fn held(&self) -> PieceSet {
        self.state.lock().held.clone()
    }

    /// A held piece as far as it is at hand: its octets, or the file that it is in.
    pub fn piece(&self, index: u32) -> Option<Shareable> {
        let state = self.state.lock();
        if !state.held.contains(index) {
            return None;
        }
        if let Some(disk) = state.disk.as_ref().filter(|disk| disk.has(index)) {
            return Some(Shareable::OnDisk(disk.clone()));
        }
        if let Some(kept) = &state.kept {
            return Some(Shareable::Kept(kept.clone()));
        }
        state.recent.get(&index).cloned().map(Shareable::Raw)
    }

    /// The first piece of which no reader has been given anything, and which readers will want
    /// next.
    pub fn reader(&self) -> u32 {
        let state = self.state.lock();
        let furthest = state.readers.values().max().copied().unwrap_or(0);
        if furthest >= self.layout.nar_size() {
            return self.layout.piece_count();
        }
        let index = self.layout.piece_at(furthest);
        index + u32::from(furthest > self.layout.piece_range(index).start)
    }

    /// Octets of piece `index` have come from upstream, following those given before.
    pub fn grow(&self, index: u32, chunk: Bytes) {
        let mut state = self.state.lock();
        if state.held.contains(index) {
            return;
        }
        if state.growing.index != index {
            state.growing = Growing { index, chunks: Vec::new() };
        }
        state.growing.chunks.push(chunk);
        drop(state);
        self.changed.send_replace(());
    }

    /// Upstream's stream has ended in the middle of a piece, which will come from elsewhere.
    pub fn stop_growing(&self) {
        self.state.lock().growing.chunks.clear();
    }

    /// The disk can't take more: what is on it stays readable, the rest is kept in memory only as
    /// long as readers need it.
    pub fn lose_disk(&self) {
        self.state.lock().disk = None;
    }

    /// How far the slowest reader has come and how many pieces may be held ahead of it; `None`
    /// while the disk takes everything.
    pub fn horizon(&self) -> Option<(u32, u32)> {
        let state = self.state.lock();
        if state.disk.is_some() {
            return None;
        }
        let slowest = state.readers.values().min().copied().unwrap_or(0);
        let ahead = (limits::FETCH_MEMORY_BYTES as u64 / self.layout.piece_size()).max(2);
        Some((self.layout.piece_at(slowest), ahead as u32))
    }

    /// Resolves when a reader has moved on (or gone).
    pub async fn readers_moved(&self) {
        self.readers_moved.notified().await;
    }

    /// The whole nar has the signed hash: nothing is withheld any more.
    pub fn set_verified(&self) {
        self.state.lock().verified = true;
        self.changed.send_replace(());
    }

    /// Whether the whole nar has the signed hash.
    pub fn is_verified(&self) -> bool {
        self.state.lock().verified
    }

    /// The nar is in the store.
    pub fn set_kept(&self, nar: Arc<HeldNar>) {
        let mut state = self.state.lock();
        state.kept = Some(nar);
        state.disk = None;
        drop(state);
        self.changed.send_replace(());
    }

    /// Whether the nar is in the store.
    pub fn is_kept(&self) -> bool {
        self.state.lock().kept.is_some()
    }

    /// The nar was verified but isn't kept: whoever waits for the file waits in vain, readers go
    /// on.
    pub fn set_unkept(&self) {
        self.fail(Cause::Local);
    }

    /// The fetch has failed; after [`Progress::set_verified`] that matters only to those who wait
    /// for the file.
    pub fn fail(&self, cause: Cause) {
        self.state.lock().failed.get_or_insert(cause);
        self.changed.send_replace(());
    }

    /// Waits until there is something to read at `offset`, or (`whole`) until the whole nar is
    /// verified.
    ///
    /// # Errors
    /// Why the fetch failed before that.
    pub async fn ready(&self, offset: u64, whole: bool) -> Result<(), Cause> {
        let mut changed = self.changed.subscribe();
        loop {
            {
                let state = self.state.lock();
                let next = state.next(self.layout, offset);
                match next {
                    Next::Failed(cause) => return Err(cause),
                    _ if whole && !state.verified => {}
                    Next::Wait => {}
                    _ => return Ok(()),
                }
            }
            if changed.changed().await.is_err() {
                return Err(Cause::Local);
            }
        }
    }

    /// Waits until the nar is in the store.
    ///
    /// # Errors
    /// Why it won't be.
    pub async fn kept(&self) -> Result<Arc<HeldNar>, Cause> {
        let mut changed = self.changed.subscribe();
        loop {
            {
                let state = self.state.lock();
                if let Some(kept) = &state.kept {
                    return Ok(kept.clone());
                }
                if let Some(cause) = state.failed {
                    return Err(cause);
                }
            }
            if changed.changed().await.is_err() {
                return Err(Cause::Local);
            }
        }
    }

    /// The nar's octets from `offset` on, as they come.
    pub fn read(self: &Arc<Self>, offset: u64) -> BoxStream<'static, Result<Bytes, NarAborted>> {
        let reader = Reader::new(self.clone(), offset);
        stream::try_unfold(reader, |mut reader| async move {
            Ok(reader.next().await?.map(|chunk| (chunk, reader)))
        })
        .boxed()
    }
}

impl State {
    fn next(&self, layout: PieceLayout, offset: u64) -> Next {
        if offset >= layout.nar_size() && self.verified {
            return Next::End;
        }
        let index = layout.piece_at(offset);
        let last = index + 1 >= layout.piece_count();
        if let Some(cause) = self.failed.filter(|_| !self.verified) {
            return Next::Failed(cause);
        }
        if (last || !self.may_deliver) && !self.verified {
            return Next::Wait;
        }
        let within = (offset - layout.piece_range(index).start) as usize;
        if let Some(raw) = self.recent.get(&index) {
            return Next::Chunk(raw.slice(within..));
        }
        if let Some(kept) = &self.kept {
            return Next::Kept(kept.clone(), index);
        }
        if self.held.contains(index) {
            return match &self.disk {
                Some(disk) => Next::OnDisk(disk.clone(), index),
                None => Next::Failed(Cause::Local),
            };
        }
        if self.growing.index == index {
            return self.growing.at(within).map_or(Next::Wait, Next::Chunk);
        }
        Next::Wait
    }

    /// Keeps the memory within its bound. With a disk, pieces that readers have passed go first,
    /// then any that are on it; those yet to be written are in the memory of its queue anyway.
    /// Without, only those that every reader has passed go.
    fn forget_old(&mut self, layout: PieceLayout) {
        let slowest = self.readers.values().min().map(|&offset| layout.piece_at(offset));
        while self.recent_bytes > limits::fetch_memory_bytes(layout.piece_size()) {
            let disk = self.disk.as_deref();
            let is_written = |index: &u32| disk.is_none_or(|disk| disk.has(*index));
            let mut spare = self.recent.keys().copied().filter(is_written);
            let victim = match (spare.next(), slowest) {
                (Some(first), Some(slowest)) if first < slowest => first,
                _ if disk.is_none() => return,
                (Some(first), Some(_)) => spare.next_back().unwrap_or(first),
                (Some(first), None) => first,
                (None, _) => return,
            };
            if let Some(raw) = self.recent.remove(&victim) {
                self.recent_bytes -= raw.len();
            }
        }
    }
}

impl Growing {
    fn at(&self, mut within: usize) -> Option<Bytes> {
        for chunk in &self.chunks {
            if within < chunk.len() {
                return Some(chunk.slice(within..));
            }
            within -= chunk.len();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{DataDir, Store, StoreConfig, encode_piece};
    use narswarm_protocol::hash::NarHash;

    #[tokio::test]
    async fn what_is_not_on_disk_yet_stays_in_memory() {
        let folder = tempfile::tempdir().expect("a directory");
        let data = DataDir::open(folder.path()).expect("a data directory");
        let config = StoreConfig { headroom_bytes: 0, ..StoreConfig::default() };
        let store = Store::open(&data, &config).expect("a store");
        let count = 2 * (limits::FETCH_MEMORY_BYTES as u64 / limits::MIN_PIECE_BYTES) as u32;
        let size = u64::from(count) * limits::MIN_PIECE_BYTES;
        let layout = PieceLayout::new(size).expect("a layout");
        let disk = Arc::new(store.begin(&NarHash([1; 32]), layout).expect("room"));
        let progress = Arc::new(Progress::new(layout));
        progress.use_disk(disk.clone());
        let mut nar = progress.read(0);
        let piece = |index: u32| vec![index as u8; layout.piece_len(index)];
        // The disk is slower than the fetch, and has the first half only.
        for index in 0..count {
            if index < count / 2 {
                disk.write_piece(index, &encode_piece(&piece(index))).expect("room");
            }
            progress.insert(index, piece(index).into());
        }
        assert!(progress.state.lock().recent_bytes <= limits::FETCH_MEMORY_BYTES);
        progress.set_verified();
        for index in 0..count {
            let chunk = nar.next().await.expect("more").expect("at hand");
            assert_eq!(chunk, piece(index), "{index}");
        }
        assert!(nar.next().await.is_none());
    }
}
