//! A cap on a rate: a token bucket that may go into debt, since pieces are given whole.

use crate::fetch::Time;
use std::time::Duration;

/// What may be given in one go after a pause: so many seconds' worth. A quarter keeps a line that
/// others use too free of long bursts.
const BURST_SECONDS: f64 = 0.25;

/// A cap on a rate; see [`super::Uploads`] for what it is used for here. Octets are taken out as they
/// are given, and below zero nothing more may be until time has filled it again.
#[derive(Debug)]
pub struct Bucket {
    /// Octets a second.
    rate: Option<f64>,
    /// Octets that may be given at once; below zero for what was given ahead.
    level: f64,
    at: Time,
}

impl Bucket {
    /// A bucket for `rate` octets a second, at least one; `None` never runs dry.
    #[must_use]
    pub fn new(rate: Option<u64>, now: Time) -> Self {
        let rate = rate.map(|rate| rate.max(1) as f64);
        Self { rate, level: rate.unwrap_or(0.0) * BURST_SECONDS, at: now }
    }

    /// Whether anything may be given now.
    pub fn is_ready(&mut self, now: Time) -> bool {
        let Some(rate) = self.rate else { return true };
        let grown = self.level + rate * now.since(self.at).as_secs_f64();
        // What was corrected upwards is kept; a pause fills no further than to a burst.
        self.level = grown.min(self.level.max(rate * BURST_SECONDS));
        self.at = self.at.max(now);
        self.level >= 0.0
    }

    /// When something may be given.
    #[must_use]
    pub fn ready_at(&self) -> Time {
        match self.rate {
            Some(rate) if self.level < 0.0 => {
                // A debt in octets is far below what makes the quotient overflow; a nanosecond
                // more makes up for rounding.
                let wait = Duration::try_from_secs_f64(-self.level / rate).unwrap_or(Duration::MAX);
                self.at + wait.saturating_add(Duration::from_nanos(1))
            }
            _ => self.at,
        }
    }

    /// Takes octets out.
    pub fn charge(&mut self, bytes: u64) {
        self.level -= if self.rate.is_some() { bytes as f64 } else { 0.0 };
    }

    /// Replaces a charge by what it turned out to be.
    pub fn correct(&mut self, charged: u64, bytes: u64) {
        self.level += if self.rate.is_some() { charged as f64 - bytes as f64 } else { 0.0 };
    }
}
