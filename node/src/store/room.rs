//! Room for what comes: the quota, the headroom on the disk, and who has to go.
//!
//! What is only half there goes first, then nars by their last use; pinned ones never. A reader
//! who has an evicted nar open reads on.

use super::Inner;
use super::cache::remove_file;
use super::error::StoreError;
use super::record::Record;
use narswarm_protocol::hash::NarHash;
use narswarm_protocol::store_path::StoreHash;
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use tracing::{debug, warn};

/// Withdrawn items that are remembered for whoever announces; beyond, announcements run out by
/// themselves. 20 octets each.
const MAX_WITHDRAWN: usize = 100_000;

/// Octets written between two looks at the disk's free space.
const LOOK_EVERY_BYTES: u64 = 16 << 20;

/// Nars that are chosen in one walk over all: it pays for a while, and takes 36 kB.
const EVICTION_BATCH: usize = 1000;

/// Most items of one nar that are withdrawn with it. Rarely are there more than two.
const MAX_ITEMS: usize = 1000;

/// The state of the quota.
#[derive(Debug)]
pub struct Room {
    max_bytes: u64,
    headroom_bytes: u64,
    /// Octets in `partial/`, those in use and those left over.
    partial_bytes: AtomicU64,
    since_look_bytes: AtomicU64,
    /// Who goes next, the first last, with their last uses. Held while deciding.
    evicting: Mutex<Vec<(u32, NarHash)>>,
    /// What interrupted fetches have left, by nar.
    pub leftovers: Mutex<BTreeMap<NarHash, Leftover>>,
    withdrawn: Mutex<VecDeque<StoreHash>>,
}

/// What an interrupted fetch has left in `partial/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// The file of frames; its log lies beside it.
    pub path: PathBuf,
    /// Octets of both.
    pub bytes: u64,
}

impl Room {
    /// Nothing used yet.
    #[must_use]
    pub fn new(max_bytes: u64, headroom_bytes: u64) -> Self {
        Self {
            max_bytes,
            headroom_bytes,
            partial_bytes: AtomicU64::new(0),
            since_look_bytes: AtomicU64::new(0),
            evicting: Mutex::new(Vec::new()),
            leftovers: Mutex::new(BTreeMap::new()),
            withdrawn: Mutex::new(VecDeque::new()),
        }
    }

    /// Counts octets that have come into `partial/`.
    pub fn add_partial(&self, bytes: u64) {
        self.partial_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts octets that have gone from `partial/`.
    pub fn remove_partial(&self, bytes: u64) {
        self.partial_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Inner {
    /// Counts `bytes` that are about to be written to `partial/`, making room for them if they
    /// are too many.
    pub(super) fn charge(&self, bytes: u64) -> Result<(), StoreError> {
        let room = &self.room;
        let used = self.counts().nar_bytes + room.partial_bytes.load(Ordering::Relaxed);
        let unseen = room.since_look_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if used.saturating_add(bytes) > room.max_bytes || unseen > LOOK_EVERY_BYTES {
            self.make_room(bytes)?;
            room.since_look_bytes.store(0, Ordering::Relaxed);
        }
        room.add_partial(bytes);
        Ok(())
    }

    /// Evicts until `bytes` more fit.
    pub(super) fn make_room(&self, bytes: u64) -> Result<(), StoreError> {
        let mut next = self.room.evicting.lock();
        let mut excess = self.excess(bytes);
        while excess > 0 {
            // Space is free again only when the last reader of a file has closed it, so what has
            // gone is counted here and not seen by looking at the disk again.
            let freed = match self.drop_leftover()? {
                Some(freed) => freed,
                None => self
                    .evict_one(&mut next)?
                    .ok_or(StoreError::OverQuota { wanted_bytes: bytes })?,
            };
            excess = excess.saturating_sub(freed);
        }
        Ok(())
    }

    /// Evicts the nar whose last use lies furthest back; tells how long its file was, or `None`
    /// if nothing may go.
    fn evict_one(&self, next: &mut Vec<(u32, NarHash)>) -> Result<Option<u64>, StoreError> {
        loop {
            if next.is_empty() {
                *next = self.with_index(|index| index.least_recently_used(EVICTION_BATCH))?;
                next.reverse();
            }
            let Some((last_use, nar)) = next.pop() else { return Ok(None) };
            // It may have been used, pinned or removed since the list was made.
            let entry = self.with_index(|index| index.nar(&nar))?;
            if let Some(entry) = entry.filter(|e| !e.pinned && e.last_use == last_use) {
                self.remove_nar(&nar)?;
                debug!(%nar, "evicted");
                return Ok(Some(entry.file_len.max(1)));
            }
        }
    }

    /// By how much `bytes` more would exceed the quota or eat into the headroom.
    fn excess(&self, bytes: u64) -> u64 {
        let partial_bytes = self.room.partial_bytes.load(Ordering::Relaxed);
        let used = self.counts().nar_bytes.saturating_add(partial_bytes);
        let over_quota = used.saturating_add(bytes).saturating_sub(self.room.max_bytes);
        let wanted = bytes.saturating_add(self.room.headroom_bytes);
        let over_disk = match free_bytes(self.cache.dir()) {
            Some(free) => wanted.saturating_sub(free),
            None => 0,
        };
        over_quota.max(over_disk)
    }

    fn drop_leftover(&self) -> Result<Option<u64>, StoreError> {
        let Some((_, leftover)) = self.room.leftovers.lock().pop_first() else { return Ok(None) };
        remove_file(&leftover.path)?;
        remove_file(&super::leftovers::log_path(&leftover.path))?;
        self.room.remove_partial(leftover.bytes);
        Ok(Some(leftover.bytes.max(1)))
    }

    /// Takes a nar out of the cache and notes which items are gone with it.
    pub(super) fn remove_nar(&self, nar: &NarHash) -> Result<(), StoreError> {
        let items = self.with_index(|index| index.items_of(nar, MAX_ITEMS))?;
        let removed = {
            let _changing = self.changing.lock();
            let _gate = self.gate.read();
            // Best before the deed; but a full disk must not keep us from making room on it.
            if let Err(error) = self.journal.append(&[Record::NarChanged(*nar)]) {
                warn!("a nar goes from the cache without a note: {error}");
            }
            self.open_nars.remove(nar);
            self.cache.remove(nar)?;
            self.index_write(|index| index.remove_nar(nar))
        };
        self.after_write(removed)?;
        self.open_nars.remove(nar);
        let mut withdrawn = self.room.withdrawn.lock();
        withdrawn.extend(items);
        let surplus = withdrawn.len().saturating_sub(MAX_WITHDRAWN);
        withdrawn.drain(..surplus);
        Ok(())
    }

    /// Items whose nars have left the cache since the last call.
    pub(super) fn take_withdrawn(&self) -> Vec<StoreHash> {
        std::mem::take(&mut *self.room.withdrawn.lock()).into()
    }
}

/// Octets that an unprivileged process may still write below `dir`; `None` if it can't be told.
pub(super) fn free_bytes(dir: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(dir).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}
