//! What a fetch hears of its sources: the words in which peers' sessions and upstream's stream
//! report to the driver.

use super::Holder;
use super::sources::Decoded;
use crate::net::PeerError;
use crate::upstream::UpstreamError;
use bytes::Bytes;
use narswarm_protocol::fetch::SourceId;
use narswarm_protocol::hash::{PieceHash, Root};
use narswarm_protocol::piece::PieceList;
use narswarm_protocol::piece_set::PieceSet;
use narswarm_protocol::voucher::Voucher;
use std::sync::Arc;

/// What happens during a fetch.
#[derive(Debug)]
pub enum Event {
    /// A peer is said to hold the nar, or part of it.
    Peer(Holder),
    /// Nobody else is known for now.
    DiscoveryDone,
    /// A peer showed its piece list.
    Opened {
        /// Who.
        id: SourceId,
        /// The root it claims.
        root: Root,
        /// The list.
        list: Arc<PieceList>,
        /// What it can give.
        held: PieceSet,
        /// Who vouches for the root: unchecked.
        vouchers: Vec<Voucher>,
    },
    /// A peer has got more pieces, or (none) has others to serve first.
    Have {
        /// Who.
        id: SourceId,
        /// `(first, count)` of each run.
        ranges: Vec<(u32, u32)>,
    },
    /// A piece begins to come.
    Begun {
        /// Who gives it.
        id: SourceId,
        /// Its place.
        index: u32,
    },
    /// A piece that matched the peer's own list.
    Piece {
        /// Who gave it.
        id: SourceId,
        /// Its place.
        index: u32,
        /// Its octets.
        piece: Decoded,
    },
    /// A piece that didn't decode or match.
    BadPiece {
        /// Who gave it.
        id: SourceId,
        /// Its place.
        index: u32,
    },
    /// A peer doesn't hold a piece.
    Missing {
        /// Who.
        id: SourceId,
        /// Its place.
        index: u32,
    },
    /// A peer has nothing for us.
    Refused {
        /// Who.
        id: SourceId,
        /// Whether only for now.
        busy: bool,
    },
    /// A peer's session ended.
    PeerLost {
        /// Who.
        id: SourceId,
        /// Why.
        error: PeerError,
    },
    /// A piece from upstream.
    UpstreamPiece {
        /// Its place.
        index: u32,
        /// Its octets.
        raw: Bytes,
        /// Their hash.
        hash: PieceHash,
    },
    /// Upstream's stream ended.
    UpstreamEnded {
        /// Why, unless all is well.
        error: Option<UpstreamError>,
    },
}
