//! The journal: narinfos as an append-only log in segment files, and with them every change to
//! what the cache holds. It is the truth of which the index is a digest.
//!
//! A segment is `narinfos/0000000001.log` and so on: eight octets of magic, then records as
//! `record` describes them. A record is durable once [`Journal::sync`] has returned for its
//! position; one `fdatasync` serves all threads that wait for it. What a crash leaves half-written
//! at the end of the last segment is cut off at the next start.

use super::error::{AtPath, StoreError};
use super::held::read_exact_at;
use super::record::{
    HEADER_BYTES, Location, MAX_RECORD_BYTES, NARINFO_PREFIX_BYTES, Position, Record, whole_record,
};
use lru::LruCache;
use narswarm_protocol::store_path::StoreHash;
use parking_lot::Mutex;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tracing::warn;

const MAGIC: [u8; 8] = *b"nswjrnl1";

/// A segment is left for the next at this length: few enough files for millions of narinfos,
/// and offsets that fit in 32 bits.
const SEGMENT_BYTES: u64 = 64 << 20;

/// Segments kept open for reading: those of the last four gigabytes, a hundredth of the usual
/// limit on open files.
const OPEN_SEGMENTS: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");

/// The journal of one data directory.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    appender: Mutex<Appender>,
    synced: Mutex<Synced>,
    readers: Mutex<LruCache<u32, Arc<File>>>,
}

#[derive(Debug)]
struct Appender {
    segment: u32,
    file: Option<Arc<File>>,
    /// Where the next record goes.
    offset: u64,
    /// Set when the disk failed to keep what was written: this segment gets no more.
    spoilt: bool,
}

impl Appender {
    fn position(&self) -> Position {
        // `position` has refused what wouldn't fit.
        Position { segment: self.segment, offset: self.offset as u32 }
    }
}

#[derive(Debug)]
struct Synced {
    upto: Position,
    /// Where in their segments the disk failed: what follows there may be gone. A few at most,
    /// since each costs a segment.
    lost: Vec<Position>,
}

impl Journal {
    /// Opens the journal; nothing may be appended before [`Journal::replay`] has found its end.
    ///
    /// # Errors
    /// Failures of the file system.
    pub fn open(dir: PathBuf) -> Result<Self, StoreError> {
        fs::create_dir_all(&dir).at("create", &dir)?;
        let segment = segments(&dir)?.last().copied().unwrap_or(0);
        let appender = Appender { segment, file: None, offset: 0, spoilt: false };
        Ok(Self {
            dir,
            appender: Mutex::new(appender),
            synced: Mutex::new(Synced { upto: Position::START, lost: Vec::new() }),
            readers: Mutex::new(LruCache::new(OPEN_SEGMENTS)),
        })
    }

    /// Appends records in order; returns where each lies and where the last one ends. Not durable
    /// before [`Journal::sync`] returns for that end.
    ///
    /// # Errors
    /// Failures of the file system; then none of them counts.
    pub fn append(&self, records: &[Record<'_>]) -> Result<(Vec<Location>, Position), StoreError> {
        let mut appender = self.appender.lock();
        if appender.spoilt || appender.file.is_none() || appender.offset >= SEGMENT_BYTES {
            self.begin_segment(&mut appender)?;
        }
        let mut octets = Vec::new();
        let mut locations = Vec::with_capacity(records.len());
        for record in records {
            let start = octets.len();
            record.encode(&mut octets);
            locations.push(Location {
                position: position(appender.segment, appender.offset + start as u64)?,
                len: (octets.len() - start - HEADER_BYTES) as u32,
            });
        }
        let end = position(appender.segment, appender.offset + octets.len() as u64)?;
        let path = segment_path(&self.dir, appender.segment);
        let file = appender.file.as_ref().expect("begun above");
        if let Err(error) = file.write_all_at(&octets, appender.offset) {
            // What was half-written goes; if even that fails, the next record overwrites it.
            let _ = file.set_len(appender.offset);
            return Err(StoreError::io("append to", &path, error));
        }
        appender.offset = u64::from(end.offset);
        Ok((locations, end))
    }

    fn begin_segment(&self, appender: &mut Appender) -> Result<(), StoreError> {
        if let (Some(file), false) = (&appender.file, appender.spoilt) {
            file.sync_data().at("sync", &segment_path(&self.dir, appender.segment))?;
        }
        let segment = appender.segment + 1;
        let path = segment_path(&self.dir, segment);
        let begun = open_segment(&path).and_then(|file| {
            file.set_len(0)?;
            file.write_all_at(&MAGIC, 0)?;
            file.sync_all()?;
            File::open(&self.dir)?.sync_all()?;
            Ok(file)
        });
        let file = begun.at("begin", &path)?;
        *appender = Appender {
            segment,
            file: Some(Arc::new(file)),
            offset: MAGIC.len() as u64,
            spoilt: false,
        };
        Ok(())
    }

    /// Makes everything before `end` durable. Threads that wait for each other share one
    /// `fdatasync`.
    ///
    /// # Errors
    /// Failures of the file system; then nothing that wasn't durable before counts as such.
    pub fn sync(&self, end: Position) -> Result<(), StoreError> {
        let mut synced = self.synced.lock();
        let path = segment_path(&self.dir, end.segment);
        if synced.lost.iter().any(|l| l.segment == end.segment && l.offset < end.offset) {
            let earlier = io::Error::other("the disk failed to keep what was written before");
            return Err(StoreError::io("sync", &path, earlier));
        }
        if synced.upto >= end {
            return Ok(());
        }
        let (file, reached) = {
            let appender = self.appender.lock();
            (appender.file.clone(), appender.position())
        };
        let Some(file) = file else { return Ok(()) };
        if let Err(error) = file.sync_data() {
            // The system forgets what it failed to write, so a later success means nothing.
            let kept = if synced.upto.segment == reached.segment { synced.upto.offset } else { 0 };
            synced.lost.push(Position { segment: reached.segment, offset: kept });
            let mut appender = self.appender.lock();
            appender.spoilt |= appender.segment == reached.segment;
            return Err(StoreError::io("sync", &path, error));
        }
        // Earlier segments were synced when they were left.
        synced.upto = reached;
        Ok(())
    }

    /// Where the next record would go.
    #[must_use]
    pub fn end(&self) -> Position {
        self.appender.lock().position()
    }

    /// How many octets of segments lie behind `position` by the lengths of their files; `None` if
    /// the journal doesn't reach as far.
    ///
    /// # Errors
    /// Failures of the file system.
    pub fn bytes_after(&self, position: Position) -> Result<Option<u64>, StoreError> {
        if position.segment == 0 {
            return Ok(Some(segments(&self.dir)?.len() as u64));
        }
        let mut bytes = None;
        for segment in segments(&self.dir)?.into_iter().filter(|&s| s >= position.segment) {
            let path = segment_path(&self.dir, segment);
            let len = fs::metadata(&path).at("examine", &path)?.len();
            bytes = match bytes {
                None if segment == position.segment => len.checked_sub(position.offset.into()),
                None => None,
                Some(bytes) => Some(bytes + len),
            };
        }
        Ok(bytes)
    }

    /// The narinfo at `location`; `None` when what lies there is not a whole narinfo record of
    /// `item`, which means that the disk or the index has it wrong.
    ///
    /// # Errors
    /// Failures of the file system.
    pub fn read(
        &self,
        location: Location,
        item: &StoreHash,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let path = segment_path(&self.dir, location.position.segment);
        if location.len as usize > MAX_RECORD_BYTES {
            return Ok(None);
        }
        let read = self.reader(location.position.segment).and_then(|file| {
            let len = HEADER_BYTES + location.len as usize;
            read_exact_at(&file, u64::from(location.position.offset), len)
        });
        let mut octets = match read {
            Err(error) if is_absence(&error) => return Ok(None),
            read => read.at("read", &path)?,
        };
        let Some(record) = whole_record(&octets) else { return Ok(None) };
        match Record::decode(record) {
            Some(Record::Narinfo { item: found, .. }) if found == *item => {
                octets.drain(..HEADER_BYTES + NARINFO_PREFIX_BYTES);
                Ok(Some(octets))
            }
            _ => Ok(None),
        }
    }

    fn reader(&self, segment: u32) -> io::Result<Arc<File>> {
        let mut readers = self.readers.lock();
        if let Some(file) = readers.get(&segment) {
            return Ok(file.clone());
        }
        let file = Arc::new(File::open(segment_path(&self.dir, segment))?);
        readers.put(segment, file.clone());
        Ok(file)
    }

    /// Hands every whole record from `from` on to `each`, in order. A record that the disk has
    /// garbled is skipped; a half-written end of the last segment is cut off. Afterwards the
    /// journal can be appended to.
    ///
    /// # Errors
    /// Failures of the file system, and what `each` returns.
    pub fn replay(
        &self,
        from: Position,
        each: &mut dyn FnMut(Location, Record<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut appender = self.appender.lock();
        let last = appender.segment;
        for segment in segments(&self.dir)?.into_iter().filter(|&s| s >= from.segment) {
            let path = segment_path(&self.dir, segment);
            let file = open_segment(&path).at("open", &path)?;
            let len = file.metadata().at("examine", &path)?.len();
            if !begins_with_magic(&file).at("read", &path)? {
                // A beginning that was interrupted, or not ours: the next record goes elsewhere.
                warn!("{} is not a journal segment; leaving it alone", path.display());
                continue;
            }
            let start = if segment == from.segment { u64::from(from.offset) } else { 0 };
            let start = start.max(MAGIC.len() as u64).min(len);
            let octets = read_exact_at(&file, start, (len - start) as usize).at("read", &path)?;
            let end = start + replay_segment(segment, start, &octets, each)? as u64;
            if segment < last {
                continue;
            }
            if end < len {
                warn!("cutting {} half-written bytes off {}", len - end, path.display());
                file.set_len(end).at("cut", &path)?;
            }
            file.sync_data().at("sync", &path)?;
            let reached = position(segment, end)?;
            appender.file = Some(Arc::new(file));
            appender.offset = end;
            self.synced.lock().upto = reached;
        }
        Ok(())
    }
}

fn begins_with_magic(file: &File) -> io::Result<bool> {
    match read_exact_at(file, 0, MAGIC.len()) {
        Ok(octets) => Ok(octets == MAGIC),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads the records in `octets`, which begin at offset `base` of the segment; returns where in
/// `octets` the last whole record ends. A garbled record is stepped over, so that what follows it
/// isn't lost with it.
fn replay_segment(
    segment: u32,
    base: u64,
    octets: &[u8],
    each: &mut dyn FnMut(Location, Record<'_>) -> Result<(), StoreError>,
) -> Result<usize, StoreError> {
    let (mut at, mut end, mut garbled, mut garbled_before_end) = (0, 0, 0, 0);
    while let Some(rest) = octets.get(at..).filter(|rest| rest.len() > HEADER_BYTES) {
        let len = u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
        if len == 0 || len > MAX_RECORD_BYTES || rest.len() < HEADER_BYTES + len {
            break;
        }
        let next = at + HEADER_BYTES + len;
        if let Some(record) = whole_record(&rest[..HEADER_BYTES + len]) {
            let position = position(segment, base + at as u64)?;
            if let Some(record) = Record::decode(record) {
                each(Location { position, len: len as u32 }, record)?;
            }
            (end, garbled_before_end) = (next, garbled);
        } else {
            garbled += 1;
        }
        at = next;
    }
    if garbled_before_end > 0 {
        warn!("{garbled_before_end} damaged records of journal segment {segment} are left out");
    }
    Ok(end)
}

fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof)
}

fn position(segment: u32, offset: u64) -> Result<Position, StoreError> {
    // A batch begun below SEGMENT_BYTES would have to be 4 GiB long to get here.
    let offset = u32::try_from(offset).map_err(|_| {
        io::Error::new(io::ErrorKind::InvalidInput, "too large a batch of narinfos")
    })?;
    Ok(Position { segment, offset })
}

fn segment_path(dir: &Path, segment: u32) -> PathBuf {
    dir.join(format!("{segment:010}.log"))
}

fn open_segment(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o644).open(path)
}

fn segments(dir: &Path) -> Result<Vec<u32>, StoreError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).at("list", dir)? {
        let name = entry.at("list", dir)?.file_name();
        let digits = name.to_str().and_then(|name| name.strip_suffix(".log"));
        if let Some(segment) = digits.filter(|d| d.len() == 10).and_then(|d| d.parse().ok()) {
            found.push(segment);
        }
    }
    found.sort_unstable();
    Ok(found)
}
