//! Narinfos: what a substitute server says about a store item, and which of it is believed.
//!
//! [`UnverifiedNarinfo::parse`] reads one as Guix does (`guix/narinfo.scm`); only
//! [`UnverifiedNarinfo::verify`] makes a [`VerifiedNarinfo`] of it, by a signature of an authorised
//! key. What stands below the signature is nobody's word: where to download from, and nothing else,
//! is read there. Whoever relays a narinfo writes that part anew ([`VerifiedNarinfo::relay`]).
//!
//! Refused besides what Guix refuses: what makes Guix throw instead of refuse, and a `NarSize` that
//! isn't signed. The signature's text can be changed without breaking it, so narinfos are compared
//! by their [`VerifiedNarinfo::signed_bytes`].

mod draft;
mod record;
mod source;

pub use draft::{Draft, DraftError};
pub use record::LineError;
pub use source::{Compression, NarSource};

use crate::acl::{Acl, PublicKey};
use crate::hash::{NarHash, NarHashError};
use crate::limits;
use crate::signature::{self, Claim, FieldError, Signature, SignatureError, Unsupported};
use crate::store_path::{ItemName, StorePath, StorePathError};
use record::Record;
use sha2::{Digest, Sha256};
use source::SignedGroups;
use std::sync::Arc;

/// Fields that must stand above the signature. Guix asks for the first three; a download is held
/// to the last one here, so it must be signed as well.
const SIGNED_FIELDS: [&str; 4] = ["StorePath", "NarHash", "References", "NarSize"];

/// Why bytes are no narinfo.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NarinfoError {
    /// Larger than any narinfo.
    #[error("narinfo of {octets} octets, more than {limit}", limit = limits::MAX_NARINFO_BYTES)]
    TooLarge {
        /// Its length.
        octets: usize,
    },
    /// Not UTF-8.
    #[error("octet {position} of the narinfo is not UTF-8")]
    Utf8 {
        /// Zero-based position.
        position: usize,
    },
    /// A line is no field.
    #[error("line {number} of the narinfo {error}")]
    Line {
        /// Counted from one.
        number: usize,
        /// What is wrong with it.
        error: LineError,
    },
    /// A field that every narinfo has is absent.
    #[error("the narinfo has no {field} field")]
    Missing {
        /// Its name.
        field: &'static str,
    },
    /// `StorePath` is no store path.
    #[error("the narinfo's StorePath is {0}")]
    StorePath(StorePathError),
    /// `NarHash` is no SHA-256.
    #[error("the narinfo's NarHash: {0}")]
    NarHash(NarHashError),
    /// `NarSize` is no decimal number.
    #[error("the narinfo's NarSize is not a number")]
    NarSize,
    /// `NarSize` is larger than any nar that is handled.
    #[error("the narinfo's NarSize is {octets}, more than {limit}", limit = limits::MAX_NAR_BYTES)]
    NarTooLarge {
        /// The size it gives.
        octets: u64,
    },
    /// One of the `References` is no item of a store.
    #[error("reference {number} of the narinfo is no store item: {error}")]
    Reference {
        /// Counted from one.
        number: usize,
        /// What is wrong with it.
        error: StorePathError,
    },
}

/// Why a narinfo isn't believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No `Signature` field.
    #[error("the narinfo is not signed")]
    Unsigned,
    /// A field that must be signed stands below the signature.
    #[error("the narinfo's {field} is not covered by its signature")]
    UnsignedField {
        /// Its name.
        field: &'static str,
    },
    /// The `Signature` field holds no signature.
    #[error("the narinfo's signature can't be read: {0}")]
    MalformedSignature(#[from] FieldError),
    /// The signature lacks its data or its key.
    #[error("the narinfo's signature lacks its data or its public key")]
    CorruptSignature,
    /// Signed by a key that isn't in the access control list.
    #[error("the narinfo is signed by a key that is not authorised{}", shown(.key))]
    UnauthorizedKey {
        /// The key, if it is one on curve Ed25519.
        key: Option<PublicKey>,
    },
    /// The signature is of another text.
    #[error("the narinfo's text is not the one that was signed")]
    HashMismatch,
    /// The signature's numbers are wrong.
    #[error("the narinfo's signature was not made by the key it names")]
    InvalidSignature,
    /// A signature over which Guix throws.
    #[error("the narinfo's signature is of a form that guix does not take: {0}")]
    UnsupportedSignature(Unsupported),
    /// No `URL` field, over which Guix throws.
    #[error("the narinfo has no URL")]
    NoUrl,
    /// The signed text doesn't end with a line.
    #[error("the narinfo's signature does not stand on a line of its own")]
    SignatureInLine,
}

fn shown(key: &Option<PublicKey>) -> String {
    key.as_ref().map_or_else(String::new, |key| format!(" ({})", key.id()))
}

impl Refusal {
    /// The verdict in one word, the one that Guix would give.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unsigned | Self::UnsignedField { .. } | Self::MalformedSignature(_) => "unsigned",
            Self::CorruptSignature => "corrupt-signature",
            Self::UnauthorizedKey { .. } => "unauthorized-key",
            Self::HashMismatch => "hash-mismatch",
            Self::InvalidSignature => "invalid-signature",
            Self::UnsupportedSignature(_) => "unsupported-signature",
            Self::NoUrl => "no-url",
            Self::SignatureInLine => "signature-in-line",
        }
    }
}

impl From<SignatureError> for Refusal {
    fn from(error: SignatureError) -> Self {
        match error {
            SignatureError::Corrupt => Self::CorruptSignature,
            SignatureError::UnauthorizedKey { key } => Self::UnauthorizedKey { key },
            SignatureError::HashMismatch => Self::HashMismatch,
            SignatureError::Unsupported(what) => Self::UnsupportedSignature(what),
            SignatureError::Invalid => Self::InvalidSignature,
        }
    }
}

/// What stands in a narinfo.
#[derive(Debug)]
struct Contents {
    text: Box<str>,
    /// Octets before the first `Signature:`; the whole text if there is none.
    signed_len: usize,
    /// Octets up to the end of the signature's line.
    head_len: usize,
    /// The signature's value and the first required field that isn't above it.
    signature: Option<Box<str>>,
    unsigned_field: Option<&'static str>,
    has_url: bool,
    store_path: StorePath,
    nar_hash: NarHash,
    nar_size: u64,
    references: Box<[ItemName]>,
    sources: Box<[NarSource]>,
    signed_groups: SignedGroups,
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
        let signed_len = text.find("Signature:").unwrap_or(text.len());
        let head_len = text[signed_len..].find('\n').map_or(text.len(), |end| signed_len + end);
        let required = |name| record.first(name).ok_or(NarinfoError::Missing { field: name });
        let store_path = required("StorePath")?.value.trim_start();
        let unsigned = |name: &&str| record.first(name).is_none_or(|f| f.end > signed_len);
        let contents = Contents {
            store_path: StorePath::parse(store_path.as_bytes()).map_err(NarinfoError::StorePath)?,
            nar_hash: NarHash::parse(required("NarHash")?.value.as_bytes())
                .map_err(NarinfoError::NarHash)?,
            nar_size: nar_size(required("NarSize")?.value)?,
            references: references(required("References")?.value)?,
            sources: source::read(&record),
            signed_groups: SignedGroups::count(&record, signed_len),
            signature: record.first("Signature").map(|field| field.value.into()),
            unsigned_field: SIGNED_FIELDS.into_iter().find(unsigned),
            has_url: record.first("URL").is_some(),
            text: text.into(),
            signed_len,
            head_len,
        };
        Ok(Self { contents: Arc::new(contents) })
    }

    /// The item that it claims to describe. Compare it with what was asked for: the client doesn't.
    #[must_use]
    pub fn store_path(&self) -> &StorePath {
        &self.contents.store_path
    }

    /// Believes the narinfo if a key of the list has signed it, and if guix would take it.
    ///
    /// # Errors
    /// See [`Refusal`]; of several reasons, the first in Guix's order.
    pub fn verify(self, acl: &Acl) -> Result<VerifiedNarinfo, Refusal> {
        let verdict = Self::verify_all(vec![self], acl).pop();
        verdict.expect("there are as many verdicts as narinfos")
    }

    /// As [`Self::verify`], for many at once and in their order, in half the time.
    #[must_use]
    pub fn verify_all(narinfos: Vec<Self>, acl: &Acl) -> Vec<Result<VerifiedNarinfo, Refusal>> {
        let (mut claims, mut verdicts) = (Vec::new(), Vec::with_capacity(narinfos.len()));
        for narinfo in &narinfos {
            verdicts.push(narinfo.contents.claim(acl).map(|claim| {
                claims.push(claim);
                claims.len() - 1
            }));
        }
        let truths = signature::verify_all(&claims);
        let judge = |(narinfo, verdict): (Self, Result<usize, Refusal>)| {
            let claim = verdict?;
            if !truths[claim] {
                return Err(Refusal::InvalidSignature);
            }
            narinfo.signed_by(claims[claim].key())
        };
        narinfos.into_iter().zip(verdicts).map(judge).collect()
    }

    fn signed_by(self, signer: &PublicKey) -> Result<VerifiedNarinfo, Refusal> {
        // Otherwise the line's beginning would be signed text and its end the signature of it:
        // nobody signs such a thing, and nothing could be relayed below it.
        if !self.contents.signed_bytes().ends_with(b"\n") {
            return Err(Refusal::SignatureInLine);
        }
        let signer = signer.clone();
        Ok(VerifiedNarinfo { verified: Arc::new(Verified { contents: self.contents, signer }) })
    }
}

impl Contents {
    fn signed_bytes(&self) -> &[u8] {
        &self.text.as_bytes()[..self.signed_len]
    }

    /// Everything of a verdict but the signature's mathematics.
    fn claim<'a>(&self, acl: &'a Acl) -> Result<Claim<'a>, Refusal> {
        let field = self.signature.as_deref().ok_or(Refusal::Unsigned)?;
        if let Some(field) = self.unsigned_field {
            return Err(Refusal::UnsignedField { field });
        }
        if !self.has_url {
            return Err(Refusal::NoUrl);
        }
        let digest: [u8; 32] = Sha256::digest(self.signed_bytes()).into();
        Ok(Signature::parse(field)?.claim(&digest, acl)?)
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

fn references(text: &str) -> Result<Box<[ItemName]>, NarinfoError> {
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
    signer: PublicKey,
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
    pub fn signer(&self) -> &PublicKey {
        &self.verified.signer
    }

    /// Whether URL, Compression or FileSize stand in the signed part (narinfos before 2022).
    #[must_use]
    pub fn signs_urls(&self) -> bool {
        self.contents().signed_groups.any()
    }

    /// All groups, signed or not, in order: hints where an upstream keeps the nar. Groups of an
    /// unknown compression, with a malformed URL, and those beyond
    /// [`limits::MAX_NAR_SOURCES`] are left out.
    #[must_use]
    pub fn sources(&self) -> &[NarSource] {
        &self.contents().sources
    }

    /// The text before the first `Signature:`, which is the narinfo's identity for comparing.
    #[must_use]
    pub fn signed_bytes(&self) -> &[u8] {
        self.contents().signed_bytes()
    }

    /// The text as it was read, unsigned tail and all (for storing).
    #[must_use]
    pub fn original(&self) -> &[u8] {
        self.contents().text.as_bytes()
    }

    /// The signed part and the signature line untouched, then `groups` as the new tail. A group
    /// whose URL has white space or control characters, or none at all, is left out.
    ///
    /// With signed URLs, `groups` come after those. Without, an empty tail would make guix throw:
    /// give at least one group.
    #[must_use]
    pub fn relay(&self, groups: &[NarSource]) -> Vec<u8> {
        let contents = self.contents();
        let mut text = contents.text[..contents.head_len].to_owned();
        text.push('\n');
        contents.signed_groups.pad(&mut text);
        source::write(groups, contents.nar_size, &mut text);
        text.into_bytes()
    }
}

#[cfg(test)]
mod tests;
