//! The tail of a cache file: what lies behind the zstd frames of a nar's pieces.
//!
//! ```text
//! piece 0 | piece 1 | … | description | seek table
//! ```
//! Both parts of the tail are zstd *skippable frames* (RFC 8878, 3.1.2), so that the whole file
//! is a valid `.nar.zst`. All numbers are little-endian.
//!
//! - The description tells everything that the index knows about the nar: magic 0x184D2A5C,
//!   length, `narswarm`, version u16, reserved u16, piece count u32, NarHash, NarSize u64, piece
//!   size u64, root, the piece hashes, and a BLAKE3 hash of all that and the seek table.
//! - The seek table is that of the *Zstandard Seekable Format* (zstd's `contrib/seekable_format`):
//!   magic 0x184D2A5E, length, compressed and decompressed size of each frame as u32 (the
//!   description counts as a frame of no content), number of frames u32, descriptor 0, magic
//!   0x8F92EAB1.

use narswarm_protocol::hash::{NarHash, PieceHash, Root};
use narswarm_protocol::limits::MAX_PIECES;
use narswarm_protocol::piece::{PieceLayout, PieceList};

const DESCRIPTION_MAGIC: u32 = 0x184D_2A5C;
const SEEK_TABLE_MAGIC: u32 = 0x184D_2A5E;
const SEEKABLE_FOOTER_MAGIC: u32 = 0x8F92_EAB1;
const NAME: [u8; 8] = *b"narswarm";

/// Raised when the description changes its meaning. Files of other versions are not read; they
/// can be fetched again.
const VERSION: u16 = 1;

/// Magic and length of a skippable frame.
const SKIPPABLE_HEADER_BYTES: usize = 8;
/// Octets of the description before the piece hashes.
const FIXED_BYTES: usize = 8 + 2 + 2 + 4 + 32 + 8 + 8 + 32;
const CHECKSUM_BYTES: usize = 32;
const SEEK_ENTRY_BYTES: usize = 8;

/// The seek table ends in these octets, which tell how long the tail is.
pub const FOOTER_BYTES: usize = 9;

/// Why a file is not a nar of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The file doesn't end in a seek table: it was cut off, or something else wrote it.
    #[error("the file doesn't end in a seek table of a nar; it is cut off or damaged")]
    Footer,
    /// Another version's file.
    #[error("the file is of version {found}, this program reads version {VERSION}")]
    Version {
        /// The version in the file.
        found: u16,
    },
    /// The checksum over the tail doesn't match.
    #[error("the description of the nar is damaged")]
    Checksum,
    /// The numbers in the tail contradict each other.
    #[error("the description of the nar contradicts itself")]
    Contradiction,
    /// The frames don't fill the file up to the tail.
    #[error("the file has {found_bytes} bytes, its seek table speaks of {expected_bytes}")]
    Length {
        /// Frames and tail by the seek table.
        expected_bytes: u64,
        /// Octets of the file.
        found_bytes: u64,
    },
}

/// What the tail of a cache file tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Which nar.
    pub nar_hash: NarHash,
    /// Its piece hashes and layout.
    pub list: PieceList,
    /// The root over both.
    pub root: Root,
    /// Octets of each piece's zstd frame.
    pub frame_lens: Vec<u32>,
}

impl Description {
    /// Octets of all frames together, which is where the tail begins.
    #[must_use]
    pub fn frames_len(&self) -> u64 {
        self.frame_lens.iter().map(|&len| u64::from(len)).sum()
    }

    /// The tail to write behind the frames.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let layout = self.list.layout();
        let pieces = layout.piece_count();
        let mut tail = Vec::with_capacity(tail_len(pieces));
        tail.extend(DESCRIPTION_MAGIC.to_le_bytes());
        tail.extend((description_len(pieces) as u32).to_le_bytes());
        tail.extend(NAME);
        tail.extend(VERSION.to_le_bytes());
        tail.extend([0; 2]);
        tail.extend(pieces.to_le_bytes());
        tail.extend(self.nar_hash.0);
        tail.extend(layout.nar_size().to_le_bytes());
        tail.extend(layout.piece_size().to_le_bytes());
        tail.extend(self.root.0);
        for hash in self.list.hashes() {
            tail.extend(hash.0);
        }
        let table = self.encode_seek_table();
        let checksum = blake3::Hasher::new().update(&tail).update(&table).finalize();
        tail.extend(checksum.as_bytes());
        tail.extend(table);
        tail
    }

    fn encode_seek_table(&self) -> Vec<u8> {
        let layout = self.list.layout();
        let pieces = layout.piece_count();
        let mut table = Vec::with_capacity(seek_table_len(pieces));
        table.extend(SEEK_TABLE_MAGIC.to_le_bytes());
        table.extend(((seek_table_len(pieces) - SKIPPABLE_HEADER_BYTES) as u32).to_le_bytes());
        for (index, len) in (0..).zip(&self.frame_lens) {
            table.extend(len.to_le_bytes());
            table.extend((layout.piece_len(index) as u32).to_le_bytes());
        }
        table.extend(((SKIPPABLE_HEADER_BYTES + description_len(pieces)) as u32).to_le_bytes());
        table.extend(0u32.to_le_bytes());
        table.extend((pieces + 1).to_le_bytes());
        table.push(0);
        table.extend(SEEKABLE_FOOTER_MAGIC.to_le_bytes());
        table
    }

    /// Reads a tail whose length [`tail_len_from_footer`] has told, in a file of `file_len`
    /// octets.
    ///
    /// # Errors
    /// See [`FormatError`].
    pub fn decode(tail: &[u8], file_len: u64) -> Result<Self, FormatError> {
        let mut octets = Octets(tail);
        let magic = octets.u32()?;
        let len = octets.u32()? as usize;
        if magic != DESCRIPTION_MAGIC || octets.array::<8>()? != NAME {
            return Err(FormatError::Footer);
        }
        let version = octets.u16()?;
        if version != VERSION {
            return Err(FormatError::Version { found: version });
        }
        let _reserved = octets.u16()?;
        let pieces = octets.u32()?;
        if pieces > MAX_PIECES || len != description_len(pieces) || tail.len() != tail_len(pieces) {
            return Err(FormatError::Contradiction);
        }
        verify_checksum(tail, pieces)?;
        let nar_hash = NarHash(octets.array()?);
        let nar_size = octets.u64()?;
        let piece_size = octets.u64()?;
        let root = Root(octets.array()?);
        let layout = PieceLayout::new(nar_size).ok_or(FormatError::Contradiction)?;
        let mut hashes = Vec::with_capacity(pieces as usize);
        for _ in 0..pieces {
            hashes.push(PieceHash(octets.array()?));
        }
        let list = PieceList::new(layout, hashes).map_err(|_| FormatError::Contradiction)?;
        if layout.piece_size() != piece_size || list.root(&nar_hash) != root {
            return Err(FormatError::Contradiction);
        }
        octets.array::<CHECKSUM_BYTES>()?;
        let frame_lens = read_seek_table(&mut octets, layout)?;
        let description = Self { nar_hash, list, root, frame_lens };
        let expected_bytes = description.frames_len() + tail.len() as u64;
        if expected_bytes != file_len {
            return Err(FormatError::Length { expected_bytes, found_bytes: file_len });
        }
        Ok(description)
    }
}

fn verify_checksum(tail: &[u8], pieces: u32) -> Result<(), FormatError> {
    let described = SKIPPABLE_HEADER_BYTES + description_len(pieces) - CHECKSUM_BYTES;
    let (description, rest) = tail.split_at(described);
    let (checksum, table) = rest.split_at(CHECKSUM_BYTES);
    let expected = blake3::Hasher::new().update(description).update(table).finalize();
    if expected.as_bytes() == checksum { Ok(()) } else { Err(FormatError::Checksum) }
}

fn read_seek_table(octets: &mut Octets<'_>, layout: PieceLayout) -> Result<Vec<u32>, FormatError> {
    octets.array::<SKIPPABLE_HEADER_BYTES>()?;
    let mut frame_lens = Vec::with_capacity(layout.piece_count() as usize);
    for index in 0..layout.piece_count() {
        frame_lens.push(octets.u32()?);
        if octets.u32()? as usize != layout.piece_len(index) {
            return Err(FormatError::Contradiction);
        }
    }
    Ok(frame_lens)
}

fn description_len(pieces: u32) -> usize {
    FIXED_BYTES + 32 * pieces as usize + CHECKSUM_BYTES
}

fn seek_table_len(pieces: u32) -> usize {
    SKIPPABLE_HEADER_BYTES + SEEK_ENTRY_BYTES * (pieces as usize + 1) + FOOTER_BYTES
}

fn tail_len(pieces: u32) -> usize {
    SKIPPABLE_HEADER_BYTES + description_len(pieces) + seek_table_len(pieces)
}

/// How long the tail is, told by the last [`FOOTER_BYTES`] octets of a file.
///
/// # Errors
/// [`FormatError::Footer`] when they are not the end of a seek table that we write.
pub fn tail_len_from_footer(footer: &[u8; FOOTER_BYTES]) -> Result<usize, FormatError> {
    let mut octets = Octets(footer);
    let frames = octets.u32()?;
    let descriptor = octets.array::<1>()?;
    let magic = octets.u32()?;
    if magic != SEEKABLE_FOOTER_MAGIC || descriptor != [0] || frames > MAX_PIECES + 1 {
        return Err(FormatError::Footer);
    }
    frames.checked_sub(1).map(tail_len).ok_or(FormatError::Footer)
}

/// Octets being read from the front.
struct Octets<'a>(&'a [u8]);

impl Octets<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let (&head, rest) = self.0.split_first_chunk::<N>().ok_or(FormatError::Footer)?;
        self.0 = rest;
        Ok(head)
    }

    fn u16(&mut self) -> Result<u16, FormatError> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, FormatError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, FormatError> {
        self.array().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn description(nar_size: u64) -> Description {
        let layout = PieceLayout::new(nar_size).expect("layout");
        let hashes = (0..layout.piece_count()).map(|i| PieceHash([i as u8; 32])).collect();
        let list = PieceList::new(layout, hashes).expect("list");
        let nar_hash = NarHash([9; 32]);
        let root = list.root(&nar_hash);
        let frame_lens = (0..layout.piece_count()).map(|i| 100 + i).collect();
        Description { nar_hash, list, root, frame_lens }
    }

    fn decode(tail: &[u8], file_len: u64) -> Result<Description, FormatError> {
        let footer = tail.last_chunk().ok_or(FormatError::Footer)?;
        if tail_len_from_footer(footer)? != tail.len() {
            return Err(FormatError::Footer);
        }
        Description::decode(tail, file_len)
    }

    #[test]
    fn tails_survive_for_every_kind_of_layout() {
        for nar_size in [0, 1, 256 << 10, (256 << 10) + 1, 1 << 30, (1 << 30) + 1, 1 << 40] {
            let description = description(nar_size);
            let tail = description.encode();
            let file_len = description.frames_len() + tail.len() as u64;
            assert_eq!(decode(&tail, file_len), Ok(description), "{nar_size}");
        }
    }

    #[test]
    fn the_file_must_be_as_long_as_the_table_says() {
        let description = description(1 << 20);
        let tail = description.encode();
        let file_len = description.frames_len() + tail.len() as u64;
        assert_eq!(
            decode(&tail, file_len - 1),
            Err(FormatError::Length { expected_bytes: file_len, found_bytes: file_len - 1 })
        );
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let description = description(600 << 10);
        let tail = description.encode();
        let file_len = description.frames_len() + tail.len() as u64;
        for bit in 0..tail.len() * 8 {
            let mut flipped = tail.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&flipped, file_len).is_err(), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn hostile_octets_never_panic(octets: Vec<u8>, file_len: u64) {
            let _ = Description::decode(&octets, file_len);
        }
    }
}
