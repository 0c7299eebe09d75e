//! Going through nodes by their distance to a place, without sorting them.

use super::place::Position;

/// A node in the order of the key space.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub position: Position,
    /// Where it is in its owner's list.
    pub at: u32,
    /// What is asked of many nodes at once is kept here, so that they needn't be looked at: they lie all
    /// over the memory. Which network it is in, shortened.
    pub network: NetworkTag,
    pub standing: Standing,
    /// There is a connection to it.
    pub connected: bool,
}

/// Sixteen bits of a network's number: of those who move to another, one in 65,536 isn't seen to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NetworkTag(u16);

impl NetworkTag {
    pub fn of(network: Option<u64>) -> Self {
        // The leading bits of a product depend on all bits of its factors: 2^64 by the golden ratio.
        Self(network.map_or(0, |number| (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u16))
    }
}

/// What came of asking a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing yet.
    New,
    /// It has answered, and not failed since: so it doesn't rest.
    Proven,
    /// It has failed last, and may rest.
    Failed,
}

/// Goes through places by their distance to a target. Whatever shares more leading bits with it is
/// nearer, so a part of the order of the key space is followed by its other half.
pub(super) struct ByDistance<'a> {
    places: &'a [Place],
    target: Position,
    /// Parts to come, the next one last: at most one for each bit of a position, and one more.
    parts: [(u32, u32); 65],
    count: usize,
}

impl<'a> ByDistance<'a> {
    /// Of places in the order of the key space, nearest to the target first.
    pub fn new(places: &'a [Place], target: Position) -> Self {
        let mut all = Self { places, target, parts: [(0, 0); 65], count: 0 };
        all.push(0, places.len());
        all
    }

    fn push(&mut self, from: usize, to: usize) {
        if from < to {
            self.parts[self.count] = (from as u32, to as u32);
            self.count += 1;
        }
    }
}

impl<'a> Iterator for ByDistance<'a> {
    type Item = &'a Place;

    fn next(&mut self) -> Option<&'a Place> {
        loop {
            self.count = self.count.checked_sub(1)?;
            let (from, to) = self.parts[self.count];
            let (from, to) = (from as usize, to as usize);
            let first = &self.places[from];
            let differ = first.position.0 ^ self.places[to - 1].position.0;
            let Some(bit) = differ.checked_ilog2() else {
                // All that is left of this part is in one place.
                self.push(from + 1, to);
                return Some(first);
            };
            let part = &self.places[from..to];
            let is_low = |place: &Place| place.position.0 >> bit & 1 == 0;
            let middle =
                if to - from == 2 { from + 1 } else { from + part.partition_point(is_low) };
            if self.target.0 >> bit & 1 == 0 {
                self.push(middle, to);
                self.push(from, middle);
            } else {
                self.push(from, middle);
                self.push(middle, to);
            }
        }
    }
}
