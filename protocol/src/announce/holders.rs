//! Whom of those that were named as holders of an item to ask, and when.
//!
//! First whoever is connected, then whoever is there most likely, by when they were seen and how much
//! of the time they are there; another one when the first is late, since one in ten is gone without
//! anybody knowing. Whoever may well be gone is asked only while nobody better has answered: to dial
//! the dead costs time, and others' connections.

use super::place::NodeId;
use super::presence::Share;
use crate::fetch::Time;
use crate::limits::{
    DOUBTFUL_HOLDER_BELOW, DOUBTFUL_STAGGER, HOLDER_PATIENCE, HOLDER_STAGGER,
    HOLDER_STAGGER_AT_MOST, HOLDER_STAGGER_TRIPS, HOLDERS_AT_ONCE, PROBE_AFTER,
};
use std::time::Duration;

/// Likelihoods that differ by less than so many percent are the same: they are guesses.
const ABOUT: u8 = 5;

/// Somebody who was named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Named {
    pub provider: NodeId,
    /// How long ago whoever named them has had to do with them.
    pub seen: Duration,
    /// It is reached through relays only, which takes twice as long.
    pub relayed: bool,
    /// What share of the time it says to be there.
    pub share: Share,
}

impl Named {
    fn likelihood(&self) -> u8 {
        self.share.likelihood(self.seen)
    }

    fn is_doubtful(&self) -> bool {
        self.likelihood() < DOUBTFUL_HOLDER_BELOW
    }
}

/// Somebody who was given out.
#[derive(Debug, Clone, Copy)]
struct Asked {
    provider: NodeId,
    /// Until when an answer is waited for.
    until: Time,
    /// It may well be gone, and isn't near.
    doubtful: bool,
}

/// The holders of one item; see the module.
#[derive(Debug, Default)]
pub(super) struct Holders {
    /// How long one is waited for before another is asked as well.
    stagger: Duration,
    /// Not given out yet, in the order in which they were named.
    named: Vec<Named>,
    /// Given out, and nothing heard of them yet.
    asked: Vec<Asked>,
    /// When one was last given out.
    last: Option<Time>,
    /// One of them has answered.
    there: bool,
}

impl Holders {
    /// For a node to which others are usually so far, as far as it knows.
    pub fn new(usual_rtt: Option<Duration>) -> Self {
        let stagger = usual_rtt.unwrap_or_default() * HOLDER_STAGGER_TRIPS;
        let stagger = stagger.clamp(HOLDER_STAGGER, HOLDER_STAGGER_AT_MOST);
        Self { stagger, ..Self::default() }
    }

    pub fn name(&mut self, named: Named) {
        self.named.push(named);
    }

    /// Whom to ask now. `is_near` says who is connected, or asked already for something else.
    pub fn next(&mut self, is_near: impl Fn(NodeId) -> bool, now: Time) -> Option<Named> {
        self.asked.retain(|asked| asked.until > now);
        if self.there {
            self.named.retain(|named| !named.is_doubtful() || is_near(named.provider));
        }
        // Those about as likely there are as good: whoever names them has put them in an order that
        // differs from asker to asker.
        let rank = |named: &Named| {
            let age = named.seen.as_secs() / PROBE_AFTER.as_secs();
            let doubt = 100 - named.likelihood();
            (!is_near(named.provider), doubt / ABOUT, named.relayed, doubt, age)
        };
        let best = (0..self.named.len()).min_by_key(|at| rank(&self.named[*at]))?;
        let doubtful = self.named[best].is_doubtful() && !is_near(self.named[best].provider);
        if self.due(doubtful).is_some_and(|due| due > now) {
            return None;
        }
        let named = self.named.remove(best);
        let (provider, until) = (named.provider, now + HOLDER_PATIENCE);
        self.asked.push(Asked { provider, until, doubtful });
        self.last = Some(now);
        Some(named)
    }

    /// Before this, nobody else is asked.
    fn due(&self, doubtful: bool) -> Option<Time> {
        if self.asked.len() >= HOLDERS_AT_ONCE {
            return self.asked.iter().map(|asked| asked.until).min();
        }
        if self.asked.is_empty() && !self.there {
            return None;
        }
        // Those who are likely there have more time, before one who isn't is asked.
        let better = self.there || self.asked.iter().any(|asked| !asked.doubtful);
        let pause = match (doubtful, better) {
            (true, true) => DOUBTFUL_STAGGER,
            (true, false) => self.stagger * 2,
            (false, _) => self.stagger,
        };
        self.last.map(|last| last + pause)
    }

    /// Somebody has answered, or was gone or held nothing.
    pub fn heard(&mut self, provider: NodeId, there: bool) {
        let asked = self.asked.len();
        self.asked.retain(|asked| asked.provider != provider);
        if there {
            self.there |= self.asked.len() < asked;
        } else {
            self.named.retain(|named| named.provider != provider);
        }
    }

    /// Whether everybody has been given out.
    pub fn is_over(&self) -> bool {
        self.named.is_empty()
    }

    /// When time alone will make somebody be asked.
    pub fn poll_timeout(&self, now: Time) -> Option<Time> {
        let doubtful = self.named.iter().all(Named::is_doubtful);
        self.due(doubtful).filter(|due| !self.named.is_empty() && *due > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3600;

    fn holders(seen: &[u64]) -> Holders {
        let mut holders = Holders::new(None);
        for (provider, seconds) in (0..).zip(seen) {
            let (provider, seen) = (NodeId(provider), Duration::from_secs(*seconds));
            holders.name(Named { provider, seen, relayed: false, share: Share::UNKNOWN });
        }
        holders
    }

    fn next(holders: &mut Holders, now: Time) -> Option<u64> {
        holders.next(|_| false, now).map(|named| named.provider.0)
    }

    #[test]
    fn the_latest_seen_comes_first_and_the_next_when_it_is_late() {
        let mut holders = holders(&[3000, 1000, 10]);
        let mut now = Time::default();
        assert_eq!((next(&mut holders, now), next(&mut holders, now)), (Some(2), None));
        assert_eq!(holders.poll_timeout(now), Some(now + HOLDER_STAGGER));
        now = now + HOLDER_STAGGER;
        assert_eq!((next(&mut holders, now), next(&mut holders, now)), (Some(1), None));
        holders.heard(NodeId(1), false);
        holders.heard(NodeId(2), false);
        assert_eq!(next(&mut holders, now), Some(0), "at once when nobody is waited for");
        assert!(holders.is_over());
    }

    #[test]
    fn whoever_is_reached_directly_comes_before_relayed_ones_that_are_as_likely_there() {
        let mut holders = Holders::new(None);
        for (provider, minutes, relayed) in
            [(0, 1, true), (1, 2, false), (2, 20, true), (3, 25, false)]
        {
            let (provider, seen) = (NodeId(provider), Duration::from_secs(60 * minutes));
            holders.name(Named { provider, seen, relayed, share: Share::UNKNOWN });
        }
        let order = (0..4).map(|number| Time::default() + HOLDER_STAGGER * number);
        let order: Vec<_> = order.filter_map(|now| next(&mut holders, now)).collect();
        assert_eq!(order, [1, 3, 0, 2]);
    }

    #[test]
    fn where_all_are_far_away_they_are_waited_for_longer() {
        for (rtt, stagger) in [(10, 150), (100, 200), (2000, 400)] {
            let mut holders = Holders::new(Some(Duration::from_millis(rtt)));
            let seen = Duration::ZERO;
            for provider in [0, 1].map(NodeId) {
                holders.name(Named { provider, seen, relayed: false, share: Share::UNKNOWN });
            }
            let now = Time::default();
            assert_eq!(next(&mut holders, now), Some(0));
            assert_eq!(holders.poll_timeout(now), Some(now + Duration::from_millis(stagger)));
        }
    }

    #[test]
    fn a_server_unseen_for_hours_comes_before_a_workstation_unseen_for_one() {
        let mut holders = Holders::new(None);
        for (provider, hours, percent) in [(0, 1, 40), (1, 9, 98), (2, 9, 70)] {
            let (provider, seen) = (NodeId(provider), Duration::from_secs(HOUR * hours));
            let share = Share::percent(percent);
            holders.name(Named { provider, seen, relayed: false, share });
        }
        let order = (0..3).map(|number| Time::default() + DOUBTFUL_STAGGER * number);
        let order: Vec<_> = order.filter_map(|now| next(&mut holders, now)).collect();
        assert_eq!(order, [1, 0, 2]);
    }

    #[test]
    fn whoever_is_connected_comes_before_all() {
        let mut holders = holders(&[0, 20 * HOUR]);
        let near = holders.next(|node| node == NodeId(1), Time::default());
        assert_eq!(near.map(|named| named.provider), Some(NodeId(1)));
    }

    #[test]
    fn doubtful_ones_wait_longer_and_are_left_out_when_another_has_answered() {
        let mut holders = holders(&[0, 20 * HOUR, 30 * HOUR]);
        let now = Time::default();
        assert_eq!(next(&mut holders, now), Some(0));
        assert_eq!(next(&mut holders, now + HOLDER_STAGGER), None);
        assert_eq!(holders.poll_timeout(now), Some(now + DOUBTFUL_STAGGER));
        assert_eq!(next(&mut holders, now + DOUBTFUL_STAGGER), Some(1));
        holders.heard(NodeId(0), true);
        assert_eq!(next(&mut holders, now + DOUBTFUL_STAGGER * 9), None);
        assert!(holders.is_over());
    }

    #[test]
    fn where_all_are_doubtful_the_next_has_to_wait_for_two_pauses() {
        let mut holders = holders(&[20 * HOUR, 30 * HOUR]);
        let now = Time::default();
        assert_eq!((next(&mut holders, now), next(&mut holders, now)), (Some(0), None));
        assert_eq!(holders.poll_timeout(now), Some(now + HOLDER_STAGGER * 2));
        assert_eq!(next(&mut holders, now + HOLDER_STAGGER * 2), Some(1));
    }

    #[test]
    fn few_are_asked_at_once_and_silence_isnt_waited_for_long() {
        let mut holders = holders(&[0; 9]);
        let mut now = Time::default();
        for _ in 0..HOLDERS_AT_ONCE {
            assert!(next(&mut holders, now).is_some());
            now = now + HOLDER_STAGGER;
        }
        assert_eq!(next(&mut holders, now), None);
        let first_over = Time::default() + HOLDER_PATIENCE;
        assert_eq!(holders.poll_timeout(now), Some(first_over));
        assert!(next(&mut holders, first_over).is_some());
    }
}
