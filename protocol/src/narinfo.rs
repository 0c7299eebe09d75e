//! In the making.
use crate::acl::Acl;
use crate::hash::NarHash;
use crate::store_path::{ItemName, StorePath};

/// Why bytes are no narinfo.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("in the making")]
pub struct NarinfoError;

/// Why a narinfo isn't believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("in the making")]
pub struct Refusal;

/// How the bytes behind a narinfo's URL are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Compression {
    None,
    Gzip,
    Lzip,
    Zstd,
    Xz,
    Bzip2,
}

/// One URL/Compression/FileSize group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarSource {
    /// As written: absolute, or relative to the substitute server's base.
    pub url: String,
    /// How the bytes there are compressed.
    pub compression: Compression,
    /// Octets to download, where said.
    pub file_size: Option<u64>,
}

/// A well-formed narinfo that nobody has vouched for.
#[derive(Debug, Clone)]
pub struct UnverifiedNarinfo {}

impl UnverifiedNarinfo {
    #[allow(missing_docs)]
    pub fn parse(_bytes: &[u8]) -> Result<Self, NarinfoError> {
        unimplemented!()
    }
    #[allow(missing_docs)]
    #[must_use]
    pub fn store_path(&self) -> &StorePath {
        unimplemented!()
    }
    #[allow(missing_docs)]
    pub fn verify(self, _acl: &Acl) -> Result<VerifiedNarinfo, Refusal> {
        unimplemented!()
    }
}

/// A narinfo signed by a key of the ACL; only [`UnverifiedNarinfo::verify`] makes one.
#[derive(Debug, Clone)]
pub struct VerifiedNarinfo {}

#[allow(missing_docs)]
impl VerifiedNarinfo {
    #[must_use]
    pub fn store_path(&self) -> &StorePath {
        unimplemented!()
    }
    #[must_use]
    pub fn item(&self) -> &ItemName {
        unimplemented!()
    }
    #[must_use]
    pub fn nar_hash(&self) -> NarHash {
        unimplemented!()
    }
    /// Always from the signed part, at most `limits::MAX_NAR_BYTES`.
    #[must_use]
    pub fn nar_size(&self) -> u64 {
        unimplemented!()
    }
    #[must_use]
    pub fn references(&self) -> &[ItemName] {
        unimplemented!()
    }
    /// Whether URL, Compression or FileSize stand in the signed part (narinfos before 2022).
    #[must_use]
    pub fn signs_urls(&self) -> bool {
        unimplemented!()
    }
    /// All groups, signed or not, in order: hints where an upstream keeps the nar.
    #[must_use]
    pub fn sources(&self) -> &[NarSource] {
        unimplemented!()
    }
    /// The text before the first `Signature:`, which is the narinfo's identity for comparing.
    #[must_use]
    pub fn signed_bytes(&self) -> &[u8] {
        unimplemented!()
    }
    /// The text as it was read, unsigned tail and all (for storing).
    #[must_use]
    pub fn original(&self) -> &[u8] {
        unimplemented!()
    }
    /// The signed part and the signature line untouched, then `groups` as the new tail.
    #[must_use]
    pub fn relay(&self, _groups: &[NarSource]) -> Vec<u8> {
        unimplemented!()
    }
}
