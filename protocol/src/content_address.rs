//! Store paths that follow from content: what fixed-output items are called.
//!
//! Whoever knows the hash of a source knows its store path (`guix/store.scm`, `fixed-output-path`;
//! Nix: `libstore/store-api.cc`). And whoever is told that an item is addressed by its content, as
//! Nix's `CA` field says, can see whether its path says so too.

use crate::base32;
use crate::store_path::{ItemName, StoreHash};
use sha2::{Digest, Sha256};

/// How an item's content is hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// A text, with references (`text:sha256:…`).
    Text,
    /// The content of a regular file (`fixed:…`).
    Flat,
    /// The nar (`fixed:r:…`).
    Recursive,
}

/// What an item's content is said to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentAddress {
    kind: Kind,
    algorithm: &'static str,
    digest: Vec<u8>,
}

impl ContentAddress {
    /// A regular file whose content has this SHA-256.
    #[must_use]
    pub fn flat_file(sha256: &[u8; 32]) -> Self {
        Self { kind: Kind::Flat, algorithm: "sha256", digest: sha256.to_vec() }
    }

    /// Reads the value of a `CA` field: `text:sha256:BASE32`, `fixed:ALGORITHM:BASE32` or
    /// `fixed:r:ALGORITHM:BASE32`. Nothing else is understood.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, rest) = if let Some(rest) = text.strip_prefix("text:") {
            (Kind::Text, rest)
        } else if let Some(rest) = text.strip_prefix("fixed:r:") {
            (Kind::Recursive, rest)
        } else {
            (Kind::Flat, text.strip_prefix("fixed:")?)
        };
        let (algorithm, digits) = rest.split_once(':')?;
        let (algorithm, digest) = digest(algorithm, digits.as_bytes())?;
        if kind == Kind::Text && algorithm != "sha256" {
            return None;
        }
        Some(Self { kind, algorithm, digest })
    }

    /// The item of this content, name and references in the store at `directory`; `None` if there
    /// can't be such an item. `refers_to_itself` isn't counted in `references`, which must be in
    /// order.
    #[must_use]
    pub fn item(
        &self,
        directory: &str,
        name: &str,
        references: &[ItemName],
        refers_to_itself: bool,
    ) -> Option<ItemName> {
        let hash = format!("{}:{}", self.algorithm, hex(&self.digest));
        let described = match self.kind {
            Kind::Text if refers_to_itself => return None,
            Kind::Text => typed("text", directory, references, false) + ":" + &hash,
            Kind::Recursive if self.algorithm == "sha256" => {
                typed("source", directory, references, refers_to_itself) + ":" + &hash
            }
            Kind::Flat | Kind::Recursive if !references.is_empty() || refers_to_itself => {
                return None;
            }
            Kind::Flat | Kind::Recursive => {
                let recursive = if self.kind == Kind::Recursive { "r:" } else { "" };
                let content = Sha256::digest(format!("fixed:out:{recursive}{hash}:"));
                format!("output:out:sha256:{}", hex(&content))
            }
        };
        let digest = Sha256::digest(format!("{described}:{directory}:{name}"));
        let item = format!("{}-{name}", StoreHash(folded(&digest.into())));
        ItemName::parse(item.as_bytes()).ok()
    }
}

/// The digest that a `CA` field gives, with the algorithm's name.
fn digest(algorithm: &str, digits: &[u8]) -> Option<(&'static str, Vec<u8>)> {
    fn read<const N: usize>(digits: &[u8]) -> Option<Vec<u8>> {
        base32::decode::<N>(digits).ok().map(|octets| octets.to_vec())
    }
    Some(match algorithm {
        "sha256" => ("sha256", read::<32>(digits)?),
        "sha1" => ("sha1", read::<20>(digits)?),
        "sha512" => ("sha512", read::<64>(digits)?),
        "md5" => ("md5", read::<16>(digits)?),
        _ => return None,
    })
}

fn typed(kind: &str, directory: &str, references: &[ItemName], refers_to_itself: bool) -> String {
    let mut text = kind.to_owned();
    for reference in references {
        text.push_str(&format!(":{directory}/{reference}"));
    }
    if refers_to_itself {
        text.push_str(":self");
    }
    text
}

/// The 32 octets of a SHA-256 laid over each other to the 20 of a store hash.
fn folded(digest: &[u8; 32]) -> [u8; 20] {
    let mut folded = [0; 20];
    for (index, octet) in digest.iter().enumerate() {
        folded[index % 20] ^= octet;
    }
    folded
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn item(text: &str) -> ItemName {
        ItemName::parse(text.as_bytes()).expect("an item")
    }

    fn address(text: &str) -> ContentAddress {
        ContentAddress::parse(text).expect("a content address")
    }

    // Expected paths are those that `nix-store --add`, `--add-fixed` and `builtins.toFile` give.
    #[test]
    fn items_are_called_as_nix_calls_them() {
        let digests = [
            (
                "sha256",
                true,
                "04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw",
                "z3n6ml62lc6l9glpaz6fq7fvi2rks9vq",
            ),
            (
                "sha256",
                false,
                "00xyyr3fi8l6hb839bv3f7yb86yjv7xi1cgh1xnhipym4asvb4aq",
                "fdwm55r4skpypx1gwzb7x69ckav1rv09",
            ),
            ("sha1", false, "iwjz551fyw0cxcjgf4l6c879zabd6wpm", "ai1nh82p4c5ylq44c5yqamdsl6s74p63"),
            ("sha1", true, "wz60bbf44cw7nswp1wv8vcsyfg155sqd", "107h5jidk1hy5x18h1z88plfyxl2hhsq"),
        ];
        for (algorithm, is_recursive, digits, hash) in digests {
            let recursive = if is_recursive { "r:" } else { "" };
            let found = address(&format!("fixed:{recursive}{algorithm}:{digits}"));
            let found = found.item("/nix/store", "a.txt", &[], false);
            assert_eq!(found, Some(item(&format!("{hash}-a.txt"))), "{recursive}{algorithm}");
        }
        let text = |content: &str| {
            address(&format!("text:sha256:{}", base32::encode(&Sha256::digest(content))))
        };
        let t = item("626r0y233qi55bxb7b3j2blbpc00a150-t");
        assert_eq!(text("hello\n").item("/nix/store", "t", &[], false), Some(t.clone()));
        let found = text(&format!("refers to /nix/store/{t}")).item("/nix/store", "u", &[t], false);
        assert_eq!(found, Some(item("n0xwrnrgm2cxz6iwl7x6khcfzcldlmyq-u")));
    }

    #[test]
    fn only_texts_and_sources_have_references() {
        let reference = item("zab5qqb146vi73jmxl23i3ygcy7lsrps-hello");
        let digits = base32::encode(&[7; 32]);
        let flat = address(&format!("fixed:sha256:{digits}"));
        assert_eq!(flat, ContentAddress::flat_file(&[7; 32]));
        assert!(flat.item("/gnu/store", "x", &[], false).is_some());
        assert_eq!(flat.item("/gnu/store", "x", std::slice::from_ref(&reference), false), None);
        assert_eq!(flat.item("/gnu/store", "x", &[], true), None);
        assert_eq!(flat.item("/gnu/store", "a b", &[], false), None);
        let text = address(&format!("text:sha256:{digits}"));
        assert_eq!(text.item("/gnu/store", "x", &[], true), None);
        let source = address(&format!("fixed:r:sha256:{digits}"));
        let named =
            |refers| source.item("/gnu/store", "x", std::slice::from_ref(&reference), refers);
        assert!(named(false).is_some() && named(true).is_some() && named(false) != named(true));
    }

    #[test]
    fn what_is_not_understood_is_none() {
        for text in ["", "fixed:", "fixed:sha256", "fixed:sha3:x", "text:sha1:x", "text:r:sha256:x"]
        {
            assert_eq!(ContentAddress::parse(text), None, "{text:?}");
        }
        let digits = base32::encode(&[7; 20]);
        assert_eq!(ContentAddress::parse(&format!("text:sha1:{digits}")), None);
        assert_eq!(ContentAddress::parse(&format!("fixed:sha256:{digits}")), None);
        assert!(ContentAddress::parse(&format!("fixed:r:sha1:{digits}")).is_some());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(text|fixed|r|sha256|:|[0-9a-z]){0,70}") {
            if let Some(address) = ContentAddress::parse(&text) {
                let _ = address.item("/gnu/store", &text, &[], false);
            }
        }
    }
}
