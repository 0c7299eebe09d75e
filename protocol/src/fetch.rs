//! Fetching one nar: whom to ask for which piece, and what to do when it goes wrong.
//!
//! [`Fetch`] is a state machine without I/O. Events go in by `handle_*`, each with the time;
//! [`Fetch::poll_action`] gives what the driver shall do, [`Fetch::poll_timeout`] when it wants to
//! be woken. The driver decodes, checks a piece against the list that its giver showed and hashes
//! the nar in order; the machine only hears the verdicts.
//!
//! ```text
//!  peers ──► Open ──► Opened (piece list, what it holds) ──► windows of pieces ──┐
//!    │         └── frozen, lost, lying: its pieces are asked of another          ├─► hashed ─► Done
//!  upstream ──────► a sequential stream from the head, when the swarm is late ───┘      └──► Failed
//! ```
//!
//! - `choose`: which pieces to ask a peer for: in order for the reader, rarest first in a crowd,
//!   from the tail while upstream streams from the head.
//! - `steal`: taking work from the slow, and the end game.
//! - `trust`: which piece list to go by, whose word counts, what may reach the reader.
//! - `upstream`: when upstream joins, and when it may leave.
//! - `decide`: who is opened, who has frozen, when there is nobody left.
//! - `audit`: whether the books agree, for simulations.

mod action;
mod audit;
mod choose;
mod decide;
mod meter;
mod pieces;
mod source;
mod steal;
#[cfg(test)]
mod tests;
mod trust;
mod upstream;

pub use action::{Action, Failure, Fault, FetchConfig, PeerHint, SourceId, Time, UpstreamMode};
pub use audit::Discrepancy;

use crate::hash::{NarHash, PieceHash, Root};
use crate::limits;
use crate::piece::{PieceLayout, PieceList};
use crate::piece_set::PieceSet;
use meter::Meter;
use pieces::Pieces;
use source::{Source, Stage};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use upstream::Upstream;

/// The state of one fetch.
#[derive(Debug)]
pub struct Fetch {
    nar_hash: NarHash,
    layout: PieceLayout,
    mode: UpstreamMode,
    seed: u64,
    started: Time,
    pieces: Pieces,
    /// The hash of held pieces that no piece list covers: of upstream, or of an earlier attempt.
    uncovered: BTreeMap<u32, PieceHash>,
    /// What the reader wants next.
    reader: u32,
    /// The first piece that the reader has not been given anything of.
    delivered: u32,
    /// Nothing at or beyond it is asked for, so that a reader without a disk behind it is not
    /// overrun.
    horizon: u32,
    sources: BTreeMap<SourceId, Source>,
    list: Option<(Root, Arc<PieceList>)>,
    list_since: Time,
    /// How often the list was given up because nobody gave under it.
    list_switches: u32,
    believed: Vec<Root>,
    condemned: Vec<Root>,
    /// Roots that peers have shown who are gone since, each with the peer's network.
    gone_witnesses: BTreeSet<(Root, u64)>,
    /// Roots that peers have named who were asked for them in vain, each with the peer's network.
    empty_claims: BTreeSet<(Root, u64)>,
    upstream: Upstream,
    /// What all peers together give.
    swarm: Meter,
    /// Since when peers give without a break; meaningless while they don't.
    gives_since: Time,
    /// Since when peers give nothing; meaningless while they do.
    swarmless_since: Time,
    gave: bool,
    /// When a piece last came, or a peer last got one.
    last_news: Time,
    /// Pieces that were asked for twice on purpose.
    doubled: u32,
    /// Discovery has said that it knows nobody else for now.
    discovery_done: bool,
    /// Since when there has been nobody to ask.
    alone_since: Option<Time>,
    actions: VecDeque<Action>,
    ended: bool,
}

impl Fetch {
    /// Begins to fetch a nar.
    #[must_use]
    pub fn new(config: FetchConfig, now: Time) -> Self {
        let upstream = Upstream::new(&config, now);
        let mut fetch = Self {
            nar_hash: config.nar_hash,
            layout: config.layout,
            mode: config.mode,
            seed: config.seed,
            started: now,
            pieces: Pieces::new(config.layout.piece_count()),
            uncovered: BTreeMap::new(),
            reader: 0,
            delivered: 0,
            horizon: u32::MAX,
            sources: BTreeMap::new(),
            list: None,
            list_since: now,
            list_switches: 0,
            believed: config.believed,
            condemned: config.condemned,
            gone_witnesses: BTreeSet::new(),
            empty_claims: BTreeSet::new(),
            upstream,
            swarm: Meter::new(now),
            gives_since: now,
            swarmless_since: now,
            gave: false,
            last_news: now,
            doubled: 0,
            discovery_done: config.mode == UpstreamMode::UpstreamOnly,
            alone_since: Some(now),
            actions: VecDeque::new(),
            ended: false,
        };
        for (index, hash) in config.resumed {
            if fetch.pieces.hold(index) {
                fetch.uncovered.insert(index, hash);
            }
        }
        if matches!(config.mode, UpstreamMode::Race | UpstreamMode::UpstreamOnly) {
            fetch.start_upstream(now);
        }
        fetch
    }

    /// The piece list in use, with its root.
    #[must_use]
    pub fn list(&self) -> Option<(Root, &Arc<PieceList>)> {
        self.list.as_ref().map(|(root, list)| (*root, list))
    }

    /// Which pieces are held.
    #[must_use]
    pub fn held(&self) -> &PieceSet {
        self.pieces.held()
    }

    /// How many peers give pieces now.
    #[must_use]
    pub fn active_peers(&self) -> usize {
        self.sources.values().filter(|s| s.stage == Stage::Active).count()
    }

    /// Octets a second that upstream gave, if it was asked for long enough to tell.
    #[must_use]
    pub fn upstream_rate(&self) -> Option<f64> {
        self.upstream.rate()
    }

    /// Whether a source is in use or in reserve.
    #[must_use]
    pub fn knows(&self, source: SourceId) -> bool {
        self.sources.contains_key(&source)
    }

    /// Pieces asked of a source and not yet come.
    #[must_use]
    pub fn outstanding(&self, source: SourceId) -> usize {
        self.sources.get(&source).map_or(0, |s| s.outstanding.len())
    }

    /// What to do next, if anything.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Swarm and upstream share the work in another way from now on: somebody has asked for what
    /// was fetched ahead from peers alone.
    pub fn handle_mode(&mut self, mode: UpstreamMode, now: Time) {
        self.mode = mode;
        if mode != UpstreamMode::SwarmOnly {
            self.upstream.allow();
        }
        if matches!(mode, UpstreamMode::Race | UpstreamMode::UpstreamOnly) && !self.ended {
            self.start_upstream(now);
        }
        self.schedule(now);
    }

    /// A peer is said to hold the nar, or part of it.
    pub fn handle_peer(&mut self, source: SourceId, hint: PeerHint, now: Time) {
        let unwelcome = self.ended
            || self.mode == UpstreamMode::UpstreamOnly
            || self.sources.len() >= limits::MAX_SOURCES
            || self.sources.contains_key(&source);
        if unwelcome || hint.root.is_some_and(|root| self.condemned.contains(&root)) {
            self.actions.push_back(Action::Drop { source, fault: None });
            return;
        }
        self.sources.insert(source, Source::new(hint, self.layout.piece_count(), now));
        self.reconsider_list(now);
        self.schedule(now);
    }

    /// Discovery knows nobody else for now.
    pub fn handle_discovery_done(&mut self, now: Time) {
        self.discovery_done = true;
        self.schedule(now);
    }

    /// A peer has shown its piece list, and what it can give.
    pub fn handle_opened(
        &mut self,
        source: SourceId,
        root: Root,
        list: Arc<PieceList>,
        held: PieceSet,
        now: Time,
    ) {
        let Some(entry) = self.sources.get_mut(&source).filter(|_| !self.ended) else { return };
        let first_time = matches!(entry.stage, Stage::Opening | Stage::Frozen);
        let sound = first_time
            && list.layout() == self.layout
            && held.count() == self.layout.piece_count()
            && list.root(&self.nar_hash) == root
            && entry.root.is_none_or(|promised| promised == root);
        if !sound {
            return self.drop_source(source, Some(Fault::BadList), now);
        }
        if self.condemned.contains(&root) {
            return self.drop_source(source, None, now);
        }
        entry.root = Some(root);
        entry.complete = held.is_all();
        entry.have = held;
        entry.list = Some(list);
        entry.opened = true;
        entry.moved(0, self.layout.piece_size(), now);
        if entry.stage == Stage::Frozen {
            // It has moved.
            self.set_stage(source, Stage::Reserve);
        }
        self.join(source, now);
        self.schedule(now);
    }

    /// A peer has got more pieces; no ranges mean that it is there, and has others to serve first.
    pub fn handle_have(&mut self, source: SourceId, ranges: &[(u32, u32)], now: Time) {
        self.touch(source, now);
        let Some(entry) = self.sources.get_mut(&source) else { return };
        for index in ranges.iter().flat_map(|&(first, count)| first..first.saturating_add(count)) {
            if entry.have.insert(index) {
                self.last_news = now;
                if entry.stage == Stage::Active {
                    self.pieces.gain_one(index);
                }
            }
        }
        if !ranges.is_empty() {
            self.swap_common_for_rare(now);
        }
        self.schedule(now);
    }

    /// A peer doesn't hold a piece that it was asked for.
    pub fn handle_missing(&mut self, source: SourceId, index: u32, now: Time) {
        self.touch(source, now);
        let Some(entry) = self.sources.get_mut(&source) else { return };
        if entry.have.remove(index) && entry.stage == Stage::Active {
            self.pieces.forgo_one(index);
        }
        let entry = self.sources.get_mut(&source).expect("looked up above");
        entry.complete = false;
        entry.missed = entry.missed.saturating_add(1);
        let is_useless = entry.given == 0 && entry.missed >= limits::MISSED_BY_USELESS;
        entry.finished(index, 0, now);
        // What a source in reserve owes is not counted.
        if entry.outstanding.remove(&index).is_some() && entry.stage.is_counted() {
            self.pieces.release(index);
        }
        if is_useless {
            return self.forget_source(source, None, false, now);
        }
        self.schedule(now);
    }

    /// A peer doesn't have the nar after all, or (`busy`) no room for another reader.
    pub fn handle_refused(&mut self, source: SourceId, busy: bool, now: Time) {
        self.forget_source(source, None, busy, now);
    }

    /// A peer is gone.
    pub fn handle_source_lost(&mut self, source: SourceId, fault: Option<Fault>, now: Time) {
        if self.sources.contains_key(&source) {
            self.drop_source(source, fault, now);
        }
    }

    /// The conversation with a peer broke off, through nobody's fault that is known. One that has given
    /// pieces in it is opened anew at once, as source `again`: a relay ends a conversation after so many
    /// octets, and routers forget. Each time it must have given something. Says whether it is.
    pub fn handle_broken(&mut self, source: SourceId, again: SourceId, now: Time) -> bool {
        let Some(entry) = self.sources.get(&source).filter(|_| !self.ended) else { return false };
        if entry.given == 0 || self.sources.contains_key(&again) {
            self.drop_source(source, None, now);
            return false;
        }
        let hint = PeerHint {
            root: entry.root,
            latency: entry.latency(),
            network: entry.network,
            complete: entry.complete,
        };
        self.remove(source);
        self.actions.push_back(Action::Drop { source, fault: None });
        // Should it not be reached at once, the next look for peers may find that it is.
        self.discovery_done = false;
        self.sources.insert(again, Source::new(hint, self.layout.piece_count(), now));
        self.schedule(now);
        true
    }

    /// Octets of a piece are coming in, though it isn't whole yet.
    pub fn handle_progress(&mut self, source: SourceId, bytes: u64, now: Time) {
        if bytes > 0 {
            self.touch(source, now);
        }
    }

    /// A piece begins to come from a peer. Whoever else owes it and has not begun is spared. One
    /// that was taken back too late counts as asked for again: it comes, whatever is done.
    pub fn handle_begun(&mut self, source: SourceId, index: u32, now: Time) {
        self.touch(source, now);
        let unwanted = self.ended || index >= self.pieces.count();
        let Some(entry) = self.sources.get_mut(&source).filter(|_| !unwanted) else { return };
        entry.begins(index, now);
        if entry.stage != Stage::Active || self.pieces.held().contains(index) {
            return;
        }
        if !entry.outstanding.contains_key(&index) {
            entry.asked(index, now);
            self.pieces.ask(index);
        }
        self.spare_others(source, index);
        self.schedule(now);
    }

    /// A peer's piece matched the piece list that this peer showed. Says whether it is new and
    /// wanted: what a peer with another list gives, or one that was dropped, is not.
    pub fn handle_piece(&mut self, source: SourceId, index: u32, now: Time) -> bool {
        let bytes = self.layout.piece_len(index) as u64;
        self.touch(source, now);
        let Some(entry) = self.sources.get_mut(&source) else { return false };
        let asked_at = entry.outstanding.remove(&index);
        entry.finished(index, bytes, now);
        entry.given_last = entry.given_last.max(asked_at.map(|at| (at, index)));
        let asked = asked_at.is_some();
        let counted = asked && entry.stage == Stage::Active;
        entry.given = entry.given.saturating_add(1);
        entry.moved(bytes, self.layout.piece_size(), now);
        if counted {
            self.pieces.release(index);
        }
        if entry.stage != Stage::Active {
            return false;
        }
        self.swarm.add(bytes, now);
        let new = self.pieces.hold(index);
        if new {
            self.last_news = now;
            self.cancel_elsewhere(index);
        }
        self.schedule(now);
        new
    }

    /// A peer's piece didn't match the piece list that this peer showed.
    pub fn handle_bad_piece(&mut self, source: SourceId, _index: u32, now: Time) {
        self.handle_source_lost(source, Some(Fault::BadPiece), now);
    }

    /// Somebody who is believed vouches for a root.
    pub fn handle_voucher(&mut self, root: Root, now: Time) {
        if !self.believed.contains(&root) {
            self.believed.push(root);
            self.reconsider_list(now);
            self.schedule(now);
        }
    }

    /// Octets of upstream's stream have come.
    pub fn handle_upstream_progress(&mut self, bytes: u64, now: Time) {
        self.upstream.moved(bytes, now);
    }

    /// Upstream gave a piece of this hash. Says whether it is new and wanted.
    pub fn handle_upstream_piece(&mut self, index: u32, hash: PieceHash, now: Time) -> bool {
        if self.ended {
            return false;
        }
        if let Some((root, list)) = &self.list
            && list.hashes().get(index as usize) != Some(&hash)
        {
            let failure = Failure::Contradiction { root: Some(*root) };
            self.fail(failure);
            return false;
        }
        let new = self.pieces.hold(index);
        if new {
            self.upstream.used = true;
            self.last_news = now;
            self.cancel_elsewhere(index);
            if self.list.is_none() {
                self.uncovered.insert(index, hash);
            }
        }
        self.schedule(now);
        new
    }

    /// Upstream's stream ended: well when everything came, else early.
    pub fn handle_upstream_ended(&mut self, now: Time) {
        self.upstream.ended();
        self.schedule(now);
    }

    /// The reader wants octets of piece `reader` next, and has been given everything before.
    pub fn handle_reader(&mut self, reader: u32, now: Time) {
        self.delivered = self.delivered.max(reader);
        if std::mem::replace(&mut self.reader, reader) != reader {
            self.schedule(now);
        }
    }

    /// The reader has come to piece `reader`; at most `ahead` pieces may be fetched beyond it.
    pub fn handle_horizon(&mut self, reader: u32, ahead: u32, now: Time) {
        self.horizon = reader.saturating_add(ahead);
        self.reader = reader;
        self.schedule(now);
    }

    /// The whole nar has been hashed.
    pub fn handle_nar_hash(&mut self, found: &NarHash, now: Time) {
        if self.ended || !self.pieces.is_complete() {
            return;
        }
        if *found == self.nar_hash {
            self.finish(Action::Done);
        } else {
            self.handle_mismatch(now);
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Time) {
        if !self.ended {
            self.thaw_or_freeze(now);
            self.schedule(now);
        }
    }
}
