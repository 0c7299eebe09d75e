//! Where things are in the key space: items in buckets, buckets and nodes at positions.
//!
//! Positions are those of libp2p's Kademlia, which hashes keys and peer ids by SHA-256, so that the
//! nodes that its tables know to be near are near here as well.

use crate::provider_key::provider_key;
use crate::store_path::StoreHash;
use sha2::{Digest, Sha256};
use std::cmp::Ordering;
use std::sync::LazyLock;

/// Bits of an item's key that say which bucket it belongs to.
const BUCKET_BITS: u32 = 6;

/// How many buckets there are, in a network of any size; see [`crate::announce`] for why so many.
pub const BUCKETS: usize = 1 << BUCKET_BITS;

/// Separates the buckets' rendezvous keys from every other use of BLAKE3.
const BUCKET_DOMAIN: &str = "narswarm 2026-11 rendezvous of a bucket";

/// The leading octets of an item's provider key, under which announcements speak of it. Sixteen
/// suffice: what is found is verified, so whoever makes two items' keys collide gains nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ItemKey(pub [u8; 16]);

impl Ord for ItemKey {
    // By the octets from the first to the last, but compared as one number: keepers look up millions.
    fn cmp(&self, other: &Self) -> Ordering {
        u128::from_be_bytes(self.0).cmp(&u128::from_be_bytes(other.0))
    }
}

impl PartialOrd for ItemKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl ItemKey {
    /// Octets of a key as it travels.
    pub const BYTES: usize = 16;

    /// The key of a store item.
    #[must_use]
    pub fn of(item: &StoreHash) -> Self {
        Self::from_provider_key(&provider_key(item))
    }

    /// The key of an item with this provider key.
    #[must_use]
    pub fn from_provider_key(key: &[u8; 32]) -> Self {
        let mut short = [0; Self::BYTES];
        short.copy_from_slice(&key[..Self::BYTES]);
        Self(short)
    }

    /// Where it is announced and looked for.
    #[must_use]
    pub fn bucket(&self) -> Bucket {
        Bucket(self.0[0] >> (8 - BUCKET_BITS))
    }

    /// The least and the greatest key of a bucket.
    #[must_use]
    pub fn range(bucket: Bucket) -> (Self, Self) {
        let (mut least, mut greatest) = ([0; Self::BYTES], [0xff; Self::BYTES]);
        least[0] = bucket.0 << (8 - BUCKET_BITS);
        greatest[0] = least[0] | (0xff >> BUCKET_BITS);
        (Self(least), Self(greatest))
    }
}

/// One of [`BUCKETS`] meeting points, common to all nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bucket(u8);

impl Bucket {
    /// The bucket of this number, if there is one.
    #[must_use]
    pub fn new(number: u8) -> Option<Self> {
        (usize::from(number) < BUCKETS).then_some(Self(number))
    }

    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..BUCKETS).map(|number| Self(number as u8))
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> u8 {
        self.0
    }

    /// The key whose closest nodes keep the bucket; Kademlia is asked for it.
    #[must_use]
    pub fn key(self) -> [u8; 32] {
        blake3::derive_key(BUCKET_DOMAIN, &[self.0])
    }

    /// Where that key is.
    #[must_use]
    pub fn position(self) -> Position {
        Self::positions()[usize::from(self.0)]
    }

    /// Where all the keys are, by the buckets' numbers.
    pub(super) fn positions() -> &'static [Position; BUCKETS] {
        static POSITIONS: LazyLock<[Position; BUCKETS]> = LazyLock::new(|| {
            std::array::from_fn(|number| Position::of(&Bucket(number as u8).key()))
        });
        &POSITIONS
    }
}

/// A place in the key space: the leading 64 bits of a SHA-256. Of a thousand million nodes, two
/// share them with a chance of 3 %, and then they count as equally near.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u64);

impl Position {
    /// Where Kademlia puts a key or the octets of a peer id.
    #[must_use]
    pub fn of(octets: &[u8]) -> Self {
        let hash: [u8; 32] = Sha256::digest(octets).into();
        let mut leading = [0; 8];
        leading.copy_from_slice(&hash[..8]);
        Self(u64::from_be_bytes(leading))
    }

    /// How near the nearest meeting point is.
    pub(super) fn nearness(self) -> u64 {
        let points = Bucket::positions().iter();
        points.map(|point| point.distance(self)).min().unwrap_or(u64::MAX)
    }

    /// How far apart two places are.
    #[must_use]
    pub fn distance(self, other: Self) -> u64 {
        self.0 ^ other.0
    }
}

/// Somebody in the network, by a number of the driver's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

/// A node that may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contact {
    /// Who.
    pub node: NodeId,
    /// Where in the key space: follows from its peer id, so nobody can lie about it.
    pub position: Position,
    /// A number for the network that its address is in, which one operator may own as a whole;
    /// `None` for addresses that say nothing about it, of a private network or the same machine.
    pub network: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_belong_to_the_bucket_of_their_range() {
        for first in 0..=255 {
            let mut octets = [7; 16];
            octets[0] = first;
            let key = ItemKey(octets);
            let (least, greatest) = ItemKey::range(key.bucket());
            assert!(least <= key && key <= greatest, "{first}");
        }
        assert_eq!(Bucket::all().count(), BUCKETS);
        assert_eq!(Bucket::new(BUCKETS as u8), None);
    }

    #[test]
    fn meeting_points_stay_where_they_are() {
        let hex = |octets: &[u8]| octets.iter().map(|o| format!("{o:02x}")).collect::<String>();
        let first = Bucket::all().next().expect("there are some");
        assert_eq!(hex(&first.key()), FIRST_KEY);
        assert_eq!(first.position(), Position::of(&first.key()));
        assert_eq!(hex(&ItemKey::of(&StoreHash([7; 20])).0), "0f84439312526981e96b1d5f6bd656f9");
    }

    const FIRST_KEY: &str = "c36e751a07a5403f3421d2047880dd064378516cb9900a837ab9aca89d54f448";
}
