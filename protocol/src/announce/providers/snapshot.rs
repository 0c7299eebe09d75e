//! What a node keeps for others, as octets: so that it still knows it after a restart.
//!
//! ```text
//! "narswarm providers 1\n" | owners u32 | each: peer, network, seen u64, addresses
//!                          | records u32 | each: key 16, owner u32, expires u32
//!                          | BLAKE3 of all before
//! ```
//!
//! Numbers are little-endian; peers and addresses have their length before them as u16.

use super::{ItemKey, Owner, Provider, ProviderLimits, Providers, Seconds, count, is_over};
use crate::limits::MAX_PEER_ADDRESSES;
use std::collections::BTreeMap;

const MAGIC: &[u8] = b"narswarm providers 1\n";
const HASH_BYTES: usize = 32;

/// Why octets are no snapshot: somebody else's file, or damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// It begins otherwise.
    #[error("not a list of providers of this version")]
    Magic,
    /// It isn't what was written.
    #[error("the list of providers is damaged")]
    Damaged,
}

impl Providers {
    /// All records, as octets.
    #[must_use]
    pub fn snapshot(&self, now: Seconds) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        let mut numbers: BTreeMap<u32, u32> = BTreeMap::new();
        out.extend((self.owners.len() as u32).to_le_bytes());
        for (number, (slot, owner)) in (0..).zip(&self.owners) {
            numbers.insert(*slot, number);
            let Provider { peer, addresses, network, seen, gone: _ } = &owner.provider;
            put(&mut out, peer);
            out.push(u8::from(network.is_some()));
            out.extend(network.unwrap_or(0).to_le_bytes());
            out.extend(seen.0.to_le_bytes());
            out.push(addresses.len().min(MAX_PEER_ADDRESSES) as u8);
            addresses.iter().take(MAX_PEER_ADDRESSES).for_each(|address| put(&mut out, address));
        }
        let live = || self.records.iter().filter(|(_, expires)| !is_over(**expires, now));
        out.extend((live().count() as u32).to_le_bytes());
        for ((key, slot), expires) in live() {
            out.extend(key.0);
            out.extend(numbers[slot].to_le_bytes());
            out.extend(expires.to_le_bytes());
        }
        let hash = blake3::hash(&out);
        out.extend(hash.as_bytes());
        out
    }

    /// Reads what [`Providers::snapshot`] has written. What has expired, or is more than `limits`
    /// allow now, is left out.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn from_snapshot(
        octets: &[u8],
        limits: ProviderLimits,
        now: Seconds,
    ) -> Result<Self, SnapshotError> {
        let rest = octets.strip_prefix(MAGIC).ok_or(SnapshotError::Magic)?;
        let body = rest.len().checked_sub(HASH_BYTES).ok_or(SnapshotError::Damaged)?;
        let (whole, hash) = octets.split_at(MAGIC.len() + body);
        if blake3::hash(whole).as_bytes() != hash {
            return Err(SnapshotError::Damaged);
        }
        let mut reader = Reader(&rest[..body]);
        Self::read(&mut reader, limits, now).ok_or(SnapshotError::Damaged)
    }

    fn read(reader: &mut Reader<'_>, limits: ProviderLimits, now: Seconds) -> Option<Self> {
        let mut providers = Self::new(limits);
        providers.pruned = now;
        let owners = reader.u32()?;
        for slot in 0..owners {
            let peer = reader.octets()?.to_vec();
            let known = reader.u8()? != 0;
            let network = Some(reader.u64()?).filter(|_| known);
            let seen = Seconds(reader.u64()?).min(now);
            let mut addresses = Vec::new();
            for _ in 0..reader.u8()? {
                addresses.push(reader.octets()?.to_vec());
            }
            let provider = Provider { peer: peer.clone(), addresses, network, seen, gone: false };
            providers.owners.insert(slot, Owner { provider, records: 0, probed: Seconds(0) });
            providers.by_peer.insert(peer, slot);
            providers.by_size.insert((0, slot));
        }
        providers.next_slot = owners;
        for _ in 0..reader.u32()? {
            let key = ItemKey(*reader.take(ItemKey::BYTES)?.first_chunk()?);
            let (slot, expires) = (reader.u32()?, reader.u32()?);
            let owner = providers.owners.get(&slot)?;
            let network = owner.provider.network;
            if is_over(expires, now)
                || owner.records >= limits.per_peer
                || providers.records.len() >= limits.records
            {
                continue;
            }
            if providers.records.insert((key, slot), expires).is_none() {
                providers.resize(slot, |records| records + 1);
                count(&mut providers.networks, network, |count| count + 1);
            }
        }
        (0..owners).for_each(|slot| providers.drop_if_idle(slot));
        reader.0.is_empty().then_some(providers)
    }
}

fn put(out: &mut Vec<u8>, octets: &[u8]) {
    let len = octets.len().min(usize::from(u16::MAX));
    out.extend((len as u16).to_le_bytes());
    out.extend(&octets[..len]);
}

/// Takes values from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(*self.take(2)?.first_chunk()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(*self.take(4)?.first_chunk()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(*self.take(8)?.first_chunk()?))
    }

    fn octets(&mut self) -> Option<&'a [u8]> {
        let len = self.u16()?;
        self.take(len.into())
    }
}
