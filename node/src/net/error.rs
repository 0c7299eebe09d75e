//! What can go wrong between peers, told apart by who is to blame.

use super::transport::SetupError;
use libp2p::{Multiaddr, PeerId};
use narswarm_protocol::wire::WireError;

/// Why the network could not be started.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The transports could not be set up.
    #[error("cannot set up the network: {0}")]
    Setup(#[from] SetupError),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {reason}; choose another address or port")]
    Listen {
        /// The address.
        address: Multiaddr,
        /// What the transport says.
        reason: String,
    },
    /// No listener came up in time.
    #[error("listening on {address} did not start within {seconds} s")]
    ListenTimeout {
        /// The address.
        address: Multiaddr,
        /// How long it was waited for.
        seconds: u64,
    },
}

/// Why a conversation with a peer failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The peer could not be reached, or no address of it is known.
    #[error("cannot reach {peer}: {reason}")]
    Unreachable {
        /// The peer.
        peer: PeerId,
        /// What the attempts came to.
        reason: String,
    },
    /// The connection or stream ended before the conversation did.
    #[error("{peer} closed the conversation while {doing}")]
    Closed {
        /// The peer.
        peer: PeerId,
        /// What was being waited for.
        doing: &'static str,
    },
    /// The peer took too long.
    #[error("{peer} took too long {doing}")]
    TimedOut {
        /// The peer.
        peer: PeerId,
        /// What was being waited for.
        doing: &'static str,
    },
    /// The peer broke the protocol; blame it.
    #[error("{peer} broke the protocol: {fault}")]
    Violation {
        /// The peer.
        peer: PeerId,
        /// How.
        fault: Box<Fault>,
    },
    /// The peer doesn't speak this protocol.
    #[error("{peer} doesn't speak {protocol}")]
    Refused {
        /// The peer.
        peer: PeerId,
        /// The protocol.
        protocol: &'static str,
    },
    /// The peer is banned.
    #[error("{peer} is banned")]
    Banned {
        /// The peer.
        peer: PeerId,
    },
    /// This node asked for more than the limits allow, or is shutting down: nobody's fault.
    #[error("not asked of {peer}: {reason}")]
    Local {
        /// The peer.
        peer: PeerId,
        /// Which limit, or that the network is shut down.
        reason: &'static str,
    },
}

impl PeerError {
    /// The peer that the conversation was with.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        match *self {
            Self::Unreachable { peer, .. }
            | Self::Closed { peer, .. }
            | Self::TimedOut { peer, .. }
            | Self::Violation { peer, .. }
            | Self::Refused { peer, .. }
            | Self::Banned { peer }
            | Self::Local { peer, .. } => peer,
        }
    }
}

/// How a peer broke the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A message that cannot be read.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// An answer to a hash that was not asked for, or answers out of order.
    #[error("answer {index} to a query of {asked} hashes")]
    AnswerIndex {
        /// The index of the answer.
        index: u32,
        /// How many hashes were asked for.
        asked: usize,
    },
    /// More octets of answers than are allowed.
    #[error("more than {limit} octets of answers")]
    AnswerBytes {
        /// Octets allowed.
        limit: usize,
    },
    /// A request to ask again that makes no progress.
    #[error("asked to be asked again from hash {from} of {asked}")]
    AskAgain {
        /// The hash named.
        from: u32,
        /// How many hashes were asked for.
        asked: usize,
    },
    /// A filter that doesn't begin with its head, or is longer than it said.
    #[error("a filter in another order or size than it said")]
    FilterOrder,
    /// A message about a nar that is not open.
    #[error("a message about slot {slot}, which is not open")]
    Slot {
        /// The slot.
        slot: u32,
    },
    /// A nar was opened or refused twice.
    #[error("slot {slot} was opened or refused twice")]
    OpenedTwice {
        /// The slot.
        slot: u32,
    },
    /// The nar has another size than the signed one.
    #[error("slot {slot} was opened with {found} octets, its signed size is {expected}")]
    NarSize {
        /// The slot.
        slot: u32,
        /// Size in the holder's message.
        found: u64,
        /// Size as signed.
        expected: u64,
    },
    /// The piece list doesn't have the root that the holder names.
    #[error("the root of slot {slot} is not that of its piece list")]
    Root {
        /// The slot.
        slot: u32,
    },
    /// A piece that was not asked for.
    #[error("piece {index} of slot {slot} was not asked for")]
    Unasked {
        /// The slot.
        slot: u32,
        /// The piece.
        index: u32,
    },
    /// A piece whose frame cannot have this length.
    #[error("a frame of {found} octets for piece {index} of slot {slot}, at most {limit} fit")]
    FrameLength {
        /// The slot.
        slot: u32,
        /// The piece.
        index: u32,
        /// Octets announced.
        found: u32,
        /// Octets allowed; for raw frames the exact number.
        limit: usize,
    },
    /// Pieces past the end of a nar.
    #[error("pieces up to {end} of slot {slot}, which has {count}")]
    Range {
        /// The slot.
        slot: u32,
        /// Where the pieces named end.
        end: u32,
        /// Pieces of the nar.
        count: u32,
    },
    /// More pieces were asked for at a time than are allowed.
    #[error("more than {limit} pieces were asked for at a time")]
    TooManyWanted {
        /// Pieces allowed.
        limit: u32,
    },
    /// More nars were opened in one session than are allowed.
    #[error("more than {limit} nars were opened in one session")]
    TooManySlots {
        /// Nars allowed.
        limit: usize,
    },
}
