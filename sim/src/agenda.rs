//! What happens next: the queue of events to come, in an order that depends on nothing but them.
//!
//! Simulated time is counted in whole nanoseconds. Events of the same instant happen in the order
//! in which they were scheduled, so one seed gives one run on every machine.

use narswarm_protocol::fetch::Time;
use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BinaryHeap};
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

/// Nanoseconds of a slice of time, as a power of two: a quarter of a second. Of a hundred thousand
/// nodes a thousand events happen within it, which fit a processor's nearest cache.
const SLICE_BITS: u32 = 28;

fn slice(at: Nanos) -> u64 {
    at >> SLICE_BITS
}

/// Events to come and the present moment. What comes soon is kept in order; what comes later lies
/// in slices of time without one, until its slice is reached.
#[derive(Debug)]
pub struct Agenda<E> {
    /// Everything up to the end of the slice `reached`; empty only when nothing is to come.
    soon: BinaryHeap<Reverse<Entry<E>>>,
    reached: u64,
    later: BTreeMap<u64, Vec<Entry<E>>>,
    /// Emptied slices, to be filled again.
    spare: Vec<Vec<Entry<E>>>,
    turn: u64,
    now: Nanos,
}

/// Emptied slices that are kept at most.
const MAX_SPARE: usize = 64;

impl<E> Default for Agenda<E> {
    fn default() -> Self {
        Self {
            soon: BinaryHeap::new(),
            reached: 0,
            later: BTreeMap::new(),
            spare: Vec::new(),
            turn: 0,
            now: 0,
        }
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
        let slice = slice(entry.at);
        if slice <= self.reached {
            self.soon.push(Reverse(entry));
            return;
        }
        let spare = &mut self.spare;
        self.later.entry(slice).or_insert_with(|| spare.pop().unwrap_or_default()).push(entry);
        self.reach();
    }

    /// Schedules an event some time from now.
    pub fn after(&mut self, wait: Nanos, event: E) {
        self.at(self.now.saturating_add(wait), event);
    }

    /// When the next event is.
    #[must_use]
    pub fn next_at(&self) -> Option<Nanos> {
        self.soon.peek().map(|Reverse(entry)| entry.at)
    }

    /// Lets time pass until a moment before which nothing is to happen.
    pub fn pass(&mut self, until: Nanos) {
        debug_assert!(self.next_at().is_none_or(|next| next >= until), "something is to happen");
        self.now = self.now.max(until);
    }

    /// Moves on to the next event.
    pub fn advance(&mut self) -> Option<E> {
        let Reverse(entry) = self.soon.pop()?;
        self.now = entry.at;
        self.reach();
        Some(entry.event)
    }

    /// Goes on to the next slice in which something is to happen, if nothing is before.
    fn reach(&mut self) {
        if !self.soon.is_empty() {
            return;
        }
        let Some((slice, mut entries)) = self.later.pop_first() else { return };
        self.reached = slice;
        self.soon.extend(entries.drain(..).map(Reverse));
        if self.spare.len() < MAX_SPARE {
            self.spare.push(entries);
        }
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

    #[test]
    fn what_comes_much_later_comes_in_its_turn() {
        let mut agenda = Agenda::default();
        let mut chance = crate::random::Chance::new(1, "agenda");
        let mut times: Vec<_> =
            (0..2000).map(|number| (chance.between(0, 40 * SECOND), number)).collect();
        times.iter().for_each(|&(at, number)| agenda.at(at, number));
        let mut seen = Vec::new();
        while let Some(number) = agenda.advance() {
            if number < 100 {
                // Some for now, some for later, when all there was had been taken out, too.
                let again = (agenda.now() + chance.between(0, SECOND), 2000 + number);
                times.push(again);
                agenda.at(again.0, again.1);
            }
            seen.push((agenda.now(), number));
        }
        times.sort_unstable_by_key(|&(at, number)| (at, number >= 2000, number));
        assert_eq!(seen.len(), 2100);
        assert!(seen.is_sorted_by_key(|&(at, _)| at));
        seen.sort_unstable_by_key(|&(at, number)| (at, number >= 2000, number));
        assert_eq!(seen, times);
    }
}
