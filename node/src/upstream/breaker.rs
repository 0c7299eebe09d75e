//! When to leave a failing server alone, and when to try it again.
//!
//! A dead server must cost nothing: after repeated failures requests pass it by at once, for a
//! time that doubles up to a minute. A server that came back must be noticed without sacrificing
//! requests: after the rest one *probe* goes out, and requests wait for it only as long as a
//! short patience. Time is an argument; nothing here waits.

use std::time::{Duration, Instant};

/// The first rest: long enough that a burst of requests costs one failure, short enough that a
/// service restart goes unnoticed.
const FIRST_REST: Duration = Duration::from_secs(1);

/// The longest rest: a minute is what guix itself remembers an unexpected status for.
const LONGEST_REST: Duration = Duration::from_secs(60);

/// Strikes after which a server rests. See [`Failure`] for how much each failure counts.
const STRIKES: u32 = 48;

/// How a server failed, by what the failure cost whoever waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// Seconds passed in silence: once is enough.
    Slow,
    /// Refused, reset, or not HTTP: known within a round trip, so three in a row.
    Quick,
    /// A well-formed answer of status 5xx or 429: forty-eight in a row, so that a hiccup in the
    /// midst of a batch does not lose the rest of it.
    Status,
}

impl Failure {
    fn strikes(self) -> u32 {
        match self {
            Self::Slow => STRIKES,
            Self::Quick => STRIKES / 3,
            Self::Status => 1,
        }
    }
}

/// What to do with requests that come now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// Send them.
    Send,
    /// Start a probe; they may wait for it until the given time.
    Probe(Instant),
    /// A probe is under way; they may wait for it until the given time.
    Wait(Instant),
    /// Pass the server by.
    Refuse,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Working { strikes: u32 },
    Resting { until: Instant },
    Probing { since: Instant },
}

/// The standing of one server.
#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    rest: Duration,
    patience: Duration,
}

impl Breaker {
    /// A server of which nothing bad is known. Requests wait at most `patience` for a probe.
    pub(super) fn new(patience: Duration) -> Self {
        Self { state: State::Working { strikes: 0 }, rest: FIRST_REST, patience }
    }

    /// Whether requests may be sent without a probe.
    pub(super) fn is_working(&self) -> bool {
        matches!(self.state, State::Working { .. })
    }

    /// What to do with requests that come now. The caller that gets [`Admission::Probe`] must
    /// report the probe's outcome.
    pub(super) fn admit(&mut self, now: Instant) -> Admission {
        match self.state {
            State::Working { .. } => Admission::Send,
            State::Resting { until } if now < until => Admission::Refuse,
            State::Resting { .. } => {
                self.state = State::Probing { since: now };
                Admission::Probe(now + self.patience)
            }
            State::Probing { since } if now < since + self.patience => {
                Admission::Wait(since + self.patience)
            }
            State::Probing { .. } => Admission::Refuse,
        }
    }

    /// The server answered: nothing is held against it any more.
    pub(super) fn succeeded(&mut self) {
        self.state = State::Working { strikes: 0 };
        self.rest = FIRST_REST;
    }

    /// The server failed. Returns whether it rests from now on.
    pub(super) fn failed(&mut self, failure: Failure, now: Instant) -> bool {
        let rests = match &mut self.state {
            State::Working { strikes } => {
                *strikes = strikes.saturating_add(failure.strikes());
                *strikes >= STRIKES
            }
            // What fails late was sent before the rest began and says nothing new.
            State::Resting { .. } => return true,
            State::Probing { .. } => true,
        };
        if rests {
            self.state = State::Resting { until: now + self.rest };
            self.rest = (self.rest * 2).min(LONGEST_REST);
        }
        rests
    }

    /// Lets the next request probe at once, as after a change of network.
    pub(super) fn forgive(&mut self, now: Instant) {
        if let State::Resting { until } = &mut self.state {
            *until = now;
        }
        self.rest = FIRST_REST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(500);

    #[test]
    fn a_slow_failure_or_three_quick_ones_make_it_rest() {
        let now = Instant::now();
        let mut breaker = Breaker::new(PATIENCE);
        assert!(!breaker.failed(Failure::Quick, now));
        assert!(!breaker.failed(Failure::Quick, now));
        breaker.succeeded();
        assert!(!breaker.failed(Failure::Quick, now));
        assert!(!breaker.failed(Failure::Quick, now));
        assert!(breaker.failed(Failure::Quick, now));
        assert_eq!(breaker.admit(now), Admission::Refuse);
        breaker.succeeded();
        assert!(breaker.failed(Failure::Slow, now));
    }

    #[test]
    fn one_probe_goes_out_after_the_rest_and_others_wait_briefly() {
        let start = Instant::now();
        let mut breaker = Breaker::new(PATIENCE);
        breaker.failed(Failure::Slow, start);
        let due = start + FIRST_REST;
        assert_eq!(breaker.admit(due), Admission::Probe(due + PATIENCE));
        assert_eq!(breaker.admit(due), Admission::Wait(due + PATIENCE));
        assert_eq!(breaker.admit(due + PATIENCE), Admission::Refuse);
        breaker.succeeded();
        assert_eq!(breaker.admit(due), Admission::Send);
    }

    #[test]
    fn rests_double_up_to_a_minute_and_forgiveness_ends_them() {
        let mut now = Instant::now();
        let mut breaker = Breaker::new(PATIENCE);
        breaker.failed(Failure::Slow, now);
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            let rest = Duration::from_secs(seconds);
            assert_eq!(breaker.admit(now + rest - Duration::from_millis(1)), Admission::Refuse);
            now += rest;
            assert_eq!(breaker.admit(now), Admission::Probe(now + PATIENCE));
            assert!(breaker.failed(Failure::Quick, now), "a failed probe is enough");
        }
        breaker.forgive(now);
        assert_eq!(breaker.admit(now), Admission::Probe(now + PATIENCE));
        breaker.failed(Failure::Quick, now);
        now += FIRST_REST;
        assert_eq!(breaker.admit(now), Admission::Probe(now + PATIENCE));
    }
}
