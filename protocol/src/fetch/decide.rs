//! What follows from what a fetch knows: whom to ask for what, whether upstream is needed, whether
//! there is anybody left.

use super::source::{Source, Stage};
use super::{Action, Failure, Fault, Fetch, Piece, SourceId, Time, Upstream};
use crate::limits;

impl Fetch {
    pub(super) fn swarm_gives(&self) -> bool {
        self.sources.values().any(|s| s.stage == Stage::Active)
    }

    fn complete(&self) -> bool {
        self.held == self.layout.piece_count()
    }

    pub(super) fn hold(&mut self, index: u32) -> bool {
        match self.pieces.get_mut(index as usize) {
            Some(piece) if *piece != Piece::Held => *piece = Piece::Held,
            _ => return false,
        }
        self.held += 1;
        true
    }

    /// Everything follows from here: who is asked for what, whether upstream is needed, whether
    /// there is anybody at all.
    pub(super) fn schedule(&mut self, now: Time) {
        if self.ended || self.complete() {
            return;
        }
        self.consider_reserves();
        self.open_more(now);
        let active: Vec<_> = self
            .sources
            .iter()
            .filter(|(_, s)| s.stage == Stage::Active)
            .map(|(&id, _)| id)
            .collect();
        for id in active {
            self.ask(id, now);
        }
        self.consider_upstream(now);
        self.consider_giving_up(now);
    }

    /// Whether a source may hold the piece list in use.
    fn fits(&self, source: &Source) -> bool {
        let used = self.list.as_ref().map(|(root, _)| *root);
        used.is_none() || source.root.is_none() || source.root == used
    }

    /// Whether some peer gives, or may yet give, pieces under the piece list in use.
    fn has_prospects(&self) -> bool {
        self.sources.values().any(|s| match s.stage {
            Stage::Opening | Stage::Active | Stage::Frozen => true,
            Stage::Idle => self.fits(s),
            Stage::Reserve => false,
        })
    }

    /// When all who showed the piece list are gone before anything was taken from them, the peers
    /// with another list get their turn.
    fn consider_reserves(&mut self) {
        if self.held == 0 && !self.has_prospects() {
            self.list = None;
            for source in self.sources.values_mut() {
                source.stage = Stage::Idle;
            }
        }
    }

    /// Opens peers up to the number used at once. Only one is opened before a piece list is
    /// known: its root decides which of the others fit.
    fn open_more(&mut self, now: Time) {
        let used = |s: &Source| matches!(s.stage, Stage::Opening | Stage::Active);
        let most = if self.list.is_some() { limits::MAX_ACTIVE_PEERS } else { 1 };
        while self.sources.values().filter(|s| used(s)).count() < most {
            let startable = |s: &Source| s.stage == Stage::Idle && self.fits(s);
            let idle = self.sources.iter().find(|(_, s)| startable(s));
            let Some((&source, _)) = idle else { return };
            let (first, count) = self.claim(source, now).unwrap_or((0, 0));
            if let Some(entry) = self.sources.get_mut(&source) {
                entry.stage = Stage::Opening;
                entry.last_progress = now;
            }
            self.actions.push_back(Action::Open { source, first, count });
        }
    }

    fn ask(&mut self, source: SourceId, now: Time) {
        while let Some((first, count)) = self.claim(source, now) {
            self.actions.push_back(Action::Request { source, first, count });
        }
    }

    /// Takes a run of missing pieces for `source`: the first ones, or the last ones while
    /// upstream streams from the head.
    fn claim(&mut self, source: SourceId, now: Time) -> Option<(u32, u32)> {
        let room = self.sources.get(&source)?.room();
        let end = self.horizon.min(self.layout.piece_count());
        let missing = |index: u32| self.pieces[index as usize] == Piece::Missing;
        if room == 0 {
            return None;
        }
        let run = if self.upstream == Upstream::Running {
            let last = (self.head..end).rev().find(|&i| missing(i))?;
            let first = (self.head..=last).rev().take(room as usize).take_while(|&i| missing(i));
            first.last()?..last + 1
        } else {
            self.head = (self.head..end).find(|&i| missing(i)).unwrap_or(end);
            let count = (self.head..end).take(room as usize).take_while(|&i| missing(i)).count();
            self.head..self.head + count as u32
        };
        if run.is_empty() {
            return None;
        }
        self.pieces[run.start as usize..run.end as usize].fill(Piece::Asked);
        self.sources.get_mut(&source)?.asked(run.clone(), now);
        Some((run.start, run.end - run.start))
    }

    /// Makes what a source owes available to others.
    pub(super) fn release(&mut self, source: SourceId) {
        let Some(entry) = self.sources.get(&source) else { return };
        for &index in &entry.outstanding {
            let piece = &mut self.pieces[index as usize];
            if *piece == Piece::Asked {
                *piece = Piece::Missing;
                self.head = self.head.min(index);
            }
        }
    }

    pub(super) fn drop_source(&mut self, source: SourceId, fault: Option<Fault>, now: Time) {
        let frozen = self.sources.get(&source).is_some_and(|s| s.stage == Stage::Frozen);
        if !frozen {
            // A frozen one's pieces were released when it froze.
            self.release(source);
        }
        self.sources.remove(&source);
        self.actions.push_back(Action::Drop { source, fault });
        self.schedule(now);
    }

    pub(super) fn start_upstream(&mut self) {
        self.upstream = Upstream::Running;
        self.upstream_tries += 1;
        let held = |p: &&Piece| **p == Piece::Held;
        let from = self.pieces.iter().take_while(held).count() as u32;
        self.actions.push_back(Action::StartUpstream { from });
    }

    fn consider_upstream(&mut self, now: Time) {
        if self.upstream != Upstream::Ready || self.swarm_gives() {
            return;
        }
        let late = now.since(self.started) >= limits::UPSTREAM_PATIENCE;
        let nobody = self.discovery_done
            && !self.sources.values().any(|s| matches!(s.stage, Stage::Opening));
        if late || nobody {
            self.start_upstream();
        }
    }

    fn consider_giving_up(&mut self, now: Time) {
        let alone = self.upstream != Upstream::Running && !self.has_prospects();
        if !alone {
            self.alone_since = None;
            return;
        }
        let since = *self.alone_since.get_or_insert(now);
        if self.discovery_done || now.since(since) >= limits::NO_SOURCE_PATIENCE {
            self.fail(Failure::NoSource);
        }
    }

    pub(super) fn fail(&mut self, failure: Failure) {
        if !self.ended {
            self.finish(Action::Failed(failure));
        }
    }

    pub(super) fn finish(&mut self, last: Action) {
        self.ended = true;
        if self.upstream == Upstream::Running {
            self.actions.push_back(Action::StopUpstream);
        }
        for &source in self.sources.keys() {
            self.actions.push_back(Action::Drop { source, fault: None });
        }
        self.sources.clear();
        self.actions.push_back(last);
    }
}
