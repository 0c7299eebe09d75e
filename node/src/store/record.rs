//! Records of the journal.
//!
//! ```text
//! length u32 | crc32 u32 | kind u8 | body
//! ```
//! with little-endian numbers; length counts kind and body, the checksum covers length, kind and
//! body.

use narswarm_protocol::hash::NarHash;
use narswarm_protocol::limits::MAX_NARINFO_BYTES;
use narswarm_protocol::store_path::StoreHash;

/// Length and checksum before each record.
pub(super) const HEADER_BYTES: usize = 8;

/// Kind, store hash and NarHash before a narinfo.
pub(super) const NARINFO_PREFIX_BYTES: usize = 1 + 20 + 32;

/// The longest record: that of the longest narinfo.
pub(super) const MAX_RECORD_BYTES: usize = NARINFO_PREFIX_BYTES + MAX_NARINFO_BYTES;

/// Kinds of records; never reused.
const NARINFO: u8 = 1;
const NAR_CHANGED: u8 = 2;
const NAR_PINNED: u8 = 3;
const NAR_UNPINNED: u8 = 4;

/// A place in the journal, in the order of writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Number of the segment, from 1.
    pub segment: u32,
    /// Octets before it in the segment.
    pub offset: u32,
}

impl Position {
    /// Before everything.
    pub const START: Self = Self { segment: 0, offset: 0 };
}

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record<'a> {
    /// A narinfo of an item, which supersedes earlier ones of it.
    Narinfo {
        /// The item.
        item: StoreHash,
        /// The nar that the narinfo signs.
        nar: NarHash,
        /// The narinfo as it came.
        narinfo: &'a [u8],
    },
    /// A nar has come into the cache or left it; its file tells which.
    NarChanged(NarHash),
    /// A nar has been pinned or unpinned.
    NarPinned(NarHash, bool),
}

impl<'a> Record<'a> {
    /// Appends the record to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend([0; HEADER_BYTES]);
        match self {
            Self::Narinfo { item, nar, narinfo } => {
                out.push(NARINFO);
                out.extend(item.0);
                out.extend(nar.0);
                out.extend(*narinfo);
            }
            Self::NarChanged(nar) => {
                out.push(NAR_CHANGED);
                out.extend(nar.0);
            }
            Self::NarPinned(nar, pinned) => {
                out.push(if *pinned { NAR_PINNED } else { NAR_UNPINNED });
                out.extend(nar.0);
            }
        }
        let len = (out.len() - start - HEADER_BYTES) as u32;
        out[start..start + 4].copy_from_slice(&len.to_le_bytes());
        let crc = checksum(len, &out[start + HEADER_BYTES..]);
        out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads kind and body; `None` for kinds of later versions.
    pub fn decode(record: &'a [u8]) -> Option<Self> {
        let (&kind, body) = record.split_first()?;
        if kind == NARINFO {
            let (item, body) = body.split_first_chunk()?;
            let (nar, narinfo) = body.split_first_chunk()?;
            return Some(Self::Narinfo { item: StoreHash(*item), nar: NarHash(*nar), narinfo });
        }
        let nar = NarHash(body.try_into().ok()?);
        match kind {
            NAR_CHANGED => Some(Self::NarChanged(nar)),
            NAR_PINNED => Some(Self::NarPinned(nar, true)),
            NAR_UNPINNED => Some(Self::NarPinned(nar, false)),
            _ => None,
        }
    }
}

fn checksum(len: u32, record: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&len.to_le_bytes());
    hasher.update(record);
    hasher.finalize()
}

/// Where a record lies, header included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// Where it begins.
    pub position: Position,
    /// Octets of kind and body.
    pub len: u32,
}

/// Kind and body of a record whose length and checksum are right.
pub(super) fn whole_record(octets: &[u8]) -> Option<&[u8]> {
    let (len, rest) = octets.split_first_chunk()?;
    let (crc, record) = rest.split_first_chunk()?;
    let len = u32::from_le_bytes(*len);
    let whole = record.len() == len as usize && checksum(len, record) == u32::from_le_bytes(*crc);
    whole.then_some(record)
}
