//! Composing and signing narinfos, in the form that `guix publish` has given them since 2022 (the
//! item's own fields signed, the URLs below the signature), or in Nix's.
//!
//! For demonstrations, tests and small private mirrors; see [`SigningKey`].

use super::{NarSource, nix, source};
use crate::acl::NixSigningKey;
use crate::hash::NarHash;
use crate::limits;
use crate::signature::SigningKey;
use crate::store_path::{ItemName, StorePath};

/// What a narinfo is to say of an item.
#[derive(Debug, Clone)]
pub struct Draft {
    /// The item.
    pub store_path: StorePath,
    /// SHA-256 of its nar.
    pub nar_hash: NarHash,
    /// Octets of its nar.
    pub nar_size: u64,
    /// The items it refers to; itself too, if it does.
    pub references: Vec<ItemName>,
    /// The system it was built for: `x86_64-linux`.
    pub system: Option<String>,
    /// The derivation that built it.
    pub deriver: Option<ItemName>,
}

/// Why a draft makes no narinfo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DraftError {
    /// The system's name would not be read back.
    #[error("the system of a narinfo must be of letters, digits, underscores and dashes")]
    System,
    /// The host's name would not be read back.
    #[error("the host of a signature must be of letters, digits, dots and dashes")]
    Host,
    /// A signature or content address would not be read back.
    #[error("a signature must have no white space")]
    Signature,
    /// The nar is larger than any that is handled.
    #[error("a nar of {octets} octets is larger than {limit}", limit = limits::MAX_NAR_BYTES)]
    NarTooLarge {
        /// The draft's size.
        octets: u64,
    },
    /// The narinfo would be larger than any that is read.
    #[error(
        "the narinfo would have {octets} octets, more than {limit}",
        limit = limits::MAX_NARINFO_BYTES
    )]
    TooLarge {
        /// Its length.
        octets: usize,
    },
}

impl Draft {
    /// The text above the signature, in the order of `guix/scripts/publish.scm`.
    ///
    /// # Errors
    /// Refuses a system's name and a size that would not be read back.
    pub fn signed_bytes(&self) -> Result<String, DraftError> {
        if self.nar_size > limits::MAX_NAR_BYTES {
            return Err(DraftError::NarTooLarge { octets: self.nar_size });
        }
        let references: Vec<&str> = self.references.iter().map(ItemName::as_str).collect();
        let mut text = format!(
            "StorePath: {}\nNarHash: {}\nNarSize: {}\nReferences: {}\n",
            self.store_path,
            self.nar_hash.to_narinfo(),
            self.nar_size,
            references.join(" ")
        );
        if let Some(system) = &self.system {
            if !is_word(system, b"_-") {
                return Err(DraftError::System);
            }
            text.push_str(&format!("System: {system}\n"));
        }
        if let Some(deriver) = &self.deriver {
            text.push_str(&format!("Deriver: {deriver}\n"));
        }
        Ok(text)
    }

    /// The whole narinfo: the signed text, the signature, and `groups` below it.
    ///
    /// # Errors
    /// Refuses names and sizes that would not be read back.
    pub fn sign(
        &self,
        key: &SigningKey,
        host: &str,
        groups: &[NarSource],
    ) -> Result<Vec<u8>, DraftError> {
        if !is_word(host, b".-") {
            return Err(DraftError::Host);
        }
        let mut text = self.signed_bytes()?;
        let signature = key.sign_narinfo(text.as_bytes(), host);
        text.push_str(&format!("Signature: {signature}\n"));
        source::write(groups, self.nar_size, &mut text);
        bounded(text)
    }

    /// The whole narinfo as Nix writes it, of the first of `groups`, with a `Sig` field for each of
    /// `keys`. The system isn't part of it.
    ///
    /// # Errors
    /// Refuses a size that would not be read back.
    pub fn sign_for_nix(
        &self,
        keys: &[&NixSigningKey],
        groups: &[NarSource],
    ) -> Result<Vec<u8>, DraftError> {
        let references = self.set_of_references();
        let fingerprint = self.signed_for_nix(&references).fingerprint();
        let sigs: Vec<_> = keys.iter().map(|key| key.sign(fingerprint.as_bytes())).collect();
        let sigs: Vec<&str> = sigs.iter().map(String::as_str).collect();
        self.with_signatures(&sigs, None, groups)
    }

    /// The whole narinfo as Nix writes it, of the first of `groups`, with signatures that others have
    /// made; whether they are valid, and what the content address is worth, is found out by whoever
    /// reads it.
    ///
    /// # Errors
    /// Refuses what would not be read back.
    pub fn with_signatures(
        &self,
        sigs: &[&str],
        content_address: Option<&str>,
        groups: &[NarSource],
    ) -> Result<Vec<u8>, DraftError> {
        if self.nar_size > limits::MAX_NAR_BYTES {
            return Err(DraftError::NarTooLarge { octets: self.nar_size });
        }
        if sigs
            .iter()
            .copied()
            .chain(content_address)
            .any(|text| text.contains(char::is_whitespace))
        {
            return Err(DraftError::Signature);
        }
        let references = self.set_of_references();
        let signed = self.signed_for_nix(&references);
        let mut text = nix::compose(signed, groups, self.deriver.as_ref(), sigs.iter().copied());
        if let Some(content_address) = content_address {
            text.push_str(&format!("CA: {content_address}\n"));
        }
        bounded(text)
    }

    fn set_of_references(&self) -> Vec<ItemName> {
        let mut references = self.references.clone();
        references.sort_unstable();
        references.dedup();
        references
    }

    fn signed_for_nix<'a>(&'a self, references: &'a [ItemName]) -> nix::Signed<'a> {
        let Self { store_path, nar_hash, nar_size, .. } = self;
        nix::Signed { store_path, nar_hash, nar_size: *nar_size, references }
    }
}

fn bounded(text: String) -> Result<Vec<u8>, DraftError> {
    if text.len() > limits::MAX_NARINFO_BYTES {
        return Err(DraftError::TooLarge { octets: text.len() });
    }
    Ok(text.into_bytes())
}

fn is_word(text: &str, others: &[u8]) -> bool {
    !text.is_empty() && text.bytes().all(|c| c.is_ascii_alphanumeric() || others.contains(&c))
}
