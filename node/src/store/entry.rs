//! Values of the index: what is noted of a narinfo and of a nar, and how.

use super::record::{Location, Position};
use narswarm_protocol::hash::NarHash;

/// Where the narinfo of an item is, and of which nar it speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NarinfoEntry {
    /// Its record in the journal.
    pub location: Location,
    /// The nar.
    pub nar: NarHash,
}

/// A nar of the cache. What else is known of it, its file tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NarEntry {
    /// Octets of its file.
    pub file_len: u64,
    /// When it was last used, in the unit of `use_time`.
    pub last_use: u32,
    /// Whether it may be evicted.
    pub pinned: bool,
}

pub(super) fn encode_narinfo(entry: &NarinfoEntry) -> [u8; 44] {
    let mut value = [0; 44];
    value[..4].copy_from_slice(&entry.location.position.segment.to_be_bytes());
    value[4..8].copy_from_slice(&entry.location.position.offset.to_be_bytes());
    value[8..12].copy_from_slice(&entry.location.len.to_be_bytes());
    value[12..].copy_from_slice(&entry.nar.0);
    value
}

pub(super) fn decode_narinfo(value: &[u8]) -> Result<NarinfoEntry, sled::Error> {
    let (segment, rest) = value.split_first_chunk().ok_or_else(malformed)?;
    let (offset, rest) = rest.split_first_chunk().ok_or_else(malformed)?;
    let (len, rest) = rest.split_first_chunk().ok_or_else(malformed)?;
    let position =
        Position { segment: u32::from_be_bytes(*segment), offset: u32::from_be_bytes(*offset) };
    let location = Location { position, len: u32::from_be_bytes(*len) };
    let nar = NarHash(rest.try_into().map_err(|_| malformed())?);
    Ok(NarinfoEntry { location, nar })
}

pub(super) fn encode_nar(entry: &NarEntry) -> [u8; 13] {
    let mut value = [0; 13];
    value[..8].copy_from_slice(&entry.file_len.to_be_bytes());
    value[8..12].copy_from_slice(&entry.last_use.to_be_bytes());
    value[12] = u8::from(entry.pinned);
    value
}

pub(super) fn decode_nar(value: &[u8]) -> Result<NarEntry, sled::Error> {
    let (file_len, rest) = value.split_first_chunk().ok_or_else(malformed)?;
    let (last_use, rest) = rest.split_first_chunk().ok_or_else(malformed)?;
    let &[pinned] = rest else { return Err(malformed()) };
    Ok(NarEntry {
        file_len: u64::from_be_bytes(*file_len),
        last_use: u32::from_be_bytes(*last_use),
        pinned: pinned != 0,
    })
}

/// What sled would say of a value that it has garbled.
pub(super) fn malformed() -> sled::Error {
    sled::Error::Corruption { at: None, bt: () }
}
