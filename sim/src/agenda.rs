//! What happens next: the queue of events to come, in an order that depends on nothing but them.
//!
//! Simulated time is counted in whole nanoseconds. Events of the same instant happen in the order
//! in which they were scheduled, so one seed gives one run on every machine.

use narswarm_protocol::fetch::Time;
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::time::Duration;

/// Nanoseconds of simulated time since the start, or between two moments.
pub type Nanos = u64;

/// One millisecond.
pub const MILLI: Nanos = 1_000_000;
/// One second.
pub const SECOND: Nanos = 1000 * MILLI;

/// The moment in the words of the protocol.
#[must_use]
pub fn time(at: Nanos) -> Time {
    Time(Duration::from_nanos(at))
}

/// The protocol's moment in nanoseconds; those beyond the 584 years that fit count as the last.
#[must_use]
pub fn nanos(at: Time) -> Nanos {
    u64::try_from(at.0.as_nanos()).unwrap_or(u64::MAX)
}

/// Seconds, for people.
#[must_use]
pub fn seconds(span: Nanos) -> f64 {
    span as f64 / SECOND as f64
}

#[derive(Debug)]
struct Entry<E> {
    at: Nanos,
    turn: u64,
    event: E,
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.turn).cmp(&(other.at, other.turn))
    }
}

/// Events to come and the present moment.
#[derive(Debug)]
pub struct Agenda<E> {
    entries: BinaryHeap<Reverse<Entry<E>>>,
    turn: u64,
    now: Nanos,
}

impl<E> Default for Agenda<E> {
    fn default() -> Self {
        Self { entries: BinaryHeap::new(), turn: 0, now: 0 }
    }
}

impl<E> Agenda<E> {
    /// The present moment.
    #[must_use]
    pub fn now(&self) -> Nanos {
        self.now
    }

    /// How many events have been scheduled so far.
    #[must_use]
    pub fn scheduled(&self) -> u64 {
        self.turn
    }

    /// Schedules an event; one for the past happens now.
    pub fn at(&mut self, at: Nanos, event: E) {
        let entry = Entry { at: at.max(self.now), turn: self.turn, event };
        self.turn += 1;
        self.entries.push(Reverse(entry));
    }

    /// Schedules an event some time from now.
    pub fn after(&mut self, wait: Nanos, event: E) {
        self.at(self.now.saturating_add(wait), event);
    }

    /// When the next event is.
    #[must_use]
    pub fn next_at(&self) -> Option<Nanos> {
        self.entries.peek().map(|Reverse(entry)| entry.at)
    }

    /// Lets time pass until a moment before which nothing is to happen.
    pub fn pass(&mut self, until: Nanos) {
        debug_assert!(self.next_at().is_none_or(|next| next >= until), "something is to happen");
        self.now = self.now.max(until);
    }

    /// Moves on to the next event.
    pub fn advance(&mut self) -> Option<E> {
        let Reverse(entry) = self.entries.pop()?;
        self.now = entry.at;
        Some(entry.event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_happen_by_time_and_then_in_the_order_scheduled() {
        let mut agenda = Agenda::default();
        agenda.at(5, 'c');
        agenda.at(3, 'a');
        agenda.at(5, 'd');
        agenda.at(3, 'b');
        let mut seen = String::new();
        while let Some(event) = agenda.advance() {
            if event == 'a' {
                // Too late for its time, so at once, after what was there before.
                agenda.at(1, 'x');
            }
            seen.push(event);
        }
        assert_eq!((seen.as_str(), agenda.now()), ("abxcd", 5));
    }
}
