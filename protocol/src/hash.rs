//! The hashes by which things are known, each a type of its own so that none can stand in for
//! another.

use crate::base32::{self, Base32Error};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! hash_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(#[serde(with = "serde_bytes")] pub [u8; 32]);

        impl $name {
            /// The 32 octets.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&base32::encode(&self.0))
            }
        }
    };
}

hash_type! {
    /// SHA-256 of an uncompressed nar: its identity, whoever built it and however it travels.
    /// Displayed in nix-base32 without the `sha256:` prefix.
    NarHash
}
hash_type! {
    /// BLAKE3 of one piece of a nar.
    PieceHash
}
hash_type! {
    /// BLAKE3 over domain, NarHash, NarSize, piece size and piece list; see [`crate::piece`].
    /// All honest holders of a nar compute the same root.
    Root
}

/// Why a text is not `sha256:` and a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NarHashError {
    /// Another algorithm than SHA-256, or none named.
    #[error("only sha256 is understood")]
    Algorithm,
    /// The digits are neither 64 of hexadecimal nor 52 of nix-base32.
    #[error("not a sha256 in base32 or hexadecimal: {0}")]
    Digits(#[from] Base32Error),
    /// What follows `sha256-` is not 32 octets in base64.
    #[error("not a sha256 in base64")]
    Base64,
}

impl NarHash {
    /// Reads `sha256:` followed by 52 digits of nix-base32 or 64 of lower-case hexadecimal, as
    /// narinfos spell it (`guix/narinfo.scm`, `narinfo-hash->sha256`).
    ///
    /// # Errors
    /// See [`NarHashError`].
    pub fn parse(text: &[u8]) -> Result<Self, NarHashError> {
        let digits = text.strip_prefix(b"sha256:").ok_or(NarHashError::Algorithm)?;
        Ok(Self(sha256_digits(digits, digits)?))
    }

    /// As [`Self::parse`], and in the other spellings that Nix reads: hexadecimal in capitals, and
    /// base64 after `sha256:` or, by the rules of subresource integrity, after `sha256-`.
    ///
    /// # Errors
    /// See [`NarHashError`].
    pub fn parse_nix(text: &[u8]) -> Result<Self, NarHashError> {
        if let Some(digits) = text.strip_prefix(b"sha256-") {
            return base64_sha256(digits).map(Self).ok_or(NarHashError::Base64);
        }
        let digits = text.strip_prefix(b"sha256:").ok_or(NarHashError::Algorithm)?;
        if let Some(octets) = base64_sha256(digits) {
            return Ok(Self(octets));
        }
        Ok(Self(sha256_digits(&digits.to_ascii_lowercase(), digits)?))
    }

    /// `sha256:` and nix-base32, as narinfos spell it.
    #[must_use]
    pub fn to_narinfo(&self) -> String {
        format!("sha256:{self}")
    }
}

fn base64_sha256(digits: &[u8]) -> Option<[u8; 32]> {
    // Decoding allocates as much as there is, so look first how much that is.
    let octets = if digits.len() == 44 { STANDARD.decode(digits).ok()? } else { return None };
    octets.try_into().ok()
}

/// Reads digits of a SHA-256, hexadecimal or else nix-base32.
fn sha256_digits(hexadecimal: &[u8], base32: &[u8]) -> Result<[u8; 32], Base32Error> {
    hex_sha256(hexadecimal).map_or_else(|| base32::decode(base32), Ok)
}

fn hex_sha256(digits: &[u8]) -> Option<[u8; 32]> {
    if digits.len() != 64 {
        return None;
    }
    let value = |d: u8| match d {
        b'0'..=b'9' => Some(d - b'0'),
        b'a'..=b'f' => Some(d - b'a' + 10),
        _ => None,
    };
    let mut octets = [0; 32];
    for (octet, pair) in octets.iter_mut().zip(digits.chunks_exact(2)) {
        *octet = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_are_one_hash() {
        let base32 = b"sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73";
        let hex = b"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let hash = NarHash::parse(base32).expect("base32");
        assert_eq!(NarHash::parse(hex), Ok(hash));
        assert_eq!(hash.to_narinfo().as_bytes(), base32);
        assert_eq!(NarHash::parse(b"sha1:00"), Err(NarHashError::Algorithm));
        assert!(NarHash::parse(b"sha256:e3b0").is_err());
    }

    #[test]
    fn nix_has_more_spellings() {
        let base32 = b"sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73";
        let hash = NarHash::parse(base32).expect("base32");
        for text in [
            "sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73",
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "sha256:E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855",
            "sha256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
            "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
        ] {
            assert_eq!(NarHash::parse_nix(text.as_bytes()), Ok(hash), "{text}");
        }
        let sri = b"sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        assert_eq!(NarHash::parse(sri), Err(NarHashError::Algorithm), "Guix knows no such thing");
        assert_eq!(NarHash::parse_nix(b"sha256-47DEQ"), Err(NarHashError::Base64));
        assert_eq!(NarHash::parse_nix(b"sha512-47DEQ"), Err(NarHashError::Algorithm));
        assert!(NarHash::parse_nix(b"sha256:0MDQ").is_err());
    }
}
