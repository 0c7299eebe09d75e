//! Peers that are remembered across restarts, the latest first.

use super::error::StoreError;
use super::{Inner, Store};
use libp2p::{Multiaddr, PeerId};
use narswarm_protocol::limits::{MAX_SAVED_ADDRESS_BYTES, MAX_SAVED_ADDRESSES, MAX_SAVED_PEERS};
use std::time::{SystemTime, UNIX_EPOCH};

impl Store {
    /// Remembers where a peer was reached. Too many addresses and the longest unseen of too many
    /// peers are forgotten.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn save_peer(&self, peer: &PeerId, addresses: &[Multiaddr]) -> Result<(), StoreError> {
        self.inner.save_peer_at(peer, addresses, unix_seconds())
    }

    /// The remembered peers, those seen last first.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn load_peers(&self) -> Result<Vec<(PeerId, Vec<Multiaddr>)>, StoreError> {
        let mut found =
            self.inner.with_index(|index| index.peers().iter().collect::<Result<Vec<_>, _>>())?;
        found.sort_by_key(|(_, value)| std::cmp::Reverse(last_seen(value)));
        let peers = found.iter().filter_map(|(key, value)| {
            Some((PeerId::from_bytes(key).ok()?, decode_addresses(value)))
        });
        Ok(peers.filter(|(_, addresses)| !addresses.is_empty()).collect())
    }
}

impl Inner {
    fn save_peer_at(
        &self,
        peer: &PeerId,
        addresses: &[Multiaddr],
        now: u64,
    ) -> Result<(), StoreError> {
        let value = encode(addresses, now);
        self.with_index(|index| {
            let peers = index.peers();
            if peers.insert(peer.to_bytes(), value.as_slice())?.is_some() {
                return Ok(());
            }
            // New ones are rare and there are at most a thousand: counting is cheap.
            if peers.len() > MAX_SAVED_PEERS {
                let mut oldest: Option<(u64, sled::IVec)> = None;
                for entry in peers {
                    let (key, value) = entry?;
                    let seen = last_seen(&value);
                    if oldest.as_ref().is_none_or(|(oldest, _)| seen < *oldest) {
                        oldest = Some((seen, key));
                    }
                }
                if let Some((_, key)) = oldest {
                    peers.remove(key)?;
                }
            }
            Ok(())
        })
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn encode(addresses: &[Multiaddr], now: u64) -> Vec<u8> {
    let mut value = now.to_be_bytes().to_vec();
    let short =
        addresses.iter().map(Multiaddr::to_vec).filter(|a| a.len() <= MAX_SAVED_ADDRESS_BYTES);
    for address in short.take(MAX_SAVED_ADDRESSES) {
        value.extend((address.len() as u16).to_be_bytes());
        value.extend(address);
    }
    value
}

fn last_seen(value: &[u8]) -> u64 {
    value.first_chunk().map_or(0, |seconds| u64::from_be_bytes(*seconds))
}

fn decode_addresses(value: &[u8]) -> Vec<Multiaddr> {
    let mut rest = value.get(8..).unwrap_or_default();
    let mut addresses = Vec::new();
    while let Some((len, tail)) = rest.split_first_chunk() {
        let Some((address, tail)) = tail.split_at_checked(u16::from_be_bytes(*len).into()) else {
            break;
        };
        addresses.extend(Multiaddr::try_from(address.to_vec()));
        rest = tail;
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::open;

    fn address(port: usize) -> Multiaddr {
        format!("/ip4/192.0.2.1/tcp/{port}").parse().expect("address")
    }

    #[test]
    fn the_longest_unseen_are_forgotten() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (_data, store) = open(dir.path());
        let peers: Vec<_> = (0..MAX_SAVED_PEERS + 2).map(|_| PeerId::random()).collect();
        for (now, peer) in (100u64..).zip(&peers) {
            store.inner.save_peer_at(peer, &[address(1)], now).expect("save");
        }
        let many: Vec<_> = (0..20).map(address).collect();
        store.save_peer(&peers[5], &many).expect("seen again");
        let loaded = store.load_peers().expect("load");
        assert_eq!(loaded.len(), MAX_SAVED_PEERS);
        assert_eq!(loaded[0], (peers[5], many[..MAX_SAVED_ADDRESSES].to_vec()));
        assert_eq!(loaded[1], (peers[MAX_SAVED_PEERS + 1], vec![address(1)]));
        assert!(!loaded.iter().any(|(peer, _)| *peer == peers[0] || *peer == peers[1]));
    }

    #[test]
    fn garbled_entries_are_left_out() {
        let value = encode(&[address(1), address(2)], 7);
        for len in 0..value.len() {
            assert!(decode_addresses(&value[..len]).len() < 2);
        }
        assert_eq!(decode_addresses(&value).len(), 2);
    }
}
