//! How many nodes the DHT has, from how densely they lie around this one.
//!
//! Node ids are spread evenly over the key space, so the distances from any point to the nodes
//! around it grow by even steps on average: with `n` nodes, a step is the `n`th part of the space.
//! A node knows all its neighbours exactly, and far ones only by sample; so the closest are
//! looked at. Single steps scatter as an exponential distribution does, and a few Sybils close by
//! shorten a few of them; the median withstands both.

use crate::limits::{MAX_SIZE_NEIGHBOURS, MIN_SIZE_NEIGHBOURS};

/// An estimate: with nineteen of twenty it is within the bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DhtSize {
    /// Most likely.
    pub nodes: u64,
    /// At least, as far as can be told.
    pub low: u64,
    /// At most, as far as can be told.
    pub high: u64,
}

/// Estimates the number of nodes, this one included, from the XOR distances (big-endian, 256 bits)
/// between this node and the closest it knows, in any order, and from how many it knows in all,
/// which is the least that there are. `None` if it knows nobody.
#[must_use]
pub fn estimate(distances: &[[u8; 32]], known: usize) -> Option<DhtSize> {
    if known == 0 {
        return None;
    }
    let at_least = known as u64 + 1;
    let mut parts: Vec<f64> = distances.iter().map(as_part).collect();
    parts.sort_by(f64::total_cmp);
    parts.truncate(MAX_SIZE_NEIGHBOURS);
    if parts.len() < MIN_SIZE_NEIGHBOURS {
        // So few that they are most likely all.
        return Some(DhtSize { nodes: at_least, low: at_least, high: at_least });
    }
    let before = std::iter::once(0.0).chain(parts.iter().copied());
    let mut steps: Vec<f64> = parts.iter().zip(before).map(|(at, before)| at - before).collect();
    steps.sort_by(f64::total_cmp);
    let middle = steps[steps.len() / 2].max(f64::MIN_POSITIVE);
    // The median of an exponential distribution is its mean times the logarithm of two.
    let nodes = std::f64::consts::LN_2 / middle;
    // The standard deviation of a median of `n` such steps is 1 / (ln 2 · √n) of it.
    let spread = 1.0 + 2.0 / (std::f64::consts::LN_2 * (steps.len() as f64).sqrt());
    let count = |nodes: f64| (nodes.round() as u64).max(at_least);
    Some(DhtSize { nodes: count(nodes), low: count(nodes / spread), high: count(nodes * spread) })
}

/// A distance as a part of the key space.
fn as_part(distance: &[u8; 32]) -> f64 {
    distance.iter().rev().fold(0.0, |part, octet| (part + f64::from(*octet)) / 256.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The closest distances of `nodes` ids made up from a seed.
    fn closest(nodes: u64, seed: u64) -> Vec<[u8; 32]> {
        let distance = |node: u64| {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&seed.to_le_bytes()).update(&node.to_le_bytes());
            *hasher.finalize().as_bytes()
        };
        let mut all: Vec<_> = (0..nodes).map(distance).collect();
        all.sort_unstable();
        all.truncate(MAX_SIZE_NEIGHBOURS);
        all
    }

    #[test]
    fn estimates_lie_around_the_truth() {
        for nodes in [100, 1_000, 20_000] {
            let mut ratios: Vec<f64> = (0..41)
                .map(|seed| {
                    let size = estimate(&closest(nodes, seed), MAX_SIZE_NEIGHBOURS);
                    size.expect("neighbours").nodes as f64 / nodes as f64
                })
                .collect();
            ratios.sort_by(f64::total_cmp);
            assert!((0.8..1.25).contains(&ratios[20]), "{nodes}: the median is {}", ratios[20]);
            assert!(ratios[2] > 0.4 && ratios[38] < 2.5, "{nodes}: {ratios:?}");
        }
    }

    #[test]
    fn the_truth_is_mostly_within_the_bounds() {
        let within = (100..200).filter(|seed| {
            let size = estimate(&closest(5_000, *seed), MAX_SIZE_NEIGHBOURS).expect("neighbours");
            (size.low..=size.high).contains(&5_000)
        });
        let within = within.count();
        assert!(within >= 85, "only {within} of 100");
    }

    #[test]
    fn a_few_sybils_close_by_change_little() {
        let mut neighbours = closest(2_000, 1);
        let honest = estimate(&neighbours, 20).expect("neighbours").nodes as f64;
        for sybil in 1..=4 {
            let mut distance = [0; 32];
            distance[31] = sybil;
            neighbours.push(distance);
        }
        let attacked = estimate(&neighbours, 20).expect("neighbours").nodes as f64;
        assert!(attacked / honest < 2.5, "{honest} became {attacked}");
    }

    #[test]
    fn few_neighbours_are_counted() {
        assert_eq!(estimate(&[], 0), None);
        let three = estimate(&closest(3, 1), 3).expect("neighbours");
        assert_eq!(three, DhtSize { nodes: 4, low: 4, high: 4 });
        // Whatever the distances say, those who are known are there.
        let known = estimate(&[[0xff; 32]; 20], 500).expect("neighbours");
        assert!(known.low >= 501, "{known:?}");
        assert!(estimate(&[[0; 32]; 20], 20).is_some(), "no distance at all is no reason to fail");
    }
}
