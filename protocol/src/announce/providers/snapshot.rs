//! What a node keeps for others, as octets: so that it still knows it after a restart.
//!
//! ```text
//! "narswarm providers 2\n" | owners u32 | each: peer, network, share u8, seen u64, addresses
//!                          | records u32 | each: key 16, owner u32, expires u32
//!                          | BLAKE3 of all before
//! ```
//!
//! Numbers are little-endian; peers and addresses have their length before them as u16.

use super::{
    ItemKey, Owner, Provider, ProviderLimits, Providers, Seconds, Share, count, digest, is_over,
};
use crate::limits::MAX_PEER_ADDRESSES;
use crate::octets::{Reader, SnapshotError, put, seal, unseal};
use std::collections::BTreeMap;

const MAGIC: &[u8] = b"narswarm providers 2\n";

impl Providers {
    /// All records, as octets.
    #[must_use]
    pub fn snapshot(&self, now: Seconds) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        let mut numbers: BTreeMap<u32, u32> = BTreeMap::new();
        out.extend((self.owners.len() as u32).to_le_bytes());
        for (number, (slot, owner)) in (0..).zip(&self.owners) {
            numbers.insert(slot as u32, number);
            let Provider { peer, addresses, network, share, seen, gone: _ } = &owner.provider;
            put(&mut out, peer);
            out.push(u8::from(network.is_some()));
            out.extend(network.unwrap_or(0).to_le_bytes());
            out.push(share.in_percent());
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
        seal(out)
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
        let mut reader = unseal(octets, MAGIC)?;
        Self::read(&mut reader, limits, now).ok_or(SnapshotError::Damaged)
    }

    fn read(reader: &mut Reader<'_>, limits: ProviderLimits, now: Seconds) -> Option<Self> {
        let mut providers = Self::new(limits);
        providers.pruned = now;
        let owners = reader.u32()?;
        for slot in 0..owners {
            let peer = reader.octets()?.to_vec();
            let number = digest(&peer);
            let known = reader.u8()? != 0;
            let network = Some(reader.u64()?).filter(|_| known);
            let share = Share::percent(reader.u8()?);
            let seen = Seconds(reader.u64()?).min(now);
            let mut addresses = Vec::new();
            for _ in 0..reader.u8()? {
                addresses.push(reader.octets()?.to_vec());
            }
            let provider = Provider { peer, addresses, network, share, seen, gone: false };
            providers.owners.insert(Owner { provider, records: 0, probed: Seconds(0) });
            providers.by_peer.insert(number, slot);
            providers.by_size.insert((0, slot));
        }
        for _ in 0..reader.u32()? {
            let key = ItemKey(*reader.take(ItemKey::BYTES)?.first_chunk()?);
            let (slot, expires) = (reader.u32()?, reader.u32()?);
            let owner = providers.owners.get(slot as usize)?;
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
        reader.is_empty().then_some(providers)
    }
}
