//! Keys that stand for no item: under which those are found who hold most of what a build farm has,
//! and those who know hardly anybody.
//!
//! A seed of ten million items can't announce them one by one. It announces one key for each farm
//! whose items it holds, by the same messages as any item; nodes that use the farm look that key up
//! now and then, stay connected with the best few, and ask them for everything in one question.

/// Separates these keys from every other use of BLAKE3, and from the keys of items.
const MIRROR_DOMAIN: &str = "narswarm 2026-11 mirrors of a build farm";

/// The provider key of those who hold most of what is signed with this key, an Ed25519 point.
#[must_use]
pub fn mirror_key(farm: &[u8; 32]) -> [u8; 32] {
    blake3::derive_key(MIRROR_DOMAIN, farm)
}

/// Separates this key from every other use of BLAKE3.
const LONELY_DOMAIN: &str = "narswarm 2026-11 nodes that know hardly anybody";

/// The provider key of those who know hardly anybody and want to be found by others who don't. In a
/// small network whose nodes sit behind NATs they are in no table, so that nobody would come upon
/// them.
#[must_use]
pub fn lonely_key() -> [u8; 32] {
    blake3::derive_key(LONELY_DOMAIN, &[])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider_key::provider_key;
    use crate::store_path::StoreHash;

    #[test]
    fn each_farm_has_its_own() {
        assert_ne!(mirror_key(&[1; 32]), mirror_key(&[2; 32]));
        assert_ne!(mirror_key(&[0; 32]), provider_key(&StoreHash([0; 20])));
        assert_ne!(mirror_key(&[0; 32]), lonely_key());
    }
}
