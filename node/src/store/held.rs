//! A nar of the cache: a file of zstd frames, one for each piece, that stays readable as long as
//! somebody holds it, even after it has been evicted.

use super::format::{Description, FOOTER_BYTES, FormatError, tail_len_from_footer};
use super::frame::{FrameError, decode_frame};
use crate::buffers;
use bytes::Bytes;
use narswarm_protocol::hash::{NarHash, Root};
use narswarm_protocol::piece::PieceList;
use rustix::buffer::spare_capacity;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// What is wrong with a nar of the cache.
#[derive(Debug, thiserror::Error)]
pub enum HeldError {
    /// The file can't be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is cut off or its description is damaged.
    #[error("{}: {source}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: FormatError,
    },
    /// The file holds another nar than its name says.
    #[error("{} holds nar {found}", path.display())]
    OtherNar {
        /// The file.
        path: PathBuf,
        /// The nar in it.
        found: NarHash,
    },
    /// A frame no longer decodes.
    #[error("{}: piece {piece} is damaged: {source}", path.display())]
    Frame {
        /// The file.
        path: PathBuf,
        /// Which piece.
        piece: u32,
        /// What is wrong with its frame.
        source: FrameError,
    },
    /// A piece no longer has its hash.
    #[error("{}: piece {piece} is damaged: it has another hash", path.display())]
    Hash {
        /// The file.
        path: PathBuf,
        /// Which piece.
        piece: u32,
    },
    /// A piece index past the end of the nar.
    #[error("{} has no piece {piece}", path.display())]
    NoSuchPiece {
        /// The file.
        path: PathBuf,
        /// The index.
        piece: u32,
    },
}

impl HeldError {
    /// Whether the file itself is bad, as opposed to the system failing to read it or to a wrong
    /// question.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Format { .. }
            | Self::OtherNar { .. }
            | Self::Frame { .. }
            | Self::Hash { .. } => true,
            Self::Io { .. } | Self::NoSuchPiece { .. } => false,
        }
    }
}

/// An open nar of the cache.
#[derive(Debug)]
pub struct HeldNar {
    path: PathBuf,
    file: File,
    file_len: u64,
    nar_hash: NarHash,
    root: Root,
    list: PieceList,
    /// Where each frame ends, in order.
    ends: Vec<u64>,
}

impl HeldNar {
    /// Opens the file of nar `expected` and reads its description: two reads, no hashing of
    /// content.
    ///
    /// # Errors
    /// See [`HeldError`].
    pub(super) fn open(path: PathBuf, expected: &NarHash) -> Result<Self, HeldError> {
        let held = Self::open_any(path)?;
        if held.nar_hash != *expected {
            return Err(HeldError::OtherNar { path: held.path, found: held.nar_hash });
        }
        Ok(held)
    }

    fn open_any(path: PathBuf) -> Result<Self, HeldError> {
        let (file, file_len, tail) = match read_tail(&path) {
            Ok(Ok(read)) => read,
            Ok(Err(source)) => return Err(HeldError::Format { path, source }),
            Err(source) => return Err(HeldError::Io { path, source }),
        };
        let description = match Description::decode(&tail, file_len) {
            Ok(description) => description,
            Err(source) => return Err(HeldError::Format { path, source }),
        };
        let Description { nar_hash, list, root, frame_lens } = description;
        let ends = frame_lens
            .iter()
            .scan(0, |end, &len| {
                *end += u64::from(len);
                Some(*end)
            })
            .collect();
        Ok(Self { path, file, file_len, nar_hash, root, list, ends })
    }

    /// Which nar this is.
    #[must_use]
    pub fn nar_hash(&self) -> NarHash {
        self.nar_hash
    }

    /// The root over its piece list.
    #[must_use]
    pub fn root(&self) -> Root {
        self.root
    }

    /// Its piece hashes and layout.
    #[must_use]
    pub fn list(&self) -> &PieceList {
        &self.list
    }

    /// The file; it may have been evicted in the meantime.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Octets of the whole file.
    #[must_use]
    pub fn file_len(&self) -> u64 {
        self.file_len
    }

    /// Octets of the zstd form of the nar: all frames, without the description behind them.
    #[must_use]
    pub fn zstd_len(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Where the frame of piece `index` lies in the file; empty past the last piece.
    #[must_use]
    pub fn frame_range(&self, index: u32) -> Range<u64> {
        let index = index as usize;
        let start = match index.checked_sub(1) {
            None => 0,
            Some(previous) => self.ends.get(previous).copied().unwrap_or(self.zstd_len()),
        };
        start..self.ends.get(index).copied().unwrap_or(start)
    }

    /// The zstd frame of piece `index`, as it lies on the disk. Whoever gets it finds out by its
    /// hash whether the disk still has it right.
    ///
    /// # Errors
    /// What the system says; `InvalidInput` past the last piece.
    pub fn frame(&self, index: u32) -> io::Result<Bytes> {
        let range = self.frame_range(index);
        if range.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} has no piece {index}", self.path.display()),
            ));
        }
        self.read_zstd(range.start, (range.end - range.start) as usize)
    }

    /// `len` octets of the zstd form from `offset` on. The caller stays within
    /// [`HeldNar::zstd_len`].
    ///
    /// # Errors
    /// What the system says; `UnexpectedEof` when the file has been cut off under us.
    pub fn read_zstd(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        read_piece_at(&self.file, offset, len)
    }

    /// Piece `index`, decoded and checked against its hash: rot on the disk is noticed here.
    ///
    /// # Errors
    /// See [`HeldError`].
    pub fn piece(&self, index: u32) -> Result<Bytes, HeldError> {
        let piece_len = self.list.layout().piece_len(index);
        if piece_len == 0 {
            return Err(HeldError::NoSuchPiece { path: self.path.clone(), piece: index });
        }
        let frame = self
            .frame(index)
            .map_err(|source| HeldError::Io { path: self.path.clone(), source })?;
        let piece = decode_frame(&frame, piece_len).map_err(|source| HeldError::Frame {
            path: self.path.clone(),
            piece: index,
            source,
        })?;
        if !self.list.matches(index, &piece) {
            return Err(HeldError::Hash { path: self.path.clone(), piece: index });
        }
        Ok(piece)
    }

    /// Reads and checks every piece.
    ///
    /// # Errors
    /// See [`HeldError`].
    pub fn verify(&self) -> Result<(), HeldError> {
        (0..self.list.layout().piece_count()).try_for_each(|index| self.piece(index).map(drop))
    }
}

type Tail = (File, u64, Vec<u8>);

fn read_tail(path: &Path) -> io::Result<Result<Tail, FormatError>> {
    let file = File::open(path)?;
    let file_len = file.metadata()?.len();
    let Some(footer_at) = file_len.checked_sub(FOOTER_BYTES as u64) else {
        return Ok(Err(FormatError::Footer));
    };
    let footer = read_exact_at(&file, footer_at, FOOTER_BYTES)?;
    let footer = footer.first_chunk().expect("just read as many octets");
    let tail_len = match tail_len_from_footer(footer) {
        Ok(tail_len) => tail_len,
        Err(error) => return Ok(Err(error)),
    };
    let Some(tail_at) = file_len.checked_sub(tail_len as u64) else {
        return Ok(Err(FormatError::Footer));
    };
    let tail = read_exact_at(&file, tail_at, tail_len)?;
    Ok(Ok((file, file_len, tail)))
}

/// Reads `len` octets at `offset`, as many as a piece may have.
pub(super) fn read_piece_at(file: &File, offset: u64, len: usize) -> io::Result<Bytes> {
    let mut octets = buffers::take(len);
    FileExt::read_exact_at(file, &mut octets, offset)?;
    Ok(octets.freeze())
}

/// Reads `len` octets at `offset` without zeroing the buffer first.
pub(super) fn read_exact_at(file: &File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut octets = Vec::with_capacity(len);
    while octets.len() < len {
        let at = offset + octets.len() as u64;
        match rustix::io::pread(file, spare_capacity(&mut octets), at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // An allocator may have given more than was asked for.
    octets.truncate(len);
    Ok(octets)
}
