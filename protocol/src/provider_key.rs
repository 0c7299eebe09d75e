//! The key under which holders of a store item are found in the DHT.

use crate::store_path::StoreHash;

/// Separates provider keys from every other use of BLAKE3.
const PROVIDER_KEY_DOMAIN: &str = "narswarm 2026-11 provider key of a store item";

/// BLAKE3 of a domain and the store hash, so that a DHT node that doesn't know the item cannot
/// name it.
#[must_use]
pub fn provider_key(hash: &StoreHash) -> [u8; 32] {
    blake3::derive_key(PROVIDER_KEY_DOMAIN, &hash.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_what_it_is() {
        let key = provider_key(&StoreHash([7; 20]));
        assert_ne!(key, provider_key(&StoreHash([8; 20])));
        let spelled: String = key.iter().map(|octet| format!("{octet:02x}")).collect();
        assert_eq!(spelled, "0f84439312526981e96b1d5f6bd656f93aeeb0d769d4fef447cf5e5102e3b60b");
    }
}
