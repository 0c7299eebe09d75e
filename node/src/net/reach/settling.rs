//! When others are to be told that this node's addresses have changed: they come one after another,
//! and after a start those of before come again.

use narswarm_protocol::limits::ADDRESS_PATIENCE;
use std::time::{Duration, Instant};

/// How long this node's addresses must have stayed the same before it tells others.
const SETTLING: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub struct Settling {
    moved: Option<Instant>,
    started: Instant,
    /// All addresses of before have had their time to come again.
    all: bool,
}

/// The addresses stay as they are now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    /// They have changed.
    pub moved: bool,
    /// None is missing that will come again.
    pub all: bool,
}

impl Settling {
    /// The node starts.
    pub fn new(now: Instant) -> Self {
        Self { moved: None, started: now, all: false }
    }

    /// An address has come or gone.
    pub fn moved(&mut self, now: Instant) {
        self.moved = Some(now);
    }

    /// Whether nothing has changed a moment ago.
    pub fn is_still(&self) -> bool {
        self.moved.is_none()
    }

    /// Says once that the addresses have settled after a change, and once after the start.
    pub fn poll(&mut self, now: Instant) -> Option<Settled> {
        if self.moved.is_some_and(|at| now < at + SETTLING) {
            return None;
        }
        let moved = self.moved.take().is_some();
        // To connect with somebody far away, and to be tried by them or get a place at a relay.
        let complete = now >= self.started + ADDRESS_PATIENCE * 2;
        let first = complete && !std::mem::replace(&mut self.all, complete);
        (moved || first).then_some(Settled { moved, all: self.all })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_told_when_they_have_ended() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut settling = Settling::new(start);
        assert_eq!(settling.poll(at(1)), None);
        settling.moved(at(2));
        assert!(!settling.is_still());
        assert_eq!(settling.poll(at(2)), None);
        assert_eq!(settling.poll(at(3)), Some(Settled { moved: true, all: false }));
        assert!(settling.is_still());
        assert_eq!(settling.poll(at(4)), None);
        assert_eq!(settling.poll(at(60)), Some(Settled { moved: false, all: true }));
        assert_eq!(settling.poll(at(61)), None);
        settling.moved(at(70));
        assert_eq!(settling.poll(at(71)), Some(Settled { moved: true, all: true }));
    }
}
