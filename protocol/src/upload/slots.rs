//! How many pieces are written at once: as few as keep the line full.
//!
//! On a slow line few pieces at a time are each finished, and can be passed on, the sooner; with
//! slow askers, or on a fast line, few leave the line idle. So slots are added freely while a
//! piece takes next to no time, and otherwise as long as each step makes the whole faster. Now
//! and then fewer are tried.

use crate::fetch::Time;
use std::time::Duration;

/// A piece that leaves its slot sooner than this does no harm to those that wait.
const QUICK: Duration = Duration::from_millis(50);

/// A step up must bring a tenth, and a step down may cost a twentieth: measurements over a few
/// dozen pieces are no better than that.
const WORTH_MORE: f64 = 1.1;
/// See [`WORTH_MORE`].
const WORTH_LESS: f64 = 0.95;

/// Pieces that are measured for each slot before the next step.
const MEASURED: u32 = 4;

/// Measurements for which a number of slots is kept that proved to be right.
const KEPT: u32 = 8;

/// A piece that has been in its slot for so many times the usual belongs to an asker that takes
/// nothing; its slot is given to another.
const STALLED: u32 = 4;

/// The least time after which that is said.
const MIN_PATIENCE: Duration = Duration::from_secs(1);

/// The step taken last, with what was before.
#[derive(Debug, Clone, Copy)]
enum Step {
    None,
    Up { from: u32, rate: f64 },
    Down { from: u32, rate: f64 },
}

/// See the module.
#[derive(Debug)]
pub struct Slots {
    fewest: u32,
    most: u32,
    limit: u32,
    step: Step,
    /// Measurements for which nothing is tried.
    keep: u32,
    /// Whether fewer are tried next.
    down_next: bool,
    /// The measurement under way: since when, octets, pieces, the time they took together, and
    /// whether more slots would have been used.
    since: Time,
    octets: u64,
    pieces: u32,
    spent: Duration,
    short: bool,
    /// How long a piece usually is in its slot.
    usual: Duration,
    /// When it was last asked whether there is room.
    polled: Time,
}

impl Slots {
    /// From `fewest` slots, at least one, to `most`.
    pub fn new(fewest: u32, most: u32) -> Self {
        let fewest = fewest.max(1);
        Self {
            fewest,
            most: most.max(fewest),
            limit: fewest,
            step: Step::None,
            keep: 0,
            down_next: false,
            since: Time::default(),
            octets: 0,
            pieces: 0,
            spent: Duration::ZERO,
            short: false,
            usual: Duration::ZERO,
            polled: Time::default(),
        }
    }

    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// How long a piece may be in its slot before the slot is given to another asker.
    pub fn patience(&self) -> Duration {
        (self.usual * STALLED).max(MIN_PATIENCE)
    }

    /// When [`Slots::has_room`] was last called.
    pub fn polled(&self) -> Time {
        self.polled
    }

    /// Whether a piece may be given while `used` slots are taken. Asked only if one is wanted.
    pub fn has_room(&mut self, used: u32, now: Time) -> bool {
        self.polled = now;
        self.short |= used >= self.limit;
        used < self.limit
    }

    /// A piece goes into a slot.
    pub fn started(&mut self, now: Time) {
        if self.pieces == 0 && self.octets == 0 && !self.short {
            self.since = now;
        }
    }

    /// A piece of `bytes` octets has left its slot after `spent`.
    pub fn given(&mut self, bytes: u64, spent: Duration, now: Time) {
        // One asker that dawdles doesn't make everyone's pieces slow.
        let sample = spent.min(self.patience());
        self.usual = (self.usual * 7 + sample) / 8;
        self.octets += bytes;
        self.pieces += 1;
        self.spent += spent;
        let quick = self.spent < QUICK * self.pieces;
        let enough = if quick { self.limit } else { self.limit * MEASURED };
        if self.pieces >= enough {
            let elapsed = now.since(self.since).max(Duration::from_micros(1));
            let rate = self.octets as f64 / elapsed.as_secs_f64();
            if self.short {
                self.measured(rate, quick);
            }
            (self.since, self.octets, self.pieces) = (now, 0, 0);
            (self.spent, self.short) = (Duration::ZERO, false);
        }
    }

    /// All slots were in use, and `rate` octets a second went out.
    fn measured(&mut self, rate: f64, quick: bool) {
        if quick {
            self.step = Step::None;
            self.limit = (self.limit * 2).min(self.most);
            return;
        }
        match std::mem::replace(&mut self.step, Step::None) {
            Step::Up { from, rate: before } if rate < before * WORTH_MORE => {
                self.back_to(from, true);
            }
            Step::Down { from, rate: before } if rate < before * WORTH_LESS => {
                self.back_to(from, false);
            }
            Step::Up { .. } => self.up(rate),
            Step::Down { .. } => self.down(rate),
            Step::None if self.keep > 0 => self.keep -= 1,
            Step::None if self.down_next && self.limit > self.fewest => self.down(rate),
            Step::None => self.up(rate),
        }
    }

    fn back_to(&mut self, limit: u32, down_next: bool) {
        (self.limit, self.keep, self.down_next) = (limit, KEPT, down_next);
    }

    fn up(&mut self, rate: f64) {
        let (from, down_next) = (self.limit, true);
        let limit = (from + (from / 2).max(1)).min(self.most);
        if limit == from {
            return self.back_to(from, down_next);
        }
        (self.limit, self.step) = (limit, Step::Up { from, rate });
    }

    fn down(&mut self, rate: f64) {
        let (from, down_next) = (self.limit, false);
        let limit = (from - (from / 3).max(1)).max(self.fewest);
        if limit == from {
            return self.back_to(from, down_next);
        }
        (self.limit, self.step) = (limit, Step::Down { from, rate });
    }
}
