//! Narinfos: what a substitute server says about a store item, and which of it is believed.
//!
//! [`UnverifiedNarinfo::parse`] reads one as Guix does (`guix/narinfo.scm`), or as Nix does if it is
//! signed in Nix's way; only [`UnverifiedNarinfo::verify`] makes a [`VerifiedNarinfo`] of it, by a
//! signature of an authorised key. What isn't signed is nobody's word: where to download from, and
//! nothing else, is read there. Whoever relays a narinfo writes that part anew
//! ([`VerifiedNarinfo::relay`]).
//!
//! The two ways are in `guix.rs` and `nix.rs`, and nowhere else. Which of them a narinfo takes
//! follows from its fields, and each knows only the keys of its own kind.
//!
//! Refused besides what Guix refuses: what makes Guix throw instead of refuse, and a `NarSize` that
//! isn't signed. The signature's text can be changed without breaking it, so narinfos are compared
//! by their [`VerifiedNarinfo::signed_bytes`].

mod draft;
mod guix;
mod nix;
mod record;
mod refusal;
mod source;

pub use draft::{Draft, DraftError};
pub use record::LineError;
pub use refusal::{NarinfoError, Refusal};
pub use source::{Compression, NarSource};

use crate::acl::{Acl, Signer};
use crate::hash::NarHash;
use crate::limits;
use crate::signature;
use crate::store_path::{ItemName, StorePath};
use guix::SignedText;
use nix::Signatures;
use record::Record;
use std::sync::Arc;

/// What stands in a narinfo.
#[derive(Debug)]
struct Contents {
    text: Box<str>,
    store_path: StorePath,
    nar_hash: NarHash,
    nar_size: u64,
    references: Box<[ItemName]>,
    sources: Box<[NarSource]>,
    dialect: Dialect,
}

/// How it is signed.
#[derive(Debug)]
enum Dialect {
    Guix(SignedText),
    Nix(Signatures),
}

/// A well-formed narinfo that nobody has vouched for.
#[derive(Debug, Clone)]
pub struct UnverifiedNarinfo {
    contents: Arc<Contents>,
}

impl UnverifiedNarinfo {
    /// Reads a narinfo of at most [`limits::MAX_NARINFO_BYTES`], in UTF-8, with line feeds only.
    /// Of repeated fields the first counts, and an empty line ends the narinfo.
    ///
    /// # Errors
    /// See [`NarinfoError`]. A narinfo without a signature is well-formed.
    pub fn parse(bytes: &[u8]) -> Result<Self, NarinfoError> {
        if bytes.len() > limits::MAX_NARINFO_BYTES {
            return Err(NarinfoError::TooLarge { octets: bytes.len() });
        }
        let text = std::str::from_utf8(bytes)
            .map_err(|error| NarinfoError::Utf8 { position: error.valid_up_to() })?;
        let record = Record::parse(text)?;
        let is_nix = Signatures::sign(&record);
        let required = |name| record.first(name).ok_or(NarinfoError::Missing { field: name });
        let store_path = required("StorePath")?.value.trim_start();
        let store_path =
            StorePath::parse(store_path.as_bytes()).map_err(NarinfoError::StorePath)?;
        let nar_hash = required("NarHash")?.value.as_bytes();
        let read_hash = if is_nix { NarHash::parse_nix } else { NarHash::parse };
        let nar_hash = read_hash(nar_hash).map_err(NarinfoError::NarHash)?;
        let nar_size = nar_size(required("NarSize")?.value)?;
        let mut references = references(required("References")?.value)?;
        let (sources, dialect) = if is_nix {
            // A set to Nix, and signed in this order.
            references.sort_unstable();
            references.dedup();
            let (store_path, nar_hash) = (&store_path, &nar_hash);
            let signed = nix::Signed { store_path, nar_hash, nar_size, references: &references };
            (nix::sources(&record), Dialect::Nix(Signatures::read(&record, signed)?))
        } else {
            (source::read(&record), Dialect::Guix(SignedText::read(text, &record)))
        };
        let (text, references) = (text.into(), references.into());
        let contents =
            Contents { text, store_path, nar_hash, nar_size, references, sources, dialect };
        Ok(Self { contents: Arc::new(contents) })
    }

    /// The item that a narinfo claims to describe, without reading anything else of it.
    #[must_use]
    pub fn item_of(bytes: &[u8]) -> Option<ItemName> {
        let mut lines = bytes.split(|&octet| octet == b'\n');
        let path = lines.find_map(|line| line.strip_prefix(b"StorePath:"))?;
        Some(StorePath::parse(path.trim_ascii_start()).ok()?.item().clone())
    }

    /// The item that it claims to describe. Compare it with what was asked for: the client doesn't.
    #[must_use]
    pub fn store_path(&self) -> &StorePath {
        &self.contents.store_path
    }

    /// Believes the narinfo if a key of the list has signed it, and if guix, or Nix, would take it.
    ///
    /// # Errors
    /// See [`Refusal`]; of several reasons, the first in Guix's order.
    pub fn verify(self, acl: &Acl) -> Result<VerifiedNarinfo, Refusal> {
        let verdict = Self::verify_all(vec![self], acl).pop();
        verdict.expect("there are as many verdicts as narinfos")
    }

    /// As [`Self::verify`], for many at once and in their order; Guix's in half the time.
    #[must_use]
    pub fn verify_all(narinfos: Vec<Self>, acl: &Acl) -> Vec<Result<VerifiedNarinfo, Refusal>> {
        let (mut claims, mut verdicts) = (Vec::new(), Vec::with_capacity(narinfos.len()));
        for narinfo in &narinfos {
            let contents = &narinfo.contents;
            verdicts.push(match &contents.dialect {
                Dialect::Guix(signed) => signed.claim(&contents.text, acl).map(|claim| {
                    claims.push(claim);
                    Judged::Claimed(claims.len() - 1)
                }),
                Dialect::Nix(signed) => {
                    signed.signer(acl).map(|key| Judged::Signed(Signer::Nix(key.clone())))
                }
            });
        }
        let truths = signature::verify_all(&claims);
        let judge = |(narinfo, verdict): (Self, Result<Judged, Refusal>)| {
            let signer = match verdict? {
                Judged::Signed(signer) => signer,
                Judged::Claimed(claim) if truths[claim] => {
                    Signer::Guix(claims[claim].key().clone())
                }
                Judged::Claimed(_) => return Err(Refusal::InvalidSignature),
            };
            let contents = narinfo.contents;
            if let Dialect::Guix(signed) = &contents.dialect {
                signed.stands_alone(&contents.text)?;
            }
            Ok(VerifiedNarinfo { verified: Arc::new(Verified { contents, signer }) })
        };
        narinfos.into_iter().zip(verdicts).map(judge).collect()
    }
}

/// How far a verdict has come.
enum Judged {
    /// Everything but the mathematics of this claim.
    Claimed(usize),
    Signed(Signer),
}

impl Contents {
    fn signed(&self) -> nix::Signed<'_> {
        let Self { store_path, nar_hash, nar_size, references, .. } = self;
        nix::Signed { store_path, nar_hash, nar_size: *nar_size, references }
    }
}

fn nar_size(text: &str) -> Result<u64, NarinfoError> {
    if text.is_empty() || !text.bytes().all(|c| c.is_ascii_digit()) {
        return Err(NarinfoError::NarSize);
    }
    // More digits than fit are a number as well, only a large one.
    let octets = text.parse().unwrap_or(u64::MAX);
    if octets > limits::MAX_NAR_BYTES {
        return Err(NarinfoError::NarTooLarge { octets });
    }
    Ok(octets)
}

fn references(text: &str) -> Result<Vec<ItemName>, NarinfoError> {
    text.split_ascii_whitespace()
        .enumerate()
        .map(|(index, name)| {
            ItemName::parse(name.as_bytes())
                .map_err(|error| NarinfoError::Reference { number: index + 1, error })
        })
        .collect()
}

#[derive(Debug)]
struct Verified {
    contents: Arc<Contents>,
    signer: Signer,
}

/// A narinfo signed by a key of the ACL; only [`UnverifiedNarinfo::verify`] makes one. Clones
/// share their text.
#[derive(Debug, Clone)]
pub struct VerifiedNarinfo {
    verified: Arc<Verified>,
}

impl VerifiedNarinfo {
    fn contents(&self) -> &Contents {
        &self.verified.contents
    }

    /// The item that it describes.
    #[must_use]
    pub fn store_path(&self) -> &StorePath {
        &self.contents().store_path
    }

    /// The item that it describes, without its directory.
    #[must_use]
    pub fn item(&self) -> &ItemName {
        self.store_path().item()
    }

    /// SHA-256 of the uncompressed nar.
    #[must_use]
    pub fn nar_hash(&self) -> NarHash {
        self.contents().nar_hash
    }

    /// Octets of the uncompressed nar. Always from the signed part, at most
    /// [`limits::MAX_NAR_BYTES`].
    #[must_use]
    pub fn nar_size(&self) -> u64 {
        self.contents().nar_size
    }

    /// The items that the nar refers to, itself perhaps among them.
    #[must_use]
    pub fn references(&self) -> &[ItemName] {
        &self.contents().references
    }

    /// Whose signature it was that made it believable.
    #[must_use]
    pub fn signer(&self) -> &Signer {
        &self.verified.signer
    }

    /// Whether URL, Compression or FileSize stand in the signed part (narinfos before 2022).
    #[must_use]
    pub fn signs_urls(&self) -> bool {
        matches!(&self.contents().dialect, Dialect::Guix(signed) if signed.signs_urls())
    }

    /// All groups, signed or not, in order: hints where an upstream keeps the nar. Groups of an
    /// unknown compression, with a malformed URL, and those beyond
    /// [`limits::MAX_NAR_SOURCES`] are left out.
    #[must_use]
    pub fn sources(&self) -> &[NarSource] {
        &self.contents().sources
    }

    /// What is signed, which is the narinfo's identity for comparing: the text before the first
    /// `Signature:`, or Nix's fingerprint.
    #[must_use]
    pub fn signed_bytes(&self) -> &[u8] {
        let contents = self.contents();
        match &contents.dialect {
            Dialect::Guix(signed) => signed.signed_bytes(&contents.text),
            Dialect::Nix(signed) => signed.signed_bytes(),
        }
    }

    /// The text as it was read, unsigned tail and all (for storing).
    #[must_use]
    pub fn original(&self) -> &[u8] {
        self.contents().text.as_bytes()
    }

    /// For clients and other nodes: what is signed and its signatures, and `groups` for the rest. A
    /// group whose URL has white space or control characters, or none at all, is left out.
    ///
    /// Of Guix's, the signed part and the signature line are untouched, and `groups` come below,
    /// after those that are signed. Of Nix's, the first of `groups` stands between the fields.
    /// Without any group, guix throws and Nix refuses: give at least one.
    #[must_use]
    pub fn relay(&self, groups: &[NarSource]) -> Vec<u8> {
        let contents = self.contents();
        let text = match &contents.dialect {
            Dialect::Guix(signed) => signed.relay(&contents.text, groups, contents.nar_size),
            Dialect::Nix(signed) => signed.relay(contents.signed(), groups),
        };
        text.into_bytes()
    }
}

#[cfg(test)]
mod tests;
