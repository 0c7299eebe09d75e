//! What a mirror holds of one item, and reading that from a mirror's directory with code of our
//! own: the measure against which nodes are tested.

use super::compression;
use bytes::Bytes;
use narswarm_protocol::acl::Acl;
use narswarm_protocol::hash::NarHash;
use narswarm_protocol::narinfo::{UnverifiedNarinfo, VerifiedNarinfo};
use narswarm_protocol::piece::{PieceLayout, PieceList, hash_piece};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::Path;

/// One item of a mirror.
#[derive(Debug, Clone)]
pub struct Holding {
    /// The narinfo as the mirror has it.
    pub narinfo: VerifiedNarinfo,
    /// The uncompressed nar, unless the mirror lacks it.
    pub nar: Option<Bytes>,
}

impl Holding {
    /// `HASH-NAME`.
    #[must_use]
    pub fn item(&self) -> &str {
        self.narinfo.item().as_str()
    }

    /// The 32 characters before the name.
    #[must_use]
    pub fn hash(&self) -> String {
        self.narinfo.item().hash().to_string()
    }

    /// `/HASH.narinfo`
    #[must_use]
    pub fn narinfo_path(&self) -> String {
        format!("/{}.narinfo", self.hash())
    }

    /// `/nar/ITEM`, where a node has it.
    #[must_use]
    pub fn nar_path(&self) -> String {
        format!("/nar/{}", self.item())
    }

    /// The uncompressed nar.
    ///
    /// # Panics
    /// When the mirror lacks it.
    #[must_use]
    pub fn nar(&self) -> &Bytes {
        self.nar.as_ref().unwrap_or_else(|| panic!("the mirror has no nar of {}", self.item()))
    }

    /// Octets of the nar.
    #[must_use]
    pub fn nar_size(&self) -> u64 {
        self.narinfo.nar_size()
    }

    /// The piece list that every honest holder computes.
    #[must_use]
    pub fn piece_list(&self) -> PieceList {
        piece_list(self.nar())
    }

    /// What is signed and the signature's line, up to the line's end: what no node may touch.
    #[must_use]
    pub fn signed_head(&self) -> &[u8] {
        signed_head(self.narinfo.original())
    }
}

/// See [`Holding::signed_head`].
///
/// # Panics
/// When there is no signature.
#[must_use]
pub fn signed_head(narinfo: &[u8]) -> &[u8] {
    let signature = narinfo.windows(10).position(|octets| octets == b"Signature:");
    let signature = signature.expect("a narinfo with a signature");
    let end = narinfo[signature..].iter().position(|&octet| octet == b'\n');
    end.map_or(narinfo, |end| &narinfo[..=signature + end])
}

/// The piece list of some octets.
///
/// # Panics
/// When they are more than any nar may have.
#[must_use]
pub fn piece_list(octets: &[u8]) -> PieceList {
    let layout = PieceLayout::new(octets.len() as u64).expect("small enough for a nar");
    let hashes = octets.chunks(layout.piece_size() as usize).map(hash_piece).collect();
    PieceList::new(layout, hashes).expect("a hash for each piece")
}

/// The hash by which a nar is known.
#[must_use]
pub fn nar_hash(octets: &[u8]) -> NarHash {
    NarHash(Sha256::digest(octets).into())
}

/// Reads all that a mirror's directory holds, and checks every nar in all its compressions.
///
/// # Panics
/// When it isn't sound.
#[must_use]
pub fn read_mirror(folder: &Path, acl: &Acl) -> Vec<Holding> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut holdings: Vec<_> = entries
        .map(|entry| entry.expect("entry of a folder").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "narinfo"))
        .map(|path| read_holding(folder, &path, acl))
        .collect();
    holdings.sort_by_key(Holding::hash);
    assert!(!holdings.is_empty(), "{} holds no narinfo", folder.display());
    holdings
}

fn read_holding(folder: &Path, file: &Path, acl: &Acl) -> Holding {
    let octets = fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let narinfo = UnverifiedNarinfo::parse(&octets)
        .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let narinfo = narinfo.verify(acl).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let mut nar = None;
    for source in narinfo.sources() {
        let Ok(compressed) = fs::read(folder.join(&source.url)) else { continue };
        let octets = compression::decompress(source.compression, &compressed);
        assert_eq!(nar_hash(&octets), narinfo.nar_hash(), "{} in {}", source.url, file.display());
        assert_eq!(octets.len() as u64, narinfo.nar_size(), "{}", source.url);
        nar = Some(Bytes::from(octets));
    }
    Holding { narinfo, nar }
}
