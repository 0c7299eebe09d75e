//! Nix's trusted public keys: `NAME:BASE64`, alone or in the lines of a `nix.conf`.
//!
//! Nix signs with plain Ed25519 (RFC 8032). It finds a key by the name that stands in the signature
//! and in the key, so a name alone proves nothing. Keys are held to what [`super::PublicKey`] is
//! held to: none that anybody can sign for, none spelt in two ways. Includes of a `nix.conf` name
//! files, so whoever reads those puts their text in place ([`NixInclude`]); here they say nothing.

use super::{KeyError, PublicKey};
use crate::limits;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use std::fmt;

/// The settings of a `nix.conf` that say which keys are trusted, `extra-` put before them or not.
const SETTINGS: [&str; 2] = ["trusted-public-keys", "binary-cache-public-keys"];

/// The key of `cache.nixos.org`, as Nix has it built in.
const NIXOS_CACHE: &str = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";

/// Why a text is no key of Nix's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NixKeyError {
    /// Not a name and a text around a colon.
    #[error("{text:?} is no key: expected NAME:BASE64")]
    Form {
        /// What stands there, cut and cleaned.
        text: String,
    },
    /// What follows the name is not base64, or not of as many octets as it must be.
    #[error("the key {name} is not {octets} octets in base64")]
    Base64 {
        /// Its name.
        name: String,
        /// How many it must be.
        octets: usize,
    },
    /// A key that must not be used.
    #[error("the key {name} must not be used; remove it: {error}")]
    Key {
        /// Its name.
        name: String,
        /// Why not.
        #[source]
        error: KeyError,
    },
    /// A configuration file that says nothing of keys.
    #[error("no trusted-public-keys are set")]
    NoKeys,
    /// Not text.
    #[error("neither an s-expression nor text")]
    Utf8,
}

/// A line of a `nix.conf` in whose place the text of another file counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NixInclude<'a> {
    /// Which file, relative to the one in which the line stands.
    pub path: &'a str,
    /// Whether it is passed over when it isn't there.
    pub may_be_missing: bool,
}

impl<'a> NixInclude<'a> {
    /// Reads a line: `include PATH` or `!include PATH`, with nothing behind it but a comment. Nix
    /// refuses a file in which an include names another number of files.
    #[must_use]
    pub fn of_line(line: &'a str) -> Option<Self> {
        let mut words = uncommented(line).split_ascii_whitespace();
        let may_be_missing = match words.next()? {
            "include" => false,
            "!include" => true,
            _ => return None,
        };
        let path = words.next()?;
        words.next().is_none().then_some(Self { path, may_be_missing })
    }
}

/// A key that the user trusts, by its name. Ordered by name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NixKey {
    name: String,
    octets: [u8; 32],
}

impl NixKey {
    /// Reads `NAME:BASE64`.
    ///
    /// # Errors
    /// See [`NixKeyError`].
    pub fn parse(text: &str) -> Result<Self, NixKeyError> {
        let (name, octets) = named::<32>(text)?;
        let refuse = |error| NixKeyError::Key { name: name.to_owned(), error };
        PublicKey::from_octets(&octets).map_err(refuse)?;
        Ok(Self { name: name.to_owned(), octets })
    }

    /// The key of NixOS's cache: what a machine without a `nix.conf` may begin with.
    #[must_use]
    pub fn nixos_cache() -> Self {
        Self::parse(NIXOS_CACHE).expect("the key in the source is well-formed")
    }

    /// The name by which signatures refer to it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The point, as RFC 8032 writes it.
    #[must_use]
    pub fn octets(&self) -> &[u8; 32] {
        &self.octets
    }

    /// Whether the key's owner has signed this text. Refuses what RFC 8032 leaves open: points of
    /// small order, other encodings of a valid signature.
    #[must_use]
    pub fn has_signed(&self, text: &[u8], signature: &[u8; 64]) -> bool {
        let signature = Signature::from_bytes(signature);
        VerifyingKey::from_bytes(&self.octets)
            .is_ok_and(|key| key.verify_strict(text, &signature).is_ok())
    }
}

impl fmt::Display for NixKey {
    /// As it stands in a `nix.conf`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, STANDARD.encode(self.octets))
    }
}

impl fmt::Debug for NixKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NixKey({self})")
    }
}

/// A secret key, for signatures of Nix's kind: for demonstrations, tests and small private mirrors.
/// Its secret is wiped when it is dropped, and never shown.
#[derive(Clone)]
pub struct NixSigningKey {
    name: String,
    secret: SigningKey,
}

impl NixSigningKey {
    /// The key of this name that belongs to a seed, which must be 32 random octets and be kept
    /// secret.
    ///
    /// # Errors
    /// Refuses a name that no signature could refer to.
    pub fn from_seed(name: &str, seed: [u8; 32]) -> Result<Self, NixKeyError> {
        if !is_name(name) {
            return Err(NixKeyError::Form { text: shown(name) });
        }
        Ok(Self { name: name.to_owned(), secret: SigningKey::from_bytes(&seed) })
    }

    /// Reads the file that `nix-store --generate-binary-cache-key` has made.
    ///
    /// # Errors
    /// See [`NixKeyError`].
    pub fn parse(text: &str) -> Result<Self, NixKeyError> {
        let (name, octets) = named::<64>(text.trim_end())?;
        let secret = SigningKey::from_keypair_bytes(&octets)
            .map_err(|_| NixKeyError::Base64 { name: name.to_owned(), octets: 64 })?;
        Ok(Self { name: name.to_owned(), secret })
    }

    /// The key that others are to trust.
    #[must_use]
    pub fn public_key(&self) -> NixKey {
        NixKey { name: self.name.clone(), octets: self.secret.verifying_key().to_bytes() }
    }

    /// The value of a `Sig` field: `NAME:BASE64`.
    #[must_use]
    pub fn sign(&self, text: &[u8]) -> String {
        format!("{}:{}", self.name, STANDARD.encode(self.secret.sign(text).to_bytes()))
    }
}

impl fmt::Debug for NixSigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NixSigningKey({})", self.public_key())
    }
}

/// Takes `NAME:BASE64` apart, as keys and signatures are written.
pub(crate) fn named<const N: usize>(text: &str) -> Result<(&str, [u8; N]), NixKeyError> {
    let form = || NixKeyError::Form { text: shown(text) };
    let (name, digits) = text.split_once(':').ok_or_else(form)?;
    if !is_name(name) {
        return Err(form());
    }
    let wrong = || NixKeyError::Base64 { name: name.to_owned(), octets: N };
    // Decoding allocates as much as there is, so look first how much that is.
    if digits.len() != N.div_ceil(3) * 4 {
        return Err(wrong());
    }
    let octets = STANDARD.decode(digits).map_err(|_| wrong())?;
    Ok((name, octets.try_into().map_err(|_| wrong())?))
}

/// Fit for a line, and for a verdict.
fn is_name(name: &str) -> bool {
    (1..=limits::MAX_NIX_KEY_NAME_BYTES).contains(&name.len())
        && name.bytes().all(|c| c.is_ascii_graphic() && c != b':')
}

/// The beginning of a text from a file, for a message.
fn shown(text: &str) -> String {
    text.chars().take(40).flat_map(char::escape_default).collect()
}

/// Reads the keys of a file: a `nix.conf`, or nothing but keys between white space.
///
/// In a `nix.conf` a setting replaces what stood before it, and one with `extra-` adds to that; what
/// other files and Nix itself would add to it is not known here.
pub(super) fn read_keys(bytes: &[u8]) -> Result<Vec<NixKey>, NixKeyError> {
    let text = std::str::from_utf8(bytes).map_err(|_| NixKeyError::Utf8)?;
    let lines = text.lines().map(|line| uncommented(line).trim());
    let lines: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    let is_conf = lines.iter().any(|line| setting(line).is_some() || is_include(line));
    let (mut keys, mut is_set) = (Vec::new(), false);
    for line in lines {
        let value = match setting(line) {
            Some((name, value)) => {
                let plain = name.strip_prefix("extra-");
                if !SETTINGS.contains(&plain.unwrap_or(name)) {
                    continue;
                }
                if plain.is_none() {
                    keys.clear();
                }
                value
            }
            None if is_conf => continue,
            None => line,
        };
        is_set = true;
        for key in value.split_ascii_whitespace() {
            keys.push(NixKey::parse(key)?);
        }
    }
    if is_set { Ok(keys) } else { Err(NixKeyError::NoKeys) }
}

fn uncommented(line: &str) -> &str {
    line.split_once('#').map_or(line, |(text, _)| text)
}

/// `NAME = VALUE`. A key may end in `=` as well, but has a colon before it.
fn setting(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.split_once('=')?;
    let name = name.trim_end();
    let is_word = name.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_".contains(&c));
    (is_word && !name.is_empty()).then_some((name, value))
}

fn is_include(line: &str) -> bool {
    matches!(line.split_ascii_whitespace().next(), Some("include" | "!include"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(name: &str, seed: u8) -> NixSigningKey {
        NixSigningKey::from_seed(name, [seed; 32]).expect("a name")
    }

    fn names(text: &str) -> Result<Vec<String>, NixKeyError> {
        Ok(read_keys(text.as_bytes())?.iter().map(|key| key.name().to_owned()).collect())
    }

    #[test]
    fn reads_what_nix_writes() {
        let public = "test-1:i1BDs12NbXXGoTQwV30Z9WCYN7LgjgaufCqsgTUa9kI=";
        let key = NixKey::parse(public).expect("a key");
        assert_eq!((key.name(), key.to_string().as_str()), ("test-1", public));
        assert_eq!(names(&format!("{public}\n")), Ok(vec!["test-1".to_owned()]));
        assert_eq!(NixKey::nixos_cache().name(), "cache.nixos.org-1");
    }

    #[test]
    fn a_signature_is_of_one_text_by_one_key() {
        let (ours, theirs) = (key("a", 1), key("a", 2));
        let value = ours.sign(b"text");
        let (name, signature) = named::<64>(&value).expect("a signature");
        assert_eq!(name, "a");
        assert!(ours.public_key().has_signed(b"text", &signature));
        assert!(!ours.public_key().has_signed(b"texu", &signature));
        assert!(!theirs.public_key().has_signed(b"text", &signature));
        let mut changed = signature;
        changed[40] ^= 1;
        assert!(!ours.public_key().has_signed(b"text", &changed));
    }

    #[test]
    fn a_configuration_replaces_and_adds() {
        let (a, b, c) =
            (key("a", 1).public_key(), key("b", 2).public_key(), key("c", 3).public_key());
        let list = |names: &[&str]| Ok(names.iter().map(|&name| name.to_owned()).collect());
        assert_eq!(names(&format!("{a} {b}\n\t{c}")), list(&["a", "b", "c"]));
        assert_eq!(names(&format!("# keys\n{a} # the first\n\n")), list(&["a"]));
        let conf = format!(
            "sandbox = false\ntrusted-public-keys = {a} # old\nextra-trusted-public-keys = {b}\n\
             include other.conf\nextra-trusted-public-keys={c}\n"
        );
        assert_eq!(names(&conf), list(&["a", "b", "c"]));
        let conf = format!("{conf}trusted-public-keys = {c}\nsubstituters = http://x\n");
        assert_eq!(names(&conf), list(&["c"]));
        assert_eq!(names("trusted-public-keys =\n"), list(&[]));
        assert_eq!(names(&format!("binary-cache-public-keys = {a}")), list(&["a"]));
    }

    #[test]
    fn an_include_names_one_file() {
        let include = |path, may_be_missing| Some(NixInclude { path, may_be_missing });
        assert_eq!(NixInclude::of_line("include a.conf\n"), include("a.conf", false));
        assert_eq!(NixInclude::of_line(" !include\t/b # c"), include("/b", true));
        for line in ["include", "include a b", "# include a", "includes a", "a = include b"] {
            assert_eq!(NixInclude::of_line(line), None, "{line:?}");
        }
    }

    #[test]
    fn what_holds_no_keys_is_refused() {
        for text in ["", "# nothing\n", "sandbox = true\n", "include x\n"] {
            assert_eq!(names(text), Err(NixKeyError::NoKeys), "{text:?}");
        }
        let good = key("a", 1).public_key().to_string();
        for text in
            ["hello", ":AAAA", "a b:c", &good[1..], &format!("trusted-public-keys = {good} x")]
        {
            let error = names(text).expect_err("no key");
            assert!(matches!(error, NixKeyError::Form { .. }), "{text:?}: {error}");
        }
        for text in [&good[..good.len() - 1], &format!("{good}="), "a:", "a:AAAA", "a:!!!!"] {
            let error = names(text).expect_err("no key");
            assert!(matches!(error, NixKeyError::Base64 { .. }), "{text:?}: {error}");
        }
        assert_eq!(read_keys(&[0xff]), Err(NixKeyError::Utf8));
    }

    #[test]
    fn dangerous_keys_are_refused_by_name() {
        for point in curve25519_dalek::constants::EIGHT_TORSION {
            let text = format!("bad-1:{}", STANDARD.encode(point.compress().as_bytes()));
            let error = NixKey::parse(&text).expect_err("torsion");
            assert!(matches!(error, NixKeyError::Key { .. }), "{error}");
            assert!(error.to_string().contains("bad-1"), "{error}");
        }
    }

    #[test]
    fn a_secret_key_is_read_back() {
        let secret = SigningKey::from_bytes(&[7; 32]).to_keypair_bytes();
        let text = format!("k:{}\n", STANDARD.encode(secret));
        let read = NixSigningKey::parse(&text).expect("a secret key");
        assert_eq!(read.public_key(), key("k", 7).public_key());
        assert!(!format!("{read:?}").contains(&text[2..40]));
        assert!(NixSigningKey::from_seed("a b", [0; 32]).is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(bytes: Vec<u8>, text in "(extra-)?(trusted-public-keys =|#|a:|=|\\PC|\n){0,20}") {
            let _ = read_keys(&bytes);
            let _ = read_keys(text.as_bytes());
        }
    }
}
