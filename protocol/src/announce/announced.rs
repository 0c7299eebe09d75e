//! What a node has told others and whom it knows near the meeting points, kept for its next run: so
//! that it needn't say everything again, can withdraw what it has lost meanwhile, and needn't look who
//! is where.
//!
//! ```text
//! "narswarm announced 3\n" | written u64 | there u32, of u32 | radius u64
//!                          | addresses u8, each
//!                          | peers u16, each: peer, addresses u8, each
//!                          | buckets u8, each: number u8, due u32, look u32,
//!                          |                   keepers u8, each: u16; near u8, each: u16
//!                          | items u32, each: key 16, level u8
//!                          | BLAKE3 of all before
//! ```
//!
//! Keepers and those who are near are numbers of the peers, counted from zero. A bucket that wasn't
//! announced is due never, in the largest number of seconds.
//! Numbers are little-endian; addresses and peers have their length before them as u16.

use super::place::{BUCKETS, Bucket, ItemKey, NodeId};
use super::presence::Presence;
use super::providers::Seconds;
use crate::limits::{
    ANNOUNCED_LIFE, MAX_ANNOUNCED_PEERS, MAX_PEER_ADDRESSES, MAX_PROVIDER_RECORDS_PER_PEER,
    MAX_SAVED_OWN_ADDRESSES, REPLICAS, SAVED_NEIGHBOURS,
};
use crate::octets::{Reader, SnapshotError, put, seal, unseal};
use std::time::Duration;

const MAGIC: &[u8] = b"narswarm announced 3\n";

/// Never, in seconds.
const NEVER: u32 = u32::MAX;

/// What is worth keeping of an announcer while it doesn't run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Announced {
    /// What others have been told, each with how thinly it is announced.
    pub items: Vec<(ItemKey, u8)>,
    /// Of each bucket what is known.
    pub buckets: Vec<BucketState<NodeId>>,
    /// How much of the time the node was there.
    pub presence: Presence,
    /// The distance within which [`REPLICAS`] nodes are usual, in 2^64ths of the key space; 0 when it
    /// isn't known.
    pub radius: u64,
}

/// One bucket, with nodes by names of the kind `N`. Times are counted from the moment when it was put
/// down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketState<N> {
    /// Which.
    pub bucket: Bucket,
    /// When all of it is announced again; `None` when it wasn't announced.
    pub due: Option<Duration>,
    /// When it is to be seen again who is near its meeting point.
    pub look: Duration,
    /// Who keeps what was announced.
    pub keepers: Vec<N>,
    /// Who is near the meeting point: first those that have answered lately, nearest first, then others.
    pub near: Vec<N>,
}

impl<N> BucketState<N> {
    /// The same with other names of the nodes; those without one are left out.
    pub fn renamed<M>(self, mut name: impl FnMut(N) -> Option<M>) -> BucketState<M> {
        let Self { bucket, due, look, keepers, near } = self;
        let keepers = keepers.into_iter().filter_map(&mut name).collect();
        let near = near.into_iter().filter_map(name).collect();
        BucketState { bucket, due, look, keepers, near }
    }
}

/// The same, as it is written down: with names that outlive the process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SavedAnnounced {
    /// When.
    pub written: Seconds,
    /// See [`Announced::presence`].
    pub presence: Presence,
    /// See [`Announced::radius`].
    pub radius: u64,
    /// Where others were told that this node is reached, as octets of multiaddresses. Elsewhere,
    /// everything has to be announced anew.
    pub addresses: Vec<Vec<u8>>,
    /// See [`Announced::items`].
    pub items: Vec<(ItemKey, u8)>,
    /// Those who are spoken of in `buckets`.
    pub peers: Vec<SavedPeer>,
    /// See [`Announced::buckets`]; nodes by their places in `peers`.
    pub buckets: Vec<BucketState<u16>>,
}

/// Somebody who keeps what was announced, or is near a meeting point.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SavedPeer {
    /// The octets of the peer id.
    pub peer: Vec<u8>,
    /// Where it was reached, as octets of multiaddresses.
    pub addresses: Vec<Vec<u8>>,
}

impl SavedAnnounced {
    /// As octets.
    #[must_use]
    pub fn to_octets(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(self.written.0.to_le_bytes());
        out.extend(self.presence.there.to_le_bytes());
        out.extend(self.presence.of.to_le_bytes());
        out.extend(self.radius.to_le_bytes());
        put_all(&mut out, &self.addresses, MAX_SAVED_OWN_ADDRESSES);
        let peers = self.peers.len().min(MAX_ANNOUNCED_PEERS);
        out.extend((peers as u16).to_le_bytes());
        for SavedPeer { peer, addresses } in &self.peers[..peers] {
            put(&mut out, peer);
            put_all(&mut out, addresses, MAX_PEER_ADDRESSES);
        }
        let buckets = self.buckets.len().min(BUCKETS);
        out.push(buckets as u8);
        for BucketState { bucket, due, look, keepers, near } in &self.buckets[..buckets] {
            let seconds = |span: Duration| u32::try_from(span.as_secs()).unwrap_or(NEVER);
            out.push(bucket.number());
            out.extend(due.map_or(NEVER, seconds).to_le_bytes());
            out.extend(seconds(*look).to_le_bytes());
            for (nodes, most) in [(keepers, 2 * REPLICAS), (near, SAVED_NEIGHBOURS)] {
                let count = nodes.len().min(most);
                out.push(count as u8);
                nodes[..count].iter().for_each(|node| out.extend(node.to_le_bytes()));
            }
        }
        let items = self.items.len().min(MAX_PROVIDER_RECORDS_PER_PEER);
        out.extend((items as u32).to_le_bytes());
        for (key, level) in &self.items[..items] {
            out.extend(key.0);
            out.push(*level);
        }
        seal(out)
    }

    /// Reads what [`SavedAnnounced::to_octets`] has written.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn from_octets(octets: &[u8]) -> Result<Self, SnapshotError> {
        Self::read(&mut unseal(octets, MAGIC)?).ok_or(SnapshotError::Damaged)
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let mut saved = Self { written: Seconds(reader.u64()?), ..Self::default() };
        saved.presence = Presence { there: reader.u32()?, of: reader.u32()? };
        saved.radius = reader.u64()?;
        saved.addresses = take_all(reader)?;
        for _ in 0..reader.u16()? {
            let peer = reader.octets()?.to_vec();
            saved.peers.push(SavedPeer { peer, addresses: take_all(reader)? });
        }
        for _ in 0..reader.u8()? {
            let bucket = Bucket::new(reader.u8()?)?;
            let seconds = |seconds: u32| Duration::from_secs(seconds.into());
            let due = Some(reader.u32()?).filter(|due| *due != NEVER).map(seconds);
            let look = seconds(reader.u32()?);
            let mut nodes = || {
                let count = reader.u8()?;
                let node = |_| reader.u16().filter(|node| usize::from(*node) < saved.peers.len());
                (0..count).map(node).collect::<Option<Vec<u16>>>()
            };
            let (keepers, near) = (nodes()?, nodes()?);
            saved.buckets.push(BucketState { bucket, due, look, keepers, near });
        }
        let items = reader.u32()?;
        for _ in 0..items.min(MAX_PROVIDER_RECORDS_PER_PEER as u32) {
            let key = ItemKey(*reader.take(ItemKey::BYTES)?.first_chunk()?);
            saved.items.push((key, reader.u8()?));
        }
        reader.is_empty().then_some(saved)
    }

    /// For how long the node was away; `None` when the clock was set back.
    #[must_use]
    pub fn away(&self, now: Seconds) -> Option<Duration> {
        now.0.checked_sub(self.written.0).map(Duration::from_secs)
    }

    /// Whether others have forgotten what they were told, when the node was away for so long. What it
    /// knows of them is as old; which share of the time it is there still counts.
    #[must_use]
    pub fn is_forgotten(away: Duration) -> bool {
        away >= ANNOUNCED_LIFE
    }
}

/// Octets of the same kind, at most so many, fewer than 256.
fn put_all(out: &mut Vec<u8>, all: &[Vec<u8>], most: usize) {
    let count = all.len().min(most);
    out.push(count as u8);
    all[..count].iter().for_each(|octets| put(out, octets));
}

fn take_all(reader: &mut Reader<'_>) -> Option<Vec<Vec<u8>>> {
    let count = reader.u8()?;
    (0..count).map(|_| reader.octets().map(<[u8]>::to_vec)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved() -> SavedAnnounced {
        let peer = |n: u8| SavedPeer {
            peer: vec![n, 1, 2],
            addresses: (0..n % 3).map(|address| vec![n, address]).collect(),
        };
        let state = |bucket: Bucket| {
            let number = bucket.number();
            BucketState {
                bucket,
                due: (!number.is_multiple_of(3)).then(|| Duration::from_secs(number.into())),
                look: Duration::from_secs(u64::from(number) * 600),
                keepers: (0..u16::from(number % 16)).collect(),
                near: (0..u16::from(number) % 5).collect(),
            }
        };
        SavedAnnounced {
            written: Seconds(1_800_000_000),
            presence: Presence { there: 70_000, of: 90_000 },
            radius: 1 << 50,
            addresses: vec![vec![1, 2, 3], vec![4]],
            items: (0..100).map(|n| (ItemKey([n; 16]), n % 7)).collect(),
            peers: (0..16).map(peer).collect(),
            buckets: Bucket::all().map(state).collect(),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for saved in [saved(), SavedAnnounced::default()] {
            assert_eq!(SavedAnnounced::from_octets(&saved.to_octets()), Ok(saved));
        }
    }

    #[test]
    fn what_is_damaged_is_not_read() {
        let good = saved().to_octets();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            assert!(SavedAnnounced::from_octets(&bad).is_err(), "octet {at}");
            assert!(SavedAnnounced::from_octets(&good[..at]).is_err(), "cut at {at}");
        }
        let mut of_others = good.clone();
        of_others.splice(..MAGIC.len(), *b"narswarm announced 2\n");
        assert_eq!(SavedAnnounced::from_octets(&of_others), Err(SnapshotError::Magic));
        // Well sealed, and nonsense.
        let mut nobody = saved();
        nobody.peers.truncate(3);
        let damaged = Err(SnapshotError::Damaged);
        assert_eq!(SavedAnnounced::from_octets(&nobody.to_octets()), damaged, "of whom it speaks");
        for len in 0..200 {
            let nonsense: Vec<u8> =
                MAGIC.iter().copied().chain((0..len).map(|n| n ^ 0xa5)).collect();
            let _ = SavedAnnounced::from_octets(&seal(nonsense));
        }
    }

    #[test]
    fn what_others_have_forgotten_does_not_count() {
        let saved = saved();
        let at = |seconds: u64| saved.away(Seconds(saved.written.0 + seconds));
        assert_eq!(at(60), Some(Duration::from_secs(60)));
        assert_eq!(saved.away(Seconds(saved.written.0 - 1)), None, "the clock was set back");
        assert!(SavedAnnounced::is_forgotten(ANNOUNCED_LIFE));
        assert!(!SavedAnnounced::is_forgotten(ANNOUNCED_LIFE - Duration::from_secs(1)));
    }
}
