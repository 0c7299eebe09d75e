//! How much of the time a node is there, as it counts itself, and how likely it is there now, as
//! others conclude from that.
//!
//! Whoever has to choose among holders that nobody has seen for hours would rather dial the server
//! than the workstation that is on by day. A node says of itself what share of the time it runs; who
//! exaggerates is dialled earlier, in vain, and nothing more.

use crate::limits::{PRESENCE_HALF, PRESENCE_MEMORY, PRESENCE_PRIOR};
use std::time::Duration;

/// A share of the time, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Share(u8);

impl Share {
    /// Of whom nothing is known.
    pub const UNKNOWN: Self = Self(50);

    /// So many percent; more than a hundred count as a hundred.
    #[must_use]
    pub const fn percent(percent: u8) -> Self {
        Self(if percent > 100 { 100 } else { percent })
    }

    /// In percent.
    #[must_use]
    pub fn in_percent(self) -> u8 {
        self.0
    }

    /// How likely, in percent, somebody is there who was seen so long ago: surely at first, and in
    /// the long run as likely as at any time.
    pub(super) fn likelihood(self, unseen: Duration) -> u8 {
        let (share, half) = (u64::from(self.0), PRESENCE_HALF.as_secs());
        (share + (100 - share) * half / half.saturating_add(unseen.as_secs())) as u8
    }
}

/// How long a node was there and wasn't, with less weight on what is long ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Presence {
    /// Seconds there, ...
    pub there: u32,
    /// ... of so many.
    pub of: u32,
}

impl Presence {
    /// For so long the node was there, or wasn't.
    #[must_use]
    pub fn after(self, span: Duration, there: bool) -> Self {
        let memory = PRESENCE_MEMORY.as_secs();
        let span = span.as_secs().min(memory);
        // What is older than the memory fades in proportion.
        let of = u64::from(self.of).min(memory - span);
        let kept = u64::from(self.there).min(self.of.into()) * of / u64::from(self.of.max(1));
        let more = if there { span } else { 0 };
        Self { there: (kept + more) as u32, of: (of + span) as u32 }
    }

    /// What share of the time it is there. A new node can't know, and begins with one half.
    #[must_use]
    pub fn share(self) -> Share {
        let prior = PRESENCE_PRIOR.as_secs();
        let there = u64::from(self.there.min(self.of)) + prior / 2;
        Share::percent((100 * there / (u64::from(self.of) + prior)) as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn servers_and_workstations_become_known_as_such() {
        let (mut server, mut workstation) = (Presence::default(), Presence::default());
        assert_eq!(server.share(), Share::UNKNOWN);
        for _ in 0..14 {
            server = server.after(24 * HOUR, true);
            workstation = workstation.after(9 * HOUR, true).after(15 * HOUR, false);
        }
        assert!(server.share() > Share::percent(94), "{:?}", server.share());
        let share = workstation.share().in_percent();
        assert!((36..=42).contains(&share), "{share}");
        // It is on all the time from now on, and after two weeks little is left of what was before.
        for _ in 0..14 {
            workstation = workstation.after(24 * HOUR, true);
        }
        assert!(workstation.share() > Share::percent(88), "{:?}", workstation.share());
    }

    #[test]
    fn no_span_is_too_long() {
        let all = Presence::default().after(Duration::MAX, true).after(Duration::MAX, true);
        assert_eq!(u64::from(all.there), PRESENCE_MEMORY.as_secs());
        let none = all.after(Duration::MAX, false);
        assert_eq!(none.there, 0);
        let odd = Presence { there: u32::MAX, of: u32::MAX }.after(HOUR, true);
        assert!(odd.there <= odd.of && u64::from(odd.of) <= PRESENCE_MEMORY.as_secs());
        assert!(Presence { there: 9, of: 0 }.share() <= Share::percent(100));
    }

    #[test]
    fn who_was_just_seen_is_there_and_later_as_likely_as_ever() {
        for percent in [0, 40, 100] {
            let share = Share::percent(percent);
            assert_eq!(share.likelihood(Duration::ZERO), 100);
            assert_eq!(share.likelihood(Duration::MAX), percent);
            assert!(share.likelihood(HOUR) >= share.likelihood(2 * HOUR));
        }
        assert_eq!(Share::percent(40).likelihood(PRESENCE_HALF), 70);
        assert_eq!(Share::percent(200).in_percent(), 100);
    }
}
