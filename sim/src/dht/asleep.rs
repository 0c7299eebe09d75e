//! What is kept of a node that is away, in little memory: half of a hundred thousand are.

use super::table::NodeId;
use crate::agenda::Nanos;
use narswarm_protocol::announce::{
    Announced, Bucket, BucketState, ItemKey, NodeId as Peer, Presence,
};
use std::time::Duration;

/// Never, in seconds.
const NEVER: u32 = u32::MAX;

/// One bucket, in whole seconds, as production writes it down.
#[derive(Debug)]
struct Brief {
    due: u32,
    look: u32,
    bucket: Bucket,
    keepers: u8,
    near: u8,
}

/// See the module.
#[derive(Debug)]
pub struct Asleep {
    since: Nanos,
    presence: Presence,
    radius: u64,
    /// What it keeps for others, as production writes it down.
    kept: Box<[u8]>,
    items: Box<[(ItemKey, u8)]>,
    buckets: Box<[Brief]>,
    /// Keepers and those near, bucket by bucket.
    nodes: Box<[NodeId]>,
}

impl Asleep {
    /// A node goes to sleep that keeps `kept` for others.
    #[must_use]
    pub fn new(announced: Announced, kept: Vec<u8>, since: Nanos) -> Self {
        let seconds = |span: Duration| u32::try_from(span.as_secs()).unwrap_or(NEVER);
        let all = || announced.buckets.iter();
        let buckets = all().map(|state| Brief {
            due: state.due.map_or(NEVER, seconds),
            look: seconds(state.look),
            bucket: state.bucket,
            keepers: state.keepers.len() as u8,
            near: state.near.len() as u8,
        });
        let nodes = all().flat_map(|state| state.keepers.iter().chain(&state.near));
        Self {
            since,
            presence: announced.presence,
            radius: announced.radius,
            kept: kept.into_boxed_slice(),
            buckets: buckets.collect(),
            nodes: nodes.map(|node| node.0 as NodeId).collect(),
            items: announced.items.into_boxed_slice(),
        }
    }

    /// What it keeps for others.
    #[must_use]
    pub fn kept(&self) -> &[u8] {
        &self.kept
    }

    /// What it has announced when it wakes up, and how long it has slept.
    #[must_use]
    pub fn wake(self, now: Nanos) -> (Announced, Duration) {
        let mut nodes = self.nodes.into_iter().map(|node| Peer(node.into()));
        let buckets = self.buckets.iter().map(|brief| {
            let mut some = |count: u8| nodes.by_ref().take(count.into()).collect::<Vec<_>>();
            let (keepers, near) = (some(brief.keepers), some(brief.near));
            let span = |seconds: u32| Duration::from_secs(seconds.into());
            let due = (brief.due != NEVER).then(|| span(brief.due));
            BucketState { bucket: brief.bucket, due, look: span(brief.look), keepers, near }
        });
        let announced = Announced {
            buckets: buckets.collect(),
            items: self.items.into_vec(),
            presence: self.presence,
            radius: self.radius,
        };
        (announced, Duration::from_nanos(now - self.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agenda::SECOND;

    #[test]
    fn who_wakes_up_knows_what_it_knew() {
        let state = |bucket: Bucket| {
            let number = u64::from(bucket.number());
            BucketState {
                bucket,
                due: (number % 3 > 0).then(|| Duration::from_secs(number)),
                look: Duration::from_secs(100 * number),
                keepers: (0..number % 9).map(Peer).collect(),
                near: (number..number + number % 5).map(Peer).collect(),
            }
        };
        let announced = Announced {
            items: vec![(ItemKey([7; 16]), 3)],
            buckets: Bucket::all().map(state).collect(),
            presence: Presence { there: 3, of: 4 },
            radius: 5,
        };
        let asleep = Asleep::new(announced.clone(), vec![1, 2], SECOND);
        assert_eq!(asleep.kept(), [1, 2]);
        assert_eq!(asleep.wake(3 * SECOND), (announced, Duration::from_secs(2)));
    }
}
