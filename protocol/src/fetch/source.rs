//! What is known of one peer during one fetch: what it holds, its window, its pace, whether it has
//! frozen.

use super::{PeerHint, Time};
use crate::hash::Root;
use crate::limits;
use crate::piece::PieceList;
use crate::piece_set::PieceSet;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How far a peer has come within a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Known to hold the nar, not asked yet.
    Idle,
    /// Asked for its piece list and first pieces.
    Opening,
    /// Gives pieces.
    Active,
    /// Has been silent with requests outstanding: kept, but nothing more is asked of it until it
    /// moves again.
    Frozen,
    /// Holds another piece list than the one in use; a reserve should that one prove false.
    Reserve,
}

/// One peer.
#[derive(Debug)]
pub(super) struct Source {
    pub stage: Stage,
    /// The root it promised, or later showed.
    pub root: Option<Root>,
    /// The list it showed, while that isn't the one in use.
    pub list: Option<Arc<PieceList>>,
    /// Which network it is in, for votes.
    pub network: u64,
    /// Whether it says that it has the whole nar, and so has hashed it.
    pub complete: bool,
    /// What it can give.
    pub have: PieceSet,
    /// Pieces asked for and not yet come, with the time of asking.
    pub outstanding: BTreeMap<u32, Time>,
    /// The pieces that have begun to come, with the time: mostly one, since they come one after the
    /// other, and those that have come and are being checked.
    begun: BTreeMap<u32, Time>,
    /// Pieces that were taken back, and may come nevertheless.
    pub taken_back: PieceSet,
    /// Octets a second within pieces, smoothed; without the time for which they waited.
    pace: f64,
    /// Of what it gave, what was asked last: what was asked before and hasn't come was passed over.
    pub given_last: Option<(Time, u32)>,
    /// Since when it owes us something, or when it last moved.
    pub last_progress: Time,
    /// Whether it has shown its piece list.
    pub opened: bool,
    /// When it was asked for it.
    pub opened_at: Time,
    /// When it first had nothing outstanding to something outstanding; for round trips.
    asked_at: Option<Time>,
    /// Shortest time from a request to an answer.
    min_latency: Duration,
    /// Octets a second, smoothed.
    rate: f64,
    rate_from: Time,
    rate_bytes: u64,
    /// Pieces that may be outstanding at once.
    window: u32,
    /// Good pieces that it gave.
    pub given: u32,
    /// Pieces that it said to hold, and didn't when asked.
    pub missed: u32,
}

/// Shortest stretch over which a rate is measured: shorter ones measure the scheduler.
const RATE_STRETCH: Duration = Duration::from_millis(20);
/// Weight of the newest rate sample: follows a change within a few stretches without chasing
/// single bursts.
const RATE_GAIN: f64 = 0.4;
/// Seconds that stand for never, and keep the arithmetic finite.
const A_YEAR: f64 = 365.0 * 86400.0;
/// What the first round trip is expected to take at least, in openings of peers that are near:
/// their disk and processor take this much when busy.
const OPENING_SLACK: Duration = Duration::from_millis(50);

impl Source {
    pub fn new(hint: PeerHint, piece_count: u32, now: Time) -> Self {
        Self {
            stage: Stage::Idle,
            root: hint.root,
            list: None,
            network: hint.network,
            complete: hint.complete,
            have: if hint.complete {
                PieceSet::all(piece_count)
            } else {
                PieceSet::none(piece_count)
            },
            outstanding: BTreeMap::new(),
            begun: BTreeMap::new(),
            taken_back: PieceSet::none(piece_count),
            pace: 0.0,
            given_last: None,
            last_progress: now,
            opened: false,
            opened_at: now,
            asked_at: None,
            min_latency: hint.latency.max(Duration::from_millis(1)),
            rate: 0.0,
            rate_from: now,
            rate_bytes: 0,
            window: limits::FIRST_WINDOW_PIECES,
            given: 0,
            missed: 0,
        }
    }

    /// How many more pieces may be asked for, if at least so many should be outstanding.
    pub fn room(&self, least: u32) -> u32 {
        let (outstanding, window) = (self.outstanding.len() as u32, self.window.max(least));
        match self.stage {
            // A refill waits for half a window, so that requests go out many to a message.
            Stage::Active if outstanding <= window / 2 => window - outstanding,
            Stage::Idle => window,
            _ => 0,
        }
    }

    pub fn asked(&mut self, index: u32, now: Time) {
        if self.outstanding.is_empty() {
            self.last_progress = now;
            self.asked_at = Some(now);
            self.rate_from = now;
            self.rate_bytes = 0;
        }
        self.outstanding.insert(index, now);
    }

    /// Octets came. The window follows twice bandwidth × delay: as long as the window is what
    /// limits the rate, that doubles it; once the path is full, the shortest latency stands still
    /// and so does the window.
    pub fn moved(&mut self, bytes: u64, piece_size: u64, now: Time) {
        self.last_progress = now;
        if let Some(asked_at) = self.asked_at.take() {
            let latency = now.since(asked_at).max(Duration::from_millis(1));
            self.min_latency = self.min_latency.min(latency);
        }
        self.rate_bytes += bytes;
        let stretch = now.since(self.rate_from);
        if stretch < RATE_STRETCH || self.rate_bytes == 0 {
            return;
        }
        let sample = self.rate_bytes as f64 / stretch.as_secs_f64();
        self.rate =
            if self.rate == 0.0 { sample } else { self.rate + RATE_GAIN * (sample - self.rate) };
        self.rate_from = now;
        self.rate_bytes = 0;
        let delay = self.min_latency.as_secs_f64() + RATE_STRETCH.as_secs_f64();
        let pieces = (2.0 * self.rate * delay / piece_size as f64).ceil();
        let most = (limits::MAX_WINDOW_BYTES / piece_size).max(2) as f64;
        let least = f64::from(limits::MIN_WINDOW_PIECES).min(most);
        self.window = pieces.clamp(least, most) as u32;
    }

    /// What it owes, in the order in which it will probably come: what has begun, then what was
    /// asked first.
    pub fn queue(&self) -> Vec<(Time, u32)> {
        let mut queue: Vec<_> = self.outstanding.iter().map(|(&i, &at)| (at, i)).collect();
        queue.sort_unstable_by_key(|&(at, index)| (!self.has_begun(index), at, index));
        queue
    }

    /// Whether a piece has begun to come.
    pub fn has_begun(&self, index: u32) -> bool {
        self.begun.contains_key(&index)
    }

    /// A piece begins to come.
    pub fn begins(&mut self, index: u32, now: Time) {
        self.begun.insert(index, now);
    }

    /// A piece has come, `bytes` octets, or (none) won't; what was measured since it began is its
    /// pace.
    pub fn finished(&mut self, index: u32, bytes: u64, now: Time) {
        let Some(at) = self.begun.remove(&index).filter(|_| bytes > 0) else { return };
        let sample = bytes as f64 / now.since(at).max(RATE_STRETCH).as_secs_f64();
        self.pace =
            if self.pace == 0.0 { sample } else { self.pace + RATE_GAIN * (sample - self.pace) };
    }

    /// How long until a piece that has begun will have come: by the pace of those before, and once
    /// it takes longer than they did, as long again as it has taken.
    pub fn rest_of_begun(&self, index: u32, piece_size: u64, now: Time) -> Option<Duration> {
        let taken = now.since(*self.begun.get(&index)?);
        let pace = if self.pace > 0.0 { self.pace } else { self.rate };
        let usual = (pace > 0.0).then(|| (piece_size as f64 / pace).min(A_YEAR))?;
        Some(Duration::from_secs_f64(usual).checked_sub(taken).unwrap_or(taken))
    }

    /// When this source counts as frozen if nothing comes, with so much patience for one that gives;
    /// `None` when it owes nothing.
    pub fn freezes_at(&self, patience: Duration) -> Option<Time> {
        match self.stage {
            Stage::Opening => Some(self.opened_at + self.patience()),
            Stage::Active if !self.outstanding.is_empty() => Some(self.last_progress + patience),
            Stage::Frozen => Some(self.last_progress + limits::FORGET_FROZEN_AFTER),
            _ => None,
        }
    }

    /// How long its first piece may take before another way is tried beside it.
    pub fn patience(&self) -> Duration {
        // Opening may need a connection: three round trips, of which `min_latency` is one.
        (self.min_latency * 3 + OPENING_SLACK).min(limits::UPSTREAM_PATIENCE)
    }

    /// Its shortest time from a request to an answer, so far.
    pub fn latency(&self) -> Duration {
        self.min_latency
    }

    /// Whether it gives pieces of a nar that it doesn't have all of.
    pub fn is_partial(&self) -> bool {
        !self.have.is_all()
    }

    /// Whether it counts among those in use: not while it is still fetching itself and has
    /// nothing to give.
    pub fn is_busy(&self) -> bool {
        match self.stage {
            Stage::Opening => true,
            Stage::Active => !self.is_partial() || !self.outstanding.is_empty(),
            _ => false,
        }
    }

    /// How long until it will have given `pieces` pieces of `piece_size` octets; `None` when it
    /// has given nothing yet, so that nobody knows.
    pub fn eta(&self, pieces: usize, piece_size: u64) -> Option<Duration> {
        let seconds = pieces as f64 * piece_size as f64 / self.rate;
        (self.rate > 0.0).then(|| self.min_latency + Duration::from_secs_f64(seconds.min(A_YEAR)))
    }
}
