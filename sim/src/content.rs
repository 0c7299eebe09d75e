//! What a nar consists of, without its octets: a piece is known by its hash alone.
//!
//! There is one true nar. Liars have versions of their own: other piece lists, each consistent in
//! itself, with pieces that fit it, which differ from the true ones everywhere or in a few places.

use narswarm_protocol::hash::{NarHash, PieceHash, Root};
use narswarm_protocol::piece::{PieceLayout, PieceList};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The signed hash of the one nar that is fetched.
pub const NAR_HASH: NarHash = NarHash([0x5a; 32]);
/// What a wrong nar hashes to.
pub const OTHER_HASH: NarHash = NarHash([0xa5; 32]);
/// A piece that fits no list.
pub const GARBAGE: PieceHash = PieceHash([0xff; 32]);

/// A version of the nar: the true one, or a liar's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// What was signed.
    True,
    /// A liar's, by its number, with other pieces everywhere.
    False(u16),
    /// A liar's that differs in a single piece.
    FalseAt(u16, u32),
}

/// A piece list with its root.
#[derive(Debug, Clone)]
pub struct Listing {
    /// The root.
    pub root: Root,
    /// The list.
    pub list: Arc<PieceList>,
}

/// All versions of the nar that appear in a run.
#[derive(Debug)]
pub struct Content {
    layout: PieceLayout,
    listings: BTreeMap<Version, Listing>,
}

fn piece_of(version: Version, index: u32) -> PieceHash {
    let tag: u32 = match version {
        Version::True => 0,
        Version::False(liar) => u32::from(liar) + 1,
        Version::FalseAt(liar, at) => u32::from(index == at) * (u32::from(liar) + 1),
    };
    let mut octets = [0; 32];
    octets[..4].copy_from_slice(&index.to_le_bytes());
    octets[4..8].copy_from_slice(&tag.to_le_bytes());
    PieceHash(octets)
}

impl Content {
    /// The nar of this layout, in the true version and in those named.
    #[must_use]
    pub fn new(layout: PieceLayout, versions: impl IntoIterator<Item = Version>) -> Self {
        let listing = |version| {
            let hashes = (0..layout.piece_count()).map(|index| piece_of(version, index));
            let list = PieceList::new(layout, hashes.collect()).expect("a hash for each piece");
            (version, Listing { root: list.root(&NAR_HASH), list: Arc::new(list) })
        };
        let versions = versions.into_iter().chain([Version::True]);
        Self { layout, listings: versions.map(listing).collect() }
    }

    /// How the nar is cut.
    #[must_use]
    pub fn layout(&self) -> PieceLayout {
        self.layout
    }

    /// The piece list of a version.
    #[must_use]
    pub fn listing(&self, version: Version) -> &Listing {
        self.listings.get(&version).expect("every version of a run is listed at its start")
    }

    /// The version with this root, if it is one of this nar's.
    #[must_use]
    pub fn version_of(&self, root: Root) -> Option<Version> {
        let mut listings = self.listings.iter();
        listings.find(|(_, listing)| listing.root == root).map(|(&version, _)| version)
    }

    /// Whether this is the true piece at `index`.
    #[must_use]
    pub fn is_true(&self, index: u32, piece: PieceHash) -> bool {
        piece == piece_of(Version::True, index)
    }

    /// The root of what was signed.
    #[must_use]
    pub fn true_root(&self) -> Root {
        self.listing(Version::True).root
    }

    /// A piece of a version.
    #[must_use]
    pub fn piece(&self, version: Version, index: u32) -> PieceHash {
        piece_of(version, index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_differ_where_they_say() {
        let layout = PieceLayout::new(10 << 18).expect("layout");
        let one = Version::FalseAt(3, 4);
        let content = Content::new(layout, [Version::False(3), one]);
        let differing = |version| {
            let pieces = (0..10).map(|index| content.piece(version, index));
            (0..10).zip(pieces).filter(|&(index, piece)| !content.is_true(index, piece)).count()
        };
        assert_eq!(differing(Version::True), 0);
        assert_eq!(differing(Version::False(3)), 10);
        assert_eq!(differing(one), 1);
        assert_ne!(content.listing(one).root, content.true_root());
        assert_eq!(content.version_of(content.listing(one).root), Some(one));
    }
}
