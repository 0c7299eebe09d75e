//! Store items and their names: `/gnu/store/HASH-NAME`.
//!
//! Names follow the daemon's rule (`nix/libstore/store-api.cc`, `checkStoreName`): ASCII letters,
//! digits and `+-._?=`, no leading dot, at most 211 octets. Nothing else ever becomes part of a
//! file name or a URL here.

use crate::base32::{self, Base32Error};
use crate::limits;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The 20 octets that name a store item, 32 digits of nix-base32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StoreHash(#[serde(with = "serde_bytes")] pub [u8; 20]);

impl StoreHash {
    /// Reads 32 digits of nix-base32.
    ///
    /// # Errors
    /// See [`Base32Error`].
    pub fn parse(text: &[u8]) -> Result<Self, Base32Error> {
        base32::decode(text).map(Self)
    }
}

impl fmt::Display for StoreHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base32::encode(&self.0))
    }
}

impl fmt::Debug for StoreHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreHash({self})")
    }
}

/// Why a text is not a store item's name or path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StorePathError {
    /// Not below a store directory, or not directly below it.
    #[error("not directly below a store directory")]
    Directory,
    /// The part before the first dash is not a store hash.
    #[error("no store hash: {0}")]
    Hash(#[from] Base32Error),
    /// The part after the dash is empty, too long, or has a character that no store accepts.
    #[error("the name after the hash is not one that a store accepts")]
    Name,
}

/// `HASH-NAME`: the last component of a store path, known to be free of slashes, control
/// characters and leading dots. Ordered as text: Nix signs references in that order, which isn't
/// that of the hashes' octets, since nix-base32 writes the last ones first.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ItemName {
    hash: StoreHash,
    text: String,
}

impl Ord for ItemName {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}

impl PartialOrd for ItemName {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl ItemName {
    /// Reads `HASH-NAME`.
    ///
    /// # Errors
    /// See [`StorePathError`].
    pub fn parse(text: &[u8]) -> Result<Self, StorePathError> {
        let digits = text.get(..32).unwrap_or(text);
        let hash = StoreHash::parse(digits)?;
        let name = text[32..].strip_prefix(b"-").ok_or(StorePathError::Name)?;
        let allowed = |c: &u8| c.is_ascii_alphanumeric() || b"+-._?=".contains(c);
        if name.is_empty()
            || name.len() > limits::MAX_ITEM_NAME_BYTES
            || name[0] == b'.'
            || !name.iter().all(allowed)
        {
            return Err(StorePathError::Name);
        }
        let text = text.iter().map(|&c| char::from(c)).collect();
        Ok(Self { hash, text })
    }

    /// The store hash that the name begins with.
    #[must_use]
    pub fn hash(&self) -> StoreHash {
        self.hash
    }

    /// `HASH-NAME`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The part after the hash and its dash.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.text[33..]
    }
}

impl fmt::Display for ItemName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for ItemName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ItemName({})", self.text)
    }
}

/// A store directory and the name of an item directly below it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StorePath {
    directory: String,
    item: ItemName,
}

impl StorePath {
    /// Reads an absolute path whose last component is an item's name.
    ///
    /// # Errors
    /// See [`StorePathError`].
    pub fn parse(text: &[u8]) -> Result<Self, StorePathError> {
        let text = std::str::from_utf8(text).map_err(|_| StorePathError::Directory)?;
        let (directory, item) = text.rsplit_once('/').ok_or(StorePathError::Directory)?;
        let clean = directory
            .strip_prefix('/')
            .is_some_and(|path| path.split('/').all(|c| !c.is_empty() && c != "." && c != ".."));
        if !clean {
            return Err(StorePathError::Directory);
        }
        Ok(Self { directory: directory.to_owned(), item: ItemName::parse(item.as_bytes())? })
    }

    /// The store directory, without a trailing slash: `/gnu/store`.
    #[must_use]
    pub fn directory(&self) -> &str {
        &self.directory
    }

    /// The item below it.
    #[must_use]
    pub fn item(&self) -> &ItemName {
        &self.item
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.directory, self.item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_in_the_order_of_their_text() {
        let item = |digits: &str| ItemName::parse(format!("{digits}-x").as_bytes()).expect("sound");
        let (low, high) = (format!("0{}z", "0".repeat(30)), format!("1{}", "0".repeat(31)));
        assert!(item(&low) < item(&high));
        assert!(item(&low).hash().0 > item(&high).hash().0, "by octets it would be the other way");
    }

    const HELLO: &[u8] = b"/gnu/store/zab5qqb146vi73jmxl23i3ygcy7lsrps-hello-2.12.1";

    #[test]
    fn reads_a_path() {
        let path = StorePath::parse(HELLO).expect("path");
        assert_eq!(path.directory(), "/gnu/store");
        assert_eq!(path.item().name(), "hello-2.12.1");
        assert_eq!(path.item().hash().to_string(), "zab5qqb146vi73jmxl23i3ygcy7lsrps");
        assert_eq!(path.to_string().as_bytes(), HELLO);
    }

    #[test]
    fn refuses_odd_names() {
        let hash = "zab5qqb146vi73jmxl23i3ygcy7lsrps";
        for name in ["", "-", "-.hidden", "-a/b", "-a b", "-a\0b", "-é", "hello", "-../x"] {
            let text = format!("{hash}{name}");
            assert!(ItemName::parse(text.as_bytes()).is_err(), "{text:?}");
        }
        let long = format!("{hash}-{}", "x".repeat(limits::MAX_ITEM_NAME_BYTES + 1));
        assert_eq!(ItemName::parse(long.as_bytes()), Err(StorePathError::Name));
        assert!(ItemName::parse(b"short").is_err());
        for path in ["gnu/store/", "/gnu/../store/", "//", "/", ""] {
            assert!(
                StorePath::parse(format!("{path}{hash}-a").as_bytes()).is_err()
                    || path == "/gnu/store/"
            );
        }
    }
}
