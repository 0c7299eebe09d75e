//! Notices that the computer has slept: the clock by which the machine runs stands still meanwhile, and
//! what others were told grows old.

use std::time::Duration;

/// Shorter differences between the two clocks are somebody setting one of them.
const LEAST: Duration = Duration::from_secs(60);

/// By how much the clock on the wall was ahead when that was last looked at.
#[derive(Debug, Default)]
pub struct Sleep {
    ahead: Duration,
}

impl Sleep {
    /// So much has passed on the wall and on the machine's clock. Says for how long the computer has slept
    /// since this was asked before.
    pub fn since(&mut self, wall: Duration, clock: Duration) -> Option<Duration> {
        let ahead = wall.saturating_sub(clock);
        let slept = ahead.saturating_sub(self.ahead);
        // Who sets the wall's clock back hasn't slept.
        if slept >= LEAST || ahead < self.ahead {
            self.ahead = ahead;
        }
        Some(slept).filter(|slept| *slept >= LEAST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hours(hours: u64) -> Duration {
        Duration::from_secs(3600 * hours)
    }

    #[test]
    fn each_sleep_is_told_once() {
        let mut sleep = Sleep::default();
        assert_eq!(sleep.since(hours(2), hours(2)), None);
        assert_eq!(sleep.since(hours(11), hours(3)), Some(hours(8)));
        assert_eq!(sleep.since(hours(12), hours(4)), None);
        assert_eq!(sleep.since(hours(14), hours(4)), Some(hours(2)));
    }

    #[test]
    fn a_clock_that_is_set_is_no_sleep_or_a_short_one() {
        let mut sleep = Sleep::default();
        assert_eq!(sleep.since(hours(1) + Duration::from_secs(30), hours(1)), None);
        assert_eq!(sleep.since(Duration::ZERO, hours(2)), None, "it was set back");
        assert_eq!(sleep.since(hours(6), hours(3)), Some(hours(3)));
        assert_eq!(sleep.since(hours(5), hours(4)), None, "it was set back again");
        assert_eq!(sleep.since(hours(9), hours(5)), Some(hours(3)));
    }
}
