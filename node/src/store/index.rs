//! The index: what the journal and the cache files say, by key, in sled.
//!
//! Nothing is only here, so that it can be thrown away: narinfos point into the journal, nars
//! repeat what their files describe. Only the last use of nars and the known peers would be
//! missed a little. Values are small and of fixed layout (numbers in big-endian order, so that
//! keys sort by them):
//!
//! | tree | key | value |
//! |---|---|---|
//! | `narinfos` | store hash | segment u32, offset u32, length u32, NarHash |
//! | `items` | first 8 octets of the NarHash, store hash | – |
//! | `nars` | NarHash | file length u64, last use u32, pinned u8 |
//! | `peers` | peer id | last seen u64, then for each address length u16 and octets |
//!
//! sled holds some hundred octets in memory for every page of its file, a few kilobytes: every
//! octet here counts, ten million times.
//!
//! sled 0.34 keeps no promise about what of unflushed writes survives a kill. It is flushed at
//! checkpoints (see `recovery`), not at every write: the journal repeats what came after.

use super::entry::{
    NarEntry, NarinfoEntry, decode_nar, decode_narinfo, encode_nar, encode_narinfo, malformed,
};
use narswarm_protocol::hash::NarHash;
use narswarm_protocol::store_path::StoreHash;
use parking_lot::Mutex;
use sled::{Db, IVec, Tree};
use std::collections::BinaryHeap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long the file of a database that was just closed may stay locked: sled's threads let go
/// of it a little after the last handle.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// How much there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Narinfos.
    pub narinfos: u64,
    /// Nars of the cache.
    pub nars: u64,
    /// Octets of their files.
    pub nar_bytes: u64,
}

/// An open index.
#[derive(Debug)]
pub struct Index {
    db: Db,
    narinfos: Tree,
    items: Tree,
    nars: Tree,
    peers: Tree,
    /// Held for changes of a nar, which are several writes.
    changing_nar: Mutex<()>,
    narinfo_count: AtomicU64,
    nar_count: AtomicU64,
    nar_bytes: AtomicU64,
}

impl Index {
    /// Opens or makes the database at `path`; the counts are zero until set.
    ///
    /// # Errors
    /// What sled says.
    pub fn open(path: &Path, cache_bytes: u64) -> Result<Self, sled::Error> {
        let deadline = Instant::now() + LOCK_PATIENCE;
        let db = loop {
            // sled 0.34 takes a mode but never looks at it. No flushes by the clock: see above.
            let opened = sled::Config::new()
                .path(path)
                .cache_capacity(cache_bytes)
                .flush_every_ms(None)
                .open();
            match opened {
                Err(sled::Error::Io(error)) if is_locked(&error) && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                opened => break opened?,
            }
        };
        Ok(Self {
            narinfos: db.open_tree("narinfos")?,
            items: db.open_tree("items")?,
            nars: db.open_tree("nars")?,
            peers: db.open_tree("peers")?,
            db,
            changing_nar: Mutex::new(()),
            narinfo_count: AtomicU64::new(0),
            nar_count: AtomicU64::new(0),
            nar_bytes: AtomicU64::new(0),
        })
    }

    /// Writes everything down for good.
    ///
    /// # Errors
    /// What sled says.
    pub fn flush(&self) -> Result<(), sled::Error> {
        self.db.flush().map(drop)
    }

    /// How much there is, without looking.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            narinfos: self.narinfo_count.load(Ordering::Relaxed),
            nars: self.nar_count.load(Ordering::Relaxed),
            nar_bytes: self.nar_bytes.load(Ordering::Relaxed),
        }
    }

    /// Takes the counts from a checkpoint.
    pub fn set_counts(&self, counts: Counts) {
        self.narinfo_count.store(counts.narinfos, Ordering::Relaxed);
        self.nar_count.store(counts.nars, Ordering::Relaxed);
        self.nar_bytes.store(counts.nar_bytes, Ordering::Relaxed);
    }

    /// Counts anew, by walking over everything.
    ///
    /// # Errors
    /// What sled says.
    pub fn recount(&self) -> Result<Counts, sled::Error> {
        let mut counts = Counts::default();
        for entry in &self.narinfos {
            decode_narinfo(&entry?.1)?;
            counts.narinfos += 1;
        }
        for entry in &self.nars {
            counts.nar_bytes += decode_nar(&entry?.1)?.file_len;
            counts.nars += 1;
        }
        self.set_counts(counts);
        Ok(counts)
    }

    /// Where the narinfo of `item` is.
    ///
    /// # Errors
    /// What sled says.
    pub fn narinfo(&self, item: &StoreHash) -> Result<Option<NarinfoEntry>, sled::Error> {
        self.narinfos.get(item.0)?.map(|value| decode_narinfo(&value)).transpose()
    }

    /// Notes where the newest narinfo of `item` is.
    ///
    /// # Errors
    /// What sled says.
    pub fn set_narinfo(&self, item: &StoreHash, entry: &NarinfoEntry) -> Result<(), sled::Error> {
        self.items.insert(item_key(&entry.nar, item), &[])?;
        match self.narinfos.insert(item.0, encode_narinfo(entry).as_slice())? {
            None => {
                self.narinfo_count.fetch_add(1, Ordering::Relaxed);
            }
            Some(old) => {
                let old = decode_narinfo(&old)?;
                if old.nar != entry.nar {
                    self.items.remove(item_key(&old.nar, item))?;
                }
            }
        }
        Ok(())
    }

    /// Forgets the narinfo of `item`, which the journal no longer has.
    ///
    /// # Errors
    /// What sled says.
    pub fn remove_narinfo(&self, item: &StoreHash) -> Result<(), sled::Error> {
        if let Some(old) = self.narinfos.remove(item.0)? {
            self.narinfo_count.fetch_sub(1, Ordering::Relaxed);
            self.items.remove(item_key(&decode_narinfo(&old)?.nar, item))?;
        }
        Ok(())
    }

    /// Items whose narinfos speak of `nar`, at most `limit`.
    ///
    /// # Errors
    /// What sled says.
    pub fn items_of(&self, nar: &NarHash, limit: usize) -> Result<Vec<StoreHash>, sled::Error> {
        let mut items = Vec::new();
        for entry in self.items.scan_prefix(&nar.0[..NAR_PREFIX_BYTES]) {
            if items.len() >= limit {
                break;
            }
            let (key, _) = entry?;
            let item = key.get(NAR_PREFIX_BYTES..).and_then(|item| item.try_into().ok());
            let item = StoreHash(item.ok_or_else(malformed)?);
            if self.narinfo(&item)?.is_some_and(|entry| entry.nar == *nar) {
                items.push(item);
            }
        }
        Ok(items)
    }

    /// Items after `after` whose nar is in the cache, in order, at most `limit`.
    ///
    /// # Errors
    /// What sled says.
    pub fn held_items(
        &self,
        after: Option<StoreHash>,
        limit: usize,
    ) -> Result<Vec<(StoreHash, NarHash)>, sled::Error> {
        use std::ops::Bound::{Excluded, Unbounded};
        let start = after.map_or(Unbounded, |item| Excluded(IVec::from(&item.0)));
        let mut items = Vec::new();
        for entry in self.narinfos.range((start, Unbounded)) {
            if items.len() >= limit {
                break;
            }
            let (key, value) = entry?;
            let entry = decode_narinfo(&value)?;
            if self.nars.contains_key(entry.nar.0)? {
                let item = key.as_ref().try_into().map_err(|_| malformed())?;
                items.push((StoreHash(item), entry.nar));
            }
        }
        Ok(items)
    }

    /// Items after `after` whose narinfos are kept, in order, at most `limit`.
    ///
    /// # Errors
    /// What sled says.
    pub fn known_items(
        &self,
        after: Option<StoreHash>,
        limit: usize,
    ) -> Result<Vec<StoreHash>, sled::Error> {
        use std::ops::Bound::{Excluded, Unbounded};
        let start = after.map_or(Unbounded, |item| Excluded(IVec::from(&item.0)));
        let keys = self.narinfos.range((start, Unbounded)).keys().take(limit);
        keys.map(|key| Ok(StoreHash(key?.as_ref().try_into().map_err(|_| malformed())?))).collect()
    }

    /// What is known of a nar of the cache.
    ///
    /// # Errors
    /// What sled says.
    pub fn nar(&self, nar: &NarHash) -> Result<Option<NarEntry>, sled::Error> {
        self.nars.get(nar.0)?.map(|value| decode_nar(&value)).transpose()
    }

    /// Notes that a nar is in the cache, in place of what was noted of it before.
    ///
    /// # Errors
    /// What sled says.
    pub fn set_nar(&self, nar: &NarHash, entry: &NarEntry) -> Result<(), sled::Error> {
        let _changing = self.changing_nar.lock();
        self.replace_nar(nar, Some(entry))
    }

    /// Notes that a nar is no longer in the cache; whether it was.
    ///
    /// # Errors
    /// What sled says.
    pub fn remove_nar(&self, nar: &NarHash) -> Result<bool, sled::Error> {
        let _changing = self.changing_nar.lock();
        let held = self.nars.contains_key(nar.0)?;
        self.replace_nar(nar, None)?;
        Ok(held)
    }

    /// Notes a use, unless one as recent is noted.
    ///
    /// # Errors
    /// What sled says.
    pub fn touch(&self, nar: &NarHash, now: u32) -> Result<(), sled::Error> {
        let _changing = self.changing_nar.lock();
        match self.nar(nar)? {
            Some(entry) if entry.last_use < now => {
                self.replace_nar(nar, Some(&NarEntry { last_use: now, ..entry }))
            }
            _ => Ok(()),
        }
    }

    /// Pins or unpins a nar; whether it is held.
    ///
    /// # Errors
    /// What sled says.
    pub fn set_pinned(&self, nar: &NarHash, pinned: bool) -> Result<bool, sled::Error> {
        let _changing = self.changing_nar.lock();
        let Some(entry) = self.nar(nar)? else { return Ok(false) };
        self.replace_nar(nar, Some(&NarEntry { pinned, ..entry }))?;
        Ok(true)
    }

    fn replace_nar(&self, nar: &NarHash, new: Option<&NarEntry>) -> Result<(), sled::Error> {
        let old = match new {
            Some(entry) => self.nars.insert(nar.0, encode_nar(entry).as_slice())?,
            None => self.nars.remove(nar.0)?,
        };
        if let Some(old) = old {
            self.nar_count.fetch_sub(1, Ordering::Relaxed);
            self.nar_bytes.fetch_sub(decode_nar(&old)?.file_len, Ordering::Relaxed);
        }
        if let Some(new) = new {
            self.nar_count.fetch_add(1, Ordering::Relaxed);
            self.nar_bytes.fetch_add(new.file_len, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The unpinned nars whose last uses lie furthest back, the longest first, at most `limit`.
    /// Walks over all nars.
    ///
    /// # Errors
    /// What sled says.
    pub fn least_recently_used(&self, limit: usize) -> Result<Vec<(u32, NarHash)>, sled::Error> {
        let mut found = BinaryHeap::with_capacity(limit + 1);
        for entry in &self.nars {
            let (key, value) = entry?;
            let entry = decode_nar(&value)?;
            if !entry.pinned {
                let nar = key.as_ref().try_into().map_err(|_| malformed())?;
                found.push((entry.last_use, NarHash(nar)));
                if found.len() > limit {
                    found.pop();
                }
            }
        }
        Ok(found.into_sorted_vec())
    }

    /// The tree of known peers.
    #[must_use]
    pub fn peers(&self) -> &Tree {
        &self.peers
    }
}

fn is_locked(error: &std::io::Error) -> bool {
    // sled wraps what the system said.
    error.kind() == std::io::ErrorKind::WouldBlock || error.to_string().contains("WouldBlock")
}

/// So many octets of a NarHash tell two nars apart nearly always; when not, the narinfo does.
const NAR_PREFIX_BYTES: usize = 8;

fn item_key(nar: &NarHash, item: &StoreHash) -> [u8; NAR_PREFIX_BYTES + 20] {
    let mut key = [0; NAR_PREFIX_BYTES + 20];
    key[..NAR_PREFIX_BYTES].copy_from_slice(&nar.0[..NAR_PREFIX_BYTES]);
    key[NAR_PREFIX_BYTES..].copy_from_slice(&item.0);
    key
}

#[cfg(test)]
mod tests {
    use super::super::record::{Location, Position};
    use super::*;

    fn index() -> (tempfile::TempDir, Index) {
        let dir = tempfile::tempdir().expect("tempdir");
        let index = Index::open(&dir.path().join("db"), 1 << 20).expect("open");
        (dir, index)
    }

    fn entry(last_use: u32) -> NarEntry {
        NarEntry { file_len: 100, last_use, pinned: false }
    }

    fn at(offset: u32, nar: u8) -> NarinfoEntry {
        let location = Location { position: Position { segment: 1, offset }, len: 5 };
        NarinfoEntry { location, nar: NarHash([nar; 32]) }
    }

    #[test]
    fn the_least_recently_used_unpinned_nar_goes_first() {
        let (_dir, index) = index();
        let nars = [NarHash([1; 32]), NarHash([2; 32]), NarHash([3; 32])];
        for (nar, last_use) in nars.iter().zip([5, 6, 7]) {
            index.set_nar(nar, &entry(last_use)).expect("set");
        }
        let oldest = || index.least_recently_used(1).expect("oldest").first().map(|&(_, nar)| nar);
        assert_eq!(oldest(), Some(nars[0]));
        let all = index.least_recently_used(9).expect("all");
        assert_eq!(all, [(5, nars[0]), (6, nars[1]), (7, nars[2])]);
        index.touch(&nars[0], 9).expect("touch");
        index.touch(&nars[0], 1).expect("an earlier use changes nothing");
        assert_eq!(oldest(), Some(nars[1]));
        assert!(index.set_pinned(&nars[1], true).expect("pin"));
        assert_eq!(oldest(), Some(nars[2]));
        assert!(index.remove_nar(&nars[2]).expect("remove"));
        assert!(!index.remove_nar(&nars[2]).expect("removed before"));
        assert_eq!(oldest(), Some(nars[0]));
        assert!(index.set_pinned(&nars[1], false).expect("unpin"));
        assert_eq!(oldest(), Some(nars[1]));
        let counts = Counts { narinfos: 0, nars: 2, nar_bytes: 200 };
        assert_eq!(index.counts(), counts);
        assert_eq!(index.recount().expect("recount"), counts);
    }

    #[test]
    fn items_follow_their_narinfos() {
        let (_dir, index) = index();
        let items: Vec<_> = (0..5).map(|i| StoreHash([i; 20])).collect();
        for item in &items {
            index.set_narinfo(item, &at(8, 1)).expect("set");
        }
        index.set_narinfo(&items[3], &at(9, 2)).expect("another nar");
        assert_eq!(index.counts().narinfos, 5);
        assert_eq!(index.items_of(&NarHash([2; 32]), 9).expect("items"), [items[3]]);
        assert_eq!(index.items_of(&NarHash([1; 32]), 9).expect("items").len(), 4);
        assert!(index.held_items(None, 9).expect("none").is_empty());
        index.set_nar(&NarHash([1; 32]), &entry(1)).expect("set");
        let page = index.held_items(None, 3).expect("page");
        assert_eq!(page.iter().map(|(item, _)| *item).collect::<Vec<_>>(), items[..3]);
        let page = index.held_items(Some(items[2]), 3).expect("page");
        assert_eq!(page, [(items[4], NarHash([1; 32]))]);
        index.remove_narinfo(&items[4]).expect("remove");
        assert_eq!(index.items_of(&NarHash([1; 32]), 9).expect("items").len(), 3);
    }
}
