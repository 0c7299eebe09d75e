//! Seed lists: addresses of entry nodes, signed, so that they may come from anywhere.
//!
//! A list is a small TOML file with its signatures in the last lines:
//!
//! ```toml
//! version = 1
//! sequence = 7
//! expires = 1803859200
//! addresses = [
//!   "/dns/entry.example.org/tcp/8711/p2p/12D3Koo…",
//! ]
//! signature = "ed25519:KEY SIGNATURE"
//! ```
//!
//! Each signature covers, after a domain, every octet before the first of them. One by a key that
//! the user has named suffices, so that keys can be replaced without a day on which half of the
//! users are left alone. Nothing is parsed before a signature has been found good: what a stranger
//! has written gets no further than a comparison of octets. Addresses are texts here; the node
//! knows what they mean.

use crate::base32;
use crate::limits::{
    MAX_SEED_LIST_ADDRESS_BYTES, MAX_SEED_LIST_ADDRESSES, MAX_SEED_LIST_BYTES,
    MAX_SEED_LIST_SIGNATURES,
};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Separates seed lists from whatever else the same key may sign.
const DOMAIN: &[u8] = b"narswarm 2026-11 seed list\0";

/// The version of the format that is read and written.
const VERSION: u32 = 1;

/// How a line with a signature begins.
const SIGNATURE: &str = "signature = \"";

/// How keys are marked, so that nobody mistakes one for another hash.
const KEY_PREFIX: &str = "ed25519:";

/// How a secret key is marked.
const SECRET_PREFIX: &str = "ed25519-secret:";

/// Why a list is not used. The messages are for whoever runs a node or a list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SeedListError {
    /// Longer than any honest list.
    #[error("longer than {MAX_SEED_LIST_BYTES} octets")]
    Oversized,
    /// Not text.
    #[error("not UTF-8 text")]
    NotText,
    /// No signature: cut off, or no list at all.
    #[error("no signature at its end: it is cut off, or no seed list")]
    Unsigned,
    /// More signatures than are looked at.
    #[error("more than {MAX_SEED_LIST_SIGNATURES} signatures")]
    TooManySignatures,
    /// Something after the first signature that is none.
    #[error("line {line} stands after a signature and is none")]
    AfterSignature {
        /// Counted from one.
        line: usize,
    },
    /// Signed only by keys that the user hasn't named.
    #[error("signed by {found}, which is not among the keys to believe (seed_list_keys)")]
    UnknownKey {
        /// The first key that signed it.
        found: SeedListKey,
    },
    /// A believed key is named, but has not signed this.
    #[error("the signature of {key} is not valid: the list was changed after it was signed")]
    BadSignature {
        /// Whose signature it claims to be.
        key: SeedListKey,
    },
    /// Signed, but not understood.
    #[error("signed, but not understood: {reason}")]
    Malformed {
        /// What the parser says.
        reason: String,
    },
    /// Of another version.
    #[error("its format is version {found}, this program knows version {VERSION}")]
    Version {
        /// The version.
        found: u32,
    },
    /// More addresses than are used of one list.
    #[error("{found} addresses, at most {MAX_SEED_LIST_ADDRESSES} are allowed")]
    TooManyAddresses {
        /// How many.
        found: usize,
    },
    /// An address longer than any real one.
    #[error("an address of {found} octets, at most {MAX_SEED_LIST_ADDRESS_BYTES} are allowed")]
    LongAddress {
        /// Its length.
        found: usize,
    },
    /// Past its time.
    #[error("expired {} days ago", (now - expires) / 86_400)]
    Expired {
        /// When it expired, in seconds since 1970.
        expires: u64,
        /// When that was noticed.
        now: u64,
    },
    /// Older than one that was seen before, or another of the same number.
    #[error(
        "its sequence number is {found}, but {seen} was seen before: an old list is shown again"
    )]
    Replayed {
        /// Its number.
        found: u64,
        /// The highest number seen.
        seen: u64,
    },
}

/// Why a text is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no key of a seed list; one looks like ed25519: and 52 characters after it")]
pub struct KeyError {
    text: String,
}

/// The public key that a list is signed with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SeedListKey([u8; 32]);

impl fmt::Display for SeedListKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{KEY_PREFIX}{}", base32::encode(&self.0))
    }
}

impl fmt::Debug for SeedListKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for SeedListKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode_marked(text, KEY_PREFIX).map(Self)
    }
}

impl TryFrom<String> for SeedListKey {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, KeyError> {
        text.parse()
    }
}

impl From<SeedListKey> for String {
    fn from(key: SeedListKey) -> Self {
        key.to_string()
    }
}

fn decode_marked(text: &str, prefix: &str) -> Result<[u8; 32], KeyError> {
    let digits = text.trim().strip_prefix(prefix);
    let octets = digits.and_then(|digits| base32::decode(digits.as_bytes()).ok());
    // A secret must not end up in a message.
    octets.ok_or_else(|| KeyError { text: text.chars().take(KEY_PREFIX.len()).collect() })
}

/// Signs lists. Its secret is wiped when it is dropped, and never shown.
pub struct SeedListSigner(SigningKey);

impl fmt::Debug for SeedListSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SeedListSigner({})", self.key())
    }
}

impl SeedListSigner {
    /// Signs with the key of this secret.
    #[must_use]
    pub fn new(secret: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(secret))
    }

    /// Reads what [`SeedListSigner::to_secret_text`] has written.
    ///
    /// # Errors
    /// [`KeyError`], which shows nothing of the secret.
    pub fn from_secret_text(text: &str) -> Result<Self, KeyError> {
        decode_marked(text, SECRET_PREFIX).map(|secret| Self::new(&secret))
    }

    /// The secret, as it is kept in a file.
    #[must_use]
    pub fn to_secret_text(&self) -> String {
        format!("{SECRET_PREFIX}{}\n", base32::encode(self.0.as_bytes()))
    }

    /// The key that users are to believe.
    #[must_use]
    pub fn key(&self) -> SeedListKey {
        SeedListKey(self.0.verifying_key().to_bytes())
    }

    /// The list as a file, signed.
    #[must_use]
    pub fn sign(&self, list: &SeedList) -> String {
        let body = list.to_body();
        let line = self.signature_line(&body);
        body + &line
    }

    /// Adds this key's signature to a list that others have signed.
    ///
    /// # Errors
    /// [`SeedListError`] if it is no list.
    pub fn sign_also(&self, signed: &[u8]) -> Result<String, SeedListError> {
        let parts = Parts::split(signed)?;
        if parts.signatures.len() >= MAX_SEED_LIST_SIGNATURES {
            return Err(SeedListError::TooManySignatures);
        }
        let text = String::from_utf8_lossy(signed);
        Ok(format!("{}\n{}", text.trim_end(), self.signature_line(parts.body)))
    }

    fn signature_line(&self, body: &str) -> String {
        let signature = self.0.sign(&statement(body)).to_bytes();
        format!("{SIGNATURE}{} {}\"\n", self.key(), base32::encode(&signature))
    }
}

fn statement(body: &str) -> Vec<u8> {
    [DOMAIN, body.as_bytes()].concat()
}

/// A list whose signature is good, or that is about to be signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedList {
    version: u32,
    /// Raised with every list: a lower one is an old list shown again.
    pub sequence: u64,
    /// When it stops to be believed, in seconds since 1970.
    pub expires: u64,
    /// Multiaddresses of entry nodes, as texts, with their `/p2p/` part.
    pub addresses: Vec<String>,
}

impl SeedList {
    /// A list to be signed.
    ///
    /// # Errors
    /// [`SeedListError::TooManyAddresses`] and [`SeedListError::LongAddress`].
    pub fn new(sequence: u64, expires: u64, addresses: Vec<String>) -> Result<Self, SeedListError> {
        Self { version: VERSION, sequence, expires, addresses }.within_limits()
    }

    /// Reads a list that one of `keys` has signed. Whether it is still in force is for
    /// [`SeedList::check_current`] to say.
    ///
    /// # Errors
    /// See [`SeedListError`].
    pub fn verify(octets: &[u8], keys: &[SeedListKey]) -> Result<Self, SeedListError> {
        let parts = Parts::split(octets)?;
        let statement = statement(parts.body);
        let known: Vec<_> = parts.signatures.iter().filter(|(key, _)| keys.contains(key)).collect();
        let valid = |(key, signature): &&(SeedListKey, [u8; 64])| {
            VerifyingKey::from_bytes(&key.0).is_ok_and(|key| {
                key.verify_strict(&statement, &Signature::from_bytes(signature)).is_ok()
            })
        };
        if !known.iter().any(valid) {
            return Err(match (known.first(), parts.signatures.first()) {
                (Some((key, _)), _) => SeedListError::BadSignature { key: *key },
                (None, Some((found, _))) => SeedListError::UnknownKey { found: *found },
                (None, None) => SeedListError::Unsigned,
            });
        }
        Self::parse(parts.body)
    }

    /// The keys that a list claims to be signed by.
    ///
    /// # Errors
    /// [`SeedListError`] if it is no list.
    pub fn claimed_keys(octets: &[u8]) -> Result<Vec<SeedListKey>, SeedListError> {
        Ok(Parts::split(octets)?.signatures.into_iter().map(|(key, _)| key).collect())
    }

    /// Whether the list is in force at `now`, seconds since 1970.
    ///
    /// # Errors
    /// [`SeedListError::Expired`].
    pub fn check_current(&self, now: u64) -> Result<(), SeedListError> {
        if now >= self.expires {
            return Err(SeedListError::Expired { expires: self.expires, now });
        }
        Ok(())
    }

    /// Whether the list may follow the one of which `seen` was the number.
    ///
    /// # Errors
    /// [`SeedListError::Replayed`].
    pub fn check_follows(&self, seen: u64) -> Result<(), SeedListError> {
        if self.sequence <= seen {
            return Err(SeedListError::Replayed { found: self.sequence, seen });
        }
        Ok(())
    }

    fn parse(body: &str) -> Result<Self, SeedListError> {
        /// What every version has, so that another one is named and not called malformed.
        #[derive(Deserialize)]
        struct AnyVersion {
            version: u32,
        }
        let malformed = |error: toml::de::Error| SeedListError::Malformed {
            reason: error.message().to_owned(),
        };
        let AnyVersion { version } = toml::from_str(body).map_err(malformed)?;
        if version != VERSION {
            return Err(SeedListError::Version { found: version });
        }
        toml::from_str::<Self>(body).map_err(malformed)?.within_limits()
    }

    fn within_limits(self) -> Result<Self, SeedListError> {
        let found = self.addresses.len();
        if found > MAX_SEED_LIST_ADDRESSES {
            return Err(SeedListError::TooManyAddresses { found });
        }
        let longest = self.addresses.iter().map(String::len).max().unwrap_or(0);
        if longest > MAX_SEED_LIST_ADDRESS_BYTES {
            return Err(SeedListError::LongAddress { found: longest });
        }
        Ok(self)
    }

    /// What is signed: the file up to the signatures.
    fn to_body(&self) -> String {
        let number = |name: &str, value: u64| format!("{name} = {value}\n");
        let mut body = number("version", self.version.into());
        body += &number("sequence", self.sequence);
        body += &number("expires", self.expires);
        body += "addresses = [\n";
        for address in &self.addresses {
            body += &format!("  {},\n", toml::Value::String(address.clone()));
        }
        body + "]\n"
    }
}

/// A list cut in two: what is signed, and the signatures.
struct Parts<'a> {
    body: &'a str,
    signatures: Vec<(SeedListKey, [u8; 64])>,
}

impl<'a> Parts<'a> {
    fn split(octets: &'a [u8]) -> Result<Self, SeedListError> {
        if octets.len() > MAX_SEED_LIST_BYTES {
            return Err(SeedListError::Oversized);
        }
        let text = std::str::from_utf8(octets).map_err(|_| SeedListError::NotText)?;
        let mut at = 0;
        let first = text.split_inclusive('\n').find(|line| {
            let found = line.starts_with(SIGNATURE);
            at += if found { 0 } else { line.len() };
            found
        });
        if first.is_none() {
            return Err(SeedListError::Unsigned);
        }
        let (body, rest) = text.split_at(at);
        let mut signatures = Vec::new();
        for (line, signature) in (body.lines().count() + 1..).zip(rest.lines()) {
            if signatures.len() == MAX_SEED_LIST_SIGNATURES {
                return Err(SeedListError::TooManySignatures);
            }
            let parsed = parse_signature(signature);
            signatures.push(parsed.ok_or(SeedListError::AfterSignature { line })?);
        }
        Ok(Self { body, signatures })
    }
}

fn parse_signature(line: &str) -> Option<(SeedListKey, [u8; 64])> {
    let (key, signature) =
        line.trim_end().strip_prefix(SIGNATURE)?.strip_suffix('"')?.split_once(' ')?;
    Some((key.parse().ok()?, base32::decode(signature.as_bytes()).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn signer(seed: u8) -> SeedListSigner {
        SeedListSigner::new(&[seed; 32])
    }

    fn list(count: usize) -> SeedList {
        let address = |i| format!("/ip4/192.0.2.{}/tcp/8711/p2p/12D3KooW{i}", i % 256);
        SeedList::new(7, 2_000_000_000, (0..count).map(address).collect()).expect("a list")
    }

    #[test]
    fn the_octets_of_lists_stay() {
        let text = signer(7).sign(&list(2));
        let golden = "version = 1\nsequence = 7\nexpires = 2000000000\naddresses = [\n  \
                      \"/ip4/192.0.2.0/tcp/8711/p2p/12D3KooW0\",\n  \
                      \"/ip4/192.0.2.1/tcp/8711/p2p/12D3KooW1\",\n]\nsignature = \"ed25519:";
        assert!(text.starts_with(golden), "{text}");
        let digest = blake3::hash(text.as_bytes());
        let whole = "902c39731bff63569130230d722c451b369843c0af0d455a1a334d942804104e";
        assert_eq!(digest.to_hex().as_str(), whole);
    }

    #[test]
    fn what_is_signed_by_a_believed_key_is_read() {
        let signed = signer(7).sign(&list(3));
        let keys = [signer(1).key(), signer(7).key()];
        assert_eq!(SeedList::verify(signed.as_bytes(), &keys), Ok(list(3)));
        let unknown = SeedListError::UnknownKey { found: signer(7).key() };
        assert_eq!(SeedList::verify(signed.as_bytes(), &[signer(1).key()]), Err(unknown.clone()));
        assert_eq!(SeedList::verify(signed.as_bytes(), &[]), Err(unknown));
    }

    #[test]
    fn one_of_several_signatures_suffices() {
        let old = signer(1).sign(&list(3));
        let both = signer(2).sign_also(old.as_bytes()).expect("a list");
        for seed in [1, 2] {
            assert_eq!(SeedList::verify(both.as_bytes(), &[signer(seed).key()]), Ok(list(3)));
        }
        let claimed = SeedList::claimed_keys(both.as_bytes()).expect("a list");
        assert_eq!(claimed, [signer(1).key(), signer(2).key()]);
    }

    #[test]
    fn a_key_that_is_named_but_has_not_signed_is_blamed() {
        let signed = signer(7).sign(&list(3));
        let changed = signed.replace("192.0.2.1", "192.0.2.9");
        let error = SeedListError::BadSignature { key: signer(7).key() };
        assert_eq!(SeedList::verify(changed.as_bytes(), &[signer(7).key()]), Err(error));
    }

    #[test]
    fn cut_off_oversized_and_garbled_lists_are_refused() {
        let (signed, keys) = (signer(7).sign(&list(3)), [signer(7).key()]);
        for end in 0..signed.len() - 1 {
            assert!(SeedList::verify(&signed.as_bytes()[..end], &keys).is_err(), "{end}");
        }
        let verify = |octets: &[u8]| SeedList::verify(octets, &keys).expect_err("refused");
        assert_eq!(verify(b"\xff\xfe"), SeedListError::NotText);
        assert_eq!(verify(b"<html></html>"), SeedListError::Unsigned);
        assert_eq!(verify(&vec![b'a'; MAX_SEED_LIST_BYTES + 1]), SeedListError::Oversized);
        let line = signed.lines().last().expect("a signature").to_owned() + "\n";
        let many = signed.clone() + &line.repeat(MAX_SEED_LIST_SIGNATURES);
        assert_eq!(verify(many.as_bytes()), SeedListError::TooManySignatures);
        let more = signed + "addresses = []\n";
        assert_eq!(verify(more.as_bytes()), SeedListError::AfterSignature { line: 10 });
    }

    #[test]
    fn what_is_signed_is_within_limits_all_the_same() {
        let keys = [signer(7).key()];
        let sign = |body: &str| body.to_owned() + &signer(7).signature_line(body);
        let verify = |body: &str| SeedList::verify(sign(body).as_bytes(), &keys);
        let body = "version = 1\nsequence = 1\nexpires = 1\naddresses = [";
        let many = format!("{body}{}]\n", "\"/ip4/192.0.2.1/tcp/1\",".repeat(10_000));
        let error = SeedListError::TooManyAddresses { found: 10_000 };
        assert_eq!(verify(&many), Err(error));
        let long = format!("{body}\"{}\"]\n", "a".repeat(MAX_SEED_LIST_ADDRESS_BYTES + 1));
        assert!(matches!(verify(&long), Err(SeedListError::LongAddress { .. })));
        let nested = format!("{body}{}{}]\n", "[".repeat(100_000), "]".repeat(100_000));
        assert!(matches!(verify(&nested), Err(SeedListError::Malformed { .. })));
        let new = body.replace("version = 1", "version = 2\nx = 1") + "]\n";
        assert_eq!(verify(&new), Err(SeedListError::Version { found: 2 }));
        let negative = body.replace("sequence = 1", "sequence = -1") + "]\n";
        assert!(matches!(verify(&negative), Err(SeedListError::Malformed { .. })));
        let unknown = body.replace("sequence", "x = 1\nsequence") + "]\n";
        assert!(matches!(verify(&unknown), Err(SeedListError::Malformed { .. })));
    }

    #[test]
    fn lists_end_and_follow_each_other() {
        let list = list(1);
        assert_eq!(list.check_current(1_999_999_999), Ok(()));
        let late = list.check_current(2_000_000_000 + 3 * 86_400).expect_err("expired");
        assert_eq!(late.to_string(), "expired 3 days ago");
        assert!(list.check_current(2_000_000_000).is_err());
        assert_eq!(list.check_follows(6), Ok(()));
        for seen in [7, 8] {
            assert_eq!(list.check_follows(seen), Err(SeedListError::Replayed { found: 7, seen }));
        }
    }

    #[test]
    fn keys_are_read_as_they_are_shown_and_secrets_are_not_shown() {
        let signer = signer(9);
        assert_eq!(signer.key().to_string().parse(), Ok(signer.key()));
        let again = SeedListSigner::from_secret_text(&signer.to_secret_text()).expect("a key");
        assert_eq!(again.key(), signer.key());
        assert!(!format!("{signer:?}").contains(&base32::encode(&[9; 32])));
        let secret = signer.to_secret_text();
        let error = secret.parse::<SeedListKey>().expect_err("a secret is no public key");
        assert!(!error.to_string().contains(&base32::encode(&[9; 32])[..8]), "{error}");
        assert!("ed25519:short".parse::<SeedListKey>().is_err());
    }

    proptest! {
        #[test]
        fn no_other_octets_are_valid(at in 0..400usize, bit in 0..8u8) {
            let mut signed = signer(7).sign(&list(3)).into_bytes();
            let at = at % (signed.len() - 1);
            signed[at] ^= 1 << bit;
            prop_assert!(SeedList::verify(&signed, &[signer(7).key()]).is_err());
        }

        #[test]
        fn any_octets_are_read_without_panic(octets in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut signed = octets.clone();
            signed.extend(b"\nsignature = \"");
            signed.extend(octets);
            prop_assert!(SeedList::verify(&signed, &[signer(7).key()]).is_err());
        }
    }
}
