//! How often which piece has been given to anybody.

use crate::fetch::Time;
use crate::limits::{MAX_COUNTED_NARS, MAX_PIECES, MIN_PIECE_BYTES};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long the counts of a nar are kept that nobody asks for. A crowd is there at once; what a
/// few askers got an hour ago says nothing about what the next ones can give each other.
const IDLE_LIFE: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Nar {
    /// By piece, as far as any was given.
    given: Vec<u8>,
    piece_bytes: u64,
    /// How many askers have wishes for it.
    askers: u32,
    /// When that last changed.
    touched: Time,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Counts(BTreeMap<u32, Nar>);

impl Counts {
    fn entry(&mut self, nar: u32, now: Time) -> &mut Nar {
        if !self.0.contains_key(&nar) && self.0.len() >= MAX_COUNTED_NARS {
            let idle = self.0.iter().filter(|(_, nar)| nar.askers == 0);
            if let Some(oldest) = idle.min_by_key(|(_, nar)| nar.touched).map(|(&nar, _)| nar) {
                self.0.remove(&oldest);
            }
        }
        let new = Nar { given: Vec::new(), piece_bytes: MIN_PIECE_BYTES, askers: 0, touched: now };
        let entry = self.0.entry(nar).or_insert(new);
        if entry.askers == 0 && now.since(entry.touched) > IDLE_LIFE {
            entry.given.clear();
        }
        entry.touched = now;
        entry
    }

    /// Sets how many octets a piece of the nar takes.
    pub fn set_piece_bytes(&mut self, nar: u32, bytes: u64, now: Time) {
        self.entry(nar, now).piece_bytes = bytes;
    }

    /// How many octets a piece of the nar takes, as far as known.
    pub fn piece_bytes(&self, nar: u32) -> u64 {
        self.0.get(&nar).map_or(MIN_PIECE_BYTES, |nar| nar.piece_bytes)
    }

    /// Another asker has wishes for the nar.
    pub fn join(&mut self, nar: u32, now: Time) {
        self.entry(nar, now).askers += 1;
    }

    /// An asker has no more wishes for the nar.
    pub fn leave(&mut self, nar: u32, now: Time) {
        if let Some(entry) = self.0.get_mut(&nar) {
            entry.askers = entry.askers.saturating_sub(1);
            entry.touched = now;
        }
    }

    /// How many askers have wishes for the nar.
    pub fn askers(&self, nar: u32) -> u32 {
        self.0.get(&nar).map_or(0, |nar| nar.askers)
    }

    /// How often the piece has been given, compared with others of its nar.
    pub fn given(&self, nar: u32, index: u32) -> u8 {
        self.0.get(&nar).and_then(|nar| nar.given.get(index as usize)).copied().unwrap_or(0)
    }

    /// The piece is being given once more.
    pub fn add(&mut self, nar: u32, index: u32) {
        let Some(nar) = self.0.get_mut(&nar).filter(|_| index < MAX_PIECES) else { return };
        if nar.given.len() <= index as usize {
            nar.given.resize(index as usize + 1, 0);
        }
        if nar.given[index as usize] == u8::MAX {
            // Only the comparison counts, and what is long ago counts less.
            nar.given.iter_mut().for_each(|times| *times /= 2);
        }
        nar.given[index as usize] += 1;
    }

    /// The piece was not given after all.
    pub fn subtract(&mut self, nar: u32, index: u32) {
        let times = self.0.get_mut(&nar).and_then(|nar| nar.given.get_mut(index as usize));
        if let Some(times) = times {
            *times = times.saturating_sub(1);
        }
    }

    /// Nars of which anything is remembered.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}
