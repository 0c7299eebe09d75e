//! Which piece list to go by, whose word counts, and what may reach the reader.
//!
//! Guix signs only the hash of the whole nar, so a piece list is a hint until the end. A root has
//! the support of those who say that they have the whole nar, counted by network, since one
//! attacker easily has many addresses in one; somebody who is believed and vouches for it outdoes
//! them all. The list with most support is used. When it changes, held pieces that the new list
//! contradicts are forgotten, unless the reader has them already: then the fetch fails, and the
//! next attempt knows better.

use super::pieces::runs;
use super::source::{Source, Stage};
use super::{Action, Failure, Fault, Fetch, SourceId, Time};
use crate::hash::Root;
use crate::limits;
use crate::piece::PieceList;
use std::collections::BTreeSet;
use std::sync::Arc;

/// How much speaks for a root; compared in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Support {
    vouched: bool,
    networks: usize,
    peers: usize,
}

impl Support {
    fn is_believed(self) -> bool {
        self.vouched || self.networks >= 2
    }
}

impl Fetch {
    fn support(&self, root: Root) -> Support {
        let holders = || self.sources.values().filter(|s| self.speaks_for(s, root));
        let gone = self.gone_witnesses.iter().filter(|(theirs, _)| *theirs == root);
        let networks: BTreeSet<u64> =
            holders().map(|s| s.network).chain(gone.map(|&(_, network)| network)).collect();
        Support {
            vouched: self.believed.contains(&root),
            networks: networks.len(),
            peers: holders().count(),
        }
    }

    /// Whether a source's word counts for a root: if it has shown the list, or says that it would.
    /// The latter no more when it has been asked in vain, or others of its network have.
    fn speaks_for(&self, source: &Source, root: Root) -> bool {
        let asked_in_vain =
            || source.stage == Stage::Frozen || self.empty_claims.contains(&(root, source.network));
        source.root == Some(root) && source.complete && (source.opened || !asked_in_vain())
    }

    /// Whether more speaks for `root` than for `used`.
    pub(super) fn is_better(&self, root: Root, used: Root) -> bool {
        self.support(root) > self.support(used)
    }

    /// A source is gone. What it has shown still counts, as does its word if it was too `busy` to
    /// show anything: else the list would change with every connection that breaks. The word of one
    /// that hasn't answered counts no more, or it would change with every such peer that is found.
    pub(super) fn remember_witness(&mut self, id: SourceId, busy: bool) {
        let Some(source) = self.sources.get(&id).filter(|source| source.complete) else { return };
        let Some(root) = source.root else { return };
        let counts = source.opened || busy;
        let known = if counts { &mut self.gone_witnesses } else { &mut self.empty_claims };
        if known.len() < limits::MAX_SOURCES {
            known.insert((root, source.network));
        }
    }

    /// Whether pieces may go to the reader as they come: while nobody disputes the piece list
    /// (after a moment for a second opinion), or when it is believed and its rivals are not; and
    /// when nothing more may be fetched before the reader has moved, so that no verdict would come,
    /// unless a rival is believed and the list is not.
    #[must_use]
    pub fn may_deliver(&self, now: Time) -> bool {
        let Some((used, _)) = self.list else { return true };
        let support = self.support(used);
        if support.vouched {
            return true;
        }
        let roots: BTreeSet<Root> = self.sources.values().filter_map(|s| s.root).collect();
        let rivals = roots.into_iter().filter(|&root| root != used);
        let rivals: Vec<Support> = rivals.map(|root| self.support(root)).collect();
        let last = self.horizon.saturating_sub(1);
        if last < self.pieces.count() && self.pieces.head() > last {
            return support.is_believed() || !rivals.iter().any(|rival| rival.is_believed());
        }
        if let Some(networks) = rivals.iter().map(|rival| rival.networks).max() {
            return support.is_believed() && support.networks > networks;
        }
        let asked = self.sources.values().any(|s| s.stage == Stage::Opening);
        support.is_believed() || !asked || now >= self.list_since + limits::SECOND_OPINION
    }

    /// A source has shown its list: it gives from now on, or is held in reserve.
    pub(super) fn join(&mut self, id: SourceId, now: Time) {
        let Some(source) = self.sources.get(&id) else { return };
        let (Some(root), Some(list)) = (source.root, source.list.clone()) else { return };
        match &self.list {
            Some((used, _)) if *used == root => self.set_stage(id, Stage::Active),
            Some(_) => {
                self.set_stage(id, Stage::Reserve);
                self.reconsider_list(now);
            }
            None if self.is_contradicted(&list) && !self.support(root).is_believed() => {
                self.set_stage(id, Stage::Reserve);
            }
            None => self.adopt(root, list, now),
        }
    }

    /// Takes back what was asked of peers in reserve: it would not be used.
    pub(super) fn take_back_from_reserves(&mut self) {
        for (&source, entry) in &mut self.sources {
            if entry.stage == Stage::Reserve && !entry.outstanding.is_empty() {
                let owed: Vec<u32> = std::mem::take(&mut entry.outstanding).into_keys().collect();
                for (first, count) in runs(&owed) {
                    self.actions.push_back(Action::Cancel { source, first, count });
                }
            }
        }
    }

    /// Whether upstream, or an earlier attempt, gave something else than this list says.
    pub(super) fn is_contradicted(&self, list: &PieceList) -> bool {
        self.uncovered.iter().any(|(&index, hash)| list.hashes().get(index as usize) != Some(hash))
    }

    /// Goes by another list if more speaks for it than for the one in use. One that nobody else
    /// confirms doesn't outweigh what the reader has been given.
    pub(super) fn reconsider_list(&mut self, now: Time) {
        let Some((used, _)) = self.list else { return };
        let support = self.support(used);
        if let Some((root, list)) = self.best_reserve(|_| true)
            && self.support(root) > support
            && (self.support(root).is_believed() || !self.is_delivered(&self.wrong_under(&list)))
        {
            self.adopt(root, list, now);
        }
    }

    /// The best supported list that some such source has shown and that isn't the one in use.
    pub(super) fn best_reserve(
        &self,
        such: impl Fn(&Source) -> bool,
    ) -> Option<(Root, Arc<PieceList>)> {
        let used = self.list.as_ref().map(|(root, _)| *root);
        let sources = self.sources.values().filter(|s| s.root != used && such(s));
        let shown = sources.filter_map(|s| Some((s.root?, s.list.as_ref()?)));
        shown
            .filter(|(root, _)| !self.condemned.contains(root))
            .max_by_key(|(root, _)| self.support(*root))
            .map(|(root, list)| (root, list.clone()))
    }

    /// The held pieces that a list contradicts.
    fn wrong_under(&self, list: &PieceList) -> Vec<u32> {
        let used = self.list.as_ref().map(|(_, used)| used);
        let held = self.pieces.held().iter().filter(|&index| {
            let uncovered = self.uncovered.get(&index);
            let covered = used.and_then(|used| used.hashes().get(index as usize));
            uncovered.or(covered) != list.hashes().get(index as usize)
        });
        held.collect()
    }

    /// Whether the reader has been given one of these pieces.
    fn is_delivered(&self, pieces: &[u32]) -> bool {
        pieces.iter().any(|&index| index < self.delivered)
    }

    /// Goes by this list from now on.
    pub(super) fn adopt(&mut self, root: Root, list: Arc<PieceList>, now: Time) {
        let wrong = self.wrong_under(&list);
        if self.is_delivered(&wrong) {
            // Nothing is proved against the old list: the next attempt, of which the reader gets
            // nothing before the verdict, may well find that it was right.
            return self.fail(Failure::Contradiction { root: None });
        }
        for index in wrong {
            self.pieces.lose(index);
            self.actions.push_back(Action::Discard { index });
        }
        self.uncovered.clear();
        self.list = Some((root, list));
        self.list_since = now;
        // Who has frozen stays so until he moves.
        let opened: Vec<_> = self
            .sources
            .iter()
            .filter(|(_, s)| s.opened && s.stage != Stage::Frozen)
            .map(|(&id, s)| (id, s.root))
            .collect();
        for (id, shown) in opened {
            let stage = if shown == Some(root) { Stage::Active } else { Stage::Reserve };
            self.set_stage(id, stage);
        }
    }

    /// The whole nar hashes to something else than the signed hash. Goes on with another list if
    /// somebody has shown one, else fails.
    pub(super) fn handle_mismatch(&mut self, now: Time) {
        let upstream = self.upstream.used;
        let Some((root, _)) = self.list else {
            return self.fail(Failure::Mismatch { root: None, upstream });
        };
        self.condemned.push(root);
        self.actions.push_back(Action::Condemn { root });
        // Who says to have the whole nar has hashed it if he is honest. Who is still fetching may
        // have been told a lie himself.
        let liars: Vec<_> = self
            .sources
            .iter()
            .filter(|(_, s)| s.root == Some(root))
            .map(|(&id, s)| (id, s.complete.then_some(Fault::FalseRoot)))
            .collect();
        for (source, fault) in liars {
            self.remove(source);
            self.actions.push_back(Action::Drop { source, fault });
        }
        if let Some((other, list)) = self.best_reserve(|_| true) {
            self.adopt(other, list, now);
            if !self.ended && !self.pieces.is_complete() {
                return self.schedule(now);
            }
        }
        self.fail(Failure::Mismatch { root: Some(root), upstream });
    }
}
