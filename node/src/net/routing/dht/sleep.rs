//! Notices that the computer has slept: the clock by which the machine runs stands still meanwhile, and
//! what others were told grows old.

use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// What is shorter changes nothing: no record and no connection that narswarm keeps is judged by a minute.
const LEAST: Duration = Duration::from_secs(60);

/// For how long the computer had slept by the time when that was last looked at.
#[derive(Debug)]
pub struct Sleep {
    slept: Duration,
}

impl Sleep {
    /// Sleeps before now don't count.
    pub fn new() -> Self {
        Self { slept: slept_since_boot() }
    }

    /// For how long the computer has slept since this was asked before.
    pub fn since(&mut self) -> Option<Duration> {
        self.passed(slept_since_boot())
    }

    fn passed(&mut self, slept: Duration) -> Option<Duration> {
        let passed = slept.checked_sub(self.slept).filter(|passed| *passed >= LEAST)?;
        self.slept = slept;
        Some(passed)
    }
}

/// For how long this computer has been asleep since it was started: of these two clocks of Linux the one
/// goes on then, the other, which `std::time::Instant` is, does not, and nobody can set either
/// (clock_gettime(2)).
fn slept_since_boot() -> Duration {
    let read = |clock| Duration::try_from(clock_gettime(clock)).unwrap_or_default();
    // Read in this order the difference is never too large.
    let with_sleep = read(ClockId::Boottime);
    with_sleep.saturating_sub(read(ClockId::Monotonic))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hours(hours: u64) -> Duration {
        Duration::from_secs(3600 * hours)
    }

    #[test]
    fn each_sleep_is_told_once_and_a_nap_when_it_has_added_up() {
        let mut sleep = Sleep { slept: hours(100) };
        assert_eq!(sleep.passed(hours(100)), None);
        assert_eq!(sleep.passed(hours(108)), Some(hours(8)));
        assert_eq!(sleep.passed(hours(108)), None);
        let nap = Duration::from_secs(40);
        assert_eq!(sleep.passed(hours(108) + nap), None);
        assert_eq!(sleep.passed(hours(108) + nap * 2), Some(nap * 2));
        assert_eq!(sleep.passed(hours(107)), None, "two clocks aren't read at the same moment");
    }

    #[test]
    fn who_is_awake_has_not_slept() {
        assert_eq!(Sleep::new().since(), None);
        let awake = Duration::try_from(clock_gettime(ClockId::Boottime)).expect("a time");
        assert!(slept_since_boot() < awake);
    }
}
