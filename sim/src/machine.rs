//! The fetch machine as the simulator drives it: the only place that knows its interface.
//!
//! A [`Sabotage`] makes it err on purpose, between the machine and its driver, so that tests can
//! see that each checker notices what it is there for.

use crate::agenda::{Nanos, nanos, time};
use crate::content::{Listing, NAR_HASH};
use narswarm_protocol::fetch::{
    Action, Discrepancy, Fetch, FetchConfig, PeerHint, SourceId, UpstreamMode,
};
use narswarm_protocol::hash::{NarHash, PieceHash, Root};
use narswarm_protocol::piece::PieceLayout;
use narswarm_protocol::piece_set::PieceSet;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// What a fetch knows when it begins.
#[derive(Debug, Clone)]
pub struct Setup {
    /// How the nar is cut.
    pub layout: PieceLayout,
    /// How swarm and upstream share the work.
    pub mode: UpstreamMode,
    /// Whether there is an upstream.
    pub upstream: bool,
    /// What upstream is known to give, octets a second.
    pub upstream_rate: Option<f64>,
    /// Roots that led to another nar.
    pub condemned: Vec<Root>,
    /// Pieces held from an earlier attempt.
    pub resumed: BTreeMap<u32, PieceHash>,
    /// Breaks ties.
    pub seed: u64,
}

/// What is known of a peer when it is found.
#[derive(Debug, Clone, Copy)]
pub struct Hint {
    /// The root it claims, if it named one.
    pub root: Option<Root>,
    /// Round trip.
    pub round_trip: Nanos,
    /// Its network.
    pub network: u64,
    /// Whether it holds the whole nar.
    pub complete: bool,
}

/// A deliberate error of the machine or its driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// Each request is made twice.
    AskTwice,
    /// Pieces are asked of peers that were dropped.
    AskDropped,
    /// Pieces are asked of peers that don't have them.
    AskMissing,
    /// As much as there is is asked of one peer.
    AskEverything,
    /// Upstream is started again and again.
    RestartUpstream,
    /// A held piece is forgotten.
    Forget,
    /// It doesn't hear that a piece has begun to come.
    MissBeginnings,
    /// Time never passes.
    Sleep,
    /// It wants to be woken at once, for ever.
    Storm,
    /// A wrong verdict is taken for a right one.
    BelieveAnything,
    /// Garbage is taken for a piece.
    AcceptGarbage,
    /// The last piece is given out before the verdict.
    DeliverEarly,
    /// Pieces are given out although the peers disagree.
    DeliverDisputed,
}

/// A machine and what stands between it and its driver.
#[derive(Debug)]
pub struct Machine {
    fetch: Fetch,
    sabotage: Option<Sabotage>,
    extra: VecDeque<Action>,
    pieces: u32,
}

impl Machine {
    /// Begins a fetch.
    #[must_use]
    pub fn new(setup: Setup, sabotage: Option<Sabotage>, now: Nanos) -> Self {
        let pieces = setup.layout.piece_count();
        let config = FetchConfig {
            nar_hash: NAR_HASH,
            layout: setup.layout,
            mode: setup.mode,
            upstream: setup.upstream,
            upstream_rate: setup.upstream_rate,
            condemned: setup.condemned,
            believed: vec![],
            resumed: setup.resumed,
            seed: setup.seed,
        };
        let fetch = Fetch::new(config, time(now));
        Self { fetch, sabotage, extra: VecDeque::new(), pieces }
    }

    /// What to do next.
    pub fn poll_action(&mut self) -> Option<Action> {
        if let Some(action) = self.extra.pop_front() {
            return Some(action);
        }
        let action = self.fetch.poll_action()?;
        Some(self.spoil(action))
    }

    fn spoil(&mut self, action: Action) -> Action {
        match (self.sabotage, &action) {
            (Some(Sabotage::AskTwice), Action::Request { .. }) => {
                self.extra.push_back(action.clone());
            }
            (Some(Sabotage::AskDropped), Action::Drop { source, .. }) => {
                self.extra.push_back(Action::Request { source: *source, first: 0, count: 1 });
            }
            (Some(Sabotage::AskMissing), &Action::Request { source, .. }) => {
                self.extra.push_back(Action::Request { source, first: self.pieces, count: 1 });
            }
            (Some(Sabotage::AskEverything), &Action::Request { source, first, count }) => {
                let rest = self.pieces - first - count;
                self.extra.push_back(Action::Request { source, first: first + count, count: rest });
            }
            (Some(Sabotage::RestartUpstream), Action::StopUpstream) => {
                self.extra.push_back(Action::StartUpstream { from: 0 });
            }
            _ => {}
        }
        action
    }

    /// Whether its books agree with each other.
    ///
    /// # Errors
    /// What doesn't agree.
    pub fn audit(&self) -> Result<(), Discrepancy> {
        self.fetch.audit()
    }

    /// When it wants to be woken.
    #[must_use]
    pub fn poll_timeout(&self, now: Nanos) -> Option<Nanos> {
        match self.sabotage {
            Some(Sabotage::Sleep) => None,
            Some(Sabotage::Storm) => Some(now),
            _ => self.fetch.poll_timeout(time(now)).map(nanos),
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Nanos) {
        self.fetch.handle_timeout(time(now));
    }

    /// The root of the piece list in use.
    #[must_use]
    pub fn root(&self) -> Option<Root> {
        self.fetch.list().map(|(root, _)| root)
    }

    /// Which pieces it says are held.
    #[must_use]
    pub fn held(&self) -> PieceSet {
        let mut held = self.fetch.held().clone();
        if self.sabotage == Some(Sabotage::Forget) && held.len() > 2 {
            let first = held.iter().next().unwrap_or(0);
            held.remove(first);
        }
        held
    }

    /// Whether pieces may go to the reader.
    #[must_use]
    pub fn may_deliver(&self, now: Nanos) -> bool {
        self.sabotage == Some(Sabotage::DeliverDisputed) || self.fetch.may_deliver(time(now))
    }

    /// Whether the last piece may go to the reader before the verdict: never, unless sabotaged.
    #[must_use]
    pub fn may_deliver_last(&self) -> bool {
        self.sabotage == Some(Sabotage::DeliverEarly)
    }

    /// Whether what doesn't match a list is taken for what does: never, unless sabotaged.
    #[must_use]
    pub fn accepts_garbage(&self) -> bool {
        self.sabotage == Some(Sabotage::AcceptGarbage)
    }

    /// A peer was found.
    pub fn handle_peer(&mut self, source: SourceId, hint: Hint, now: Nanos) {
        let hint = PeerHint {
            root: hint.root,
            latency: Duration::from_nanos(hint.round_trip),
            network: hint.network,
            complete: hint.complete,
        };
        self.fetch.handle_peer(source, hint, time(now));
    }

    /// Nobody else is known for now.
    pub fn handle_discovery_done(&mut self, now: Nanos) {
        self.fetch.handle_discovery_done(time(now));
    }

    /// A peer showed its list.
    pub fn handle_opened(
        &mut self,
        source: SourceId,
        listing: &Listing,
        held: PieceSet,
        now: Nanos,
    ) {
        let list = Arc::clone(&listing.list);
        self.fetch.handle_opened(source, listing.root, list, held, time(now));
    }

    /// A peer holds more pieces; none: it has the asker in its queue.
    pub fn handle_have(&mut self, source: SourceId, ranges: &[(u32, u32)], now: Nanos) {
        self.fetch.handle_have(source, ranges, time(now));
    }

    /// A peer doesn't hold a piece after all.
    pub fn handle_missing(&mut self, source: SourceId, index: u32, now: Nanos) {
        self.fetch.handle_missing(source, index, time(now));
    }

    /// A peer gives nothing.
    pub fn handle_refused(&mut self, source: SourceId, busy: bool, now: Nanos) {
        self.fetch.handle_refused(source, busy, time(now));
    }

    /// Octets came from a peer.
    pub fn handle_progress(&mut self, source: SourceId, bytes: u64, now: Nanos) {
        self.fetch.handle_progress(source, bytes, time(now));
    }

    /// A piece begins to come.
    pub fn handle_begun(&mut self, source: SourceId, index: u32, now: Nanos) {
        if self.sabotage != Some(Sabotage::MissBeginnings) {
            self.fetch.handle_begun(source, index, time(now));
        }
    }

    /// A piece came that fits its giver's list; says whether it is new and wanted.
    pub fn handle_piece(&mut self, source: SourceId, index: u32, now: Nanos) -> bool {
        self.fetch.handle_piece(source, index, time(now))
    }

    /// A piece came that doesn't fit its giver's list.
    pub fn handle_bad_piece(&mut self, source: SourceId, index: u32, now: Nanos) {
        self.fetch.handle_bad_piece(source, index, time(now));
    }

    /// A conversation has broken off.
    pub fn handle_broken(&mut self, source: SourceId, again: SourceId, now: Nanos) -> bool {
        self.fetch.handle_broken(source, again, time(now))
    }

    /// Octets came from upstream.
    pub fn handle_upstream_progress(&mut self, bytes: u64, now: Nanos) {
        self.fetch.handle_upstream_progress(bytes, time(now));
    }

    /// Upstream gave a piece; says whether it is new.
    pub fn handle_upstream_piece(&mut self, index: u32, piece: PieceHash, now: Nanos) -> bool {
        self.fetch.handle_upstream_piece(index, piece, time(now))
    }

    /// Upstream's stream ended.
    pub fn handle_upstream_ended(&mut self, now: Nanos) {
        self.fetch.handle_upstream_ended(time(now));
    }

    /// The reader has come to a piece, and at most so many may be fetched ahead of it.
    pub fn handle_reader(&mut self, index: u32, ahead: Option<u32>, now: Nanos) {
        self.fetch.handle_reader(index, time(now));
        if let Some(ahead) = ahead {
            self.fetch.handle_horizon(index, ahead, time(now));
        }
    }

    /// All pieces are held and hash to this.
    pub fn handle_nar_hash(&mut self, found: &NarHash, now: Nanos) {
        let believed = self.sabotage == Some(Sabotage::BelieveAnything);
        self.fetch.handle_nar_hash(if believed { &NAR_HASH } else { found }, time(now));
    }
}
