//! Taking work from the slow, and the end game.
//!
//! A peer that has nothing left to do of its own takes pieces that others owe, where it would
//! bring them much sooner: the last ones of a long queue are asked of it instead, the one that is
//! probably on its way is asked of it as well. Whatever comes first is taken, the other cancelled.

use super::source::{Source, Stage};
use super::{Action, Fetch, SourceId, Time};
use std::time::Duration;

/// How much sooner than its owner a thief must bring a piece, as a factor and on top: rates are
/// only estimates, and a message more or less must not decide.
const STEAL_FACTOR: f64 = 1.5;
const STEAL_MARGIN: Duration = Duration::from_millis(50);
/// The same for a piece that its owner has probably begun to send, which will mostly come twice.
const DOUBLE_FACTOR: f64 = 3.0;
const DOUBLE_MARGIN: Duration = Duration::from_millis(100);
/// One piece in so many may be asked for twice: half of the duplicates that a user would mind.
const DOUBLES_OF: u32 = 100;
/// As many may be asked for twice even of a small nar.
const LEAST_DOUBLES: u32 = 2;
/// How long a source that has given nothing yet is left its pieces.
const UNKNOWN_PATIENCE: Duration = Duration::from_millis(300);

/// What a thief may take.
struct Loot {
    owner: SourceId,
    index: u32,
    /// Whether the owner has probably begun to send it.
    begun: bool,
    eta: Duration,
}

impl Fetch {
    /// Takes back a piece that has come, wherever else it is asked.
    pub(super) fn cancel_elsewhere(&mut self, index: u32) {
        for (&source, entry) in &mut self.sources {
            if entry.outstanding.remove(&index).is_some() {
                if entry.stage.is_counted() {
                    self.pieces.release(index);
                }
                self.actions.push_back(Action::Cancel { source, first: index, count: 1 });
            }
        }
    }

    /// Takes one piece back from a source.
    pub(super) fn take_back(&mut self, source: SourceId, index: u32) {
        let Some(entry) = self.sources.get_mut(&source) else { return };
        if entry.outstanding.remove(&index).is_some() {
            if entry.stage.is_counted() {
                self.pieces.release(index);
            }
            self.actions.push_back(Action::Cancel { source, first: index, count: 1 });
        }
    }

    /// Gives a source that has little to do a piece of another.
    pub(super) fn steal(&mut self, thief: SourceId, now: Time) {
        while let Some(loot) = self.find_loot(thief, now) {
            if loot.begun {
                self.doubled += 1;
            } else {
                self.take_back(loot.owner, loot.index);
            }
            self.request(thief, vec![loot.index], now);
        }
    }

    fn find_loot(&self, thief_id: SourceId, now: Time) -> Option<Loot> {
        let thief = self.sources.get(&thief_id)?;
        // One on its way and one behind it keep the path full.
        if thief.stage != Stage::Active || thief.outstanding.len() >= 2 {
            return None;
        }
        let mine = thief.eta(thief.outstanding.len() + 1, self.layout.piece_size())?;
        let may_double = self.doubled < (self.pieces.count() / DOUBLES_OF).max(LEAST_DOUBLES);
        let owners = self.sources.iter().filter(|&(&id, s)| {
            id != thief_id && s.stage == Stage::Active && !s.outstanding.is_empty()
        });
        owners
            .filter_map(|(&owner, source)| self.loot_of(owner, source, thief, now))
            .filter(|loot| {
                let (factor, margin) = match loot.begun {
                    true => (DOUBLE_FACTOR, DOUBLE_MARGIN),
                    false => (STEAL_FACTOR, STEAL_MARGIN),
                };
                (may_double || !loot.begun) && loot.eta > mine.mul_f64(factor) + margin
            })
            .max_by_key(|loot| (!loot.begun, loot.eta))
    }

    /// The piece of `owner` that will come last, among those that `thief` holds.
    fn loot_of(&self, owner: SourceId, source: &Source, thief: &Source, now: Time) -> Option<Loot> {
        let mut queue: Vec<_> = source.outstanding.iter().map(|(&i, &at)| (at, i)).collect();
        queue.sort_unstable();
        let takeable = |&(_, &(_, index)): &(usize, &(Time, u32))| {
            thief.have.contains(index)
                && !thief.outstanding.contains_key(&index)
                && self.pieces.asked(index) < 2
        };
        let (place, &(_, index)) = queue.iter().enumerate().rev().find(takeable)?;
        let silence = now.since(source.last_progress);
        let eta = match source.eta(place + 1, self.layout.piece_size()) {
            Some(eta) => eta + silence,
            None if silence < UNKNOWN_PATIENCE => return None,
            None => Duration::MAX,
        };
        Some(Loot { owner, index, begun: place == 0, eta })
    }

    /// Who is still fetching himself, has this piece, and owes least within his window.
    fn partial_holder(&self, index: u32) -> Option<SourceId> {
        let holds =
            |s: &Source| s.stage == Stage::Active && s.is_partial() && s.have.contains(index);
        let able = self
            .sources
            .iter()
            .filter(|(_, s)| holds(s) && s.room() > 0 && !s.outstanding.contains_key(&index));
        able.min_by_key(|(id, s)| (s.outstanding.len(), **id)).map(|(&id, _)| id)
    }

    /// In a crowd, what is asked of those who have everything and has meanwhile come to others is
    /// exchanged for what only they have: the others will give it.
    pub(super) fn swap_common_for_rare(&mut self, now: Time) {
        if self.ended || !self.is_crowd() {
            return;
        }
        let whole = |s: &Source| s.stage == Stage::Active && !s.is_partial();
        let seeds: Vec<_> =
            self.sources.iter().filter(|(_, s)| whole(s)).map(|(&id, _)| id).collect();
        for id in seeds {
            let Some(source) = self.sources.get(&id) else { continue };
            let mut queue: Vec<_> = source.outstanding.iter().map(|(&i, &at)| (at, i)).collect();
            queue.sort_unstable();
            let overtaken = |asked: (Time, u32)| source.given_last.is_some_and(|last| asked < last);
            // The first is probably on its way, unless others have come before it: who gives to
            // many gives first what he has given least.
            let common: Vec<(u32, bool)> = (0..)
                .zip(&queue)
                .filter(|&(place, &asked)| place > 0 || overtaken(asked))
                .map(|(_, &asked)| (asked.1, overtaken(asked)))
                .filter(|&(index, _)| self.pieces.available(index) >= 2)
                .collect();
            for (index, overtaken) in common {
                if overtaken && self.pieces.asked(index) > 1 {
                    self.take_back(id, index);
                } else if overtaken && let Some(other) = self.partial_holder(index) {
                    self.take_back(id, index);
                    self.request(other, vec![index], now);
                } else if let Some(rarer) = self.rarest_fresh(id, self.pieces.available(index)) {
                    self.take_back(id, index);
                    self.request(id, vec![rarer], now);
                }
            }
        }
    }
}
