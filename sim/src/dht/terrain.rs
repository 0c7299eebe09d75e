//! How far nodes are from each other: regions of the world with the round trips between them, and
//! everybody's own way to the middle of their region.
//!
//! Loss and congestion within the network are not modelled.

use super::table::NodeId;
use crate::agenda::Nanos;
use crate::random::Chance;

/// One microsecond.
const MICRO: Nanos = 1000;

/// Regions, and how many nodes in a hundred are there: Europe, North America, South America, Asia,
/// Oceania. Guix's users sit in Europe and North America for the most part.
const SHARES: [u64; 5] = [50, 30, 5, 12, 3];

/// Round trips between the middles of regions, in milliseconds: medians between data centres of
/// the large clouds, rounded.
const BETWEEN: [[u64; 5]; 5] = [
    [20, 95, 195, 200, 270],
    [95, 40, 130, 170, 180],
    [195, 130, 35, 310, 300],
    [200, 170, 310, 65, 125],
    [270, 180, 300, 125, 25],
];

/// A node's way to the middle of its region and back: least and most, in microseconds. Fibre and
/// data centres below, old copper and radio above.
const ACCESS: (u64, u64) = (1500, 30_000);

/// A message takes up to so many percent longer than the quickest.
const JITTER_PERCENT: u64 = 10;

/// See the module.
#[derive(Debug, Clone)]
pub enum Terrain {
    /// The same round trip between any two.
    Uniform(Nanos),
    /// Regions and ways.
    World {
        /// Everybody's region.
        region: Vec<u8>,
        /// Everybody's way to its middle and back, in microseconds.
        access: Vec<u32>,
    },
}

impl Terrain {
    /// Places this many nodes in the world.
    pub fn world(count: usize, chance: &mut Chance) -> Self {
        let mut draw = || {
            let mut left = chance.between(0, 99);
            let at = SHARES.iter().position(|&share| {
                let here = left < share;
                left = left.saturating_sub(share);
                here
            });
            (at.unwrap_or(0) as u8, chance.logarithmic(ACCESS.0, ACCESS.1) as u32)
        };
        let (region, access) = (0..count).map(|_| draw()).unzip();
        Self::World { region, access }
    }

    /// The quickest round trip between two nodes.
    #[must_use]
    pub fn round_trip(&self, a: NodeId, b: NodeId) -> Nanos {
        match self {
            Self::Uniform(trip) => *trip,
            Self::World { region, access } => {
                let (a, b) = (a as usize, b as usize);
                let between = BETWEEN[usize::from(region[a])][usize::from(region[b])] * 1000;
                (between + u64::from(access[a]) + u64::from(access[b])) * MICRO
            }
        }
    }

    /// A round trip of a message now.
    pub fn sample(&self, a: NodeId, b: NodeId, chance: &mut Chance) -> Nanos {
        let quickest = self.round_trip(a, b);
        match self {
            Self::Uniform(_) => quickest,
            Self::World { .. } => quickest + quickest * chance.between(0, JITTER_PERCENT) / 100,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agenda::MILLI;

    #[test]
    fn the_world_is_symmetric_and_within_bounds() {
        let mut chance = Chance::new(1, "terrain");
        let world = Terrain::world(300, &mut chance);
        for (a, b) in [(0, 1), (5, 200), (17, 42)] {
            let trip = world.round_trip(a, b);
            assert_eq!(trip, world.round_trip(b, a));
            assert!((23 * MILLI..=370 * MILLI).contains(&trip), "{trip}");
            let now = world.sample(a, b, &mut chance);
            assert!(now >= trip && now <= trip * 11 / 10);
        }
        assert_eq!(Terrain::Uniform(50 * MILLI).sample(3, 9, &mut chance), 50 * MILLI);
    }
}
