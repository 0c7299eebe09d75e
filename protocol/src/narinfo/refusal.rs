//! Why bytes are no narinfo, and why a narinfo isn't believed.

use super::LineError;
use crate::acl::{NixKeyError, PublicKey};
use crate::hash::NarHashError;
use crate::limits;
use crate::signature::{FieldError, SignatureError, Unsupported};
use crate::store_path::StorePathError;

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
    /// More `Sig` fields than anybody signs with.
    #[error("the narinfo has {count} Sig fields, more than {limit}", limit = limits::MAX_NIX_SIGNATURES)]
    TooManySignatures {
        /// How many.
        count: usize,
    },
}

/// Why a narinfo isn't believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Neither a `Signature` nor a `Sig` field.
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
    /// None of the `Sig` fields is of the form that Nix writes.
    #[error("the narinfo's signature can't be read: {0}")]
    MalformedSig(#[source] NixKeyError),
    /// The signature lacks its data or its key.
    #[error("the narinfo's signature lacks its data or its public key")]
    CorruptSignature,
    /// Signed by a key that isn't in the access control list.
    #[error("the narinfo is signed by a key that is not authorised{}", shown(.key))]
    UnauthorizedKey {
        /// The key, if it is one on curve Ed25519.
        key: Option<PublicKey>,
    },
    /// All `Sig` fields are by keys whose names aren't in the access control list.
    #[error("the narinfo is signed by no key that is trusted, but by {names}")]
    UntrustedNames {
        /// Of the keys that it names.
        names: String,
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
            Self::Unsigned
            | Self::UnsignedField { .. }
            | Self::MalformedSignature(_)
            | Self::MalformedSig(_) => "unsigned",
            Self::CorruptSignature => "corrupt-signature",
            Self::UnauthorizedKey { .. } | Self::UntrustedNames { .. } => "unauthorized-key",
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
