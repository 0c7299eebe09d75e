//! Guix's way of signing narinfos: a `Signature` field signs the text before it, as it stands.
//!
//! What stands below is nobody's word. Until 2022 the URLs stood above; those narinfos are passed
//! on with them.

use super::record::Record;
use super::refusal::Refusal;
use super::source::{self, NarSource, SignedGroups};
use crate::acl::Acl;
use crate::signature::{Claim, Signature};
use sha2::{Digest, Sha256};

/// Fields that must stand above the signature. Guix asks for the first three; a download is held
/// to the last one here, so it must be signed as well.
pub(super) const SIGNED_FIELDS: [&str; 4] = ["StorePath", "NarHash", "References", "NarSize"];

/// Where a narinfo's text is signed, and by what.
#[derive(Debug)]
pub(super) struct SignedText {
    /// Octets before the first `Signature:`; the whole text if there is none.
    signed_len: usize,
    /// Octets up to the end of the signature's line.
    head_len: usize,
    /// The signature's value and the first required field that isn't above it.
    signature: Option<Box<str>>,
    unsigned_field: Option<&'static str>,
    has_url: bool,
    signed_groups: SignedGroups,
}

impl SignedText {
    pub fn read(text: &str, record: &Record) -> Self {
        let signed_len = text.find("Signature:").unwrap_or(text.len());
        let head_len = text[signed_len..].find('\n').map_or(text.len(), |end| signed_len + end);
        let unsigned = |name: &&str| record.first(name).is_none_or(|f| f.end > signed_len);
        Self {
            signed_len,
            head_len,
            signature: record.first("Signature").map(|field| field.value.into()),
            unsigned_field: SIGNED_FIELDS.into_iter().find(unsigned),
            has_url: record.first("URL").is_some(),
            signed_groups: SignedGroups::count(record, signed_len),
        }
    }

    pub fn signed_bytes<'a>(&self, text: &'a str) -> &'a [u8] {
        &text.as_bytes()[..self.signed_len]
    }

    pub fn signs_urls(&self) -> bool {
        self.signed_groups.any()
    }

    /// Everything of a verdict but the signature's mathematics.
    pub fn claim<'a>(&self, text: &str, acl: &'a Acl) -> Result<Claim<'a>, Refusal> {
        let field = self.signature.as_deref().ok_or(Refusal::Unsigned)?;
        if let Some(field) = self.unsigned_field {
            return Err(Refusal::UnsignedField { field });
        }
        if !self.has_url {
            return Err(Refusal::NoUrl);
        }
        let digest: [u8; 32] = Sha256::digest(self.signed_bytes(text)).into();
        Ok(Signature::parse(field)?.claim(&digest, acl)?)
    }

    /// The last of a verdict, once the mathematics have worked out.
    pub fn stands_alone(&self, text: &str) -> Result<(), Refusal> {
        // Otherwise the line's beginning would be signed text and its end the signature of it:
        // nobody signs such a thing, and nothing could be relayed below it.
        if self.signed_bytes(text).ends_with(b"\n") {
            Ok(())
        } else {
            Err(Refusal::SignatureInLine)
        }
    }

    /// See [`super::VerifiedNarinfo::relay`].
    pub fn relay(&self, text: &str, groups: &[NarSource], nar_size: u64) -> String {
        let mut relayed = text[..self.head_len].to_owned();
        relayed.push('\n');
        self.signed_groups.pad(&mut relayed);
        source::write(groups, nar_size, &mut relayed);
        relayed
    }
}
