//! The access control list: whose signatures are believed.
//!
//! [`Acl::parse`] reads `/etc/guix/acl` as `guix/pki.scm` does, files that hold one
//! `(public-key …)`, and Nix's trusted public keys (`nix.rs`). Dangerous keys are refused loudly,
//! since with some of them anybody can sign ([`KeyError`]); entries that merely can't be used here are
//! kept in a list for the log.

mod key;
mod nix;

pub use key::{KeyError, PublicKey, key_name};
pub(crate) use nix::named as nix_signature;
pub use nix::{NixInclude, NixKey, NixKeyError, NixSigningKey};

use crate::sexp::{self, Sexp, SexpError};
use std::collections::{BTreeMap, BTreeSet};

/// Why a file gives no access control list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AclError {
    /// Not an s-expression.
    #[error("not an access control list: {0}")]
    Sexp(#[from] SexpError),
    /// An s-expression, but neither a list of entries nor a key.
    #[error("neither an (acl …) nor a (public-key …)")]
    Kind,
    /// Something in the list is no `(entry KEY (tag …))`.
    #[error("item {number} of the access control list is no (entry (public-key …) (tag …))")]
    Entry {
        /// Counted from one.
        number: usize,
    },
    /// A key of the list must not be used.
    #[error("key {number} of the access control list must not be used; remove it: {error}")]
    Key {
        /// Counted from one.
        number: usize,
        /// Which key and why.
        #[source]
        error: KeyError,
    },
    /// The only key of the file must not or can't be used.
    #[error("{0}")]
    SingleKey(#[source] KeyError),
    /// No s-expression, and no keys of Nix's.
    #[error("{0}")]
    Nix(#[from] NixKeyError),
}

/// An entry that was passed over because it authorises nothing that could be checked here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkippedEntry {
    /// Which entry of its file, counted from one.
    pub number: usize,
    /// Why it was passed over.
    pub reason: SkipReason,
}

/// Why an entry of the list was passed over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SkipReason {
    /// Its key is of an algorithm with which no Guix of today signs substitutes.
    #[error("{0}")]
    Key(#[from] KeyError),
    /// It authorises something else than `(guix import)`.
    #[error("the entry isn't tagged (guix import)")]
    Tag,
}

/// Whose signature it is, and of which kind: Guix's and Nix's keys never stand in for each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signer {
    /// A key of Guix's, for ECDSA signatures of a narinfo's text.
    Guix(PublicKey),
    /// A key of Nix's, for Ed25519 signatures of a narinfo's fingerprint.
    Nix(NixKey),
}

impl Signer {
    /// The name by which people know it: a build farm's host, Nix's key name, else the point in
    /// hexadecimal.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Guix(key) => key_name(key).map_or_else(|| key.id(), str::to_owned),
            Self::Nix(key) => key.name().to_owned(),
        }
    }
}

/// A set of keys whose signatures are believed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Acl {
    keys: BTreeMap<[u8; 32], PublicKey>,
    /// By name, which need not be of one key only: narinfos signed by either are believed.
    nix: BTreeMap<String, BTreeSet<NixKey>>,
    skipped: Vec<SkippedEntry>,
}

impl Acl {
    /// Reads Guix's `acl` file, or a file with one `(public-key …)`, in libgcrypt's advanced or
    /// canonical form; or Nix's keys, `NAME:BASE64` between white space, or in a `nix.conf`.
    ///
    /// # Errors
    /// Refuses what is neither, malformed and dangerous Ed25519 keys, and a single key of another
    /// algorithm. Within a list, keys of other algorithms land in [`Self::skipped`] instead.
    pub fn parse(bytes: &[u8]) -> Result<Self, AclError> {
        if !bytes.trim_ascii_start().starts_with(b"(") {
            let mut acl = Self::default();
            nix::read_keys(bytes)?.into_iter().for_each(|key| acl.insert_nix(key));
            return Ok(acl);
        }
        let expression = read_file(bytes)?;
        if let Some(entries) = expression.tagged("acl") {
            return Self::from_entries(entries);
        }
        if expression.tagged("public-key").is_some() {
            let key = PublicKey::from_sexp(&expression).map_err(AclError::SingleKey)?;
            return Ok(Self::from_iter([key]));
        }
        Err(AclError::Kind)
    }

    fn from_entries(entries: &[Sexp]) -> Result<Self, AclError> {
        let mut acl = Self::default();
        let import = Sexp::list([Sexp::atom("guix"), Sexp::atom("import")]);
        for (index, entry) in entries.iter().enumerate() {
            let number = index + 1;
            let Some([key, tag]) = entry.tagged("entry") else {
                return Err(AclError::Entry { number });
            };
            let tag = tag.tagged("tag").ok_or(AclError::Entry { number })?;
            match PublicKey::from_sexp(key) {
                _ if tag != [import.clone()] => {
                    acl.skipped.push(SkippedEntry { number, reason: SkipReason::Tag });
                }
                Ok(key) => acl.insert(key),
                Err(error) if error.is_unsupported() => {
                    acl.skipped.push(SkippedEntry { number, reason: error.into() });
                }
                Err(error) => return Err(AclError::Key { number, error }),
            }
        }
        Ok(acl)
    }

    /// The keys of the two official build farms, `ci.guix.gnu.org` and `bordeaux.guix.gnu.org`,
    /// as Guix ships them: what a machine without Guix may begin with.
    #[must_use]
    pub fn guix_build_farms() -> Self {
        Self::from_iter(key::farm_keys())
    }

    /// The key of NixOS's cache, `cache.nixos.org`, as Nix has it built in.
    #[must_use]
    pub fn nixos_cache() -> Self {
        let mut acl = Self::default();
        acl.insert_nix(NixKey::nixos_cache());
        acl
    }

    /// Adds a key.
    pub fn insert(&mut self, key: PublicKey) {
        self.keys.insert(*key.octets(), key);
    }

    /// Adds a key of Nix's.
    pub fn insert_nix(&mut self, key: NixKey) {
        self.nix.entry(key.name().to_owned()).or_default().insert(key);
    }

    /// Adds all keys, and the skipped entries, of another list.
    pub fn merge(&mut self, other: Self) {
        self.keys.extend(other.keys);
        for (name, keys) in other.nix {
            self.nix.entry(name).or_default().extend(keys);
        }
        self.skipped.extend(other.skipped);
    }

    /// Whether nobody is believed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.nix.is_empty()
    }

    /// How many keys are believed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len() + self.nix_keys().count()
    }

    /// All keys of Nix's, in the order of their names.
    pub fn nix_keys(&self) -> impl Iterator<Item = &NixKey> {
        self.nix.values().flatten()
    }

    /// Nix's keys of this name.
    pub fn nix_keys_named(&self, name: &str) -> impl Iterator<Item = &NixKey> {
        self.nix.get(name).into_iter().flatten()
    }

    /// All keys of Guix's, in the order of their octets.
    pub fn keys(&self) -> impl Iterator<Item = &PublicKey> {
        self.keys.values()
    }

    /// Whether this key of Guix's is believed.
    #[must_use]
    pub fn contains(&self, key: &PublicKey) -> bool {
        self.keys.contains_key(key.octets())
    }

    /// The key that is structurally equal to this `(public-key …)`, as Guix compares them.
    #[must_use]
    pub fn find(&self, key: &Sexp) -> Option<&PublicKey> {
        // Only the one structure that `PublicKey::from_sexp` accepts is ever in the list.
        self.keys.get(key::ed25519_octets(key).ok()?)
    }

    /// Entries that were passed over, for the log.
    #[must_use]
    pub fn skipped(&self) -> &[SkippedEntry] {
        &self.skipped
    }
}

impl Extend<PublicKey> for Acl {
    fn extend<I: IntoIterator<Item = PublicKey>>(&mut self, keys: I) {
        keys.into_iter().for_each(|key| self.insert(key));
    }
}

impl FromIterator<PublicKey> for Acl {
    fn from_iter<I: IntoIterator<Item = PublicKey>>(keys: I) -> Self {
        let mut acl = Self::default();
        acl.extend(keys);
        acl
    }
}

/// Guix writes quoted octets through a UTF-8 port, each as the character of its number; the
/// canonical form holds them bare. Only one of the two readings gives strings of the right length.
fn read_file(bytes: &[u8]) -> Result<Sexp, SexpError> {
    let carried = std::str::from_utf8(bytes).ok().and_then(sexp::latin1_octets);
    match carried.map(|octets| Sexp::parse(&octets)) {
        Some(Ok(expression)) => Ok(expression),
        _ => Sexp::parse(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BERLIN: &str = "8D156F295D24B0D9A86FA5741A840FF2D24F60F7B6C4134814AD55625971B394";

    fn entry(key: &str) -> String {
        format!("(entry {key} (tag (guix import)))")
    }

    fn ed25519(q: &str) -> String {
        format!("(public-key (ecc (curve Ed25519) (q {q})))")
    }

    #[test]
    fn reads_lists_and_single_keys() {
        let berlin = ed25519(&format!("#{BERLIN}#"));
        let acl = Acl::parse(format!("(acl {})\n", entry(&berlin)).as_bytes()).expect("list");
        assert_eq!(acl, Acl::parse(berlin.as_bytes()).expect("key"));
        let ids: Vec<String> = acl.keys().map(PublicKey::id).collect();
        assert_eq!(ids, [BERLIN]);
        assert_eq!(acl.keys().next().and_then(key_name), Some("ci.guix.gnu.org"));
        assert!(Acl::parse(b"(acl)").expect("empty list").is_empty());
        let farms = Acl::guix_build_farms();
        assert_eq!(farms.len(), 2);
        assert!(acl.keys().all(|key| farms.contains(key)));
    }

    #[test]
    fn reads_the_canonical_form_and_quoted_octets() {
        let farms = Acl::guix_build_farms();
        let key = farms.keys().next().expect("a key");
        let mut canonical = b"(10:public-key(3:ecc(5:curve7:Ed25519)(1:q32:".to_vec();
        canonical.extend(key.octets());
        canonical.extend(b")))");
        assert!(Acl::parse(&canonical).expect("canonical form").contains(key));
        // Guix carries the octets of a quoted string through UTF-8.
        let q = sexp::latin1_text(key.octets()).replace('\\', "\\\\").replace('"', "\\\"");
        let quoted = ed25519(&format!("\"{q}\""));
        assert!(Acl::parse(quoted.as_bytes()).expect("quoted").contains(key));
    }

    #[test]
    fn other_algorithms_and_tags_are_reported_and_passed_over() {
        let rsa = "(public-key (rsa (n #00DB#) (e #010001#)))";
        let nist = "(public-key (ecc (curve \"NIST P-256\") (q #04#)))";
        let good = ed25519(&format!("#{BERLIN}#"));
        let exported = format!("(entry {good} (tag (guix export)))");
        let text = format!("(acl {} {} {} {exported})", entry(rsa), entry(nist), entry(&good));
        let acl = Acl::parse(text.as_bytes()).expect("list");
        assert_eq!(acl.len(), 1);
        let skipped: Vec<String> =
            acl.skipped().iter().map(|s| format!("{} {}", s.number, s.reason)).collect();
        assert_eq!(skipped.len(), 3, "{skipped:?}");
        assert!(skipped[0].starts_with("1 ") && skipped[0].contains("rsa"), "{skipped:?}");
        assert!(skipped[1].contains("NIST P-256"), "{skipped:?}");
        assert_eq!(acl.skipped()[2].reason, SkipReason::Tag);
        let alone = Acl::parse(rsa.as_bytes()).expect_err("a file with nothing but an RSA key");
        assert!(matches!(alone, AclError::SingleKey(KeyError::Algorithm(_))), "{alone}");
    }

    #[test]
    fn a_dangerous_key_refuses_the_whole_list() {
        let identity = ed25519(&format!("#01{}#", "00".repeat(31)));
        let good = ed25519(&format!("#{BERLIN}#"));
        let text = format!("(acl {} {})", entry(&good), entry(&identity));
        let error = Acl::parse(text.as_bytes()).expect_err("dangerous key");
        assert!(matches!(error, AclError::Key { number: 2, error: KeyError::Identity { .. } }));
        assert!(error.to_string().contains("0100000000"), "{error}");
    }

    #[test]
    fn keys_of_nixs_are_read_and_kept_apart() {
        let nixos = NixKey::nixos_cache();
        let acl = Acl::parse(format!("trusted-public-keys = {nixos}\n").as_bytes()).expect("keys");
        assert_eq!(acl, Acl::nixos_cache());
        assert_eq!(acl.nix_keys_named("cache.nixos.org-1").count(), 1);
        assert_eq!(acl.nix_keys_named("cache.nixos.org").count(), 0);
        let same = PublicKey::from_octets(nixos.octets()).expect("a point");
        assert!(!acl.contains(&same), "a key of Nix's signs nothing for Guix");
        // Another key of the same name is another key.
        let other = NixSigningKey::from_seed(nixos.name(), [1; 32]).expect("a name").public_key();
        let mut both = Acl::guix_build_farms();
        both.merge(acl);
        both.merge(Acl::parse(other.to_string().as_bytes()).expect("a key"));
        assert_eq!(both.len(), 4);
        assert_eq!(both.nix_keys_named(nixos.name()).count(), 2);
        assert_eq!(Signer::Nix(other).name(), "cache.nixos.org-1");
    }

    #[test]
    fn what_is_no_list_is_refused() {
        assert_eq!(Acl::parse(b""), Err(AclError::Nix(NixKeyError::NoKeys)));
        for text in ["", "hello", "(acl (entry))", "(acl x)", "(private-key)", "(acl) (acl)"] {
            assert!(Acl::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_octets_make_it_panic(bytes: Vec<u8>, q: [u8; 32]) {
            let _ = Acl::parse(&bytes);
            let _ = PublicKey::from_octets(&q);
        }

        #[test]
        fn nothing_like_a_list_makes_it_panic(
            text in "\\((acl|entry|public-key|ecc|tag| |\\(|\\)|#00#|x){0,30}\\)"
        ) {
            let _ = Acl::parse(text.as_bytes());
        }
    }
}
