//! Bringing the index in line with the disk, at start and after it has failed.
//!
//! A *checkpoint* says: everything in the journal before this position is in the index, and the
//! index is flushed. Opening after a kill replays the journal from there. When there is no
//! checkpoint, or one of another schema, or the index doesn't open, or it has lost what the
//! checkpoint counted, it is thrown away and made anew from the journal and the cache files.

use super::cache::CacheDir;
use super::data_dir::write_atomically;
use super::entry::{NarEntry, NarinfoEntry};
use super::error::{AtPath, StoreError, is_full};
use super::held::{HeldError, HeldNar};
use super::index::{Counts, Index};
use super::narinfos::Journal;
use super::record::{Position, Record};
use narswarm_protocol::hash::NarHash;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Instant;
use tracing::{info, warn};

/// Raised when the trees of the index change their meaning.
const SCHEMA: u32 = 1;

/// What is known to be in the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Checkpoint {
    schema: u32,
    /// CRC-32 of sled's file, if nothing was written after this: the node closed its store.
    closed_crc: Option<u32>,
    segment: u32,
    offset: u32,
    narinfos: u64,
    nars: u64,
    nar_bytes: u64,
}

impl Checkpoint {
    fn counts(&self) -> Counts {
        let Self { narinfos, nars, nar_bytes, .. } = *self;
        Counts { narinfos, nars, nar_bytes }
    }
}

/// Where index and checkpoint lie.
#[derive(Debug)]
pub struct IndexFiles {
    dir: PathBuf,
    cache_bytes: u64,
}

impl IndexFiles {
    /// Those below `dir`; sled may use `cache_bytes` of memory.
    #[must_use]
    pub fn new(dir: PathBuf, cache_bytes: u64) -> Self {
        Self { dir, cache_bytes }
    }

    fn database(&self) -> PathBuf {
        self.dir.join("db")
    }

    /// Where sled keeps nearly everything, by its format of 0.34.
    fn log_file(&self) -> PathBuf {
        self.database().join("db")
    }

    fn checkpoint(&self) -> PathBuf {
        self.dir.join("checkpoint.json")
    }

    /// Opens the index and brings it up to date, or makes it anew. Nothing may be appended to the
    /// journal meanwhile.
    ///
    /// # Errors
    /// Failures of the file system and of a fresh index.
    pub fn open(&self, journal: &Journal, cache: &CacheDir) -> Result<Index, StoreError> {
        fs::create_dir_all(&self.dir).at("create", &self.dir)?;
        if let Some((index, position)) = self.open_existing(journal)? {
            match replay(&index, journal, cache, position) {
                Err(StoreError::Index { source }) => warn!("the index fails: {source}"),
                replayed => {
                    replayed?;
                    if let Err(error) = self.save(&index, journal.end(), index.counts()) {
                        warn!("no checkpoint: {error}");
                    }
                    return Ok(index);
                }
            }
        }
        self.rebuild(journal, cache)
    }

    /// Throws the index away, so that the next [`IndexFiles::open`] makes it anew.
    ///
    /// # Errors
    /// Failures of the file system.
    pub fn discard(&self) -> Result<(), StoreError> {
        let checkpoint = self.checkpoint();
        match fs::remove_file(&checkpoint) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::io("remove", &checkpoint, error));
            }
            _ => {}
        }
        let database = self.database();
        match fs::remove_dir_all(&database) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::io("remove", &database, error))
            }
            _ => Ok(()),
        }
    }

    /// Flushes the index and notes that it covers the journal up to `position`, where it had
    /// `counts`.
    ///
    /// # Errors
    /// What sled says, and failures of the file system.
    pub fn save(
        &self,
        index: &Index,
        position: Position,
        counts: Counts,
    ) -> Result<(), StoreError> {
        index.flush()?;
        self.write_checkpoint(position, counts, None)
    }

    /// As [`IndexFiles::save`], for good: the next start finds that nothing has changed and
    /// needn't walk over everything to be sure.
    ///
    /// # Errors
    /// As [`IndexFiles::save`].
    pub fn close(
        &self,
        index: Index,
        position: Position,
        counts: Counts,
    ) -> Result<(), StoreError> {
        index.flush()?;
        drop(index);
        let path = self.log_file();
        let crc = checksum_file(&path).at("read", &path)?;
        self.write_checkpoint(position, counts, Some(crc))
    }

    fn write_checkpoint(
        &self,
        position: Position,
        counts: Counts,
        closed_crc: Option<u32>,
    ) -> Result<(), StoreError> {
        let Position { segment, offset } = position;
        let Counts { narinfos, nars, nar_bytes } = counts;
        let checkpoint =
            Checkpoint { schema: SCHEMA, closed_crc, segment, offset, narinfos, nars, nar_bytes };
        let text = serde_json::to_vec(&checkpoint).expect("numbers serialise");
        let path = self.checkpoint();
        write_atomically(&path, &text, 0o644).at("write", &path)
    }

    /// The index as it lies there, if it can be trusted, and the position that it covers.
    fn open_existing(&self, journal: &Journal) -> Result<Option<(Index, Position)>, StoreError> {
        let database = self.database();
        if !database.exists() {
            return Ok(None);
        }
        let checkpoint = match read_checkpoint(&self.checkpoint()) {
            Ok(checkpoint) => checkpoint,
            Err(why) => {
                warn!("the index of the store is of no use: {why}");
                return Ok(None);
            }
        };
        let position = Position { segment: checkpoint.segment, offset: checkpoint.offset };
        let Some(beyond_bytes) = journal.bytes_after(position)? else {
            warn!("the index of the store knows more than the journal has");
            return Ok(None);
        };
        let log_file = self.log_file();
        let untouched = beyond_bytes == 0
            && checkpoint.closed_crc.is_some()
            && checkpoint.closed_crc == checksum_file(&log_file).ok();
        // sled panics on some kinds of damage.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let index = Index::open(&database, self.cache_bytes)?;
            if untouched {
                index.set_counts(checkpoint.counts());
            } else {
                index.recount()?;
            }
            Ok::<_, sled::Error>(index)
        }));
        let index = match opened {
            Ok(Ok(index)) => index,
            Ok(Err(sled::Error::Io(error))) if is_full(&error) => {
                return Err(sled::Error::Io(error).into());
            }
            Ok(Err(error)) => {
                warn!("the index of the store doesn't open: {error}");
                return Ok(None);
            }
            Err(_) => {
                warn!("the index of the store is damaged beyond sled's understanding");
                return Ok(None);
            }
        };
        let found = index.counts().narinfos;
        if found < checkpoint.narinfos {
            warn!("the index of the store has lost {} narinfos", checkpoint.narinfos - found);
            return Ok(None);
        }
        Ok(Some((index, position)))
    }

    fn rebuild(&self, journal: &Journal, cache: &CacheDir) -> Result<Index, StoreError> {
        let start = Instant::now();
        self.discard()?;
        let index = Index::open(&self.database(), self.cache_bytes)?;
        replay(&index, journal, cache, Position::START)?;
        cache.for_each(&mut |nar| {
            if index.nar(&nar)?.is_none() {
                reconcile(&index, cache, &nar)?;
            }
            Ok(())
        })?;
        let counts = index.counts();
        self.save(&index, journal.end(), counts)?;
        if counts != Counts::default() {
            info!(
                "made the index anew from {} narinfos and {} nars in {:.1} s",
                counts.narinfos,
                counts.nars,
                start.elapsed().as_secs_f64()
            );
        }
        Ok(index)
    }
}

fn checksum_file(path: &Path) -> io::Result<u32> {
    let mut file = File::open(path)?;
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize()),
            len => hasher.update(&buffer[..len]),
        }
    }
}

fn read_checkpoint(path: &Path) -> Result<Checkpoint, String> {
    let text = fs::read(path).map_err(|error| format!("no checkpoint: {error}"))?;
    let checkpoint: Checkpoint =
        serde_json::from_slice(&text).map_err(|error| format!("a strange checkpoint: {error}"))?;
    if checkpoint.schema != SCHEMA {
        return Err(format!("its schema is {}, not {SCHEMA}", checkpoint.schema));
    }
    Ok(checkpoint)
}

/// Applies the journal from `position` on. Applying a record twice does no harm.
fn replay(
    index: &Index,
    journal: &Journal,
    cache: &CacheDir,
    position: Position,
) -> Result<(), StoreError> {
    journal.replay(position, &mut |location, record| {
        match record {
            Record::Narinfo { item, nar, .. } => {
                index.set_narinfo(&item, &NarinfoEntry { location, nar })?;
            }
            Record::NarChanged(nar) => reconcile(index, cache, &nar)?,
            Record::NarPinned(nar, pinned) => {
                index.set_pinned(&nar, pinned)?;
            }
        }
        Ok(())
    })
}

/// Makes the index say of a nar what its file says. A damaged file goes.
fn reconcile(index: &Index, cache: &CacheDir, nar: &NarHash) -> Result<(), StoreError> {
    match HeldNar::open(cache.path_of(nar), nar) {
        Ok(held) => {
            let known = index.nar(nar)?;
            let last_use = known.map_or_else(|| cache.last_written(nar), |known| known.last_use);
            let pinned = known.is_some_and(|known| known.pinned);
            index.set_nar(nar, &NarEntry { file_len: held.file_len(), last_use, pinned })?;
        }
        Err(HeldError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            index.remove_nar(nar)?;
        }
        Err(error) if error.is_damage() => {
            warn!("removing a damaged nar from the cache: {error}");
            cache.remove(nar)?;
            index.remove_nar(nar)?;
        }
        Err(error) => {
            // It may be readable another time; until then it isn't held.
            warn!("leaving a nar of the cache out: {error}");
            index.remove_nar(nar)?;
        }
    }
    Ok(())
}
