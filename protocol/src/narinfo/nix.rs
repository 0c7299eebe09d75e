//! Nix's way of signing narinfos: each `Sig` field signs a fingerprint of four of the fields,
//! `1;STOREPATH;NARHASH;NARSIZE;REFERENCES` (`ValidPathInfo::fingerprint`), wherever they stand.
//!
//! References are a set to Nix, so their order says nothing. Everything else in the text is
//! nobody's word, and a narinfo is passed on written anew: the signed fields, every well-formed
//! signature, since others may trust other keys, the deriver, which nothing depends on, and `CA` if
//! the store path confirms it, since Nix refuses an item with a false one.

use super::record::Record;
use super::refusal::{NarinfoError, Refusal};
use super::source::{Compression, NarSource, is_url};
use crate::acl::{Acl, NixKey, NixKeyError, nix_signature};
use crate::content_address::ContentAddress;
use crate::hash::NarHash;
use crate::limits;
use crate::store_path::{ItemName, StorePath};

/// The fields that are signed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Signed<'a> {
    pub store_path: &'a StorePath,
    pub nar_hash: &'a NarHash,
    pub nar_size: u64,
    /// In order, each once.
    pub references: &'a [ItemName],
}

impl Signed<'_> {
    pub fn fingerprint(self) -> String {
        let directory = self.store_path.directory();
        let references: Vec<_> =
            self.references.iter().map(|item| format!("{directory}/{item}")).collect();
        format!(
            "1;{};{};{};{}",
            self.store_path,
            self.nar_hash.to_narinfo(),
            self.nar_size,
            references.join(",")
        )
    }
}

/// What one of the `Sig` fields says.
#[derive(Debug)]
struct Sig {
    key_name: Box<str>,
    octets: [u8; 64],
    value: Box<str>,
}

/// What vouches for a narinfo, and what else is kept of it.
#[derive(Debug)]
pub(super) struct Signatures {
    fingerprint: Box<str>,
    sigs: Box<[Sig]>,
    /// Why the first of the fields that can't be read can't.
    malformed: Option<NixKeyError>,
    has_url: bool,
    deriver: Option<ItemName>,
    content_address: Option<Box<str>>,
}

impl Signatures {
    /// Whether a narinfo is signed in this way. One that Guix has signed is left to Guix's.
    pub fn sign(record: &Record) -> bool {
        record.first("Sig").is_some() && record.first("Signature").is_none()
    }

    pub fn read(record: &Record, signed: Signed) -> Result<Self, NarinfoError> {
        let count = record.all("Sig").count();
        if count > limits::MAX_NIX_SIGNATURES {
            return Err(NarinfoError::TooManySignatures { count });
        }
        let (mut sigs, mut malformed) = (Vec::with_capacity(count), None);
        for field in record.all("Sig") {
            let value = field.value.trim_end();
            match nix_signature(value) {
                Ok((name, octets)) => {
                    sigs.push(Sig { key_name: name.into(), octets, value: value.into() });
                }
                Err(error) => malformed = malformed.or(Some(error)),
            }
        }
        let deriver = record.first("Deriver").map(|field| field.value.trim_end());
        let content_address = record.first("CA").map(|field| field.value.trim_end());
        Ok(Self {
            fingerprint: signed.fingerprint().into(),
            sigs: sigs.into(),
            malformed,
            has_url: record.first("URL").is_some(),
            deriver: deriver.and_then(|name| ItemName::parse(name.as_bytes()).ok()),
            content_address: content_address.filter(|text| confirms(signed, text)).map(Into::into),
        })
    }

    pub fn signed_bytes(&self) -> &[u8] {
        self.fingerprint.as_bytes()
    }

    /// The key of the list that has signed.
    pub fn signer<'a>(&self, acl: &'a Acl) -> Result<&'a NixKey, Refusal> {
        if !self.has_url {
            return Err(Refusal::NoUrl);
        }
        let mut is_named = false;
        for sig in &self.sigs {
            for key in acl.nix_keys_named(&sig.key_name) {
                is_named = true;
                if key.has_signed(self.fingerprint.as_bytes(), &sig.octets) {
                    return Ok(key);
                }
            }
        }
        if is_named {
            return Err(Refusal::InvalidSignature);
        }
        match (&self.malformed, &*self.sigs) {
            (Some(error), []) => Err(Refusal::MalformedSig(error.clone())),
            (_, sigs) => {
                let names: Vec<&str> = sigs.iter().map(|sig| &*sig.key_name).collect();
                Err(Refusal::UntrustedNames { names: names.join(", ") })
            }
        }
    }

    /// See [`super::VerifiedNarinfo::relay`].
    pub fn relay(&self, signed: Signed, groups: &[NarSource]) -> String {
        let sigs = self.sigs.iter().map(|sig| &*sig.value);
        let mut text = compose(signed, groups, self.deriver.as_ref(), sigs);
        if let Some(content_address) = &self.content_address {
            text.push_str(&format!("CA: {content_address}\n"));
        }
        text
    }
}

/// Writes a narinfo. Nix reads one group only: the first that is fit.
pub(super) fn compose<'a>(
    signed: Signed,
    groups: &[NarSource],
    deriver: Option<&ItemName>,
    sigs: impl Iterator<Item = &'a str>,
) -> String {
    let references: Vec<&str> = signed.references.iter().map(ItemName::as_str).collect();
    let hash = signed.nar_hash.to_narinfo();
    let mut text = format!("StorePath: {}\n", signed.store_path);
    if let Some(group) = groups.iter().find(|group| is_url(&group.url)) {
        text.push_str(&format!("URL: {}\nCompression: {}\n", group.url, group.compression));
        if group.compression == Compression::None {
            text.push_str(&format!("FileHash: {hash}\nFileSize: {}\n", signed.nar_size));
        } else if let Some(size) = group.file_size {
            text.push_str(&format!("FileSize: {size}\n"));
        }
    }
    text.push_str(&format!(
        "NarHash: {hash}\nNarSize: {}\nReferences: {}\n",
        signed.nar_size,
        references.join(" ")
    ));
    if let Some(deriver) = deriver {
        text.push_str(&format!("Deriver: {deriver}\n"));
    }
    for sig in sigs {
        text.push_str(&format!("Sig: {sig}\n"));
    }
    text
}

/// Whether an item of this content would have this path.
fn confirms(signed: Signed, content_address: &str) -> bool {
    let item = signed.store_path.item();
    let others: Vec<_> = signed.references.iter().filter(|&other| other != item).cloned().collect();
    let refers_to_itself = others.len() < signed.references.len();
    ContentAddress::parse(content_address).is_some_and(|address| {
        let directory = signed.store_path.directory();
        address.item(directory, item.name(), &others, refers_to_itself).as_ref() == Some(item)
    })
}

/// What Nix reads of URL and Compression, which is bzip2 where none is said.
pub(super) fn sources(record: &Record) -> Box<[NarSource]> {
    let Some(url) = record.first("URL").filter(|url| is_url(url.value)) else {
        return Box::default();
    };
    let compression = match record.first("Compression").map_or("", |field| field.value) {
        "" => Some(Compression::Bzip2),
        name => Compression::parse(name),
    };
    let file_size = record.first("FileSize").and_then(|field| field.value.parse().ok());
    let group = |compression| NarSource { url: url.value.to_owned(), compression, file_size };
    compression.map(group).into_iter().collect()
}

#[cfg(test)]
mod tests;
