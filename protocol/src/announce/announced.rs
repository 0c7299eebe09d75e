//! What a node has told others, kept for its next run: so that it needn't say everything again, and
//! can withdraw what it has lost meanwhile.
//!
//! ```text
//! "narswarm announced 1\n" | written u64 | addresses u8, each
//!                          | buckets u8, each: number u8, due u32, keepers u8, each: peer
//!                          | items u32, each: key 16, level u8
//!                          | BLAKE3 of all before
//! ```
//!
//! Numbers are little-endian; addresses and peers have their length before them as u16.

use super::place::{BUCKETS, Bucket, ItemKey, NodeId};
use super::providers::Seconds;
use crate::limits::{
    ANNOUNCED_LIFE, MAX_PROVIDER_RECORDS_PER_PEER, MAX_SAVED_OWN_ADDRESSES, REPLICAS,
};
use crate::octets::{Reader, SnapshotError, put, seal, unseal};
use std::time::Duration;

const MAGIC: &[u8] = b"narswarm announced 1\n";

/// What is worth keeping of an announcer while it doesn't run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Announced {
    /// What others have been told, each with how thinly it is announced.
    pub items: Vec<(ItemKey, u8)>,
    /// Of each bucket that was announced: when again, counted from now, and who keeps it.
    pub buckets: Vec<(Bucket, Duration, Vec<NodeId>)>,
}

/// The same, as it is written down: with names that outlive the process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SavedAnnounced {
    /// When.
    pub written: Seconds,
    /// Where others were told that this node is reached, as octets of multiaddresses. Elsewhere,
    /// everything has to be announced anew.
    pub addresses: Vec<Vec<u8>>,
    /// See [`Announced::items`].
    pub items: Vec<(ItemKey, u8)>,
    /// See [`Announced::buckets`]; of the keepers, the octets of their peer ids.
    pub buckets: Vec<(Bucket, Duration, Vec<Vec<u8>>)>,
}

impl SavedAnnounced {
    /// As octets.
    #[must_use]
    pub fn to_octets(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(self.written.0.to_le_bytes());
        let addresses = self.addresses.len().min(MAX_SAVED_OWN_ADDRESSES);
        out.push(addresses as u8);
        self.addresses[..addresses].iter().for_each(|address| put(&mut out, address));
        let buckets = self.buckets.len().min(BUCKETS);
        out.push(buckets as u8);
        for (bucket, due, keepers) in &self.buckets[..buckets] {
            out.push(bucket.number());
            out.extend(u32::try_from(due.as_secs()).unwrap_or(u32::MAX).to_le_bytes());
            let count = keepers.len().min(2 * REPLICAS);
            out.push(count as u8);
            keepers[..count].iter().for_each(|peer| put(&mut out, peer));
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
        for _ in 0..reader.u8()? {
            saved.addresses.push(reader.octets()?.to_vec());
        }
        for _ in 0..reader.u8()? {
            let bucket = Bucket::new(reader.u8()?)?;
            let due = Duration::from_secs(reader.u32()?.into());
            let mut keepers = Vec::new();
            for _ in 0..reader.u8()? {
                keepers.push(reader.octets()?.to_vec());
            }
            saved.buckets.push((bucket, due, keepers));
        }
        let items = reader.u32()?;
        for _ in 0..items.min(MAX_PROVIDER_RECORDS_PER_PEER as u32) {
            let key = ItemKey(*reader.take(ItemKey::BYTES)?.first_chunk()?);
            saved.items.push((key, reader.u8()?));
        }
        reader.is_empty().then_some(saved)
    }

    /// For how long the node was away; `None` when others have forgotten by now what it told them, or
    /// the clock was set back.
    #[must_use]
    pub fn away(&self, now: Seconds) -> Option<Duration> {
        let away = now.0.checked_sub(self.written.0).map(Duration::from_secs);
        away.filter(|away| *away < ANNOUNCED_LIFE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved() -> SavedAnnounced {
        let keepers = |bucket: Bucket| (0..3).map(|n| vec![bucket.number(), n]).collect();
        SavedAnnounced {
            written: Seconds(1_800_000_000),
            addresses: vec![vec![1, 2, 3], vec![4]],
            items: (0..100).map(|n| (ItemKey([n; 16]), n % 7)).collect(),
            buckets: Bucket::all()
                .map(|bucket| {
                    (bucket, Duration::from_secs(bucket.number().into()), keepers(bucket))
                })
                .collect(),
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
        assert_eq!(at(ANNOUNCED_LIFE.as_secs()), None);
        assert_eq!(saved.away(Seconds(saved.written.0 - 1)), None, "the clock was set back");
    }
}
