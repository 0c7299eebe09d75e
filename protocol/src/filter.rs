//! Filters of what a seed holds, small enough to be given away whole.
//!
//! Whoever has the filter of a seed knows what it is worth asking it for: it says yes to what the
//! seed holds, and to one in some forty of other things. It is a set of *fingerprints*, the leading
//! bits of item keys, sorted and coded in some 7.3 bits an item. Who doesn't know an item's name can't
//! tell from it that the seed holds it.
//!
//! ```text
//! part of the first fingerprints | part of the next | …
//! part: octets u16, little-endian | a set of numbers, see `golomb`
//! ```
//!
//! Parts are equal shares of the key space, so that a look decodes some hundred numbers and no
//! more. Why not a fuse filter, which is as large and looked up faster: what has changed of a set of
//! fingerprints can be told in two octets each, while a fuse filter changes in all places.
//!
//! A seed's filter has a *series*, within which fingerprints mean the same, and *generations*. Of
//! each the seed signs a [`FilterHead`], and gives the whole or what has changed since.
//!
//! - `golomb`: how numbers are coded;
//! - `head`: what is signed;
//! - [`publisher`]: a seed's filters, one after another;
//! - [`credit`]: whether a seed has what its filter says; [`choice`]: which seeds are used.

pub mod choice;
pub mod credit;
mod golomb;
mod head;
pub mod publisher;
#[cfg(test)]
mod tests;

pub use golomb::CodeError;
pub use head::{FilterHead, SignedHead};

use crate::announce::ItemKey;
use crate::limits::{MAX_DELTA_ITEMS, MAX_FILTER_BYTES, MAX_FILTER_ITEMS, MAX_PART_ITEMS};
use std::sync::Arc;

/// Bits of a fingerprint beyond those that tell all items apart: of things that the seed doesn't hold
/// the filter says yes to one in 2^5 at most while the series is new.
const PRECISION_BITS: u32 = 5;

/// The least that is left of them when a series has grown.
const LEAST_PRECISION_BITS: u32 = 4;

/// The shortest fingerprints: short filters cost nothing.
const MIN_BITS: u32 = 16;

/// Most items of one part of a new series, as a power of two: half a kilobyte, some microseconds to
/// look through. With fewer the parts' lengths would take more than a hundredth of the filter.
const PART_ITEMS_LOG: u32 = 9;

/// How fingerprints and parts are made, in one series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    bits: u32,
    part_bits: u32,
}

/// Why octets are no filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// Fingerprints or parts of a size that is not used.
    #[error("a filter of fingerprints of {bits} bits in 2^{part_bits} parts")]
    Shape {
        /// Bits of a fingerprint.
        bits: u32,
        /// Parts, as a power of two.
        part_bits: u32,
    },
    /// It ends within a part, or goes on behind the last.
    #[error("a filter whose parts are not as many as it says")]
    Parts,
    /// A part, or a list of changes, isn't what it should be.
    #[error(transparent)]
    Code(#[from] CodeError),
    /// So many items that it would say yes to everything.
    #[error("a filter of {items} items, which says yes too often")]
    Dense {
        /// Items in it.
        items: u64,
    },
    /// It isn't what was signed.
    #[error("a filter is not the one that was signed")]
    Unsigned,
    /// Changes of another filter: what is to go isn't there, or what is to come is.
    #[error("changes that don't fit the filter")]
    Unfitting,
}

impl Shape {
    /// The shape for so many items, and as many again.
    #[must_use]
    pub fn for_items(items: u64) -> Self {
        let log = items.clamp(1, MAX_FILTER_ITEMS).next_power_of_two().ilog2();
        Self {
            bits: (log + PRECISION_BITS).clamp(MIN_BITS, 32),
            part_bits: log.saturating_sub(PART_ITEMS_LOG),
        }
    }

    /// A shape that somebody names.
    ///
    /// # Errors
    /// [`FilterError::Shape`].
    pub fn new(bits: u8, part_bits: u8) -> Result<Self, FilterError> {
        let (bits, part_bits) = (bits.into(), part_bits.into());
        let fits = (MIN_BITS..=32).contains(&bits) && part_bits + PART_ITEMS_LOG <= bits;
        if fits {
            Ok(Self { bits, part_bits })
        } else {
            Err(FilterError::Shape { bits, part_bits })
        }
    }

    /// Bits of a fingerprint.
    #[must_use]
    pub fn bits(self) -> u8 {
        self.bits as u8
    }

    /// Parts, as a power of two.
    #[must_use]
    pub fn part_bits(self) -> u8 {
        self.part_bits as u8
    }

    /// How many parts there are.
    #[must_use]
    pub fn parts(self) -> usize {
        1 << self.part_bits
    }

    /// Whether it still does for so many items.
    #[must_use]
    pub fn suffices(self, items: u64) -> bool {
        items <= 1 << (self.bits - LEAST_PRECISION_BITS)
    }

    /// The fingerprint of a key, by its leading 32 bits.
    fn fingerprint(self, leading: u32) -> u32 {
        leading >> (32 - self.bits)
    }

    /// In which part a fingerprint is, and which number of it.
    fn place(self, fingerprint: u32) -> (usize, u32) {
        let number_bits = self.number_bits();
        let mask = ((1_u64 << number_bits) - 1) as u32;
        ((u64::from(fingerprint) >> number_bits) as usize, fingerprint & mask)
    }

    fn number_bits(self) -> u32 {
        self.bits - self.part_bits
    }
}

/// The leading bits of a key, of which fingerprints are made.
#[must_use]
pub fn leading(key: &ItemKey) -> u32 {
    let [a, b, c, d, ..] = key.0;
    u32::from_be_bytes([a, b, c, d])
}

/// Where the parts of a filter lie in its octets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    shape: Shape,
    /// Where each ends, its length included.
    ends: Vec<u32>,
}

impl Parts {
    /// Finds the parts in the octets of a whole filter.
    ///
    /// # Errors
    /// [`FilterError::Parts`].
    pub fn of(shape: Shape, octets: &[u8]) -> Result<Self, FilterError> {
        let mut ends = Vec::new();
        let mut end = 0;
        if octets.len() > MAX_FILTER_BYTES || shape.parts() * 2 > octets.len() {
            return Err(FilterError::Parts);
        }
        for _ in 0..shape.parts() {
            let len = octets.get(end..).and_then(|rest| rest.first_chunk()).copied();
            end += 2 + usize::from(u16::from_le_bytes(len.ok_or(FilterError::Parts)?));
            ends.push(end as u32);
        }
        if end != octets.len() {
            return Err(FilterError::Parts);
        }
        Ok(Self { shape, ends })
    }

    /// Where the part lies in which an item would be.
    #[must_use]
    pub fn range(&self, key: &ItemKey) -> std::ops::Range<usize> {
        let (part, _) = self.shape.place(self.shape.fingerprint(leading(key)));
        self.part(part)
    }

    /// Octets of the whole filter.
    #[must_use]
    pub fn octets(&self) -> usize {
        self.ends.last().map_or(0, |end| *end as usize)
    }

    fn part(&self, index: usize) -> std::ops::Range<usize> {
        let before = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        before as usize + 2..self.ends[index] as usize
    }

    /// Whether the filter says yes to an item, by the octets at [`Parts::range`].
    ///
    /// # Errors
    /// [`FilterError::Code`].
    pub fn says_yes(&self, key: &ItemKey, part: &[u8]) -> Result<bool, FilterError> {
        let (_, number) = self.shape.place(self.shape.fingerprint(leading(key)));
        Ok(golomb::contains(part, self.shape.number_bits(), MAX_PART_ITEMS, number)?)
    }
}

/// A whole filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Shared with those who are being given it.
    octets: Arc<Vec<u8>>,
    parts: Parts,
    items: u64,
}

/// What has changed of a filter.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Delta {
    /// Fingerprints that have come, rising.
    pub came: Vec<u32>,
    /// Fingerprints that have gone, rising.
    pub gone: Vec<u32>,
}

impl Filter {
    /// The filter of items with these leading bits, in any order.
    #[must_use]
    pub fn build(shape: Shape, leading: &mut Vec<u32>) -> Self {
        leading.iter_mut().for_each(|bits| *bits = shape.fingerprint(*bits));
        leading.sort_unstable();
        leading.dedup();
        let mut rest = leading.as_slice();
        Self::assemble(shape, |part, out| {
            let end = rest.partition_point(|fingerprint| shape.place(*fingerprint).0 <= part);
            let (these, others) = rest.split_at(end);
            rest = others;
            out.extend(these.iter().map(|fingerprint| shape.place(*fingerprint).1));
        })
    }

    /// Codes the numbers of each part, as `fill` gives them.
    fn assemble(shape: Shape, mut fill: impl FnMut(usize, &mut Vec<u32>)) -> Self {
        let (mut octets, mut ends, mut items) = (Vec::new(), Vec::new(), 0);
        let mut numbers = Vec::new();
        for part in 0..shape.parts() {
            numbers.clear();
            fill(part, &mut numbers);
            // Chance makes no part so full; of one that is, some items aren't found.
            numbers.truncate(MAX_PART_ITEMS);
            items += numbers.len() as u64;
            append(&mut octets, &golomb::encode(&numbers, shape.number_bits()));
            ends.push(octets.len() as u32);
        }
        Self { octets: Arc::new(octets), parts: Parts { shape, ends }, items }
    }

    /// Reads a whole filter, and whether it is well made.
    ///
    /// # Errors
    /// See [`FilterError`].
    pub fn from_octets(shape: Shape, octets: Vec<u8>) -> Result<Self, FilterError> {
        let parts = Parts::of(shape, &octets)?;
        let mut items = 0;
        for index in 0..shape.parts() {
            let part = &octets[parts.part(index)];
            items += golomb::decode(part, shape.number_bits(), MAX_PART_ITEMS)?.len() as u64;
        }
        if !shape.suffices(items) {
            return Err(FilterError::Dense { items });
        }
        Ok(Self { octets: Arc::new(octets), parts, items })
    }

    /// As it travels.
    #[must_use]
    pub fn octets(&self) -> &Arc<Vec<u8>> {
        &self.octets
    }

    /// How fingerprints and parts are made.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.parts.shape
    }

    /// Different fingerprints, which are a few less than items.
    #[must_use]
    pub fn items(&self) -> u64 {
        self.items
    }

    /// Whether it says yes to an item.
    #[must_use]
    pub fn says_yes(&self, key: &ItemKey) -> bool {
        let part = &self.octets[self.parts.range(key)];
        self.parts.says_yes(key, part).expect("a filter that was built or checked")
    }

    fn numbers(&self, part: usize) -> Vec<u32> {
        let (octets, bits) = (&self.octets[self.parts.part(part)], self.shape().number_bits());
        golomb::decode(octets, bits, MAX_PART_ITEMS).expect("a filter that was built or checked")
    }

    /// This filter after some changes.
    ///
    /// # Errors
    /// [`FilterError::Unfitting`], [`FilterError::Dense`].
    pub fn apply(&self, delta: &Delta) -> Result<Self, FilterError> {
        let shape = self.shape();
        let (mut came, mut gone) = (delta.came.as_slice(), delta.gone.as_slice());
        let (mut octets, mut ends, mut items) = (Vec::new(), Vec::new(), 0);
        for part in 0..shape.parts() {
            let (come, go) = (share(shape, part, &mut came), share(shape, part, &mut gone));
            if come.is_empty() && go.is_empty() {
                let kept = &self.octets[self.parts.part(part)];
                items += golomb::count(kept)?;
                append(&mut octets, kept);
            } else {
                let before = self.numbers(part);
                let is_there = |number: &u32| before.binary_search(number).is_ok();
                if !go.iter().all(is_there) || come.iter().any(is_there) {
                    return Err(FilterError::Unfitting);
                }
                let mut numbers: Vec<u32> =
                    before.iter().copied().filter(|n| go.binary_search(n).is_err()).collect();
                numbers.extend(come);
                numbers.sort_unstable();
                if numbers.len() > MAX_PART_ITEMS {
                    return Err(FilterError::Dense { items: self.items });
                }
                items += numbers.len() as u64;
                append(&mut octets, &golomb::encode(&numbers, shape.number_bits()));
            }
            ends.push(octets.len() as u32);
        }
        if !came.is_empty() || !gone.is_empty() {
            return Err(FilterError::Unfitting);
        }
        if !shape.suffices(items) {
            return Err(FilterError::Dense { items });
        }
        Ok(Self { octets: Arc::new(octets), parts: Parts { shape, ends }, items })
    }

    /// What makes this filter out of `earlier`, of the same shape.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Delta {
        let shape = self.shape();
        debug_assert_eq!(shape, earlier.shape(), "changes are told within a series");
        let mut delta = Delta::default();
        for part in 0..shape.parts() {
            let at = |filter: &Self| filter.octets[filter.parts.part(part)].to_vec();
            if at(self) == at(earlier) {
                continue;
            }
            let (now, before) = (self.numbers(part), earlier.numbers(part));
            let base = ((part as u64) << shape.number_bits()) as u32;
            let missing = |from: &[u32], numbers: &[u32]| -> Vec<u32> {
                let absent = numbers.iter().filter(|n| from.binary_search(n).is_err());
                absent.map(|number| base | number).collect()
            };
            delta.came.extend(missing(&before, &now));
            delta.gone.extend(missing(&now, &before));
        }
        delta
    }
}

/// The numbers of those of `fingerprints` that are in a part, which come first; the others stay.
fn share(shape: Shape, part: usize, fingerprints: &mut &[u32]) -> Vec<u32> {
    let end = fingerprints.partition_point(|fingerprint| shape.place(*fingerprint).0 <= part);
    let (these, rest) = fingerprints.split_at(end);
    *fingerprints = rest;
    these.iter().map(|fingerprint| shape.place(*fingerprint).1).collect()
}

fn append(octets: &mut Vec<u8>, part: &[u8]) {
    // At most 4,096 numbers of 32 bits.
    let len = u16::try_from(part.len()).expect("a part is shorter than 64 KiB");
    octets.extend(len.to_le_bytes());
    octets.extend(part);
}

impl Delta {
    /// Whether nothing has changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.came.is_empty() && self.gone.is_empty()
    }

    /// These changes and then `later` ones, as one.
    #[must_use]
    pub fn then(&self, later: &Self) -> Self {
        // What has come and gone again has not changed.
        let without = |numbers: &[u32], others: &[u32]| -> Vec<u32> {
            numbers.iter().copied().filter(|n| others.binary_search(n).is_err()).collect()
        };
        let merged = |mut all: Vec<u32>, more: Vec<u32>| {
            all.extend(more);
            all.sort_unstable();
            all
        };
        Self {
            came: merged(without(&self.came, &later.gone), without(&later.came, &self.gone)),
            gone: merged(without(&self.gone, &later.came), without(&later.gone, &self.came)),
        }
    }

    /// As it travels: two sets, the first with its length before it as u32, little-endian.
    #[must_use]
    pub fn to_octets(&self, shape: Shape) -> Vec<u8> {
        let (came, gone) =
            (golomb::encode(&self.came, shape.bits), golomb::encode(&self.gone, shape.bits));
        let mut octets = (came.len() as u32).to_le_bytes().to_vec();
        octets.extend(came);
        octets.extend(gone);
        octets
    }

    /// Reads what [`Delta::to_octets`] has written.
    ///
    /// # Errors
    /// See [`FilterError`].
    pub fn from_octets(shape: Shape, octets: &[u8]) -> Result<Self, FilterError> {
        let (len, rest) = octets.split_first_chunk().ok_or(FilterError::Parts)?;
        let len = u32::from_le_bytes(*len) as usize;
        let (came, gone) = rest.split_at_checked(len).ok_or(FilterError::Parts)?;
        let read = |octets| golomb::decode(octets, shape.bits, MAX_DELTA_ITEMS);
        Ok(Self { came: read(came)?, gone: read(gone)? })
    }
}
