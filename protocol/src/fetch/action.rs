//! What a fetch tells its driver to do, and the words for it.

use crate::hash::Root;

/// Who takes part in a fetch, besides upstream: a peer, by a number of the driver's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(pub u32);

/// How swarm and upstream share the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UpstreamMode {
    /// Upstream joins when the swarm has nobody, or is late.
    #[default]
    SwarmFirst,
    /// Both begin at once.
    Race,
    /// Upstream is never asked.
    SwarmOnly,
    /// Peers are never asked.
    UpstreamOnly,
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
        /// How many.
        count: u32,
    },
    /// Ask a peer for pieces.
    Request {
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
    /// Upstream and the swarm gave different octets; one of them is wrong.
    #[error("upstream and the swarm disagree on the content")]
    Contradiction {
        /// The swarm's root.
        root: Option<Root>,
    },
}
