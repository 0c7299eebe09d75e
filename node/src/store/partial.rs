//! A nar on its way in, piece by piece, in `partial/`.
//!
//! Frames are appended as they come. When they came in order, the finished file is the very file
//! that was written, with the description added; otherwise it is copied in order first. What an
//! interrupted fetch leaves, and the log beside it, is described in `leftovers`.

use super::Inner;
use super::Store;
use super::cache::remove_file;
use super::error::{AtPath, StoreError};
use super::format::Description;
use super::frame::{check_frame, decode_frame};
use super::held::{HeldNar, read_exact_at, read_piece_at};
use super::leftovers::{
    FrameRecord, HEADER_BYTES, RECORD_BYTES, SUFFIX, encode_header, encode_record, log_path,
    read_records,
};
use super::room::Leftover;
use bytes::Bytes;
use narswarm_protocol::hash::{NarHash, Root};
use narswarm_protocol::piece::{PieceLayout, PieceList};
use parking_lot::Mutex;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tracing::warn;

/// Nars of fewer pieces get no log: they are fetched again sooner than it pays.
const MIN_LOGGED_PIECES: u32 = 8;

/// Where a piece's frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Missing,
    /// A thread is at it.
    Writing,
    Written {
        offset: u64,
        len: u32,
    },
}

#[derive(Debug)]
struct State {
    slots: Vec<Slot>,
    /// Where the next frame goes.
    end: u64,
    /// Where the next record of the log goes.
    log_end: u64,
    /// What was counted against the quota.
    charged_bytes: u64,
    /// The file has been moved or removed.
    over: bool,
}

/// A nar being written. Dropped unfinished, it is left for [`Store::resume`] if that pays.
pub struct PartialNar {
    inner: Arc<Inner>,
    nar: NarHash,
    layout: PieceLayout,
    path: PathBuf,
    file: File,
    log: Option<File>,
    state: Mutex<State>,
}

impl fmt::Debug for PartialNar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PartialNar({})", self.nar)
    }
}

impl Store {
    /// Begins to write a nar from nothing. What an interrupted fetch of it has left is removed.
    ///
    /// # Errors
    /// [`StoreError::Full`], [`StoreError::OverQuota`] and other failures of the disk.
    pub fn begin(&self, nar: &NarHash, layout: PieceLayout) -> Result<PartialNar, StoreError> {
        if let Some(leftover) = self.inner.room.leftovers.lock().remove(nar) {
            self.inner.room.remove_partial(leftover.bytes);
            remove_file(&leftover.path)?;
            remove_file(&log_path(&leftover.path))?;
        }
        PartialNar::create(&self.inner, nar, layout)
    }

    /// Goes on with what an interrupted fetch of this nar has left, if anything. The frames in it
    /// are those that were written, by their checksums; whoever goes on hashes them again.
    ///
    /// # Errors
    /// As [`Store::begin`].
    pub fn resume(&self, nar: &NarHash, layout: PieceLayout) -> Result<PartialNar, StoreError> {
        let leftover = self.inner.room.leftovers.lock().remove(nar);
        if let Some(leftover) = leftover {
            self.inner.room.remove_partial(leftover.bytes);
            match PartialNar::adopt(&self.inner, nar, layout, &leftover) {
                Ok(Some(partial)) => return Ok(partial),
                Ok(None) => {}
                Err(error) => warn!("what a fetch has left is of no use: {error}"),
            }
            remove_file(&leftover.path)?;
            remove_file(&log_path(&leftover.path))?;
        }
        PartialNar::create(&self.inner, nar, layout)
    }
}

impl PartialNar {
    pub(super) fn create(
        inner: &Arc<Inner>,
        nar: &NarHash,
        layout: PieceLayout,
    ) -> Result<Self, StoreError> {
        let number = inner.next_partial.fetch_add(1, Ordering::Relaxed);
        let path = inner.partial_dir.join(format!("{nar}-{number}{SUFFIX}"));
        let file = create_new(&path)?;
        let mut log = None;
        if layout.piece_count() >= MIN_LOGGED_PIECES {
            let path = log_path(&path);
            let file = create_new(&path)?;
            file.write_all_at(&encode_header(nar, layout), 0).at("write", &path)?;
            log = Some(file);
        }
        let state = State {
            slots: vec![Slot::Missing; layout.piece_count() as usize],
            end: 0,
            log_end: HEADER_BYTES as u64,
            charged_bytes: 0,
            over: false,
        };
        let inner = inner.clone();
        Ok(Self { inner, nar: *nar, layout, path, file, log, state: Mutex::new(state) })
    }

    /// Takes over a leftover; `None` when its log speaks of another nar or layout.
    fn adopt(
        inner: &Arc<Inner>,
        nar: &NarHash,
        layout: PieceLayout,
        leftover: &Leftover,
    ) -> Result<Option<Self>, StoreError> {
        let open =
            |path: &Path| OpenOptions::new().read(true).write(true).open(path).at("open", path);
        let path = leftover.path.clone();
        let log_path = log_path(&path);
        let (file, mut log) = (open(&path)?, open(&log_path)?);
        let mut octets = Vec::new();
        log.read_to_end(&mut octets).at("read", &log_path)?;
        let Some(records) = octets.strip_prefix(encode_header(nar, layout).as_slice()) else {
            return Ok(None);
        };
        let (records, whole) = read_records(records, layout);
        let mut slots = vec![Slot::Missing; layout.piece_count() as usize];
        let mut end = 0;
        for (index, record) in records {
            let frame = match read_exact_at(&file, record.offset, record.len as usize) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => continue,
                read => read.at("read", &path)?,
            };
            if crc32fast::hash(&frame) == record.crc {
                end = end.max(record.offset + u64::from(record.len));
                slots[index as usize] = Slot::Written { offset: record.offset, len: record.len };
            }
        }
        inner.charge(end)?;
        let log_end = (HEADER_BYTES + whole * RECORD_BYTES) as u64;
        let state = State { slots, end, log_end, charged_bytes: end, over: false };
        let inner = inner.clone();
        let state = Mutex::new(state);
        Ok(Some(Self { inner, nar: *nar, layout, path, file, log: Some(log), state }))
    }

    /// Which nar this will be.
    #[must_use]
    pub fn nar_hash(&self) -> NarHash {
        self.nar
    }

    /// How it is cut.
    #[must_use]
    pub fn layout(&self) -> PieceLayout {
        self.layout
    }

    /// Whether piece `index` is written.
    #[must_use]
    pub fn has(&self, index: u32) -> bool {
        self.slot(index).is_some()
    }

    /// For each piece whether it is written.
    #[must_use]
    pub fn have(&self) -> Vec<bool> {
        let state = self.state.lock();
        state.slots.iter().map(|slot| matches!(slot, Slot::Written { .. })).collect()
    }

    fn slot(&self, index: u32) -> Option<(u64, u32)> {
        match self.state.lock().slots.get(index as usize) {
            Some(&Slot::Written { offset, len }) => Some((offset, len)),
            _ => None,
        }
    }

    /// Writes the frame of a piece, whose content the caller has checked; a piece that is there
    /// already stays as it is. Several threads may write at once, and read what is written.
    ///
    /// # Errors
    /// [`StoreError::Full`], [`StoreError::OverQuota`] and other failures of the disk: then the
    /// piece is missing and all others are as they were. [`StoreError::Frame`] for what can't be
    /// the frame of that piece.
    pub fn write_piece(&self, index: u32, frame: &[u8]) -> Result<(), StoreError> {
        let piece_len = self.layout.piece_len(index);
        if piece_len == 0 {
            return Err(StoreError::NoSuchPiece { nar: self.nar, piece: index });
        }
        check_frame(frame, piece_len).map_err(|source| StoreError::Frame {
            nar: self.nar,
            piece: index,
            source,
        })?;
        let len = frame.len() as u64;
        let offset = {
            let mut state = self.state.lock();
            if state.over || state.slots[index as usize] != Slot::Missing {
                return Ok(());
            }
            state.slots[index as usize] = Slot::Writing;
            let offset = state.end;
            state.end += len;
            offset
        };
        let written = self.inner.charge(len).and_then(|()| {
            self.file.write_all_at(frame, offset).at("write", &self.path).inspect_err(|_| {
                self.inner.room.remove_partial(len);
            })
        });
        let mut state = self.state.lock();
        if let Err(error) = written {
            state.slots[index as usize] = Slot::Missing;
            if state.end == offset + len {
                state.end = offset;
            }
            return Err(error);
        }
        state.slots[index as usize] = Slot::Written { offset, len: frame.len() as u32 };
        if state.over {
            // Abandoned meanwhile.
            self.inner.room.remove_partial(len);
            return Ok(());
        }
        state.charged_bytes += len;
        drop(state);
        self.log(index, frame.len() as u32, offset, crc32fast::hash(frame));
        Ok(())
    }

    /// Notes in the log where a piece is. A piece that isn't noted is fetched again after an
    /// interruption, nothing worse.
    fn log(&self, index: u32, len: u32, offset: u64, crc: u32) {
        let Some(log) = &self.log else { return };
        let record = encode_record(index, &FrameRecord { len, offset, crc });
        let at = {
            let mut state = self.state.lock();
            let at = state.log_end;
            state.log_end += RECORD_BYTES as u64;
            at
        };
        let _ = log.write_all_at(&record, at);
    }

    /// The frame of a piece that is written.
    ///
    /// # Errors
    /// What the system says; `NotFound` when the piece isn't there.
    pub fn read_frame(&self, index: u32) -> io::Result<Bytes> {
        let (offset, len) = self.slot(index).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("piece {index} of nar {} is not there yet", self.nar),
            )
        })?;
        read_piece_at(&self.file, offset, len as usize)
    }

    /// A piece that is written, decoded to its `len` octets.
    ///
    /// # Errors
    /// As [`PartialNar::read_frame`]; `InvalidData` when it no longer decodes.
    pub fn read_piece(&self, index: u32, len: usize) -> io::Result<Bytes> {
        let frame = self.read_frame(index)?;
        decode_frame(&frame, len).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Forgets a piece, which turned out wrong, so that it can be written again.
    pub fn discard(&self, index: u32) {
        let mut state = self.state.lock();
        if let Some(slot @ Slot::Written { .. }) = state.slots.get_mut(index as usize) {
            *slot = Slot::Missing;
            drop(state);
            self.log(index, 0, 0, 0);
        }
    }

    /// Makes a nar of the cache of it. The caller has hashed the whole nar to its NarHash and
    /// gives the piece list that follows from the same content.
    ///
    /// # Errors
    /// [`StoreError::Incomplete`], [`StoreError::Root`], and failures of the disk. What is written
    /// stays, so that it may be tried again.
    pub fn finish(&self, list: &PieceList, root: Root) -> Result<Arc<HeldNar>, StoreError> {
        let found = list.root(&self.nar);
        if list.layout() != self.layout || found != root {
            return Err(StoreError::Root { nar: self.nar, given: root, found });
        }
        let frames = self.frames()?;
        let description = Description {
            nar_hash: self.nar,
            list: list.clone(),
            root,
            frame_lens: frames.iter().map(|&(_, len)| len).collect(),
        };
        let frames_len = description.frames_len();
        let tail = description.encode();
        let ordered_path = self.path.with_extension("ordered");
        let (path, file) = if are_in_order(&frames) {
            (&self.path, self.file.try_clone().at("open", &self.path)?)
        } else {
            (&ordered_path, self.copy_in_order(&ordered_path, &frames, frames_len)?)
        };
        let sealed = file
            .write_all_at(&tail, frames_len)
            .and_then(|()| file.set_len(frames_len + tail.len() as u64))
            .and_then(|()| file.sync_all())
            .at("write", path);
        let held = sealed.and_then(|()| self.inner.install(&self.nar, path));
        if held.is_err() && path == &ordered_path {
            let _ = fs::remove_file(&ordered_path);
        }
        let held = held?;
        self.give_up_files();
        Ok(held)
    }

    fn frames(&self) -> Result<Vec<(u64, u32)>, StoreError> {
        let state = self.state.lock();
        let frames = (0..).zip(&state.slots).map(|(piece, slot)| match *slot {
            Slot::Written { offset, len } => Ok((offset, len)),
            _ => Err(StoreError::Incomplete { nar: self.nar, piece }),
        });
        frames.collect()
    }

    fn copy_in_order(
        &self,
        path: &Path,
        frames: &[(u64, u32)],
        frames_len: u64,
    ) -> Result<File, StoreError> {
        self.inner.make_room(frames_len)?;
        let mut ordered = create_new(path)?;
        let copied = runs(frames).into_iter().try_for_each(|(offset, len)| {
            let mut source = self.file.try_clone()?;
            source.seek(SeekFrom::Start(offset))?;
            // On Linux this copies within the kernel.
            match io::copy(&mut source.take(len), &mut ordered)? {
                copied if copied == len => Ok(()),
                _ => Err(io::ErrorKind::UnexpectedEof.into()),
            }
        });
        if copied.is_err() {
            let _ = fs::remove_file(path);
        }
        copied.at("write", path)?;
        Ok(ordered)
    }

    /// Removes what is written.
    pub fn abandon(&self) {
        self.give_up_files();
    }

    fn give_up_files(&self) {
        let charged_bytes = {
            let mut state = self.state.lock();
            if std::mem::replace(&mut state.over, true) {
                return;
            }
            std::mem::take(&mut state.charged_bytes)
        };
        self.inner.room.remove_partial(charged_bytes);
        let log = self.log.as_ref().map(|_| log_path(&self.path));
        for path in std::iter::once(&self.path).chain(&log) {
            if let Err(error) = remove_file(path) {
                warn!("{error}");
            }
        }
    }
}

impl Drop for PartialNar {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        if state.over {
            return;
        }
        let bytes = state.charged_bytes;
        if self.log.is_none() || bytes == 0 {
            return self.give_up_files();
        }
        let leftover = Leftover { path: self.path.clone(), bytes };
        let replaced = self.inner.room.leftovers.lock().insert(self.nar, leftover);
        if let Some(other) = replaced {
            self.inner.room.remove_partial(other.bytes);
            let _ = fs::remove_file(log_path(&other.path));
            let _ = fs::remove_file(&other.path);
        }
    }
}

/// Whether the frames lie one behind the other from the beginning of the file.
fn are_in_order(frames: &[(u64, u32)]) -> bool {
    let mut end = 0;
    frames.iter().all(|&(offset, len)| {
        let follows = offset == end;
        end = offset + u64::from(len);
        follows
    })
}

/// Joins frames that lie one behind the other.
fn runs(frames: &[(u64, u32)]) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for &(offset, len) in frames {
        match runs.last_mut() {
            Some((start, run)) if *start + *run == offset => *run += u64::from(len),
            _ => runs.push((offset, len.into())),
        }
    }
    runs
}

fn create_new(path: &Path) -> Result<File, StoreError> {
    OpenOptions::new().read(true).write(true).create_new(true).open(path).at("create", path)
}
