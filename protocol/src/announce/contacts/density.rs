//! How dense the network is: by that a node tells where it is crowded, and how many nodes there are.

use super::super::place::{BUCKETS, Bucket};
use crate::fetch::Time;
use crate::limits::REPLICAS;
use std::time::Duration;

/// How long the estimate is used before it is made anew. Networks grow and shrink over hours, and nodes
/// wait a day and a half for a neighbourhood to be walked to again.
const LIFE: Duration = Duration::from_secs(3600);

/// So many neighbourhoods have to be known for an estimate: as many as nobody can crowd around
/// unnoticed, as the median counts.
const LEAST_EXPLORED: usize = 8;

/// What an estimate rests on.
#[derive(Debug)]
pub(super) struct Knowledge {
    /// How many nodes are known.
    pub nodes: usize,
    /// How often one has become known.
    pub arrivals: u64,
    pub at: Time,
}

#[derive(Debug)]
struct Estimate {
    radius: u64,
    /// How many neighbourhoods were known by then.
    explored: usize,
    by: Knowledge,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Density {
    /// Meeting points whose neighbourhood has been walked to, and how many those are.
    explored: [bool; BUCKETS],
    explored_count: usize,
    estimate: Option<Estimate>,
    /// The radius in an earlier run: good enough until enough is known.
    recalled: u64,
}

impl Default for Density {
    fn default() -> Self {
        Self { explored: [false; BUCKETS], explored_count: 0, estimate: None, recalled: u64::MAX }
    }
}

impl Density {
    /// The neighbourhood of this meeting point is known now.
    pub fn explored(&mut self, bucket: Bucket) {
        let explored = &mut self.explored[usize::from(bucket.number())];
        self.explored_count += usize::from(!*explored);
        *explored = true;
    }

    /// The meeting points whose neighbourhood is known.
    pub fn explored_ones(&self) -> impl Iterator<Item = Bucket> {
        Bucket::all().zip(self.explored).filter(|(_, explored)| *explored).map(|(bucket, _)| bucket)
    }

    /// Whether nothing is known, neither now nor from an earlier run.
    pub fn is_unknown(&self) -> bool {
        self.explored_count < LEAST_EXPLORED && self.recalled == u64::MAX
    }

    /// How dense the network was when an earlier run of this node ended.
    pub fn recall(&mut self, radius: u64) {
        self.recalled = radius;
    }

    /// What was estimated last, here or in an earlier run.
    pub fn last_radius(&self) -> u64 {
        self.estimate.as_ref().map_or(self.recalled, |estimate| estimate.radius)
    }

    /// The distance within which [`REPLICAS`] nodes are to be expected anywhere, unless that has to be
    /// [estimated](Density::estimate) now. While few neighbourhoods are known, what it was in an earlier
    /// run, or else everywhere: `u64::MAX`.
    pub fn radius(&self, now: &Knowledge) -> Option<u64> {
        let explored = self.explored_count;
        if explored < LEAST_EXPLORED {
            return Some(self.recalled);
        }
        // Made anew when some more are known, not with each.
        let fresh = |estimate: &&Estimate| {
            explored <= estimate.explored * 5 / 4
                && now.arrivals - estimate.by.arrivals <= now.nodes as u64 / 4
                && now.at.since(estimate.by.at) < LIFE
        };
        self.estimate.as_ref().filter(fresh).map(|estimate| estimate.radius)
    }

    /// Estimates it from the distance of the [`REPLICAS`]-th node at each of the meeting points that were
    /// walked to: the median, which whoever crowds around one of them hardly moves.
    pub fn estimate(&mut self, mut radii: Vec<u64>, by: Knowledge) -> u64 {
        radii.sort_unstable();
        let radius = radii.get(radii.len() / 2).copied().unwrap_or(u64::MAX);
        self.estimate = Some(Estimate { radius, explored: self.explored_count, by });
        radius
    }
}

/// How many nodes a network has in which [`REPLICAS`] are to be expected within this distance, unless it
/// is unknown.
pub(super) fn size_by_radius(radius: u64) -> Option<u64> {
    // `radius` is where the REPLICAS-th of n nodes is expected: n = REPLICAS · 2^64 / radius.
    let size = ((REPLICAS as u128) << 64) / u128::from(radius.max(1));
    (radius != u64::MAX).then(|| u64::try_from(size).unwrap_or(u64::MAX))
}
