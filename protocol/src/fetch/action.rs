//! What a fetch is told, what it tells its driver to do, and the words for it.

use crate::hash::{NarHash, PieceHash, Root};
use crate::piece::PieceLayout;
use std::collections::BTreeMap;
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

/// Who takes part in a fetch, besides upstream: a peer, by a number of the driver's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(pub u32);

/// How swarm and upstream share the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UpstreamMode {
    /// Upstream joins when the swarm has nobody, or is late or slow, and leaves when the swarm
    /// suffices.
    #[default]
    SwarmFirst,
    /// Both begin at once.
    Race,
    /// Upstream is never asked.
    SwarmOnly,
    /// Peers are never asked.
    UpstreamOnly,
}

/// What a fetch is to do, and what is known before it begins.
#[derive(Debug, Clone)]
pub struct FetchConfig {
    /// The nar.
    pub nar_hash: NarHash,
    /// Its layout, which follows from its signed size.
    pub layout: PieceLayout,
    /// How swarm and upstream share the work.
    pub mode: UpstreamMode,
    /// Whether there is an upstream that may have it.
    pub upstream: bool,
    /// Octets of nar a second that upstream gave lately.
    pub upstream_rate: Option<f64>,
    /// Roots that led to another nar.
    pub condemned: Vec<Root>,
    /// Roots for which somebody vouches who is believed.
    pub believed: Vec<Root>,
    /// Pieces that an earlier attempt has left behind, each with its hash.
    pub resumed: BTreeMap<u32, PieceHash>,
    /// Breaks ties, differently on each node.
    pub seed: u64,
}

/// What is known of a peer before it has been asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerHint {
    /// The root that it claims, if it named one.
    pub root: Option<Root>,
    /// Round trip to it.
    pub latency: Duration,
    /// Which network it is in: agreement counts only between different ones.
    pub network: u64,
    /// Whether it says that it has the whole nar.
    pub complete: bool,
}

/// What the driver shall do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Ask a peer for the piece list, and at once for `count` pieces from `first` on.
    Open {
        /// The peer.
        source: SourceId,
        /// First piece.
        first: u32,
        /// How many; may be none.
        count: u32,
    },
    /// Ask a peer for pieces; the peer may not have answered the opening yet.
    Request {
        /// The peer.
        source: SourceId,
        /// First piece.
        first: u32,
        /// How many.
        count: u32,
    },
    /// Take back what was asked of a peer; it may come nevertheless.
    Cancel {
        /// The peer.
        source: SourceId,
        /// First piece.
        first: u32,
        /// How many.
        count: u32,
    },
    /// Stop talking with a peer about this nar; with a fault, hold it against the peer.
    Drop {
        /// The peer.
        source: SourceId,
        /// What it did wrong, if anything.
        fault: Option<Fault>,
    },
    /// Stream the nar from upstream; pieces before `from` are held already and may be skipped.
    StartUpstream {
        /// First piece of interest.
        from: u32,
    },
    /// Upstream's stream is no longer needed.
    StopUpstream,
    /// A piece that was held is wrong by the piece list used from now on: forget it.
    Discard {
        /// The piece.
        index: u32,
    },
    /// A root led to another nar than the signed one: it is not to be used again.
    Condemn {
        /// The root.
        root: Root,
    },
    /// All pieces are held and hash to the NarHash.
    Done,
    /// The fetch cannot go on.
    Failed(Failure),
}

/// What a peer did wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// A piece that doesn't match the piece list.
    BadPiece,
    /// A piece list that doesn't hash to its root or doesn't fit the NarSize.
    BadList,
    /// A piece list that led to another nar than the signed one.
    FalseRoot,
    /// Something else than the protocol allows.
    Protocol,
}

/// Why a fetch ended without the nar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Nobody is left who could give the nar.
    #[error("no peer and no upstream has it now")]
    NoSource,
    /// The whole nar has another hash than the signed one.
    #[error("what was received doesn't have the signed hash")]
    Mismatch {
        /// The root that led there, if peers took part.
        root: Option<Root>,
        /// Whether upstream's octets were among them.
        upstream: bool,
    },
    /// Upstream and the swarm gave different octets, or the swarm changed its mind about what the
    /// reader already has; one of them is wrong.
    #[error("sources disagree on the content")]
    Contradiction {
        /// The root that is not used any more.
        root: Option<Root>,
    },
}
