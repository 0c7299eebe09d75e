//! Nars of the cache: finding, keeping and checking them.

use super::Inner;
use super::cache;
use super::entry::NarEntry;
use super::error::StoreError;
use super::held::{HeldError, HeldNar};
use super::record::Record;
use super::use_time;
use narswarm_protocol::hash::NarHash;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tracing::{error, warn};

impl Inner {
    pub(super) fn nar(&self, nar: &NarHash) -> Result<Option<Arc<HeldNar>>, StoreError> {
        if let Some(held) = self.open_nars.get(nar) {
            return Ok(Some(held));
        }
        if self.with_index(|index| index.nar(nar))?.is_none() {
            return Ok(None);
        }
        match HeldNar::open(self.cache.path_of(nar), nar) {
            Ok(held) => {
                let held = Arc::new(held);
                self.keep_open(&held);
                Ok(Some(held))
            }
            Err(HeldError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                warn!(%nar, "the file of a nar has vanished from the cache");
                self.remove_nar(nar)?;
                Ok(None)
            }
            Err(error) if error.is_damage() => {
                warn!("removing a damaged nar from the cache: {error}");
                self.remove_nar(nar)?;
                Ok(None)
            }
            Err(HeldError::Io { path, source }) => Err(StoreError::io("open", &path, source)),
            Err(error) => Err(StoreError::Other(io::Error::other(error))),
        }
    }

    /// Keeps an opened nar at hand, unless it has been evicted in the meantime.
    pub(super) fn keep_open(&self, held: &Arc<HeldNar>) {
        let nar = held.nar_hash();
        self.open_nars.put(held, || {
            // Not a matter to mend the index for, least of all under this lock.
            let index = self.index.read();
            index.as_ref().is_some_and(|index| matches!(index.nar(&nar), Ok(Some(_))))
        });
    }

    pub(super) fn touch_at(&self, nar: &NarHash, now: u32) {
        if let Err(error) = self.with_index(|index| index.touch(nar, now)) {
            warn!("cannot note the use of a nar: {error}");
        }
    }

    pub(super) fn set_pinned(&self, nar: &NarHash, pinned: bool) -> Result<bool, StoreError> {
        let held = {
            let _changing = self.changing.lock();
            let _gate = self.gate.read();
            let (_, end) = self.journal.append(&[Record::NarPinned(*nar, pinned)])?;
            self.journal.sync(end)?;
            self.index_write(|index| index.set_pinned(nar, pinned))
        };
        match held {
            Ok(held) => Ok(held),
            Err(error) => {
                self.after_write::<()>(Err(error))?;
                Ok(self.with_index(|index| index.nar(nar))?.is_some())
            }
        }
    }

    pub(super) fn quarantine(&self, nar: &NarHash, why: &dyn fmt::Display) {
        // Opened anew: what the description says is to be checked as well.
        match HeldNar::open(self.cache.path_of(nar), nar).and_then(|held| held.verify()) {
            Ok(()) => warn!(%nar, "a nar was reported ({why}) but is whole at a second look"),
            Err(HeldError::Io { source, .. }) if source.kind() != io::ErrorKind::NotFound => {
                warn!(%nar, "a nar can't be read now ({source}) and is left alone");
            }
            Err(error) => {
                warn!("removing a damaged nar from the cache: {error}");
                if let Err(error) = self.remove_nar(nar) {
                    error!(%nar, "a damaged nar can't be removed: {error}");
                }
            }
        }
    }

    /// Moves the finished file of a nar into the cache, durably, and opens it. When the nar is
    /// there already, the new file goes.
    pub(super) fn install(&self, nar: &NarHash, file: &Path) -> Result<Arc<HeldNar>, StoreError> {
        let opened = |path: PathBuf| {
            HeldNar::open(path, nar).map_err(|error| StoreError::Other(io::Error::other(error)))
        };
        let file_len = opened(file.to_owned())?.file_len();
        let entry = NarEntry { file_len, last_use: use_time::now(), pinned: false };
        if let Some(held) = self.nar(nar)? {
            cache::remove_file(file)?;
            return Ok(held);
        }
        let (end, written) = {
            let _changing = self.changing.lock();
            let _gate = self.gate.read();
            let (_, end) = self.journal.append(&[Record::NarChanged(*nar)])?;
            self.cache.take_in(file, nar)?;
            (end, self.index_write(|index| index.set_nar(nar, &entry)))
        };
        self.cache.sync(nar)?;
        self.journal.sync(end)?;
        self.after_write(written)?;
        let held = Arc::new(opened(self.cache.path_of(nar))?);
        self.keep_open(&held);
        Ok(held)
    }
}
