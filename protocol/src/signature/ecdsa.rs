//! ECDSA over the Edwards form of curve 25519, as libgcrypt computes it for keys on `Ed25519`
//! without the `eddsa` flag (`cipher/ecc-ecdsa.c`).
//!
//! The base point B has order n. The hash z is the SHA-256 digest as a big-endian number, cut to
//! the 253 bits of n. A pair (r, s), both from 1 to n - 1, is a signature iff the affine Edwards x
//! coordinate of (z/s)·B + (r/s)·Q, modulo n, is r. There is no rule for a low s.
//!
//! Point and scalar arithmetic come from curve25519-dalek, which keeps the x coordinate to itself;
//! what is needed of it is recovered from the compressed point with crypto-bigint.

use super::multiples::Multiples;
use crate::acl::PublicKey;
use crypto_bigint::modular::{ConstMontyForm, ConstMontyParams};
use crypto_bigint::{U256, const_prime_monty_params};
use curve25519_dalek::edwards::CompressedEdwardsY;
use curve25519_dalek::traits::Identity;
use curve25519_dalek::{EdwardsPoint, Scalar};
use std::sync::LazyLock;

const_prime_monty_params!(
    Field,
    U256,
    "7fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffed",
    2,
    "Integers modulo 2^255 - 19, for which 2 is no square."
);

type Coordinate = ConstMontyForm<Field, { Field::LIMBS }>;

/// The order n of the base point.
const ORDER: U256 =
    U256::from_be_hex("1000000000000000000000000000000014def9dea2f79cd65812631a5cf5d3ed");

/// The prime 2^255 - 19.
const PRIME: U256 =
    U256::from_be_hex("7fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffed");

/// d of the curve's equation -x² + y² = 1 + d·x²·y² (RFC 8032, section 5.1).
const D: Coordinate = Coordinate::new(&U256::from_be_hex(
    "52036cee2b6ffe738cc740797779e89800700a4d4141d8ab75eb4dca135978a3",
));

/// Multiples of the base point B.
static BASE: LazyLock<Multiples> =
    LazyLock::new(|| Multiples::new(&EdwardsPoint::mul_base(&Scalar::ONE)));

/// The prime has 255 bits and n has 253, so that at most eight coordinates leave the same rest.
const CANDIDATES: usize = 8;

/// A signature that is well-formed, and still to be verified.
pub(crate) struct Claim<'a> {
    key: &'a PublicKey,
    hash: Scalar,
    r: Scalar,
    s: Scalar,
}

impl<'a> Claim<'a> {
    /// The claim that (r, s), big-endian numbers with or without leading zeros, is a signature by
    /// `key` of a text with this SHA-256; none if they are no numbers of a signature.
    pub(super) fn new(key: &'a PublicKey, digest: &[u8; 32], r: &[u8], s: &[u8]) -> Option<Self> {
        Some(Self { key, hash: hash(digest), r: in_range(r)?, s: in_range(s)? })
    }

    /// By whom it is said to be.
    pub(crate) fn key(&self) -> &'a PublicKey {
        self.key
    }
}

/// Which of the claims are true, in their order. Together they share two inversions, which are a
/// third of the work on one alone. All inputs are public, so that this takes its time as it comes.
pub(crate) fn verify_all(claims: &[Claim<'_>]) -> Vec<bool> {
    let mut inverses: Vec<Scalar> = claims.iter().map(|claim| claim.s).collect();
    Scalar::invert_batch_alloc(&mut inverses);
    let points: Vec<EdwardsPoint> = claims
        .iter()
        .zip(&inverses)
        .map(|(claim, inverse)| {
            let point = BASE.add_product(EdwardsPoint::identity(), &(claim.hash * inverse));
            claim.key.multiples().add_product(point, &(claim.r * inverse))
        })
        .collect();
    let compressed = EdwardsPoint::compress_batch_alloc(&points);
    claims
        .iter()
        .zip(compressed)
        .map(|(claim, point)| has_x_modulo_order(&point, &claim.r))
        .collect()
}

/// The digest as ECDSA takes it: the upper 253 of its 256 bits.
pub(super) fn hash(digest: &[u8; 32]) -> Scalar {
    let mut octets = *digest;
    octets.reverse();
    let shifted = U256::from_le_slice(&octets).shr(3);
    Scalar::from_bytes_mod_order(little_endian(&shifted))
}

/// The affine x coordinate of `point` modulo n.
pub(super) fn x_modulo_order(point: &EdwardsPoint) -> Scalar {
    let (y, odd) = coordinates(&point.compress());
    let (numerator, denominator) = x_squared(&y);
    let square =
        numerator * denominator.invert().expect_copied("d·y² is never -1, as -1/d is not a square");
    let root = square.sqrt().expect_copied("a point of the curve has an x coordinate");
    let x = if bool::from(root.retrieve().is_odd()) == odd { root } else { -root };
    Scalar::from_bytes_mod_order(little_endian(&x.retrieve()))
}

/// Whether the affine x coordinate of `point` is `r` modulo n: cheaper than to compute it, as it
/// takes neither a root nor a division.
fn has_x_modulo_order(point: &CompressedEdwardsY, r: &Scalar) -> bool {
    let (y, odd) = coordinates(point);
    let (numerator, denominator) = x_squared(&y);
    let first = U256::from_le_slice(r.as_bytes());
    std::iter::successors(Some(first), |x| Some(x.wrapping_add(&ORDER)))
        .take(CANDIDATES)
        .take_while(|x| *x < PRIME)
        .filter(|x| bool::from(x.is_odd()) == odd)
        .any(|x| Coordinate::new(&x).square() * denominator == numerator)
}

/// y, and whether x is odd.
fn coordinates(point: &CompressedEdwardsY) -> (Coordinate, bool) {
    let mut octets = point.to_bytes();
    let odd = octets[31] & 0x80 != 0;
    octets[31] &= 0x7f;
    (Coordinate::new(&U256::from_le_slice(&octets)), odd)
}

/// Numerator and denominator of x² = (y² - 1) / (d·y² + 1).
fn x_squared(y: &Coordinate) -> (Coordinate, Coordinate) {
    let square = y.square();
    (square - Coordinate::ONE, D * square + Coordinate::ONE)
}

/// A big-endian number from 1 to n - 1.
fn in_range(number: &[u8]) -> Option<Scalar> {
    let leading = number.iter().take_while(|&&octet| octet == 0).count();
    let significant = &number[leading..];
    if significant.is_empty() || significant.len() > 32 {
        return None;
    }
    let mut octets = [0; 32];
    for (octet, &digit) in octets.iter_mut().zip(significant.iter().rev()) {
        *octet = digit;
    }
    Scalar::from_canonical_bytes(octets).into()
}

fn little_endian(number: &U256) -> [u8; 32] {
    let mut octets = [0; 32];
    octets.copy_from_slice(number.to_le_bytes().as_ref());
    octets
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_out_of_range_are_refused() {
        let order = ORDER.to_be_bytes();
        assert!(in_range(order.as_ref()).is_none());
        let mut below = [0; 33];
        below[1..].copy_from_slice(order.as_ref());
        below[32] -= 1;
        assert!(in_range(&below).is_some(), "n - 1 with a leading zero");
        assert!(in_range(&[]).is_none());
        assert!(in_range(&[0; 40]).is_none());
        assert!(in_range(&[1; 33]).is_none());
        assert_eq!(in_range(&[0, 0, 1]), Some(Scalar::ONE));
    }

    #[test]
    fn the_hash_loses_its_three_low_bits() {
        let mut digest = [0; 32];
        digest[31] = 0b0001_0111;
        assert_eq!(hash(&digest), Scalar::from(2u8));
    }

    #[test]
    fn the_base_point_has_the_x_of_rfc_8032() {
        let x =
            U256::from_be_hex("216936d3cd6e53fec0a4e231fdd6dc5c692cc7609525a7b2c9562d608f25d51a");
        let base = EdwardsPoint::mul_base(&Scalar::ONE);
        assert_eq!(x_modulo_order(&base), Scalar::from_bytes_mod_order(little_endian(&x)));
    }

    proptest! {
        #[test]
        fn both_ways_to_the_x_coordinate_agree(wide in prop::array::uniform32(any::<u8>())) {
            let scalar = Scalar::from_bytes_mod_order(wide);
            let point = EdwardsPoint::mul_base(&scalar);
            let x = x_modulo_order(&point);
            let (there, opposite) = (point.compress(), (-point).compress());
            prop_assert!(has_x_modulo_order(&there, &x));
            prop_assert!(!has_x_modulo_order(&there, &(x + Scalar::ONE)));
            prop_assert!(!has_x_modulo_order(&opposite, &x) || x == Scalar::ZERO);
        }
    }
}
