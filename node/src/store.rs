//! What the node keeps on its disk: narinfos, nars, its identity and the peers it knows.
//!
//! A map:
//! - `data_dir`: the directory, its lock and the node's key;
//! - `narinfos`, `record`: the journal, the truth about narinfos and changes;
//! - `cache`, `held`, `format`, `frame`: nars as files of zstd frames;
//! - `partial`, `leftovers`, `import`: nars on their way in, in pieces or as a stream;
//! - `index`, `entry`, `recovery`, `upkeep`: by key, what journal and files say; made anew when
//!   in doubt;
//! - `holdings`, `room`: what is held and what has to go; `peers`: known peers.
//!
//! Everything blocks; call it from threads that may. What is acknowledged by returning survives
//! a kill and, as far as the disk is honest, a loss of power. The store checks lengths and hashes
//! but knows nothing of signatures: whoever reads a narinfo verifies it again.
//!
//! Locks are taken in the order `evicting`, `changing`, `gate`, `index`; the journal's own come
//! last.

mod cache;
mod data_dir;
mod entry;
mod error;
mod filters;
mod format;
mod frame;
mod held;
mod holdings;
mod import;
mod index;
mod kept;
mod leftovers;
mod narinfos;
mod partial;
mod peers;
mod record;
mod recovery;
mod room;
mod upkeep;
mod use_time;

#[cfg(test)]
mod tests;

pub use data_dir::{DataDir, DataDirError, RunInfo};
pub use error::StoreError;
pub use filters::{FilterFile, FilterFileError, FilterFiles};
pub use format::FormatError;
pub use frame::{
    FrameError, check_frame, decode_frame, decode_frame_into, encode_piece, max_frame_len,
};
pub use held::{HeldError, HeldNar};
pub use import::NarWriter;
pub use kept::KeptFile;
pub use partial::PartialNar;

use bytes::Bytes;
use cache::{CacheDir, OpenNars};
use entry::NarinfoEntry;
use index::{Counts, Index};
use narinfos::Journal;
use narswarm_protocol::hash::NarHash;
use narswarm_protocol::limits::MAX_NARINFO_BYTES;
use narswarm_protocol::store_path::StoreHash;
use parking_lot::{Mutex, RwLock};
use record::{Position, Record};
use recovery::IndexFiles;
use room::Room;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};
use tracing::warn;

/// Journal octets between two checkpoints: replaying that many takes well under a second. Tests
/// write little and are to meet many.
const CHECKPOINT_BYTES: u64 = if cfg!(test) { 16 << 10 } else { 4 << 20 };

/// How often a failed index is opened again at most: its disk may be full for long.
const REVIVAL_PAUSE: Duration = Duration::from_secs(5);

/// Most items that [`Store::items_of`] tells.
const MAX_ITEMS_OF_NAR: usize = 1000;

/// How the store uses the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// Most octets of nars in the cache, unfinished ones included.
    pub max_bytes: u64,
    /// Octets of the file system that are left free for others.
    pub headroom_bytes: u64,
    /// Memory for the index.
    pub index_cache_bytes: u64,
    /// Nars kept open between uses.
    pub open_nars: usize,
}

impl Default for StoreConfig {
    /// 20 GiB of nars hold about three systems and their updates; 2 GiB of headroom let a full
    /// disk's owner still work; 16 MiB hold the index of a workstation's items (sled takes about
    /// twice of what it is given); 256 files are a quarter of the usual limit.
    fn default() -> Self {
        Self {
            max_bytes: 20 << 30,
            headroom_bytes: 2 << 30,
            index_cache_bytes: 16 << 20,
            open_nars: 256,
        }
    }
}

/// How much the store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreStats {
    /// Narinfos.
    pub narinfos: u64,
    /// Nars in the cache.
    pub cached: u64,
    /// Octets of their files.
    pub cached_bytes: u64,
}

/// The store of one data directory. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    partial_dir: PathBuf,
    journal: Journal,
    index: RwLock<Option<Index>>,
    index_files: IndexFiles,
    /// Set when a write that the journal has is missing in the index: no checkpoint may pass it.
    sick: AtomicBool,
    /// When the index was last opened again.
    revived: Mutex<Option<Instant>>,
    /// Held for reading from appending a record until the index has it; a checkpoint takes it for
    /// writing, so that what it covers is all in the index.
    gate: RwLock<()>,
    checkpointed: Mutex<Position>,
    cache: CacheDir,
    open_nars: OpenNars,
    /// Held while a nar's file and its entry change together.
    changing: Mutex<()>,
    room: Room,
    /// Makes names in `partial/` unique.
    next_partial: AtomicU64,
    closed: AtomicBool,
}

impl Store {
    /// Opens what is kept in a data directory. The directory must stay held as long as the store
    /// is in use.
    ///
    /// After a kill this takes as long as the last few megabytes of the journal; when the index
    /// is lost, as long as reading the whole journal and the description of every nar.
    ///
    /// # Errors
    /// Failures of the file system.
    pub fn open(data: &DataDir, config: &StoreConfig) -> Result<Self, StoreError> {
        let dir = data.path();
        let journal = Journal::open(dir.join("narinfos"))?;
        let cache = CacheDir::open(dir.join("nars"))?;
        let index_files = IndexFiles::new(dir.join("index"), config.index_cache_bytes);
        let index = index_files.open(&journal, &cache)?;
        let checkpointed = Mutex::new(journal.end());
        let room = Room::new(config.max_bytes, config.headroom_bytes);
        let partial_dir = dir.join("partial");
        let next_partial = AtomicU64::new(leftovers::find_leftovers(&partial_dir, &room)?);
        let inner = Inner {
            partial_dir,
            journal,
            index: RwLock::new(Some(index)),
            index_files,
            sick: AtomicBool::new(false),
            revived: Mutex::new(None),
            gate: RwLock::new(()),
            checkpointed,
            cache,
            open_nars: OpenNars::new(config.open_nars),
            changing: Mutex::new(()),
            room,
            next_partial,
            closed: AtomicBool::new(false),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Keeps narinfos, each with its item and the nar that it signs, in place of earlier ones of
    /// the same items. They are durable when this returns; concurrent calls share the wait for
    /// the disk. What is already there costs nothing.
    ///
    /// # Errors
    /// [`StoreError::Full`] and other failures of the disk; then none of the batch is promised.
    pub fn put_narinfos(&self, batch: &[(StoreHash, NarHash, Bytes)]) -> Result<(), StoreError> {
        self.inner.put_narinfos(batch)
    }

    /// The narinfo of an item, as it was put. Not verified: disks rot.
    ///
    /// # Errors
    /// Failures of the disk.
    pub fn narinfo(&self, item: &StoreHash) -> Result<Option<Bytes>, StoreError> {
        self.inner.narinfo(item)
    }

    /// Items whose narinfos speak of this nar, whether it is held or not.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn items_of(&self, nar: &NarHash) -> Result<Vec<StoreHash>, StoreError> {
        self.inner.with_index(|index| index.items_of(nar, MAX_ITEMS_OF_NAR))
    }

    /// The nar, if it is in the cache, ready to be read. A file that turns out to be damaged is
    /// removed; then the nar isn't held.
    ///
    /// # Errors
    /// Failures of the disk.
    pub fn nar(&self, nar: &NarHash) -> Result<Option<Arc<HeldNar>>, StoreError> {
        self.inner.nar(nar)
    }

    /// Whether the nar is in the cache by the index, without opening its file.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn holds(&self, nar: &NarHash) -> Result<bool, StoreError> {
        Ok(self.inner.with_index(|index| index.nar(nar))?.is_some())
    }

    /// Items whose nars are in the cache, in the order of their hashes, from the one after
    /// `after` on, at most `limit`. To go through all, pass the last of each page until a page is
    /// empty.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn held_items(
        &self,
        after: Option<StoreHash>,
        limit: usize,
    ) -> Result<Vec<(StoreHash, NarHash)>, StoreError> {
        self.inner.with_index(|index| index.held_items(after, limit))
    }

    /// Items whose narinfos are kept, with these, as [`Store::held_items`] goes through those whose
    /// nars are.
    ///
    /// # Errors
    /// Failures of the disk.
    pub fn known_items(
        &self,
        after: Option<StoreHash>,
        limit: usize,
    ) -> Result<Vec<(StoreHash, Bytes)>, StoreError> {
        let items = self.inner.with_index(|index| index.known_items(after, limit))?;
        let narinfos = items.into_iter().map(|item| Ok((item, self.narinfo(&item)?)));
        let narinfos = narinfos.collect::<Result<Vec<_>, StoreError>>()?;
        // One that the disk has lost is passed on as one that nobody believes.
        Ok(narinfos.into_iter().map(|(item, kept)| (item, kept.unwrap_or_default())).collect())
    }

    /// Items whose nars have left the cache since this was last called, for withdrawal from where
    /// they were announced.
    #[must_use]
    pub fn take_withdrawn(&self) -> Vec<StoreHash> {
        self.inner.take_withdrawn()
    }

    /// Notes that a nar is being used, which puts off its eviction.
    pub fn touch(&self, nar: &NarHash) {
        self.inner.touch_at(nar, use_time::now());
    }

    /// Exempts a nar of the cache from eviction, or no longer; whether it is held.
    ///
    /// # Errors
    /// Failures of the disk.
    pub fn set_pinned(&self, nar: &NarHash, pinned: bool) -> Result<bool, StoreError> {
        self.inner.set_pinned(nar, pinned)
    }

    /// Looks at a nar that failed to read: if a second look at every piece finds it damaged, it
    /// leaves the cache, so that it is fetched anew when wanted.
    pub fn quarantine(&self, nar: &NarHash, why: &dyn fmt::Display) {
        self.inner.quarantine(nar, why);
    }

    /// How much the store holds, without looking.
    #[must_use]
    pub fn stats(&self) -> StoreStats {
        let Counts { narinfos, nars, nar_bytes } = self.inner.counts();
        StoreStats { narinfos, cached: nars, cached_bytes: nar_bytes }
    }

    /// Writes everything down, so that the next start is quick. Afterwards every call is refused
    /// with [`StoreError::Closed`]; nars that are open can be read on. Without it nothing is lost,
    /// but the next start has to walk over the index.
    pub fn close(&self) {
        self.inner.close();
    }
}

impl Inner {
    fn put_narinfos(&self, batch: &[(StoreHash, NarHash, Bytes)]) -> Result<(), StoreError> {
        // Of several narinfos for one item the last counts.
        let mut wanted = BTreeMap::new();
        for (item, nar, narinfo) in batch {
            if narinfo.len() > MAX_NARINFO_BYTES {
                return Err(StoreError::NarinfoTooLong { found_bytes: narinfo.len() });
            }
            wanted.insert(*item, (*nar, narinfo));
        }
        let mut fresh = Vec::new();
        for (item, (nar, narinfo)) in wanted {
            if !self.has_narinfo(&item, &nar, narinfo)? {
                fresh.push((item, nar, narinfo));
            }
        }
        if fresh.is_empty() {
            return Ok(());
        }
        let records: Vec<_> = fresh
            .iter()
            .map(|&(item, nar, narinfo)| Record::Narinfo { item, nar, narinfo })
            .collect();
        let written = {
            let _gate = self.gate.read();
            let (locations, end) = self.journal.append(&records)?;
            self.journal.sync(end)?;
            self.index_write(|index| {
                for ((item, nar, _), location) in fresh.iter().zip(locations) {
                    index.set_narinfo(item, &NarinfoEntry { location, nar: *nar })?;
                }
                Ok(())
            })
        };
        self.after_write(written)
    }

    fn has_narinfo(
        &self,
        item: &StoreHash,
        nar: &NarHash,
        narinfo: &Bytes,
    ) -> Result<bool, StoreError> {
        let entry = self.with_index(|index| index.narinfo(item))?;
        let Some(entry) = entry.filter(|entry| entry.nar == *nar) else { return Ok(false) };
        Ok(self.journal.read(entry.location, item)?.is_some_and(|known| known == *narinfo))
    }

    fn narinfo(&self, item: &StoreHash) -> Result<Option<Bytes>, StoreError> {
        let Some(entry) = self.with_index(|index| index.narinfo(item))? else { return Ok(None) };
        if let Some(narinfo) = self.journal.read(entry.location, item)? {
            return Ok(Some(narinfo.into()));
        }
        warn!("the journal has lost or garbled the narinfo of {item}");
        self.with_index(|index| match index.narinfo(item)? {
            Some(current) if current == entry => index.remove_narinfo(item),
            _ => Ok(()),
        })?;
        Ok(None)
    }

    fn counts(&self) -> Counts {
        self.index.read().as_ref().map(Index::counts).unwrap_or_default()
    }
}
