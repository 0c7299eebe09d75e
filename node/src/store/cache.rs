//! The files of the cache: `nars/xx/NARHASH.nar.zst`, where xx are the first two digits of the
//! hash, and what is being written in `partial/`.
//!
//! Knows names and directories only; what is held stands in the index.

use super::error::{AtPath, StoreError};
use super::held::HeldNar;
use super::use_time;
use lru::LruCache;
use narswarm_protocol::base32;
use narswarm_protocol::hash::NarHash;
use parking_lot::Mutex;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const SUFFIX: &str = ".nar.zst";

/// The directory `nars/`.
#[derive(Debug)]
pub struct CacheDir {
    dir: PathBuf,
}

impl CacheDir {
    /// Makes the directory if it isn't there.
    ///
    /// # Errors
    /// Failures of the file system.
    pub fn open(dir: PathBuf) -> Result<Self, StoreError> {
        fs::create_dir_all(&dir).at("create", &dir)?;
        Ok(Self { dir })
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the file of a nar is, if it is held.
    #[must_use]
    pub fn path_of(&self, nar: &NarHash) -> PathBuf {
        let name = nar.to_string();
        self.dir.join(&name[..2]).join(name + SUFFIX)
    }

    /// Moves a finished file to its place; durable after [`CacheDir::sync`].
    ///
    /// # Errors
    /// Failures of the file system.
    pub fn take_in(&self, file: &Path, nar: &NarHash) -> Result<(), StoreError> {
        let path = self.path_of(nar);
        let Err(error) = fs::rename(file, &path) else { return Ok(()) };
        if error.kind() != io::ErrorKind::NotFound {
            return Err(StoreError::io("write", &path, error));
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).at("create", parent)?;
            sync_dir(&self.dir)?;
        }
        fs::rename(file, &path).at("write", &path)
    }

    /// Makes the coming or going of a nar's file durable.
    ///
    /// # Errors
    /// Failures of the file system.
    pub fn sync(&self, nar: &NarHash) -> Result<(), StoreError> {
        self.path_of(nar).parent().map_or(Ok(()), sync_dir)
    }

    /// Removes the file of a nar, if it is there. Who has it open can go on reading.
    ///
    /// # Errors
    /// Failures of the file system.
    pub fn remove(&self, nar: &NarHash) -> Result<(), StoreError> {
        remove_file(&self.path_of(nar))
    }

    /// When the file of a nar was written, in the unit of last uses; now if that can't be told.
    #[must_use]
    pub fn last_written(&self, nar: &NarHash) -> u32 {
        let modified = fs::metadata(self.path_of(nar)).and_then(|found| found.modified());
        modified.map_or_else(|_| use_time::now(), use_time::of)
    }

    /// Calls `each` for every file that is named like a nar.
    ///
    /// # Errors
    /// Failures of the file system, and what `each` returns.
    pub fn for_each(
        &self,
        each: &mut dyn FnMut(NarHash) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        for entry in fs::read_dir(&self.dir).at("list", &self.dir)? {
            let entry = entry.at("list", &self.dir)?;
            let path = entry.path();
            if !entry.file_type().at("examine", &path)?.is_dir() {
                continue;
            }
            for file in fs::read_dir(&path).at("list", &path)? {
                let name = file.at("list", &path)?.file_name();
                if let Some(nar) = name.to_str().and_then(nar_of_name) {
                    each(nar)?;
                }
            }
        }
        Ok(())
    }
}

fn nar_of_name(name: &str) -> Option<NarHash> {
    let digits = name.strip_suffix(SUFFIX)?;
    base32::decode(digits.as_bytes()).ok().map(NarHash)
}

/// Makes a change of a directory's entries durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|dir| dir.sync_all()).at("sync", dir)
}

/// Removes a file, if it is there.
pub(super) fn remove_file(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.at("remove", path),
    }
}

/// Nars kept open after use, so that serving the pieces of one doesn't open it each time. Bounded
/// in files and in piece hashes, of which a large nar has 4,096.
#[derive(Debug)]
pub struct OpenNars {
    max_files: usize,
    nars: Mutex<(LruCache<NarHash, Arc<HeldNar>>, usize)>,
}

/// Piece hashes kept with open nars: with the frame ends, 40 octets each, 5 MiB.
const MAX_OPEN_PIECES: usize = 128 * 1024;

impl OpenNars {
    /// Keeps at most `max_files` open.
    #[must_use]
    pub fn new(max_files: usize) -> Self {
        Self { max_files, nars: Mutex::new((LruCache::unbounded(), 0)) }
    }

    /// An open nar.
    #[must_use]
    pub fn get(&self, nar: &NarHash) -> Option<Arc<HeldNar>> {
        self.nars.lock().0.get(nar).cloned()
    }

    /// Keeps a nar open, if `still_held` says that it has not gone in the meantime.
    pub fn put(&self, held: &Arc<HeldNar>, still_held: impl FnOnce() -> bool) {
        let mut guard = self.nars.lock();
        if !still_held() {
            return;
        }
        let (nars, pieces) = &mut *guard;
        *pieces += piece_count(held);
        if let Some(old) = nars.put(held.nar_hash(), held.clone()) {
            *pieces -= piece_count(&old);
        }
        while nars.len() > self.max_files || *pieces > MAX_OPEN_PIECES {
            let Some((_, old)) = nars.pop_lru() else { break };
            *pieces -= piece_count(&old);
        }
    }

    /// Keeps a nar open no longer.
    pub fn remove(&self, nar: &NarHash) {
        let mut guard = self.nars.lock();
        if let Some(old) = guard.0.pop(nar) {
            guard.1 -= piece_count(&old);
        }
    }
}

fn piece_count(held: &HeldNar) -> usize {
    held.list().hashes().len()
}
