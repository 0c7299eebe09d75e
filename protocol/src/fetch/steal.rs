//! Taking work from the slow, and the end game.
//!
//! A peer that has nothing left to do of its own takes pieces that others owe: where it would bring
//! them much sooner, and where their turn doesn't come for long, since the owner has others to serve
//! first. What has begun to come is left where it is; only when it takes far longer than usual, it
//! is asked for twice. Whatever comes first is taken, the other cancelled.

use super::source::{Source, Stage};
use super::{Action, Fetch, SourceId, Time};
use std::time::Duration;

/// How much sooner than its owner a thief must bring a piece, as a factor and on top: rates are
/// only estimates, and a message more or less must not decide.
const STEAL_FACTOR: f64 = 1.5;
const STEAL_MARGIN: Duration = Duration::from_millis(50);
/// The same for a piece that its owner has begun to send, which will mostly come twice.
const DOUBLE_FACTOR: f64 = 3.0;
const DOUBLE_MARGIN: Duration = Duration::from_millis(100);
/// One piece in so many may be asked for twice: half of the duplicates that a user would mind.
const DOUBLES_OF: u32 = 100;
/// As many may be asked for twice even of a small nar.
const LEAST_DOUBLES: u32 = 2;
/// How long a piece may wait for its turn at a busy source before one that owes nothing is asked for
/// it instead. Of what is taken back a tenth is on its way by then, and comes twice if the other has
/// begun too. Sixteen peers on lines of 20 Mbit/s are as soon done with a second or with one and a
/// half, but a second brings half as many duplicates again.
pub(super) const TURN_PATIENCE: Duration = Duration::from_millis(1500);
/// The same for what the reader waits for, of which most has its turn within half a second.
pub(super) const URGENT_TURN_PATIENCE: Duration = Duration::from_millis(600);
/// How long it may wait before one from whom it was taken back is asked for it once more, if that one
/// owes nothing: what it had sent by then has come, and taking it back and forth is no use.
const BACK_PATIENCE: Duration = Duration::from_secs(2);
/// A piece that was taken back from so many is asked of two at once from then on.
/// Else the last piece of a fetch went from queue to queue and was late in all of them.
const RESTLESS_MOVES: usize = 3;
/// How long a source that has given nothing yet is left its pieces.
const UNKNOWN_PATIENCE: Duration = Duration::from_millis(300);

/// What a thief may take.
struct Loot {
    owner: SourceId,
    index: u32,
    /// Whether the owner has begun to send it, so that it will mostly come twice.
    begun: bool,
    /// Whether it is its turn next, so that it may have begun before the owner hears of it.
    next: bool,
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

    /// Takes a piece that has begun to come from `source` back from all who haven't begun it.
    pub(super) fn spare_others(&mut self, source: SourceId, index: u32) {
        let owes = |s: &Source| s.outstanding.contains_key(&index) && !s.has_begun(index);
        let others = self.sources.iter().filter(|&(&id, s)| id != source && owes(s));
        let others: Vec<_> = others.map(|(&id, _)| id).collect();
        for other in others {
            self.take_back(other, index);
        }
    }

    /// Takes one piece back from a source.
    pub(super) fn take_back(&mut self, source: SourceId, index: u32) {
        let Some(entry) = self.sources.get_mut(&source) else { return };
        if entry.outstanding.remove(&index).is_some() {
            entry.taken_back.insert(index);
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
            } else if !self.is_restless(loot.index) {
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
        let may_double = self.doubled < (self.pieces.count() / DOUBLES_OF).max(LEAST_DOUBLES);
        let owners = self.sources.iter().filter(|&(&id, s)| {
            id != thief_id && s.stage == Stage::Active && !s.outstanding.is_empty()
        });
        owners
            .filter_map(|(&owner, source)| self.loot_of(owner, source, thief, now))
            .filter(|loot| may_double || !loot.begun)
            .max_by_key(|loot| (!loot.begun, !loot.next, loot.eta))
    }

    /// The piece of `owner` that will come last, among those that `thief` holds and should bring.
    fn loot_of(&self, owner: SourceId, source: &Source, thief: &Source, now: Time) -> Option<Loot> {
        let piece_size = self.layout.piece_size();
        let silence = now.since(source.last_progress);
        let mine = thief.eta(thief.outstanding.len() + 1, piece_size);
        let is_sooner = |eta: Duration, factor: f64, margin: Duration| {
            mine.is_some_and(|mine| eta > mine.mul_f64(factor) + margin)
        };
        source.queue().into_iter().enumerate().rev().find_map(|(place, (asked_at, index))| {
            let takeable = thief.have.contains(index)
                && !thief.outstanding.contains_key(&index)
                && Self::may_go_to(thief, index, asked_at, now)
                && self.pieces.asked(index) < 2;
            let begun = source.has_begun(index);
            let eta = match begun {
                true => source.rest_of_begun(index, piece_size, now),
                false => source.eta(place + 1, piece_size),
            };
            let eta = match eta {
                _ if !takeable => return None,
                Some(eta) => eta + silence,
                None if silence < UNKNOWN_PATIENCE => Duration::ZERO,
                None => Duration::MAX,
            };
            let better = match begun {
                true => is_sooner(eta, DOUBLE_FACTOR, DOUBLE_MARGIN),
                false if place > 0 && is_sooner(eta, STEAL_FACTOR, STEAL_MARGIN) => true,
                false => thief.outstanding.is_empty() && self.waits_long(index, asked_at, now),
            };
            better.then_some(Loot { owner, index, begun, next: place == 0, eta })
        })
    }

    /// Whether a piece that was asked of somebody then isn't one that was taken from this source lately.
    fn may_go_to(thief: &Source, index: u32, asked_at: Time, now: Time) -> bool {
        let is_idle = thief.outstanding.is_empty();
        !thief.taken_back.contains(index) || (is_idle && now.since(asked_at) >= BACK_PATIENCE)
    }

    /// Whether a piece has been moved so often that it is left with its owner too: all are busy, and
    /// whoever has his turn for it first is the best.
    fn is_restless(&self, index: u32) -> bool {
        let moves = self.sources.values().filter(|s| s.taken_back.contains(index)).count();
        moves >= RESTLESS_MOVES
    }

    /// Whether a piece that was asked for then should have begun to come by now.
    fn waits_long(&self, index: u32, asked_at: Time, now: Time) -> bool {
        let is_urgent = self.urgent().contains(&index);
        let patience = if is_urgent { URGENT_TURN_PATIENCE } else { TURN_PATIENCE };
        now.since(asked_at) >= patience
    }

    /// Who is still fetching himself, has this piece, and owes least within his window.
    fn partial_holder(&self, index: u32) -> Option<SourceId> {
        let holds =
            |s: &Source| s.stage == Stage::Active && s.is_partial() && s.have.contains(index);
        let able = self
            .sources
            .iter()
            .filter(|(_, s)| holds(s) && s.room(0) > 0 && !s.outstanding.contains_key(&index));
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
            let overtaken = |asked: (Time, u32)| source.given_last.is_some_and(|last| asked < last);
            let queue = source.queue();
            let waiting = queue.iter().filter(|&&(_, index)| !source.has_begun(index));
            let common: Vec<(u32, bool)> = waiting
                .map(|&asked| (asked.1, overtaken(asked)))
                .filter(|&(index, _)| self.pieces.available(index) >= 2)
                .collect();
            for (index, overtaken) in common {
                if overtaken && self.pieces.asked(index) > 1 {
                    self.take_back(id, index);
                } else if let Some(other) = self.partial_holder(index) {
                    let rarer = self.rarest_fresh(id, self.pieces.available(index));
                    self.take_back(id, index);
                    self.request(other, vec![index], now);
                    self.request(id, rarer.into_iter().collect(), now);
                } else if let Some(rarer) = self.rarest_fresh(id, self.pieces.available(index)) {
                    self.take_back(id, index);
                    self.request(id, vec![rarer], now);
                }
            }
        }
    }
}
