//! Seeded chance: every purpose has a stream of its own, so that drawing once more for one thing
//! leaves all others as they were.

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

/// Separates the simulator's streams from every other use of BLAKE3.
const DOMAIN: &str = "narswarm-sim 2026-11 stream of chance";

/// One stream of chance.
#[derive(Debug, Clone)]
pub struct Chance(Pcg64);

impl Chance {
    /// The stream of this purpose under this seed.
    #[must_use]
    pub fn new(seed: u64, purpose: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(DOMAIN);
        hasher.update(&seed.to_le_bytes());
        hasher.update(purpose.as_bytes());
        Self(Pcg64::from_seed(*hasher.finalize().as_bytes()))
    }

    /// A number of the range, its end included.
    pub fn between(&mut self, least: u64, most: u64) -> u64 {
        self.0.random_range(least..=most.max(least))
    }

    /// True `percent` times in a hundred.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.between(0, 99) < percent
    }

    /// A number between the two, small ones as likely as large ones of ten times the size.
    pub fn logarithmic(&mut self, least: u64, most: u64) -> u64 {
        let most = most.max(least);
        // Integers only: libraries of mathematics differ in the last digit between machines.
        let doublings = u64::from((most / least.max(1)).max(1).ilog2());
        let base = least.max(1) << self.between(0, doublings);
        self.between(base, base.saturating_mul(2)).min(most)
    }

    /// Puts the items into some order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            let other = self.between(0, end as u64) as usize;
            items.swap(end, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_depend_on_seed_and_purpose_alone() {
        let draw = |seed, purpose| {
            let mut chance = Chance::new(seed, purpose);
            [chance.between(0, u64::MAX - 1), chance.between(0, 1000), chance.logarithmic(1, 1000)]
        };
        assert_eq!(draw(1, "a"), draw(1, "a"));
        assert_ne!(draw(1, "a"), draw(2, "a"));
        assert_ne!(draw(1, "a"), draw(1, "b"));
    }

    #[test]
    fn draws_stay_within_their_bounds() {
        let mut chance = Chance::new(7, "bounds");
        for _ in 0..1000 {
            assert!((3..=9).contains(&chance.between(3, 9)));
            assert!((10..=100_000).contains(&chance.logarithmic(10, 100_000)));
            assert!(!chance.percent(0) && chance.percent(100));
        }
        let mut items: Vec<u32> = (0..20).collect();
        chance.shuffle(&mut items);
        assert_ne!(items, (0..20).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..20).collect::<Vec<_>>());
    }
}
