//! One asker: what it wants, in the order asked, and what is being given to it.

use super::bucket::Bucket;
use super::counts::Counts;
use crate::fetch::Time;
use crate::limits::MAX_WANTED_PIECES;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// How many of an asker's wishes are looked at for the one given the fewest times. A window of 16
/// MiB, the largest that a fetch asks for, has 64 of the smallest pieces; twice that is seen.
const LOOKED_AT: u32 = 128;

/// A run of wanted pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    nar: u32,
    first: u32,
    count: u32,
}

/// A piece in a slot.
#[derive(Debug, Clone, Copy)]
pub struct Given {
    pub nar: u32,
    pub index: u32,
    /// Octets that it was taken for.
    pub charged: u64,
    /// Since when.
    pub at: Time,
}

/// What is wanted of one nar.
#[derive(Debug, Default)]
struct Wanted {
    pieces: u32,
    beat: Option<Time>,
}

/// See the module.
#[derive(Debug)]
pub struct Asker {
    pub bucket: Bucket,
    /// Octets given, on a scale common to all askers.
    pub served: u64,
    wants: VecDeque<Run>,
    wanted: u32,
    nars: BTreeMap<u32, Wanted>,
    in_slots: VecDeque<Given>,
    /// When a piece last left its slot.
    moved: Time,
}

impl Asker {
    /// Wants nothing yet, and has been `served` as much as others.
    pub fn new(bucket: Bucket, served: u64) -> Self {
        Self {
            bucket,
            served,
            wants: VecDeque::new(),
            wanted: 0,
            nars: BTreeMap::new(),
            in_slots: VecDeque::new(),
            moved: Time::default(),
        }
    }

    pub fn wants_any(&self) -> bool {
        self.wanted > 0
    }

    pub fn wants_of(&self, nar: u32) -> bool {
        self.nars.get(&nar).is_some_and(|wanted| wanted.pieces > 0)
    }

    /// Whether nothing is wanted and nothing on its way.
    pub fn is_idle(&self) -> bool {
        self.wanted == 0 && self.in_slots.is_empty()
    }

    pub fn slots(&self) -> u32 {
        self.in_slots.len() as u32
    }

    pub fn in_slots(&self) -> impl Iterator<Item = Given> + '_ {
        self.in_slots.iter().copied()
    }

    /// When what is in slots will have been there for `patience` without any piece leaving.
    pub fn stalled_at(&self, patience: Duration) -> Option<Time> {
        self.in_slots.front().map(|given| given.at.max(self.moved) + patience)
    }

    /// Notes wishes; `false` when nothing was added.
    pub fn want(&mut self, nar: u32, first: u32, count: u32) -> bool {
        let room = MAX_WANTED_PIECES.saturating_sub(self.wanted).min(u32::MAX - first);
        let count = count.min(room);
        if count == 0 {
            return false;
        }
        self.wanted += count;
        self.nars.entry(nar).or_default().pieces += count;
        match self.wants.back_mut() {
            Some(run) if run.nar == nar && run.first + run.count == first => run.count += count,
            _ => self.wants.push_back(Run { nar, first, count }),
        }
        true
    }

    /// Takes wishes back.
    pub fn cancel(&mut self, nar: u32, first: u32, count: u32) {
        let end = first.saturating_add(count);
        let mut kept = VecDeque::with_capacity(self.wants.len());
        let mut cancelled = 0;
        for run in self.wants.drain(..) {
            let (from, to) = (run.first, run.first + run.count);
            if run.nar != nar || end <= from || to <= first {
                kept.push_back(run);
                continue;
            }
            for (from, to) in [(from, first.max(from)), (end.min(to), to)] {
                if from < to {
                    kept.push_back(Run { nar, first: from, count: to - from });
                }
            }
            cancelled += end.min(to) - first.max(from);
        }
        self.wants = kept;
        self.forget(nar, cancelled);
    }

    /// Takes out the piece to give next: of the nar asked for first, the first, or when others
    /// want that nar too, the one given the fewest times.
    pub fn next(&mut self, counts: &Counts) -> Option<(u32, u32)> {
        let nar = self.wants.front()?.nar;
        let contended = counts.askers(nar) > 1;
        let (mut best, mut looked) = ((0, 0, u8::MAX), 0);
        'runs: for (at, run) in self.wants.iter().enumerate() {
            if looked >= LOOKED_AT {
                break;
            }
            if run.nar != nar {
                looked += 1;
                continue;
            }
            for index in run.first..(run.first + run.count.min(LOOKED_AT - looked)) {
                let times = if contended { counts.given(nar, index) } else { 0 };
                if times < best.2 || looked == 0 {
                    best = (at, index, times);
                }
                if times == 0 {
                    break 'runs;
                }
                looked += 1;
            }
        }
        let (at, index, _) = best;
        self.cut(at, index);
        self.forget(nar, 1);
        Some((nar, index))
    }

    /// Takes one piece out of a run.
    fn cut(&mut self, at: usize, index: u32) {
        let Some(run) = self.wants.get_mut(at) else { return };
        let (before, after) = (index - run.first, run.first + run.count - index - 1);
        if before == 0 {
            (run.first, run.count) = (index + 1, after);
            if after == 0 {
                self.wants.remove(at);
            }
            return;
        }
        run.count = before;
        let nar = run.nar;
        if after > 0 {
            self.wants.insert(at + 1, Run { nar, first: index + 1, count: after });
        }
    }

    /// Counts wishes of a nar that are no more.
    fn forget(&mut self, nar: u32, count: u32) {
        self.wanted -= count;
        if let Some(wanted) = self.nars.get_mut(&nar) {
            wanted.pieces -= count;
        }
    }

    pub fn beat(&self, nar: u32) -> Option<Time> {
        self.nars.get(&nar)?.beat
    }

    /// Every nar of which something is wanted, with its heartbeat.
    pub fn beats(&self) -> impl Iterator<Item = (u32, Time)> + '_ {
        self.nars.iter().filter_map(|(&nar, wanted)| Some((nar, wanted.beat?)))
    }

    /// Sets a heartbeat, or (`None`) forgets the nar; gives the one before.
    pub fn set_beat(&mut self, nar: u32, at: Option<Time>) -> Option<Time> {
        let wanted = self.nars.get_mut(&nar)?;
        let before = wanted.beat;
        wanted.beat = at;
        if at.is_none() {
            self.nars.remove(&nar);
        }
        before
    }

    pub fn put_in_slot(&mut self, given: Given) {
        self.served += given.charged;
        self.bucket.charge(given.charged);
        self.in_slots.push_back(given);
    }

    /// Takes the piece that was put in first out of its slot.
    pub fn leave_slot(&mut self, bytes: u64, now: Time) -> Option<Given> {
        let given = self.in_slots.pop_front()?;
        self.moved = now;
        self.served = self.served.saturating_sub(given.charged) + bytes;
        self.bucket.correct(given.charged, bytes);
        Some(given)
    }
}
