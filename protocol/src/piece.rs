//! Pieces, piece lists and roots: how a nar is cut so that many peers can give parts of it.
//!
//! A piece is 256 KiB, doubled until a nar has at most 4,096 pieces, so the layout follows from
//! the signed NarSize alone. Guix signs only the whole nar's hash: a piece list is a hint until
//! the whole nar has hashed to the signed value. A root commits to everything a piece list says.

use crate::hash::{NarHash, PieceHash, Root};
use crate::limits::{MAX_NAR_BYTES, MAX_PIECES, MIN_PIECE_BYTES};
use std::ops::Range;

/// Separates roots from every other use of BLAKE3.
const ROOT_DOMAIN: &str = "narswarm 2026-11 piece list root";

/// How a nar of a given size is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PieceLayout {
    nar_size: u64,
    piece_size: u64,
}

impl PieceLayout {
    /// The layout of a nar of `nar_size` octets; `None` above [`MAX_NAR_BYTES`].
    #[must_use]
    pub fn new(nar_size: u64) -> Option<Self> {
        if nar_size > MAX_NAR_BYTES {
            return None;
        }
        let mut piece_size = MIN_PIECE_BYTES;
        while nar_size.div_ceil(piece_size) > u64::from(MAX_PIECES) {
            piece_size *= 2;
        }
        Some(Self { nar_size, piece_size })
    }

    /// Octets of the whole nar.
    #[must_use]
    pub fn nar_size(&self) -> u64 {
        self.nar_size
    }

    /// Octets of every piece but the last.
    #[must_use]
    pub fn piece_size(&self) -> u64 {
        self.piece_size
    }

    /// How many pieces there are; an empty nar has none.
    #[must_use]
    pub fn piece_count(&self) -> u32 {
        // At most MAX_PIECES by construction.
        self.nar_size.div_ceil(self.piece_size) as u32
    }

    /// The octets of piece `index` within the nar; empty past the end.
    #[must_use]
    pub fn piece_range(&self, index: u32) -> Range<u64> {
        let start = (u64::from(index) * self.piece_size).min(self.nar_size);
        start..(start + self.piece_size).min(self.nar_size)
    }

    /// How many octets piece `index` has; 0 past the end.
    #[must_use]
    pub fn piece_len(&self, index: u32) -> usize {
        let range = self.piece_range(index);
        (range.end - range.start) as usize
    }

    /// The piece that holds the octet at `offset`.
    #[must_use]
    pub fn piece_at(&self, offset: u64) -> u32 {
        (offset / self.piece_size).min(u64::from(u32::MAX)) as u32
    }
}

/// The hash of each piece of a nar, in order, as many as the layout has pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PieceList {
    layout: PieceLayout,
    hashes: Vec<PieceHash>,
}

/// A piece list with another number of hashes than the layout has pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a piece list of {found} hashes for a nar of {expected} pieces")]
pub struct PieceListError {
    /// Pieces of the layout.
    pub expected: u32,
    /// Hashes given.
    pub found: usize,
}

impl PieceList {
    /// Joins a layout and its hashes.
    ///
    /// # Errors
    /// Refuses another number of hashes than pieces.
    pub fn new(layout: PieceLayout, hashes: Vec<PieceHash>) -> Result<Self, PieceListError> {
        let expected = layout.piece_count();
        if hashes.len() != expected as usize {
            return Err(PieceListError { expected, found: hashes.len() });
        }
        Ok(Self { layout, hashes })
    }

    /// The layout that the list is for.
    #[must_use]
    pub fn layout(&self) -> PieceLayout {
        self.layout
    }

    /// The hashes in order.
    #[must_use]
    pub fn hashes(&self) -> &[PieceHash] {
        &self.hashes
    }

    /// Whether `bytes` are piece `index`.
    #[must_use]
    pub fn matches(&self, index: u32, bytes: &[u8]) -> bool {
        bytes.len() == self.layout.piece_len(index)
            && self.hashes.get(index as usize).is_some_and(|hash| *hash == hash_piece(bytes))
    }

    /// Whether piece `index` has `len` octets.
    #[must_use]
    pub fn matches_len(&self, index: u32, len: usize) -> bool {
        index < self.layout.piece_count() && self.layout.piece_len(index) == len
    }

    /// The root for the nar of this hash.
    #[must_use]
    pub fn root(&self, nar_hash: &NarHash) -> Root {
        let mut hasher = blake3::Hasher::new_derive_key(ROOT_DOMAIN);
        hasher.update(&nar_hash.0);
        hasher.update(&self.layout.nar_size.to_le_bytes());
        hasher.update(&self.layout.piece_size.to_le_bytes());
        for hash in &self.hashes {
            hasher.update(&hash.0);
        }
        Root(*hasher.finalize().as_bytes())
    }
}

/// BLAKE3 of a piece's octets.
#[must_use]
pub fn hash_piece(bytes: &[u8]) -> PieceHash {
    PieceHash(*blake3::hash(bytes).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_double_above_a_gibibyte() {
        let layout = |size| PieceLayout::new(size).expect("within the limit");
        assert_eq!(layout(0).piece_count(), 0);
        assert_eq!(layout(1).piece_count(), 1);
        assert_eq!(layout(1 << 30).piece_size(), MIN_PIECE_BYTES);
        assert_eq!(layout(1 << 30).piece_count(), MAX_PIECES);
        assert_eq!(layout((1 << 30) + 1).piece_size(), 2 * MIN_PIECE_BYTES);
        assert!(PieceLayout::new(MAX_NAR_BYTES + 1).is_none());
    }

    #[test]
    fn a_root_depends_on_everything() {
        let layout = PieceLayout::new(300 * 1024).expect("layout");
        let list = |a, b| {
            PieceList::new(layout, vec![PieceHash([a; 32]), PieceHash([b; 32])]).expect("list")
        };
        let root = list(1, 2).root(&NarHash([0; 32]));
        assert_ne!(root, list(2, 1).root(&NarHash([0; 32])));
        assert_ne!(root, list(1, 2).root(&NarHash([1; 32])));
        assert!(PieceList::new(layout, vec![]).is_err());
    }

    proptest! {
        #[test]
        fn pieces_tile_the_nar(nar_size in 0..=MAX_NAR_BYTES) {
            let layout = PieceLayout::new(nar_size).expect("layout");
            prop_assert!(layout.piece_count() <= MAX_PIECES);
            let last = layout.piece_count().saturating_sub(1);
            prop_assert_eq!(layout.piece_range(last).end, nar_size);
            prop_assert!(nar_size == 0 || layout.piece_len(last) > 0);
            prop_assert_eq!(layout.piece_len(layout.piece_count()), 0);
        }
    }
}
