//! Whether a piece that lies uncompressed is compressed before it is given.
//!
//! Compressing pays when the line is the bottleneck: the time that the saved octets would have taken
//! on the line must be worth the processor's time. So each asker's line is watched, and how long
//! compressing takes and what it saves. What lies compressed is always given as it lies.

use crate::fetch::Time;
use std::time::Duration;

/// Seconds on the line that a second of the processor must save. Four, since the owner of a workstation
/// hasn't bought its processor for others' downloads: a full line then takes a fifth of one core at
/// most. zstd at 350 MB/s that halves a nar pays up to about 45 MB/s.
const WORTH: f64 = 4.0;

/// A line is judged by what it took in at least so long. Much longer than the moments in which the
/// buffers of kernels fill, which take a few megabytes at any speed.
const JUDGED_OVER: Duration = Duration::from_millis(250);

/// The line is judged at once after so many octets: a slow line's buffers don't take in as much, since
/// little waits in the socket, and TCP sends ahead only what a line has shown to carry.
const JUDGED_AFTER_BYTES: u64 = 2 << 20;

/// After so many pieces that were not worth it one is tried again, since a nar is not the same
/// throughout. One in sixteen costs a sixteenth of what was found too much.
const TRY_EVERY: u32 = 16;

/// How much the latest piece counts against those before: about the last four are remembered.
const LATEST: f64 = 0.25;

/// The same for one that took longer than those before: mostly the processor was busy with something
/// else, which says nothing about the effort.
const LATEST_SLOWER: f64 = 1.0 / 16.0;

/// What is known of compressing one nar.
#[derive(Debug, Clone, Copy)]
struct Found {
    nar: u32,
    /// Octets saved of each.
    saved: f64,
    /// Seconds of the processor for each octet.
    effort: f64,
}

/// Decides for one asker. Without I/O: the driver compresses and measures.
#[derive(Debug)]
pub struct Packing {
    /// Octets a second that the line takes; `None` while that isn't known, when it counts as slow:
    /// compressing the first pieces costs a fast line a few milliseconds.
    rate: Option<f64>,
    since: Time,
    taken: u64,
    found: Option<Found>,
    /// Pieces given uncompressed since one was tried.
    untried: u32,
}

impl Packing {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(now: Time) -> Self {
        Self { rate: None, since: now, taken: 0, found: None, untried: 0 }
    }

    /// The network has taken so many octets.
    pub fn handle_taken(&mut self, bytes: u64, now: Time) {
        self.taken = self.taken.saturating_add(bytes);
        let time = now.since(self.since);
        if time >= JUDGED_OVER || (self.taken >= JUDGED_AFTER_BYTES && !time.is_zero()) {
            self.rate = Some(self.taken as f64 / time.as_secs_f64());
            (self.since, self.taken) = (now, 0);
        }
    }

    /// Whether to compress the next piece of this nar, which lies uncompressed.
    pub fn poll_pack(&mut self, nar: u32) -> bool {
        let (Some(rate), Some(found)) = (self.rate, self.found.filter(|found| found.nar == nar))
        else {
            return true;
        };
        let is_worth_it = found.saved / rate >= WORTH * found.effort;
        if is_worth_it || self.untried >= TRY_EVERY {
            return true;
        }
        self.untried += 1;
        false
    }

    /// A piece of this nar was compressed `from` so many octets `to` so many, in this time.
    pub fn handle_packed(&mut self, nar: u32, from: u64, to: u64, took: Duration) {
        self.untried = 0;
        let octets = from.max(1) as f64;
        let saved = from.saturating_sub(to) as f64 / octets;
        let effort = took.as_secs_f64() / octets;
        let known = self.found.filter(|found| found.nar == nar);
        self.found = Some(known.map_or(Found { nar, saved, effort }, |old| {
            let slower = if effort > old.effort { LATEST_SLOWER } else { LATEST };
            Found {
                nar,
                saved: old.saved + LATEST * (saved - old.saved),
                effort: old.effort + slower * (effort - old.effort),
            }
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: u64 = 256 << 10;

    /// Gives pieces over a line of so many octets a second for some seconds, and says how many of
    /// the last hundred were compressed. Compressing leaves `left` of each octet at `speed` octets
    /// a second.
    fn packed(packing: &mut Packing, line: f64, left: f64, speed: f64) -> usize {
        let mut now = Time(packing.since.0);
        let mut packed = Vec::new();
        for _ in 0..2000 {
            let pack = packing.poll_pack(1);
            let (mut octets, mut busy) = (PIECE, 0.0);
            if pack {
                octets = (PIECE as f64 * left) as u64;
                busy = PIECE as f64 / speed;
                packing.handle_packed(1, PIECE, octets, Duration::from_secs_f64(busy));
            }
            now = now + Duration::from_secs_f64((octets as f64 / line).max(busy));
            packing.handle_taken(octets, now);
            packed.push(pack);
        }
        packed.iter().rev().take(100).filter(|&&pack| pack).count()
    }

    #[test]
    fn what_a_slow_line_carries_is_compressed() {
        for line in [50e3, 2.5e6, 12.5e6, 30e6] {
            let mut packing = Packing::new(Time::default());
            assert_eq!(packed(&mut packing, line, 0.5, 350e6), 100, "{line}");
        }
    }

    #[test]
    fn what_a_fast_line_carries_is_not_but_for_trying() {
        for line in [118e6, 600e6, 3e9] {
            let mut packing = Packing::new(Time::default());
            assert!(packed(&mut packing, line, 0.5, 350e6) <= 7, "{line}");
        }
    }

    #[test]
    fn what_does_not_compress_is_only_tried() {
        let mut packing = Packing::new(Time::default());
        let tried = packed(&mut packing, 2.5e6, 1.0, 600e6);
        assert!((1..=7).contains(&tried), "{tried}");
    }

    #[test]
    fn a_slow_processor_compresses_for_slow_lines_only() {
        for (line, most, least) in [(500e3, 100, 100), (12.5e6, 7, 1)] {
            let mut packing = Packing::new(Time::default());
            let packed = packed(&mut packing, line, 0.5, 20e6);
            assert!((least..=most).contains(&packed), "{line}: {packed}");
        }
    }

    #[test]
    fn a_line_that_becomes_slow_is_noticed_and_another_nar_begins_anew() {
        let mut packing = Packing::new(Time::default());
        assert!(packed(&mut packing, 600e6, 0.5, 350e6) <= 7);
        assert!(packing.poll_pack(2), "nothing is known of it");
        assert_eq!(packed(&mut packing, 2.5e6, 0.5, 350e6), 100);
    }

    #[test]
    fn buffers_that_fill_do_not_look_like_a_fast_line() {
        let mut packing = Packing::new(Time::default());
        packing.handle_packed(1, PIECE, PIECE / 2, Duration::from_micros(750));
        packing.handle_taken(1 << 20, Time(Duration::from_millis(2)));
        assert!(packing.poll_pack(1));
        packing.handle_taken(1 << 20, Time(Duration::from_millis(260)));
        assert!(packing.poll_pack(1));
    }

    #[test]
    fn odd_figures_do_no_harm() {
        let mut packing = Packing::new(Time::default());
        packing.handle_packed(1, 0, 5, Duration::ZERO);
        packing.handle_taken(u64::MAX, Time::default());
        packing.handle_taken(u64::MAX, Time(Duration::from_secs(1)));
        packing.handle_packed(1, u64::MAX, 0, Duration::MAX);
        let _ = packing.poll_pack(1);
    }
}
