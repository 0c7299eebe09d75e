//! Multiples of a point by which thousands of scalars are multiplied, such as the base point and a
//! build farm's key: with a table of them, a product is 43 additions and no doubling.
//!
//! Which entries are read depends on the scalar, so only public scalars may be multiplied here.

use curve25519_dalek::{EdwardsPoint, Scalar};

/// Bits of the scalar that one addition deals with: at 6 a table has 220 kB, which a core's cache
/// holds; 8 would save every fourth addition and take three times as much.
const WINDOW_BITS: usize = 6;

/// Scalars are below 2^253, and the last window takes what the one before it carries.
const WINDOWS: usize = 253 / WINDOW_BITS + 1;

/// Half of the digits are negative, for which the positive one's multiple is subtracted.
const LARGEST_DIGIT: usize = 1 << (WINDOW_BITS - 1);

/// The multiples 1 to 32 of a point, of 64 times the point, and so on.
pub(crate) struct Multiples {
    windows: Box<[[EdwardsPoint; LARGEST_DIGIT]]>,
}

impl Multiples {
    /// Makes the table: 0.3 ms.
    pub(crate) fn new(point: &EdwardsPoint) -> Self {
        let mut first = *point;
        let windows = (0..WINDOWS).map(|_| {
            let mut window = [first; LARGEST_DIGIT];
            for at in 1..LARGEST_DIGIT {
                window[at] = window[at - 1] + first;
            }
            first = window[LARGEST_DIGIT - 1] + window[LARGEST_DIGIT - 1];
            window
        });
        Self { windows: windows.collect() }
    }

    /// `sum` and the product of the point and `scalar`.
    pub(crate) fn add_product(&self, mut sum: EdwardsPoint, scalar: &Scalar) -> EdwardsPoint {
        let octets = scalar.as_bytes();
        let mut carry = 0;
        for (number, window) in self.windows.iter().enumerate() {
            let digit = bits(octets, number * WINDOW_BITS) + carry;
            carry = usize::from(digit > LARGEST_DIGIT);
            if carry == 1 {
                let negative = 2 * LARGEST_DIGIT - digit;
                if negative > 0 {
                    sum -= window[negative - 1];
                }
            } else if digit > 0 {
                sum += window[digit - 1];
            }
        }
        sum
    }
}

/// The bits of one window, from bit `start` of a little-endian number.
fn bits(octets: &[u8; 32], start: usize) -> usize {
    let octet = |at: usize| octets.get(at).copied().unwrap_or(0);
    let pair = u16::from_le_bytes([octet(start / 8), octet(start / 8 + 1)]);
    usize::from(pair >> (start % 8)) & (2 * LARGEST_DIGIT - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use curve25519_dalek::traits::Identity;
    use proptest::prelude::*;

    fn product(table: &Multiples, scalar: &Scalar) -> EdwardsPoint {
        table.add_product(EdwardsPoint::identity(), scalar)
    }

    #[test]
    fn the_smallest_and_largest_scalars_are_multiplied_rightly() {
        let table = Multiples::new(&EdwardsPoint::mul_base(&Scalar::ONE));
        for near in 0..200u64 {
            for scalar in [Scalar::from(near), -Scalar::from(near)] {
                assert_eq!(product(&table, &scalar), EdwardsPoint::mul_base(&scalar), "{near}");
            }
        }
    }

    proptest! {
        #[test]
        fn products_are_those_of_the_library(
            point in prop::array::uniform32(any::<u8>()),
            scalar in prop::array::uniform32(any::<u8>()),
        ) {
            let point = EdwardsPoint::mul_base(&Scalar::from_bytes_mod_order(point));
            let scalar = Scalar::from_bytes_mod_order(scalar);
            prop_assert_eq!(product(&Multiples::new(&point), &scalar), point * scalar);
        }
    }
}
