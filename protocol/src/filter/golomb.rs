//! Rising numbers in few octets: how many there are, and the gaps between them in Rice's code.
//!
//! ```text
//! count, 7 bits to an octet, least significant first, the highest bit set in all but the last octet
//! each gap less one: its quotient by 2^r in ones and a zero, its remainder in r bits
//! zeros up to the next octet
//! ```
//!
//! The first number counts as a gap from -1. Bits fill octets from the highest on. `r` follows from
//! count and range, so that a set has one form only, and is about as short as can be: 1.5 bits above
//! the logarithm of the mean gap.

/// Why octets are no set of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodeError {
    /// They end before the last number.
    #[error("a set of numbers ends too soon")]
    Short,
    /// More numbers than are allowed.
    #[error("a set of {found} numbers, where {limit} are allowed")]
    Many {
        /// Numbers announced.
        found: u64,
        /// Numbers allowed.
        limit: usize,
    },
    /// A number beyond the range.
    #[error("a number beyond the range of its set")]
    Range,
    /// Something behind the last number, or a number written in a roundabout way.
    #[error("a set of numbers in another form than its only one")]
    Form,
}

/// The remainder's bits for `count` numbers of `range_bits` bits: the logarithm of the mean gap.
fn remainder_bits(count: u64, range_bits: u32) -> u32 {
    ((1_u64 << range_bits) / count.max(1)).max(1).ilog2()
}

/// Codes numbers, which rise and have at most `range_bits` bits, at most 32.
pub fn encode(numbers: &[u32], range_bits: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(numbers.len() + 8);
    let mut count = numbers.len() as u64;
    while count >= 0x80 {
        out.push((count & 0x7f) as u8 | 0x80);
        count >>= 7;
    }
    out.push(count as u8);
    let r = remainder_bits(numbers.len() as u64, range_bits);
    let mut bits = Writer { out, held: 0, count: 0 };
    let mut least = 0_u64;
    for number in numbers {
        let gap = u64::from(*number) - least;
        for _ in 0..gap >> r {
            bits.put(1, 1);
        }
        bits.put(0, 1);
        bits.put(gap & ((1 << r) - 1), r);
        least = u64::from(*number) + 1;
    }
    bits.finish()
}

/// How many numbers there are, by the octets' own word.
pub fn count(octets: &[u8]) -> Result<u64, CodeError> {
    Ok(read_count(octets)?.0)
}

fn read_count(octets: &[u8]) -> Result<(u64, usize), CodeError> {
    let mut count = 0;
    for (index, octet) in octets.iter().take(5).enumerate() {
        count |= u64::from(octet & 0x7f) << (7 * index);
        if octet & 0x80 == 0 {
            let roundabout = *octet == 0 && index > 0;
            return if roundabout { Err(CodeError::Form) } else { Ok((count, index + 1)) };
        }
    }
    Err(if octets.len() < 5 { CodeError::Short } else { CodeError::Form })
}

/// Reads at most `limit` numbers, and whether they are coded in the only right way.
///
/// # Errors
/// See [`CodeError`].
pub fn decode(octets: &[u8], range_bits: u32, limit: usize) -> Result<Vec<u32>, CodeError> {
    let mut numbers = Vec::new();
    read(octets, range_bits, limit, |number| {
        numbers.push(number);
        true
    })?;
    Ok(numbers)
}

/// Whether `number` is among those coded.
///
/// # Errors
/// See [`CodeError`]; what stands behind the number isn't looked at.
pub fn contains(
    octets: &[u8],
    range_bits: u32,
    limit: usize,
    number: u32,
) -> Result<bool, CodeError> {
    let mut found = false;
    read(octets, range_bits, limit, |other| {
        found = other == number;
        other < number
    })?;
    Ok(found)
}

/// Gives the numbers one after another, as long as they are wanted.
fn read(
    octets: &[u8],
    range_bits: u32,
    limit: usize,
    mut wants: impl FnMut(u32) -> bool,
) -> Result<(), CodeError> {
    let (count, head) = read_count(octets)?;
    if count > limit as u64 {
        return Err(CodeError::Many { found: count, limit });
    }
    let r = remainder_bits(count, range_bits);
    let mut bits = Reader { octets: &octets[head..], at: 0 };
    let mut least = 0_u64;
    for _ in 0..count {
        let mut gap = 0_u64;
        while bits.take(1)? == 1 {
            gap += 1;
        }
        let number = least + ((gap << r) | bits.take(r)?);
        if number >> range_bits != 0 {
            return Err(CodeError::Range);
        }
        least = number + 1;
        if !wants(number as u32) {
            return Ok(());
        }
    }
    bits.end()
}

struct Writer {
    out: Vec<u8>,
    held: u64,
    count: u32,
}

impl Writer {
    /// Adds the lowest `bits` bits, at most 32.
    fn put(&mut self, value: u64, bits: u32) {
        self.held = (self.held << bits) | value;
        self.count += bits;
        while self.count >= 8 {
            self.count -= 8;
            self.out.push((self.held >> self.count) as u8);
        }
        self.held &= (1 << self.count) - 1;
    }

    fn finish(mut self) -> Vec<u8> {
        if self.count > 0 {
            self.put(0, 8 - self.count);
        }
        self.out
    }
}

struct Reader<'a> {
    octets: &'a [u8],
    /// Bits that were taken.
    at: usize,
}

impl Reader<'_> {
    /// The next `bits` bits, at most 32.
    fn take(&mut self, bits: u32) -> Result<u64, CodeError> {
        let mut value = 0;
        let mut left = bits;
        while left > 0 {
            let octet = *self.octets.get(self.at / 8).ok_or(CodeError::Short)?;
            let free = 8 - (self.at % 8) as u32;
            let taken = left.min(free);
            let part = (u64::from(octet) >> (free - taken)) & ((1 << taken) - 1);
            value = (value << taken) | part;
            self.at += taken as usize;
            left -= taken;
        }
        Ok(value)
    }

    /// Only zeros are left, less than an octet.
    fn end(&mut self) -> Result<(), CodeError> {
        let rest = (8 - self.at % 8) % 8;
        let is_end = self.octets.len() == self.at.div_ceil(8) && self.take(rest as u32)? == 0;
        if is_end { Ok(()) } else { Err(CodeError::Form) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_coded_is_read(numbers in btree_set(0_u32..1 << 20, 0..500), range in 20_u32..=32) {
            let numbers: Vec<u32> = numbers.into_iter().collect();
            let octets = encode(&numbers, range);
            prop_assert_eq!(count(&octets), Ok(numbers.len() as u64));
            prop_assert_eq!(decode(&octets, range, 500), Ok(numbers.clone()));
            for number in numbers.iter().flat_map(|n| [*n, n.wrapping_add(1)]) {
                let is_in = numbers.binary_search(&number).is_ok();
                prop_assert_eq!(contains(&octets, range, 500, number), Ok(is_in));
            }
        }

        /// Whatever can be read is what would have been written: a set has one form.
        #[test]
        fn nothing_else_is_read(octets in vec(any::<u8>(), 0..64), range in 1_u32..=32) {
            if let Ok(numbers) = decode(&octets, range, 64) {
                prop_assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]));
                prop_assert_eq!(encode(&numbers, range), octets);
            }
        }
    }

    #[test]
    fn the_ends_of_the_range_have_a_place() {
        for range in [1, 8, 31, 32] {
            let last = ((1_u64 << range) - 1) as u32;
            for numbers in [vec![], vec![0], vec![last], vec![0, last]] {
                let octets = encode(&numbers, range);
                assert_eq!(decode(&octets, range, 2), Ok(numbers));
            }
        }
        let all: Vec<u32> = (0..256).collect();
        assert_eq!(decode(&encode(&all, 8), 8, 256), Ok(all.clone()));
        assert_eq!(decode(&encode(&all, 9), 8, 256), Err(CodeError::Form));
        let many = CodeError::Many { found: 256, limit: 255 };
        assert_eq!(decode(&encode(&all, 8), 8, 255), Err(many));
        // One number: a quotient of one by 2^8.
        assert_eq!(decode(&[1, 0x80, 0], 8, 255), Err(CodeError::Range));
    }

    #[test]
    fn the_form_stays() {
        assert_eq!(encode(&[3, 5, 200], 8), [3, 0x06, 0x07, 0x82]);
    }
}
