//! The rate of a flow over the last second or so.

use super::Time;
use std::time::Duration;

/// Half of what is looked back at: two of them smooth over bursts of whole pieces, and follow a
/// change within a second.
const STRETCH: Duration = Duration::from_millis(500);

/// Counts octets over the current stretch and the one before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Meter {
    from: Time,
    before: u64,
    now: u64,
    /// Whether the stretch before was a whole one.
    warm: bool,
}

impl Meter {
    pub fn new(now: Time) -> Self {
        Self { from: now, before: 0, now: 0, warm: false }
    }

    fn roll(&mut self, now: Time) {
        let past = now.since(self.from);
        if past < STRETCH {
            return;
        }
        let whole = past.as_nanos() / STRETCH.as_nanos();
        self.before = if whole == 1 { self.now } else { 0 };
        self.now = 0;
        self.from = self.from + STRETCH * u32::try_from(whole).unwrap_or(u32::MAX);
        self.warm = true;
    }

    pub fn add(&mut self, bytes: u64, now: Time) {
        self.roll(now);
        self.now += bytes;
    }

    /// Octets a second; `None` until a stretch has passed.
    pub fn rate(&mut self, now: Time) -> Option<f64> {
        self.roll(now);
        let seconds = (STRETCH + now.since(self.from)).as_secs_f64();
        self.warm.then(|| (self.before + self.now) as f64 / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time(Duration::from_millis(millis))
    }

    #[test]
    fn a_steady_flow_is_measured_and_its_end_is_noticed() {
        let mut meter = Meter::new(at(0));
        assert_eq!(meter.rate(at(100)), None);
        for ms in (0..1000).step_by(10) {
            meter.add(1000, at(ms));
        }
        let rate = meter.rate(at(1000)).expect("warm");
        assert!((90_000.0..=110_000.0).contains(&rate), "{rate}");
        assert_eq!(meter.rate(at(3000)), Some(0.0));
    }
}
