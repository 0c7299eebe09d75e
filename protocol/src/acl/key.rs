//! Public keys on curve Ed25519, checked when they are read.
//!
//! Libgcrypt checks nothing when it reads a key. With a key of small order anybody can make
//! signatures that it calls valid; the identity and the point of order two make it abort; and
//! spellings that are not canonical let one key pass for two. None of them ever becomes a
//! [`PublicKey`].

use crate::sexp::Sexp;
use crate::signature::Multiples;
use curve25519_dalek::edwards::{CompressedEdwardsY, EdwardsPoint};
use curve25519_dalek::traits::IsIdentity;
use std::fmt;
use std::sync::{Arc, OnceLock};

/// The official build farms and their keys (`etc/substitutes` in Guix's source).
const FARMS: [(&str, [u8; 32]); 2] = [
    (
        "ci.guix.gnu.org",
        [
            0x8d, 0x15, 0x6f, 0x29, 0x5d, 0x24, 0xb0, 0xd9, 0xa8, 0x6f, 0xa5, 0x74, 0x1a, 0x84,
            0x0f, 0xf2, 0xd2, 0x4f, 0x60, 0xf7, 0xb6, 0xc4, 0x13, 0x48, 0x14, 0xad, 0x55, 0x62,
            0x59, 0x71, 0xb3, 0x94,
        ],
    ),
    (
        "bordeaux.guix.gnu.org",
        [
            0x7d, 0x60, 0x29, 0x02, 0xd3, 0xa2, 0xdb, 0xb8, 0x3f, 0x8a, 0x0f, 0xb9, 0x86, 0x02,
            0xa7, 0x54, 0xc5, 0x49, 0x3b, 0x0b, 0x77, 0x8c, 0x8d, 0x1d, 0xd4, 0xe0, 0xf4, 0x1d,
            0xe1, 0x4d, 0xe3, 0x4f,
        ],
    ),
];

/// Why a key is not used. Every message names the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not `(public-key (ALGORITHM …))`, or not `(ecc (curve Ed25519) (q …))` inside.
    #[error("malformed key: expected (public-key (ecc (curve Ed25519) (q …)))")]
    Structure,
    /// An algorithm with which no Guix of today signs substitutes.
    #[error("key of algorithm {0}: only Ed25519 keys can be used")]
    Algorithm(String),
    /// Another curve than Ed25519.
    #[error("key on curve {0}: only Ed25519 keys can be used")]
    Curve(String),
    /// The point is not 32 octets long.
    #[error("key {q} has {octets} octets instead of 32", octets = q.len() / 2)]
    Length {
        /// The point in hexadecimal.
        q: String,
    },
    /// The y coordinate is not below the prime.
    #[error("key {q} is not canonical: its y coordinate is not reduced")]
    UnreducedY {
        /// The point in hexadecimal.
        q: String,
    },
    /// The x coordinate is zero, and its sign bit is set.
    #[error("key {q} is not canonical: it says that zero is negative")]
    NegativeZero {
        /// The point in hexadecimal.
        q: String,
    },
    /// No point of the curve.
    #[error("key {q} is not a point on curve Ed25519")]
    OffCurve {
        /// The point in hexadecimal.
        q: String,
    },
    /// The neutral element: everything is signed by it.
    #[error("key {q} is the neutral element, for which anybody can sign")]
    Identity {
        /// The point in hexadecimal.
        q: String,
    },
    /// A point of order 2, 4 or 8.
    #[error("key {q} is a point of small order, for which anybody can sign")]
    SmallOrder {
        /// The point in hexadecimal.
        q: String,
    },
}

impl KeyError {
    /// Whether this is an honest key of a kind that isn't understood here, rather than a bad one.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        matches!(self, Self::Algorithm(_) | Self::Curve(_))
    }
}

/// A point on curve Ed25519, canonically spelt, not of small order. Clones share the point.
#[derive(Clone)]
pub struct PublicKey {
    octets: [u8; 32],
    point: Arc<Point>,
}

struct Point {
    point: EdwardsPoint,
    /// Made when the key is first said to have signed something: of the keys in a long list, few
    /// ever are.
    multiples: OnceLock<Multiples>,
}

impl PublicKey {
    /// Reads `q`: y in little-endian order with the sign of x in its top bit.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn from_octets(q: &[u8]) -> Result<Self, KeyError> {
        let octets: [u8; 32] = q.try_into().map_err(|_| KeyError::Length { q: hex(q) })?;
        let q = || hex(&octets);
        if !is_reduced(&octets) {
            return Err(KeyError::UnreducedY { q: q() });
        }
        let compressed = CompressedEdwardsY(octets);
        let point = compressed.decompress().ok_or_else(|| KeyError::OffCurve { q: q() })?;
        if point.compress() != compressed {
            return Err(KeyError::NegativeZero { q: q() });
        }
        if point.is_identity() {
            return Err(KeyError::Identity { q: q() });
        }
        if point.is_small_order() {
            return Err(KeyError::SmallOrder { q: q() });
        }
        Ok(Self { octets, point: Arc::new(Point { point, multiples: OnceLock::new() }) })
    }

    /// Reads `(public-key (ecc (curve Ed25519) (q …)))`.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn from_sexp(key: &Sexp) -> Result<Self, KeyError> {
        Self::from_octets(ed25519_octets(key)?)
    }

    /// `(public-key (ecc (curve Ed25519) (q …)))`.
    #[must_use]
    pub fn to_sexp(&self) -> Sexp {
        let pair = |name: &str, value: &[u8]| Sexp::list([Sexp::atom(name), Sexp::atom(value)]);
        let ecc = [Sexp::atom("ecc"), pair("curve", b"Ed25519"), pair("q", &self.octets)];
        Sexp::list([Sexp::atom("public-key"), Sexp::list(ecc)])
    }

    /// The 32 octets of `q`.
    #[must_use]
    pub fn octets(&self) -> &[u8; 32] {
        &self.octets
    }

    /// The name by which the key is known everywhere: `q` in upper-case hexadecimal.
    #[must_use]
    pub fn id(&self) -> String {
        hex(&self.octets)
    }

    /// Multiples of the point, for verifying what it has signed.
    pub(crate) fn multiples(&self) -> &Multiples {
        self.point.multiples.get_or_init(|| Multiples::new(&self.point.point))
    }
}

/// The host name of the official build farm that signs with this key, if one does.
#[must_use]
pub fn key_name(key: &PublicKey) -> Option<&'static str> {
    FARMS.iter().find(|(_, octets)| octets == key.octets()).map(|(name, _)| *name)
}

pub(super) fn farm_keys() -> impl Iterator<Item = PublicKey> {
    FARMS.iter().map(|(_, octets)| {
        PublicKey::from_octets(octets).expect("the keys in the source are points of the curve")
    })
}

/// `q` of `(public-key (ecc (curve Ed25519) (q …)))`, whatever it holds.
pub(super) fn ed25519_octets(key: &Sexp) -> Result<&[u8], KeyError> {
    let Some([Sexp::List(parameters)]) = key.tagged("public-key") else {
        return Err(KeyError::Structure);
    };
    let (algorithm, parameters) = parameters.split_first().ok_or(KeyError::Structure)?;
    match algorithm.as_atom().ok_or(KeyError::Structure)? {
        b"ecc" => {}
        other => return Err(KeyError::Algorithm(printable(other))),
    }
    if let Some([curve]) = parameters.iter().find_map(|p| p.tagged("curve")) {
        match curve.as_atom().ok_or(KeyError::Structure)? {
            b"Ed25519" => {}
            other => return Err(KeyError::Curve(printable(other))),
        }
    }
    // Guix compares keys element by element, so another order or more elements are another key,
    // one that Guix never makes.
    let [curve, q] = parameters else { return Err(KeyError::Structure) };
    let (Some([_]), Some([q])) = (curve.tagged("curve"), q.tagged("q")) else {
        return Err(KeyError::Structure);
    };
    q.as_atom().ok_or(KeyError::Structure)
}

/// Whether y, the sign bit aside, is below 2^255 - 19.
fn is_reduced(octets: &[u8; 32]) -> bool {
    let [first, middle @ .., last] = octets;
    *first < 0xed || last & 0x7f != 0x7f || middle.iter().any(|&octet| octet != 0xff)
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02X}")).collect()
}

/// A name from a file, cut and cleaned for a message.
fn printable(name: &[u8]) -> String {
    name[..name.len().min(40)].escape_ascii().to_string()
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.octets == other.octets
    }
}

impl Eq for PublicKey {}

impl PartialOrd for PublicKey {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for PublicKey {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.octets.cmp(&other.octets)
    }
}

impl std::hash::Hash for PublicKey {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.octets.hash(state);
    }
}

impl fmt::Display for PublicKey {
    /// The farm's name, or the first 16 hexadecimal digits: for people, not for comparing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match key_name(self) {
            Some(name) => f.write_str(name),
            None => write!(f, "{}…", hex(&self.octets[..8])),
        }
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use curve25519_dalek::constants::EIGHT_TORSION;

    fn load(first: u8, middle: u8, last: u8) -> Result<PublicKey, KeyError> {
        let mut octets = [middle; 32];
        (octets[0], octets[31]) = (first, last);
        PublicKey::from_octets(&octets)
    }

    #[test]
    fn dangerous_points_are_refused() {
        for point in EIGHT_TORSION {
            let error = PublicKey::from_octets(point.compress().as_bytes()).expect_err("torsion");
            assert!(
                matches!(error, KeyError::Identity { .. } | KeyError::SmallOrder { .. }),
                "{error}"
            );
        }
        assert!(matches!(load(1, 0, 0x80), Err(KeyError::NegativeZero { .. })));
        assert!(matches!(load(0xee, 0xff, 0x7f), Err(KeyError::UnreducedY { .. })));
        assert!(matches!(load(0xed, 0xff, 0xff), Err(KeyError::UnreducedY { .. })));
        assert!(matches!(load(2, 0, 0), Err(KeyError::OffCurve { .. })));
        assert!(matches!(load(0xec, 0xff, 0x7f), Err(KeyError::SmallOrder { .. })));
        assert!(matches!(PublicKey::from_octets(&[1; 31]), Err(KeyError::Length { .. })));
        assert!(matches!(PublicKey::from_octets(&[1; 33]), Err(KeyError::Length { .. })));
    }

    #[test]
    fn only_the_structure_that_guix_writes_is_a_key() {
        for text in [
            "(public-key)",
            "(public-key (ecc))",
            "(public-key (ecc (curve Ed25519)))",
            "(public-key (ecc (q #00#) (curve Ed25519)))",
            "(public-key (ecc (curve Ed25519) (q)))",
            "(public-key (ecc (curve Ed25519) (flags eddsa) (q #00#)))",
            "(public-key (ecc (curve Ed25519) (q #00#)) x)",
            "(private-key (ecc (curve Ed25519) (q #00#)))",
        ] {
            let key = Sexp::parse(text.as_bytes()).expect("expression");
            assert_eq!(PublicKey::from_sexp(&key), Err(KeyError::Structure), "{text}");
        }
    }

    #[test]
    fn a_key_survives_its_own_text() {
        for key in farm_keys() {
            let text = key.to_sexp().to_advanced();
            let read = Sexp::parse(&text).expect("expression");
            assert_eq!(PublicKey::from_sexp(&read), Ok(key));
        }
    }
}
