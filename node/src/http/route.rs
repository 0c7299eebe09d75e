//! From the path of a request to what is asked for.
//!
//! Whatever does not name something here exactly is a 404: paths are split before they are
//! percent-decoded, and each part then has to be a valid name, so that no spelling of `..`, `/`
//! or NUL gets further.

use super::backend::{NarForm, SignedCompression};
use narswarm_protocol::hash::NarHash;
use narswarm_protocol::store_path::{ItemName, StoreHash};

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    /// `/HASH.narinfo`
    Narinfo(StoreHash),
    /// `/nar/…`, boxed because thousands of narinfo requests wait in one queue.
    Nar(Box<ItemName>, NarForm),
    /// `/file/NAME/sha256/HASH`
    File(Box<FileName>),
    /// `/nix-cache-info`
    CacheInfo,
    /// `/healthz`
    Health,
    /// `/metrics`
    Metrics,
    /// `/api/status`
    Status,
    /// `/`
    Dashboard,
    /// Nothing that is here.
    Unknown,
}

/// A content-addressed file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileName {
    /// A name that a store accepts.
    pub name: String,
    /// SHA-256 of the content.
    pub sha256: [u8; 32],
}

impl Route {
    /// Finds what the path of a request target names; a query is ignored.
    pub fn find(target: &str) -> Self {
        let path = target.split_once('?').map_or(target, |(path, _)| path);
        let Some(path) = path.strip_prefix('/') else { return Self::Unknown };
        if let Some(digits) = path.strip_suffix(".narinfo") {
            return StoreHash::parse(digits.as_bytes()).map_or(Self::Unknown, Self::Narinfo);
        }
        match path {
            "" => Self::Dashboard,
            "nix-cache-info" => Self::CacheInfo,
            "healthz" => Self::Health,
            "metrics" => Self::Metrics,
            "api/status" => Self::Status,
            path => Self::below(path).unwrap_or(Self::Unknown),
        }
    }

    fn below(path: &str) -> Option<Self> {
        let mut parts = path.splitn(5, '/');
        let mut next = || parts.next();
        match (next()?, next()?, next(), next(), next()) {
            ("nar", item, None, None, None) => Self::nar(item, NarForm::Plain),
            ("nar", form, Some(item), None, None) => Self::nar(item, nar_form(form)?),
            ("file", name, Some("sha256"), Some(hash), None) => Self::file(name, hash),
            _ => None,
        }
    }

    fn nar(item: &str, form: NarForm) -> Option<Self> {
        let item = ItemName::parse(&percent_decoded(item)?).ok()?;
        Some(Self::Nar(Box::new(item), form))
    }

    fn file(name: &str, hash: &str) -> Option<Self> {
        // As a narinfo spells it, in nix-base32 or hexadecimal.
        let NarHash(sha256) = NarHash::parse(format!("sha256:{hash}").as_bytes()).ok()?;
        // A file becomes a store item of that name, so that the same rule decides: borrow it by
        // naming an item.
        let mut item = [b'0'; 33].to_vec();
        item[32] = b'-';
        item.extend(percent_decoded(name)?);
        let item = ItemName::parse(&item).ok()?;
        Some(Self::File(Box::new(FileName { name: item.name().to_owned(), sha256 })))
    }
}

fn nar_form(word: &str) -> Option<NarForm> {
    Some(match word {
        "zstd" => NarForm::Zstd,
        "gzip" => NarForm::Signed(SignedCompression::Gzip),
        "lzip" => NarForm::Signed(SignedCompression::Lzip),
        "xz" => NarForm::Signed(SignedCompression::Xz),
        "bzip2" => NarForm::Signed(SignedCompression::Bzip2),
        _ => return None,
    })
}

/// Undoes percent-encoding; a plus stays a plus, as in every path. `None` if it is malformed.
fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let mut octets = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(octet) = rest.next() {
        octets.push(match octet {
            b'%' => (hex_digit(rest.next()?)? << 4) | hex_digit(rest.next()?)?,
            plain => plain,
        });
    }
    Some(octets)
}

fn hex_digit(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use narswarm_protocol::base32;
    use proptest::prelude::*;

    const HASH: &str = "zab5qqb146vi73jmxl23i3ygcy7lsrps";

    fn item(name: &str) -> Box<ItemName> {
        Box::new(ItemName::parse(format!("{HASH}-{name}").as_bytes()).expect("name"))
    }

    #[test]
    fn finds_what_is_here() {
        let hash = StoreHash::parse(HASH.as_bytes()).expect("hash");
        assert_eq!(Route::find(&format!("/{HASH}.narinfo")), Route::Narinfo(hash));
        assert_eq!(Route::find(&format!("/{HASH}.narinfo?x=/y")), Route::Narinfo(hash));
        let nar = |path: &str| Route::find(&path.replace("HASH", HASH));
        assert_eq!(nar("/nar/HASH-a"), Route::Nar(item("a"), NarForm::Plain));
        assert_eq!(nar("/nar/zstd/HASH-a"), Route::Nar(item("a"), NarForm::Zstd));
        assert_eq!(
            nar("/nar/lzip/HASH-a"),
            Route::Nar(item("a"), NarForm::Signed(SignedCompression::Lzip))
        );
        assert_eq!(nar("/nar/HASH-g++%3Fa%3d%2B"), Route::Nar(item("g++?a=+"), NarForm::Plain));
        let digest = base32::encode(&[7; 32]);
        assert_eq!(
            Route::find(&format!("/file/a%2Bb.tar.gz/sha256/{digest}")),
            Route::File(Box::new(FileName { name: "a+b.tar.gz".into(), sha256: [7; 32] }))
        );
        assert_eq!(
            Route::find(&format!("/file/x/sha256/{}", "07".repeat(32))),
            Route::File(Box::new(FileName { name: "x".into(), sha256: [7; 32] }))
        );
        assert_eq!(Route::find("/"), Route::Dashboard);
        assert_eq!(Route::find("/api/status?"), Route::Status);
    }

    #[test]
    fn whatever_else_is_unknown() {
        for odd in [
            "",
            "*",
            "//",
            "/HASH",
            "//HASH.narinfo",
            "/x/HASH.narinfo",
            "/HASH-a.narinfo",
            "/%48ASH.narinfo",
            "/.narinfo",
            "/nar/",
            "/nar/HASH",
            "/nar//HASH-a",
            "/nar/HASH-a/",
            "/nar/zstd/../HASH-a",
            "/nar/brotli/HASH-a",
            "/nar/../../etc/passwd",
            "/nar/%2e%2e%2f%2e%2e",
            "/nar/HASH-a%2Fb",
            "/nar/HASH-a%00",
            "/nar/HASH-a%",
            "/nar/HASH-a%2",
            "/nar/HASH-a%zz",
            "/nar/HASH-a%+1",
            "/nar/HASH-.a",
            "/file/a/sha512/HASH",
            "/file/a/sha256/HASH",
            "/file/../sha256/0000000000000000000000000000000000000000000000000000",
            "/api/status/",
            "/nix-cache-info/x",
        ] {
            let path = odd.replace("HASH", HASH);
            assert_eq!(Route::find(&path), Route::Unknown, "{path}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(path in "(/nar/|/file/|/)?\\PC{0,60}(\\.narinfo|/sha256/x)?") {
            let _ = Route::find(&path);
        }
    }
}
