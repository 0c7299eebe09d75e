//! What is known of one peer during one fetch: its window, its pace, whether it has frozen.

use super::Time;
use crate::hash::Root;
use crate::limits;
use std::collections::BTreeSet;
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
    /// Pieces asked for and not yet come.
    pub outstanding: BTreeSet<u32>,
    /// Since when it owes us something, or when it last moved.
    pub last_progress: Time,
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
}

/// Shortest stretch over which a rate is measured: shorter ones measure the scheduler.
const RATE_STRETCH: Duration = Duration::from_millis(20);
/// Weight of the newest rate sample: follows a change within a few stretches without chasing
/// single bursts.
const RATE_GAIN: f64 = 0.4;

impl Source {
    pub fn new(root: Option<Root>, latency: Duration, now: Time) -> Self {
        Self {
            stage: Stage::Idle,
            root,
            outstanding: BTreeSet::new(),
            last_progress: now,
            asked_at: None,
            min_latency: latency.max(Duration::from_millis(1)),
            rate: 0.0,
            rate_from: now,
            rate_bytes: 0,
            window: limits::FIRST_WINDOW_PIECES,
        }
    }

    /// How many more pieces may be asked for.
    pub fn room(&self) -> u32 {
        let outstanding = self.outstanding.len() as u32;
        match self.stage {
            // A refill waits for half a window, so that requests go out many to a message.
            Stage::Active if outstanding <= self.window / 2 => self.window - outstanding,
            Stage::Idle => self.window,
            _ => 0,
        }
    }

    pub fn asked(&mut self, pieces: impl Iterator<Item = u32>, now: Time) {
        if self.outstanding.is_empty() {
            self.last_progress = now;
            self.asked_at = Some(now);
            self.rate_from = now;
            self.rate_bytes = 0;
        }
        self.outstanding.extend(pieces);
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
        if stretch < RATE_STRETCH {
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

    /// When this source counts as frozen if nothing comes; `None` when it owes nothing.
    pub fn freezes_at(&self) -> Option<Time> {
        match self.stage {
            Stage::Opening => Some(self.last_progress + limits::OPEN_PATIENCE),
            Stage::Active if !self.outstanding.is_empty() => {
                Some(self.last_progress + limits::FREEZE_AFTER)
            }
            Stage::Frozen => Some(self.last_progress + limits::FORGET_FROZEN_AFTER),
            _ => None,
        }
    }

    /// Octets a second, for choosing between sources and for reports.
    pub fn rate(&self) -> f64 {
        self.rate
    }
}
