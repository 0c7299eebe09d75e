//! What is held of the nar, what is asked for, and how many hold each piece.

use crate::piece_set::PieceSet;

/// The books on the pieces of one fetch.
#[derive(Debug)]
pub(super) struct Pieces {
    held: PieceSet,
    held_count: u32,
    /// Of how many sources that are not frozen each piece is asked.
    asked: Vec<u8>,
    /// How many peers in use hold each piece.
    available: Vec<u16>,
    /// Every piece before it is held.
    head: u32,
}

impl Pieces {
    pub fn new(count: u32) -> Self {
        let len = count as usize;
        let held = PieceSet::none(count);
        Self { held, held_count: 0, asked: vec![0; len], available: vec![0; len], head: 0 }
    }

    pub fn count(&self) -> u32 {
        self.held.count()
    }

    pub fn held(&self) -> &PieceSet {
        &self.held
    }

    pub fn held_count(&self) -> u32 {
        self.held_count
    }

    pub fn missing_count(&self) -> u32 {
        self.count() - self.held_count
    }

    pub fn is_complete(&self) -> bool {
        self.held_count == self.count()
    }

    /// The first piece that is not held; past the end when all are.
    pub fn head(&self) -> u32 {
        self.head
    }

    /// Notes that a piece is held; says whether it wasn't before.
    pub fn hold(&mut self, index: u32) -> bool {
        let new = self.held.insert(index);
        if new {
            self.held_count += 1;
            while self.held.contains(self.head) {
                self.head += 1;
            }
        }
        new
    }

    /// Notes that a piece, after all, is not held.
    pub fn lose(&mut self, index: u32) {
        if self.held.remove(index) {
            self.held_count -= 1;
            self.head = self.head.min(index);
        }
    }

    /// Whether a piece is neither held nor asked for.
    pub fn is_fresh(&self, index: u32) -> bool {
        self.asked.get(index as usize) == Some(&0) && !self.held.contains(index)
    }

    /// Of how many sources a piece is asked.
    pub fn asked(&self, index: u32) -> u8 {
        self.asked.get(index as usize).copied().unwrap_or(0)
    }

    pub fn ask(&mut self, index: u32) {
        if let Some(asked) = self.asked.get_mut(index as usize) {
            *asked = asked.saturating_add(1);
        }
    }

    pub fn release(&mut self, index: u32) {
        if let Some(asked) = self.asked.get_mut(index as usize) {
            *asked = asked.saturating_sub(1);
        }
    }

    /// How many peers in use hold a piece.
    pub fn available(&self, index: u32) -> u16 {
        self.available.get(index as usize).copied().unwrap_or(0)
    }

    /// A peer that is used now holds `have`.
    pub fn gain(&mut self, have: &PieceSet) {
        for index in have.iter() {
            self.gain_one(index);
        }
    }

    /// A peer that is used holds one more piece.
    pub fn gain_one(&mut self, index: u32) {
        if let Some(available) = self.available.get_mut(index as usize) {
            *available = available.saturating_add(1);
        }
    }

    /// A peer that held `have` is used no more.
    pub fn forgo(&mut self, have: &PieceSet) {
        for index in have.iter() {
            self.forgo_one(index);
        }
    }

    /// A peer that is used doesn't hold a piece after all.
    pub fn forgo_one(&mut self, index: u32) {
        if let Some(available) = self.available.get_mut(index as usize) {
            *available = available.saturating_sub(1);
        }
    }
}

/// Joins rising indices to `(first, count)` of each run.
pub(super) fn runs(indices: &[u32]) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for &index in indices {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == index => *count += 1,
            _ => runs.push((index, 1)),
        }
    }
    runs
}

/// A number that differs between nodes (by `seed`) and between pieces or peers, to break ties: so
/// that the members of a crowd begin with different pieces. The finalizer of SplitMix64.
pub(super) fn tie(seed: u64, index: u32) -> u64 {
    let mut x = seed.wrapping_add(u64::from(index).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_follows_what_is_held_and_what_is_lost() {
        let mut pieces = Pieces::new(4);
        assert!(pieces.hold(1) && !pieces.hold(1) && !pieces.hold(9));
        assert_eq!(pieces.head(), 0);
        assert!(pieces.hold(0));
        assert_eq!((pieces.head(), pieces.missing_count()), (2, 2));
        pieces.lose(0);
        assert_eq!((pieces.head(), pieces.held_count()), (0, 1));
    }

    #[test]
    fn runs_join_neighbours() {
        assert_eq!(runs(&[1, 2, 3, 7, 9, 10]), [(1, 3), (7, 1), (9, 2)]);
    }

    #[test]
    fn ties_are_broken_differently_by_different_seeds() {
        let order = |seed| {
            let mut all: Vec<u32> = (0..32).collect();
            all.sort_by_key(|&index| tie(seed, index));
            all
        };
        assert_ne!(order(1), order(2));
        assert_eq!(order(1), order(1));
    }
}
