//! Nix-base32, the spelling of hashes in store paths and narinfos.
//!
//! The alphabet leaves out `e`, `o`, `t` and `u`, and the digits run from the most significant
//! end of the number that the octets spell in little-endian order (Guix: `guix/base32.scm`,
//! `bytevector->nix-base32-string`).

/// The digits in the order of their values.
const ALPHABET: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

/// In [`VALUES`], for what is no digit.
const NO_DIGIT: u8 = 0xff;

/// The value of each character. A narinfo has a dozen hashes, so that searching the alphabet for
/// each of their digits took longer than the rest of parsing it.
const VALUES: [u8; 256] = {
    let mut values = [NO_DIGIT; 256];
    let mut value = 0;
    while value < ALPHABET.len() {
        values[ALPHABET[value] as usize] = value as u8;
        value += 1;
    }
    values
};

/// Why a text is not the nix-base32 of the wanted number of octets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Base32Error {
    /// The text has another length than the octets need.
    #[error("expected {expected} base32 digits, found {found}")]
    Length {
        /// How many digits the wanted number of octets takes.
        expected: usize,
        /// How many octets the text has.
        found: usize,
    },
    /// A character is not a digit of nix-base32.
    #[error("character {position} is not a nix-base32 digit")]
    Digit {
        /// Zero-based position of the offending octet.
        position: usize,
    },
    /// The digits spell a number too large for the wanted octets.
    #[error("the digits spell more bits than fit")]
    Overflow,
}

/// How many digits `octets` octets take.
#[must_use]
pub const fn encoded_len(octets: usize) -> usize {
    (octets * 8).div_ceil(5)
}

/// Spells `octets` in nix-base32.
///
/// ```
/// # use narswarm_protocol::base32;
/// assert_eq!(base32::encode(&[0x1f]), "0z");
/// ```
#[must_use]
pub fn encode(octets: &[u8]) -> String {
    (0..encoded_len(octets.len()))
        .rev()
        .map(|digit| {
            let (index, shift) = (digit * 5 / 8, digit * 5 % 8);
            let low = u16::from(octets[index]) >> shift;
            let high = octets.get(index + 1).map_or(0, |&o| u16::from(o) << (8 - shift));
            char::from(ALPHABET[usize::from((low | high) & 31)])
        })
        .collect()
}

/// Reads exactly `N` octets from their nix-base32 spelling.
///
/// # Errors
/// Refuses another length, other characters (upper case included, as Guix does), and digits whose
/// value doesn't fit.
pub fn decode<const N: usize>(text: &[u8]) -> Result<[u8; N], Base32Error> {
    let expected = encoded_len(N);
    if text.len() != expected {
        return Err(Base32Error::Length { expected, found: text.len() });
    }
    let mut octets = [0u8; N];
    for (position, &character) in text.iter().enumerate() {
        let value = u16::from(VALUES[usize::from(character)]);
        if value == u16::from(NO_DIGIT) {
            return Err(Base32Error::Digit { position });
        }
        let digit = expected - 1 - position;
        let (index, shift) = (digit * 5 / 8, digit * 5 % 8);
        let spread = value << shift;
        octets[index] |= (spread & 0xff) as u8;
        let carry = (spread >> 8) as u8;
        match octets.get_mut(index + 1) {
            Some(next) => *next |= carry,
            None if carry != 0 => return Err(Base32Error::Overflow),
            None => {}
        }
    }
    Ok(octets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn spells_the_hash_of_the_empty_string_as_guix_does() {
        let hash = <sha2::Sha256 as sha2::Digest>::digest(b"");
        assert_eq!(encode(&hash), "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73");
    }

    #[test]
    fn refuses_what_is_not_base32() {
        assert_eq!(decode::<20>(b"abc"), Err(Base32Error::Length { expected: 32, found: 3 }));
        let mut text = [b'0'; 52];
        text[5] = b'e';
        assert_eq!(decode::<32>(&text), Err(Base32Error::Digit { position: 5 }));
        text[5] = b'0';
        text[0] = b'z';
        assert_eq!(decode::<32>(&text), Err(Base32Error::Overflow));
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes(octets: [u8; 32], short: [u8; 20]) {
            prop_assert_eq!(decode::<32>(encode(&octets).as_bytes()), Ok(octets));
            prop_assert_eq!(decode::<20>(encode(&short).as_bytes()), Ok(short));
        }
    }
}
