//! Which pieces of a nar somebody holds.

use crate::limits::MAX_PIECES;
use std::fmt;

/// A set of piece indices of a nar with a given number of pieces, at most [`MAX_PIECES`].
#[derive(Clone, PartialEq, Eq)]
pub struct PieceSet {
    /// One bit a piece, the first in the highest bit of the first octet; spare bits are zero.
    bits: Vec<u8>,
    count: u32,
}

impl PieceSet {
    /// No piece of `count`, which is cut to [`MAX_PIECES`].
    #[must_use]
    pub fn none(count: u32) -> Self {
        let count = count.min(MAX_PIECES);
        Self { bits: vec![0; count.div_ceil(8) as usize], count }
    }

    /// All `count` pieces, which is cut to [`MAX_PIECES`].
    #[must_use]
    pub fn all(count: u32) -> Self {
        let mut set = Self::none(count);
        set.bits.fill(0xff);
        let spare = set.bits.len() as u32 * 8 - set.count;
        if let Some(last) = set.bits.last_mut() {
            *last <<= spare;
        }
        set
    }

    /// Reads a bitfield for `count` pieces: the first piece is the highest bit of the first octet.
    /// `None` for another length than `count` needs, or when spare bits are set.
    #[must_use]
    pub fn from_bits(bits: &[u8], count: u32) -> Option<Self> {
        let spare = (bits.len() as u64 * 8).checked_sub(count.into()).filter(|&spare| spare < 8)?;
        let clear = bits.last().is_none_or(|last| last & ((1u16 << spare) - 1) as u8 == 0);
        (clear && count <= MAX_PIECES).then(|| Self { bits: bits.to_vec(), count })
    }

    /// The bitfield that [`PieceSet::from_bits`] reads.
    #[must_use]
    pub fn as_bits(&self) -> &[u8] {
        &self.bits
    }

    /// Of how many pieces this is a subset.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Whether the piece is in the set; never for an index past the end.
    #[must_use]
    pub fn contains(&self, index: u32) -> bool {
        self.bits.get(index as usize / 8).is_some_and(|octet| octet & (0x80 >> (index % 8)) != 0)
    }

    /// Puts a piece in; says whether it was not there before. Nothing past the end goes in.
    pub fn insert(&mut self, index: u32) -> bool {
        let new = index < self.count && !self.contains(index);
        if new {
            self.bits[index as usize / 8] |= 0x80 >> (index % 8);
        }
        new
    }

    /// Takes a piece out; says whether it was there.
    pub fn remove(&mut self, index: u32) -> bool {
        let there = self.contains(index);
        if there {
            self.bits[index as usize / 8] &= !(0x80 >> (index % 8));
        }
        there
    }

    /// How many pieces are in the set.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.bits.iter().map(|octet| octet.count_ones()).sum()
    }

    /// Whether no piece is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bits.iter().all(|&octet| octet == 0)
    }

    /// Whether every piece is in the set.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.len() == self.count
    }

    /// The pieces in the set, rising.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.count).filter(|&index| self.contains(index))
    }

    /// The pieces in the set and not in `other`, as `(first, count)` of each run, rising.
    #[must_use]
    pub fn ranges_beyond(&self, other: &Self) -> Vec<(u32, u32)> {
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for index in self.iter().filter(|&index| !other.contains(index)) {
            match ranges.last_mut() {
                Some((first, count)) if *first + *count == index => *count += 1,
                _ => ranges.push((index, 1)),
            }
        }
        ranges
    }
}

impl fmt::Debug for PieceSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PieceSet({} of {})", self.len(), self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn all_and_none_are_what_they_say() {
        for count in [0, 1, 7, 8, 9, 4095, MAX_PIECES] {
            let (all, none) = (PieceSet::all(count), PieceSet::none(count));
            assert!(all.is_all() && none.is_empty());
            assert_eq!((all.len(), none.len()), (count, 0));
            assert!(!all.contains(count));
            assert_eq!(PieceSet::from_bits(all.as_bits(), count), Some(all.clone()));
            assert_eq!(all.ranges_beyond(&none).len(), usize::from(count > 0));
        }
        assert_eq!(PieceSet::none(u32::MAX).count(), MAX_PIECES);
    }

    #[test]
    fn refuses_bitfields_of_another_length_and_spare_bits() {
        assert!(PieceSet::from_bits(&[0x80], 1).is_some());
        assert!(PieceSet::from_bits(&[0xc0], 1).is_none());
        assert!(PieceSet::from_bits(&[0x80, 0], 1).is_none());
        assert!(PieceSet::from_bits(&[], 1).is_none());
        assert!(PieceSet::from_bits(&[0], 0).is_none());
        assert!(PieceSet::from_bits(&[0xff; 1024], 8192).is_none());
    }

    proptest! {
        #[test]
        fn behaves_as_a_set(count in 1..200u32, indices: Vec<u8>, removed: Vec<u8>) {
            let mut set = PieceSet::none(count);
            let mut model = std::collections::BTreeSet::new();
            for index in indices.into_iter().map(u32::from) {
                prop_assert_eq!(set.insert(index), index < count && model.insert(index));
            }
            for index in removed.into_iter().map(u32::from) {
                prop_assert_eq!(set.remove(index), model.remove(&index));
            }
            prop_assert!(set.iter().eq(model.iter().copied()));
            prop_assert_eq!(set.len() as usize, model.len());
            let ranges = set.ranges_beyond(&PieceSet::none(count));
            let spelled = ranges.iter().flat_map(|&(first, count)| first..first + count);
            prop_assert!(spelled.eq(model.iter().copied()));
        }
    }
}
