//! Who is opened, who has frozen, when there is nobody left; and the round in which everything
//! that follows from an event is decided.

use super::pieces::tie;
use super::source::{Source, Stage};
use super::{Action, Failure, Fault, Fetch, SourceId, Time};
use crate::limits;
use std::cmp::Reverse;
use std::time::Duration;

/// How often the patience with a crowd is doubled at most: to a minute and a half.
const MOST_DOUBLINGS: u32 = 6;

impl Stage {
    /// Whether what is asked of it counts as asked.
    pub(super) fn is_counted(self) -> bool {
        matches!(self, Self::Opening | Self::Active)
    }
}

impl Fetch {
    /// When [`Fetch::handle_timeout`] wants to be called.
    #[must_use]
    pub fn poll_timeout(&self, now: Time) -> Option<Time> {
        if self.ended || self.pieces.is_complete() {
            return None;
        }
        let is_crowd = self.is_crowd();
        let frozen = self.sources.values().filter_map(|s| self.freezes_at(s, is_crowd));
        let upstream = self.upstream_deadline();
        let alone = self.alone_since.map(|since| since + limits::NO_SOURCE_PATIENCE);
        // When a lone piece list may be gone by.
        let opinion = Some(self.list_since + limits::SECOND_OPINION)
            .filter(|&at| self.list.is_some() && at > now);
        let later = |at: &Time| *at > now;
        let reserves = self.turn_of_reserves().filter(later);
        let standstill = Some(self.standstill_ends()).filter(|at| !self.gave && later(at));
        let frozen = frozen.chain(opinion).chain(reserves).chain(standstill);
        frozen.chain(upstream).chain(alone).chain(self.another_peer_deadline(now)).min()
    }

    /// Everything follows from here.
    pub(super) fn schedule(&mut self, now: Time) {
        if self.ended || self.pieces.is_complete() {
            return;
        }
        self.consider_reserves(now);
        self.take_back_from_reserves();
        self.open_more(now);
        self.ask_all(now);
        self.note_giving(now);
        if self.consider_upstream(now) {
            self.ask_all(now);
            self.note_giving(now);
        }
        self.consider_giving_up(now);
    }

    /// Asks everybody for what he should bring.
    fn ask_all(&mut self, now: Time) {
        for id in self.in_order_of_asking() {
            self.fill(id, now);
            self.steal(id, now);
        }
    }

    /// Those who are still fetching themselves first, so that those who have everything are asked
    /// for what only they have; then those who owe least.
    fn in_order_of_asking(&self) -> Vec<SourceId> {
        let active = self.sources.iter().filter(|(_, s)| s.stage == Stage::Active);
        let mut order: Vec<_> = active
            .map(|(&id, s)| ((!s.is_partial(), s.outstanding.len(), tie(self.seed, id.0)), id))
            .collect();
        order.sort_unstable();
        order.into_iter().map(|(_, id)| id).collect()
    }

    /// Whether peers give, or could if they were asked for more.
    pub(super) fn swarm_gives(&self) -> bool {
        let gives = |s: &Source| !s.is_partial() || !s.outstanding.is_empty();
        self.sources.values().any(|s| s.stage == Stage::Active && gives(s))
    }

    fn note_giving(&mut self, now: Time) {
        let gives = self.swarm_gives();
        if gives != self.gave {
            self.gave = gives;
            let since = if gives { &mut self.gives_since } else { &mut self.swarmless_since };
            *since = now;
        }
    }

    /// Whether a source may hold the piece list in use, or one with more support.
    fn fits(&self, source: &Source) -> bool {
        let Some((used, _)) = self.list else { return true };
        source.root.is_none_or(|root| root == used || self.is_better(root, used))
    }

    /// Whether some peer gives, or may yet give, pieces under the piece list in use.
    pub(super) fn has_prospects(&self) -> bool {
        self.sources.values().any(|s| match s.stage {
            Stage::Opening | Stage::Active | Stage::Frozen => true,
            Stage::Idle => self.fits(s),
            Stage::Reserve => false,
        })
    }

    /// When nobody who showed the piece list gives anything, the peers with another list get their
    /// turn.
    fn consider_reserves(&mut self, now: Time) {
        if self.turn_of_reserves().is_none_or(|at| at > now) {
            return;
        }
        if let Some((root, list)) = self.best_reserve(|s| s.stage == Stage::Reserve) {
            let nothing_else = self.upstream.is_out() && self.gives_up_waiting(now);
            if nothing_else || self.pieces.held_count() == 0 || !self.is_contradicted(&list) {
                self.list_switches += 1;
                self.adopt(root, list, now);
            }
        } else if self.pieces.held_count() == 0 && !self.has_prospects() {
            self.list = None;
        }
    }

    /// When peers with another list get their turn, if nothing happens before; `None` while the
    /// piece list in use is good for more. Who has frozen isn't waited for, who is still fetching
    /// himself a little; and each time that this happens twice as long, since members of a crowd
    /// that follow each other from list to list would forget for ever what they had.
    fn turn_of_reserves(&self) -> Option<Time> {
        let mut crowd = false;
        for source in self.sources.values() {
            match source.stage {
                Stage::Opening => return None,
                Stage::Idle if self.fits(source) => return None,
                Stage::Active if self.can_give(source) => return None,
                Stage::Active => crowd = true,
                Stage::Idle | Stage::Frozen | Stage::Reserve => {}
            }
        }
        let doublings = 1 << self.list_switches.min(MOST_DOUBLINGS);
        let patience = limits::CROWD_PATIENCE * (doublings - u32::from(!crowd));
        Some(self.upstream.leads_until().max(self.swarmless_since + patience))
    }

    /// Whether a source owes something, or has what is missing.
    fn can_give(&self, source: &Source) -> bool {
        !source.is_partial()
            || !source.outstanding.is_empty()
            || source.have.iter().any(|index| !self.pieces.held().contains(index))
    }

    /// Opens peers up to the number used at once. Before a piece list is known a few are asked
    /// for theirs, since the first may be slow, or lie; pieces are asked of the first alone.
    fn open_more(&mut self, now: Time) {
        let most = self.most_used(now);
        loop {
            let many = self.sources.values().filter(|s| s.is_busy()).count();
            let Some(id) = self.next_to_open(now).filter(|_| many < most) else { return };
            let with_pieces = self.list.is_some() || many == 0;
            self.open(id, with_pieces, now);
        }
    }

    /// The most promising of those who were not asked yet. Who names another list is asked when
    /// nobody gives under the one in use.
    fn next_to_open(&self, now: Time) -> Option<SourceId> {
        let idle = self.sources.iter().filter(|(_, s)| s.stage == Stage::Idle);
        let any = self.list.is_some() && self.turn_of_reserves().is_some_and(|at| at <= now);
        let startable = idle.filter(|(_, s)| any || self.fits(s));
        startable
            .min_by_key(|(id, s)| (Reverse(s.complete), s.latency(), tie(self.seed, id.0)))
            .map(|(&id, _)| id)
    }

    /// How many peers may be used at once: no more than there are pieces for, and one more for
    /// each stretch of time that the fetch has taken.
    fn most_used(&self, now: Time) -> usize {
        let most = if self.list.is_some() { limits::MAX_ACTIVE_PEERS } else { limits::FIRST_PEERS };
        let work = self.pieces.count().div_ceil(limits::PIECES_FOR_A_PEER);
        let age = now.since(self.started).as_millis() / limits::ANOTHER_PEER_EVERY.as_millis();
        most.min(work as usize + age as usize)
    }

    /// When another peer may be opened because the fetch takes long.
    fn another_peer_deadline(&self, now: Time) -> Option<Time> {
        self.next_to_open(now).filter(|_| self.most_used(now) < limits::MAX_ACTIVE_PEERS)?;
        let age = now.since(self.started).as_millis() / limits::ANOTHER_PEER_EVERY.as_millis();
        let next = u32::try_from(age + 1).ok()?;
        Some(self.started + limits::ANOTHER_PEER_EVERY * next)
    }

    /// Moves a source to another stage, and keeps the books on what is asked and available.
    pub(super) fn set_stage(&mut self, id: SourceId, stage: Stage) {
        let Some(source) = self.sources.get_mut(&id) else { return };
        let old = std::mem::replace(&mut source.stage, stage);
        if old.is_counted() != stage.is_counted() {
            for &index in source.outstanding.keys() {
                if stage.is_counted() {
                    self.pieces.ask(index);
                } else {
                    self.pieces.release(index);
                }
            }
        }
        match (old == Stage::Active, stage == Stage::Active) {
            (false, true) => self.pieces.gain(&source.have),
            (true, false) => self.pieces.forgo(&source.have),
            _ => {}
        }
    }

    /// A source has moved: one that had frozen is asked again.
    pub(super) fn touch(&mut self, id: SourceId, now: Time) {
        let used = self.list.as_ref().map(|(root, _)| *root);
        let Some(source) = self.sources.get_mut(&id) else { return };
        source.last_progress = now;
        if source.stage == Stage::Frozen && source.opened {
            let stage = if source.root == used { Stage::Active } else { Stage::Reserve };
            self.set_stage(id, stage);
        }
    }

    /// Deals with those who have been silent too long.
    pub(super) fn thaw_or_freeze(&mut self, now: Time) {
        let is_crowd = self.is_crowd();
        let is_due = |s: &Source| self.freezes_at(s, is_crowd).is_some_and(|at| at <= now);
        let due = self.sources.iter().filter(|(_, s)| is_due(s));
        let due: Vec<_> = due.map(|(&id, s)| (id, s.stage)).collect();
        for (id, stage) in due {
            match stage {
                Stage::Frozen => self.drop_source(id, None, now),
                Stage::Active => self.freeze(id),
                _ => {
                    self.set_stage(id, Stage::Frozen);
                    if let Some(source) = self.sources.get_mut(&id) {
                        source.last_progress = now;
                    }
                }
            }
        }
    }

    /// When a source counts as frozen.
    fn freezes_at(&self, source: &Source, is_crowd: bool) -> Option<Time> {
        let urgent = self.urgent();
        let is_urgent = !urgent.is_empty() && source.outstanding.range(urgent).next().is_some();
        source.freezes_at(match is_crowd && !is_urgent {
            true => limits::CROWD_FREEZE_AFTER,
            false => limits::FREEZE_AFTER,
        })
    }

    /// What a frozen source owes is asked of others. All but the first is taken back, so that it
    /// doesn't come twice when the source moves again; the first shows whether it does.
    fn freeze(&mut self, id: SourceId) {
        let Some(source) = self.sources.get(&id) else { return };
        for (_, index) in source.queue().into_iter().skip(1) {
            self.take_back(id, index);
        }
        self.set_stage(id, Stage::Frozen);
    }

    /// Forgets a source.
    pub(super) fn remove(&mut self, id: SourceId) {
        // A reserve is not counted anywhere.
        self.set_stage(id, Stage::Reserve);
        self.sources.remove(&id);
    }

    pub(super) fn drop_source(&mut self, source: SourceId, fault: Option<Fault>, now: Time) {
        self.forget_source(source, fault, false, now);
    }

    /// Forgets a source, which was too `busy` or not.
    pub(super) fn forget_source(
        &mut self,
        source: SourceId,
        fault: Option<Fault>,
        busy: bool,
        now: Time,
    ) {
        if !self.sources.contains_key(&source) {
            return;
        }
        if fault.is_none() {
            self.remember_witness(source, busy);
        }
        self.remove(source);
        self.actions.push_back(Action::Drop { source, fault });
        self.schedule(now);
    }

    fn consider_giving_up(&mut self, now: Time) {
        if self.is_at_standstill(now) {
            return self.fail(Failure::NoSource);
        }
        let alone = !self.upstream.is_running() && !self.has_prospects();
        if !alone {
            self.alone_since = None;
            return;
        }
        self.alone_since.get_or_insert(now);
        let late = self.alone_for(now) >= limits::NO_SOURCE_PATIENCE;
        if (self.discovery_done && self.upstream.is_out()) || late {
            self.fail(Failure::NoSource);
        }
    }

    /// Whether nobody else is expected.
    fn gives_up_waiting(&self, now: Time) -> bool {
        self.discovery_done || self.alone_for(now) >= limits::NO_SOURCE_PATIENCE
    }

    fn alone_for(&self, now: Time) -> Duration {
        self.alone_since.map_or(Duration::ZERO, |since| now.since(since))
    }

    /// Whether all peers have long had nothing to give, nor got anything.
    fn is_at_standstill(&self, now: Time) -> bool {
        self.standstill_ends() <= now
            && !self.upstream.is_running()
            && self.sources.values().all(|s| match s.stage {
                Stage::Opening | Stage::Idle => false,
                Stage::Active => !self.can_give(s),
                Stage::Frozen | Stage::Reserve => true,
            })
    }

    fn standstill_ends(&self) -> Time {
        self.last_news.max(self.swarmless_since) + limits::STANDSTILL_PATIENCE
    }

    pub(super) fn fail(&mut self, failure: Failure) {
        if !self.ended {
            self.finish(Action::Failed(failure));
        }
    }

    pub(super) fn finish(&mut self, last: Action) {
        self.ended = true;
        if self.upstream.is_running() {
            self.actions.push_back(Action::StopUpstream);
        }
        for &source in self.sources.keys() {
            self.actions.push_back(Action::Drop { source, fault: None });
        }
        self.sources.clear();
        self.actions.push_back(last);
    }
}
