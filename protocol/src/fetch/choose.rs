//! Which pieces to ask a peer for.
//!
//! Alone, a fetch asks in order, so that the reader can follow. In a crowd (some source is itself
//! still fetching) it asks for what the fewest have, roughly in order, but each member in one of its
//! own, so that the crowd soon holds everything that a seed has given and can exchange it; only the
//! next few pieces for the reader go first. While upstream streams from the head, peers work from the tail.

use super::pieces::{runs, tie};
use super::source::{Source, Stage};
use super::{Action, Fetch, SourceId, Time};
use crate::limits;
use std::ops::Range;

/// Pieces that the reader needs next and that go before rare ones in a crowd: a mebibyte of the
/// smallest, what a reader takes within the time of a few round trips.
const URGENT_PIECES: u32 = 4;
/// Over so many pieces a crowd's orders are mixed: what sixteen members ask one seed for at a time
/// is half as much again, and so mostly differs; and a reader comes no more than a few seconds after
/// what the seed has given.
const MIXED_PIECES: u32 = 64;
/// Pieces near the head that are left to upstream while it streams from there: it has them, or
/// will sooner than a peer would.
const UPSTREAM_LEAD_PIECES: u32 = 4;

impl Fetch {
    /// Whether some source is itself still fetching.
    pub(super) fn is_crowd(&self) -> bool {
        self.sources.values().any(|s| match s.stage {
            Stage::Active | Stage::Frozen => s.is_partial(),
            Stage::Idle | Stage::Opening => !s.complete,
            Stage::Reserve => false,
        })
    }

    /// What the reader needs next.
    pub(super) fn urgent(&self) -> Range<u32> {
        let from = self.reader.max(self.pieces.head()).min(self.end());
        from..from.saturating_add(URGENT_PIECES).min(self.end())
    }

    fn end(&self) -> u32 {
        self.horizon.min(self.pieces.count())
    }

    /// Fresh pieces that `source` holds, at most `room` of them, the most wanted first.
    fn pick(&self, source: &Source, room: u32, now: Time) -> Vec<u32> {
        let room = room as usize;
        let (head, end) = (self.pieces.head(), self.end());
        let fresh = |&i: &u32| self.pieces.is_fresh(i) && source.have.contains(i);
        if self.is_crowd() {
            return self.pick_in_crowd(source, room, now);
        }
        if self.upstream.leads(now) {
            // A run that rises, so that what is kept on disk lies together.
            return (head..end).rev().filter(fresh).take(room).collect();
        }
        let from = self.reader.max(head).min(end);
        (from..end).chain(head..from).filter(fresh).take(room).collect()
    }

    fn pick_in_crowd(&self, source: &Source, room: usize, now: Time) -> Vec<u32> {
        let fresh = |&i: &u32| self.pieces.is_fresh(i) && source.have.contains(i);
        let (mut head, end) = (self.pieces.head(), self.end());
        let mut picked: Vec<u32> = Vec::new();
        if self.upstream.leads(now) {
            head = (head + UPSTREAM_LEAD_PIECES).min(end);
        } else {
            picked.extend(self.urgent().filter(fresh).take(room.div_ceil(2)));
        }
        let mut others: Vec<u32> =
            (head..end).filter(fresh).filter(|i| !picked.contains(i)).collect();
        let key = |&i: &u32| (self.pieces.available(i), self.turn(i));
        let want = room - picked.len();
        if others.len() > want && want > 0 {
            others.select_nth_unstable_by_key(want - 1, key);
        }
        others.truncate(want);
        others.sort_by_key(key);
        picked.extend(others);
        picked
    }

    /// When it is a piece's turn among those that as many have: near the head first, so that the
    /// reader can follow, and within a stretch in an order of our own, so that a crowd has much of
    /// it to exchange.
    fn turn(&self, index: u32) -> u64 {
        u64::from(index) + tie(self.seed, index) % u64::from(MIXED_PIECES)
    }

    /// The rarest fresh piece of a source, if fewer than `than` hold it.
    pub(super) fn rarest_fresh(&self, id: SourceId, than: u16) -> Option<u32> {
        let source = self.sources.get(&id)?;
        (self.pieces.head()..self.end())
            .filter(|&i| self.pieces.is_fresh(i) && source.have.contains(i))
            .min_by_key(|&i| (self.pieces.available(i), self.turn(i)))
            .filter(|&i| self.pieces.available(i) < than)
    }

    /// How many more pieces may be asked of `source` within the memory of a fetch.
    fn allowance(&self, source: &Source) -> u32 {
        let outstanding: usize = self.sources.values().map(|s| s.outstanding.len()).sum();
        let most = match self.layout.piece_size() {
            size if size > limits::LARGE_PIECE_BYTES => limits::MAX_LARGE_IN_FLIGHT_BYTES / size,
            size => limits::MAX_IN_FLIGHT_BYTES / size,
        };
        let most = most.max(1) as usize;
        let left = most.saturating_sub(outstanding) as u32;
        // Whoever has nothing to do may always be asked for one.
        let least = u32::from(source.outstanding.is_empty());
        source.room(self.wishes(source)).min(left.max(least))
    }

    /// How many pieces a source should have to choose from, whatever its pace: one that has
    /// everything gives a crowd what it has given least.
    fn wishes(&self, source: &Source) -> u32 {
        let most = (limits::MAX_WINDOW_BYTES / self.layout.piece_size()) as u32;
        match self.is_crowd() && !source.is_partial() {
            true => limits::CROWD_WISHES_PIECES.min(most),
            false => 0,
        }
    }

    /// Asks a peer for as much as its window takes.
    pub(super) fn fill(&mut self, id: SourceId, now: Time) {
        let Some(source) = self.sources.get(&id) else { return };
        let room = self.allowance(source);
        if room == 0 {
            return;
        }
        let picked = self.pick(source, room, now);
        self.request(id, picked, now);
    }

    /// Asks a peer for these pieces, the first ones first.
    pub(super) fn request(&mut self, source: SourceId, picked: Vec<u32>, now: Time) {
        for (first, count) in self.note_asked(source, picked, now) {
            self.actions.push_back(Action::Request { source, first, count });
        }
    }

    /// Opens a peer, and asks at once for the first pieces: a run for the reader, and a few of
    /// its own choice in case that a crowd asks the same peer for the same run.
    pub(super) fn open(&mut self, id: SourceId, with_pieces: bool, now: Time) {
        let Some(source) = self.sources.get(&id) else { return };
        let room = limits::FIRST_WINDOW_PIECES.min(self.allowance(source)).min(self.end());
        self.set_stage(id, Stage::Opening);
        let Some(source) = self.sources.get_mut(&id) else { return };
        (source.opened_at, source.last_progress) = (now, now);
        let source = &self.sources[&id];
        let mut picked = Vec::new();
        if with_pieces && source.complete {
            picked = self.pick(source, room / 2, now);
            let fresh = |i: &u32| self.pieces.is_fresh(*i) && !picked.contains(i);
            let mut others: Vec<u32> = (self.pieces.head()..self.end()).filter(fresh).collect();
            others.sort_by_key(|&i| self.turn(i));
            others.truncate((room - picked.len() as u32) as usize);
            picked.extend(others);
        }
        let runs = self.note_asked(id, picked, now);
        let (first, count) = runs.first().copied().unwrap_or((0, 0));
        self.actions.push_back(Action::Open { source: id, first, count });
        for &(first, count) in runs.iter().skip(1) {
            self.actions.push_back(Action::Request { source: id, first, count });
        }
    }

    fn note_asked(&mut self, id: SourceId, picked: Vec<u32>, now: Time) -> Vec<(u32, u32)> {
        let Some(source) = self.sources.get_mut(&id) else { return Vec::new() };
        let counted = source.stage.is_counted();
        for &index in &picked {
            source.asked(index, now);
            if counted {
                self.pieces.ask(index);
            }
        }
        runs_of(picked, self.upstream.leads(now))
    }
}

/// Ranges in the order of preference; when picked from the tail they are asked for rising, so that
/// what lies together is read and written together.
fn runs_of(mut picked: Vec<u32>, from_tail: bool) -> Vec<(u32, u32)> {
    if from_tail {
        picked.sort_unstable();
    }
    runs(&picked)
}
