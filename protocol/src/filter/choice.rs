//! Which of the seeds that were found are used.

use crate::limits::{MAX_SEEDS, MAX_SEEDS_IN_ALL};
use std::collections::BTreeSet;
use std::time::Duration;

/// A seed has little if another of its farm has so many times as much.
const LITTLE: u64 = 4;

/// A seed that answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The keys of the farms of which it says to hold most.
    pub farms: BTreeSet<[u8; 32]>,
    /// How far away it is.
    pub round_trip: Duration,
    /// How many items it says to hold; `None` when it has no filter.
    pub items: Option<u64>,
}

/// Chooses some of each farm: the nearest of those that don't hold little. Gives their places in the
/// list.
#[must_use]
pub fn choose(candidates: &[Candidate]) -> BTreeSet<usize> {
    let farms: BTreeSet<_> = candidates.iter().flat_map(|candidate| &candidate.farms).collect();
    let ranked = farms.into_iter().map(|farm| {
        let of_farm = candidates.iter().enumerate().filter(|(_, c)| c.farms.contains(farm));
        let mut of_farm: Vec<_> = of_farm.collect();
        let most = of_farm.iter().filter_map(|(_, c)| c.items).max().unwrap_or(0);
        of_farm.sort_by_key(|(_, c)| {
            let has_little = c.items.is_none_or(|items| items.saturating_mul(LITTLE) < most);
            (has_little, c.round_trip)
        });
        of_farm.into_iter().map(|(place, _)| place).take(MAX_SEEDS).collect::<Vec<_>>()
    });
    let ranked: Vec<_> = ranked.collect();
    let mut chosen = BTreeSet::new();
    // The best of each farm first, so that no farm takes all places.
    for rank in 0..MAX_SEEDS {
        for place in ranked.iter().filter_map(|of_farm| of_farm.get(rank)) {
            if chosen.len() < MAX_SEEDS_IN_ALL {
                chosen.insert(*place);
            }
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seed(farms: &[u8], milliseconds: u64, items: Option<u64>) -> Candidate {
        let farms = farms.iter().map(|farm| [*farm; 32]).collect();
        Candidate { farms, round_trip: Duration::from_millis(milliseconds), items }
    }

    #[test]
    fn the_nearest_with_much_are_used() {
        let seeds = [
            seed(&[1], 10, Some(100)),
            seed(&[1], 90, Some(1000)),
            seed(&[1], 20, None),
            seed(&[1], 80, Some(900)),
            seed(&[1], 70, Some(250)),
            seed(&[1], 99, Some(1000)),
        ];
        assert_eq!(choose(&seeds), BTreeSet::from([1, 3, 4]));
        assert_eq!(choose(&seeds[..3]), BTreeSet::from([0, 1, 2]), "little is more than nothing");
        assert!(choose(&[]).is_empty());
    }

    #[test]
    fn each_farm_has_its_share() {
        let mut seeds: Vec<_> = (0..10).map(|n| seed(&[1], n, Some(1000))).collect();
        seeds.extend((2..=7).map(|farm| seed(&[farm], 500, Some(10))));
        let chosen = choose(&seeds);
        assert_eq!(chosen.len(), MAX_SEEDS_IN_ALL);
        assert!((10..16).all(|place| chosen.contains(&place)));
        // One of two farms counts for both.
        let both = [seed(&[1, 2], 5, Some(10)), seed(&[1], 6, Some(10)), seed(&[2], 6, Some(10))];
        assert_eq!(choose(&both).len(), 3);
    }
}
