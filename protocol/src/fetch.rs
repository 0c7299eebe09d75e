//! Fetching one nar: whom to ask for which piece, and what to do when it goes wrong.
//!
//! [`Fetch`] is a state machine without I/O. Events go in by `handle_*`, each with the time;
//! [`Fetch::poll_action`] gives what the driver shall do, [`Fetch::poll_timeout`] when it wants to
//! be woken. The driver decodes, checks a piece against the piece list ([`Fetch::list`]) and
//! hashes the nar in order; the machine only hears the verdicts.
//!
//! ```text
//!  peers ──► Open ──► Opened (piece list, first pieces) ──► windows of pieces ──┐
//!    │         └── frozen, lost, lying: its pieces are asked of another         ├─► hashed ─► Done
//!  upstream ──────► a sequential stream from the head, when the swarm is late ──┘      └──► Failed
//! ```
//!
//! Pieces are asked for in order, so that the reader can follow; while upstream streams from the
//! head, peers work from the tail. Guix signs only the whole nar, so a piece list is a hint: when
//! the nar's hash comes out wrong, everyone who showed that list is condemned.

mod action;
mod decide;
mod source;
#[cfg(test)]
mod tests;

pub use action::{Action, Failure, Fault, SourceId, UpstreamMode};

use crate::hash::{NarHash, Root};
use crate::limits;
use crate::piece::{PieceLayout, PieceList};
use source::{Source, Stage};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Add;
use std::time::Duration;

/// A moment on the driver's clock, counted from any fixed start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Time(pub Duration);

impl Time {
    /// How long ago `earlier` was; nothing when it lies ahead.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Time {
    type Output = Self;
    fn add(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(wait))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    Missing,
    Asked,
    Held,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Upstream {
    /// Not to be asked: none, not allowed, or given up.
    Out,
    /// May be started.
    Ready,
    Running,
}

/// The state of one fetch.
#[derive(Debug)]
pub struct Fetch {
    nar_hash: NarHash,
    layout: PieceLayout,
    mode: UpstreamMode,
    started: Time,
    pieces: Vec<Piece>,
    held: u32,
    /// Every piece before it is asked for or held.
    head: u32,
    /// Nothing at or beyond it is asked for, so that a reader without a disk behind it is not
    /// overrun.
    horizon: u32,
    sources: BTreeMap<SourceId, Source>,
    list: Option<(Root, PieceList)>,
    condemned: Vec<Root>,
    upstream: Upstream,
    upstream_tries: u32,
    upstream_used: bool,
    /// Discovery has said that it knows nobody else for now.
    discovery_done: bool,
    /// Since when there has been nobody to ask.
    alone_since: Option<Time>,
    actions: VecDeque<Action>,
    ended: bool,
}

impl Fetch {
    /// Begins to fetch the nar of this hash and (signed) layout.
    ///
    /// `upstream` says whether there is one that may have it; roots in `condemned` are not used.
    #[must_use]
    pub fn new(
        nar_hash: NarHash,
        layout: PieceLayout,
        mode: UpstreamMode,
        upstream: bool,
        condemned: Vec<Root>,
        now: Time,
    ) -> Self {
        let allowed = upstream && mode != UpstreamMode::SwarmOnly;
        let mut fetch = Self {
            nar_hash,
            layout,
            mode,
            started: now,
            pieces: vec![Piece::Missing; layout.piece_count() as usize],
            held: 0,
            head: 0,
            horizon: u32::MAX,
            sources: BTreeMap::new(),
            list: None,
            condemned,
            upstream: if allowed { Upstream::Ready } else { Upstream::Out },
            upstream_tries: 0,
            upstream_used: false,
            discovery_done: mode == UpstreamMode::UpstreamOnly,
            alone_since: Some(now),
            actions: VecDeque::new(),
            ended: false,
        };
        if matches!(mode, UpstreamMode::Race | UpstreamMode::UpstreamOnly) {
            fetch.start_upstream();
        }
        fetch
    }

    /// The piece list in use, against which peers' pieces are checked.
    #[must_use]
    pub fn list(&self) -> Option<&PieceList> {
        self.list.as_ref().map(|(_, list)| list)
    }

    /// How many pieces are held.
    #[must_use]
    pub fn held(&self) -> u32 {
        self.held
    }

    /// How many peers give pieces now.
    #[must_use]
    pub fn active_peers(&self) -> usize {
        self.sources.values().filter(|s| s.stage == Stage::Active).count()
    }

    /// Octets a second that peers give now.
    #[must_use]
    pub fn swarm_rate(&self) -> f64 {
        self.sources.values().filter(|s| s.stage == Stage::Active).map(Source::rate).sum()
    }

    /// What to do next, if anything.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Fetch::handle_timeout`] wants to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        if self.ended {
            return None;
        }
        let frozen = self.sources.values().filter_map(Source::freezes_at);
        let patience = (self.upstream == Upstream::Ready && !self.swarm_gives())
            .then(|| self.started + limits::UPSTREAM_PATIENCE);
        let alone = self.alone_since.map(|since| since + limits::NO_SOURCE_PATIENCE);
        frozen.chain(patience).chain(alone).min()
    }

    /// A peer is said to hold the nar, under this root if one was named.
    pub fn handle_peer(
        &mut self,
        source: SourceId,
        root: Option<Root>,
        latency: Duration,
        now: Time,
    ) {
        let unwelcome = self.ended
            || self.mode == UpstreamMode::UpstreamOnly
            || self.sources.len() >= limits::MAX_SOURCES
            || self.sources.contains_key(&source);
        if unwelcome || root.is_some_and(|root| self.condemned.contains(&root)) {
            self.actions.push_back(Action::Drop { source, fault: None });
            return;
        }
        self.sources.insert(source, Source::new(root, latency, now));
        self.schedule(now);
    }

    /// Discovery knows nobody else for now.
    pub fn handle_discovery_done(&mut self, now: Time) {
        self.discovery_done = true;
        self.schedule(now);
    }

    /// A peer has shown its piece list.
    pub fn handle_opened(&mut self, source: SourceId, root: Root, list: PieceList, now: Time) {
        let Some(entry) = self.sources.get_mut(&source).filter(|_| !self.ended) else { return };
        let sound = list.layout() == self.layout
            && list.root(&self.nar_hash) == root
            && entry.root.is_none_or(|promised| promised == root);
        if !sound {
            return self.drop_source(source, Some(Fault::BadList), now);
        }
        if self.condemned.contains(&root) {
            return self.drop_source(source, None, now);
        }
        entry.root = Some(root);
        entry.moved(0, self.layout.piece_size(), now);
        match &self.list {
            Some((used, _)) if *used != root => {
                entry.stage = Stage::Reserve;
                self.release(source);
            }
            _ => {
                entry.stage = Stage::Active;
                self.list.get_or_insert((root, list));
            }
        }
        self.schedule(now);
    }

    /// A peer doesn't have the nar after all, is busy, or is gone.
    pub fn handle_source_lost(&mut self, source: SourceId, fault: Option<Fault>, now: Time) {
        if self.sources.contains_key(&source) {
            self.drop_source(source, fault, now);
        }
    }

    /// Octets of a piece are coming in, though it isn't whole yet.
    pub fn handle_progress(&mut self, source: SourceId, now: Time) {
        if let Some(entry) = self.sources.get_mut(&source) {
            entry.last_progress = now;
            if entry.stage == Stage::Frozen {
                entry.stage = Stage::Active;
            }
        }
    }

    /// A peer's piece matched its piece list. Says whether it is new and wanted: what a peer with
    /// another list gives, or one that was dropped, is not.
    pub fn handle_piece(&mut self, source: SourceId, index: u32, now: Time) -> bool {
        let bytes = self.layout.piece_len(index) as u64;
        let Some(entry) = self.sources.get_mut(&source) else { return false };
        entry.outstanding.remove(&index);
        if !matches!(entry.stage, Stage::Active | Stage::Frozen) {
            return false;
        }
        entry.stage = Stage::Active;
        entry.moved(bytes, self.layout.piece_size(), now);
        let new = self.hold(index);
        self.schedule(now);
        new
    }

    /// A peer's piece didn't match the piece list.
    pub fn handle_bad_piece(&mut self, source: SourceId, now: Time) {
        self.handle_source_lost(source, Some(Fault::BadPiece), now);
    }

    /// Upstream gave a piece, which didn't contradict the piece list. Says whether it is new.
    pub fn handle_upstream_piece(&mut self, index: u32, now: Time) -> bool {
        let new = self.hold(index);
        self.upstream_used |= new;
        self.schedule(now);
        new
    }

    /// Upstream gave another piece than the piece list demands.
    pub fn handle_contradiction(&mut self) {
        let root = self.list.as_ref().map(|(root, _)| *root);
        self.fail(Failure::Contradiction { root });
    }

    /// Upstream's stream ended: well when everything came, else early.
    pub fn handle_upstream_ended(&mut self, now: Time) {
        if self.upstream == Upstream::Running {
            let again = self.upstream_tries < limits::UPSTREAM_TRIES;
            self.upstream = if again { Upstream::Ready } else { Upstream::Out };
            self.schedule(now);
        }
    }

    /// The reader has come to piece `reader`; at most `ahead` pieces may be fetched beyond it.
    pub fn handle_horizon(&mut self, reader: u32, ahead: u32, now: Time) {
        self.horizon = reader.saturating_add(ahead);
        self.head = self.head.min(reader);
        self.schedule(now);
    }

    /// The whole nar has been hashed.
    pub fn handle_nar_hash(&mut self, found: &NarHash) {
        if self.ended {
            return;
        }
        if *found == self.nar_hash {
            self.finish(Action::Done);
            return;
        }
        let root = self.list.as_ref().map(|(root, _)| *root);
        if root.is_some() {
            // Honest peers share only what they have hashed as a whole, so whoever shows this
            // root lies.
            for (&source, _) in self.sources.iter().filter(|(_, s)| s.root == root) {
                let fault = Some(Fault::FalseRoot);
                self.actions.push_back(Action::Drop { source, fault });
            }
            self.sources.retain(|_, s| s.root != root);
        }
        self.fail(Failure::Mismatch { root, upstream: self.upstream_used });
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.ended {
            return;
        }
        let due: Vec<_> = self
            .sources
            .iter()
            .filter(|(_, s)| s.freezes_at().is_some_and(|at| at <= now))
            .map(|(&id, s)| (id, s.stage))
            .collect();
        for (id, stage) in due {
            if stage == Stage::Frozen {
                self.drop_source(id, None, now);
                continue;
            }
            self.release(id);
            if let Some(source) = self.sources.get_mut(&id) {
                source.stage = Stage::Frozen;
            }
        }
        self.schedule(now);
    }
}
