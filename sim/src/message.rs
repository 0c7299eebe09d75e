//! What hosts say to each other. Octets on the wire are estimated: they matter where many small
//! messages add up.

use crate::content::Version;
use narswarm_protocol::hash::PieceHash;
use narswarm_protocol::piece_set::PieceSet;

/// A conversation between an asker and a holder about the nar; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u32);

/// From the asker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Show the piece list, and give these pieces.
    Open {
        /// First piece.
        first: u32,
        /// How many.
        count: u32,
    },
    /// Give these pieces.
    Want {
        /// First piece.
        first: u32,
        /// How many.
        count: u32,
    },
    /// Don't give these pieces.
    Cancel {
        /// First piece.
        first: u32,
        /// How many.
        count: u32,
    },
    /// Forget this conversation.
    Close,
}

/// From the holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The piece list and what is held.
    Opened {
        /// Which list.
        version: Version,
        /// Whether the root it names is another than the list's.
        broken: bool,
        /// What is held.
        held: PieceSet,
    },
    /// Nothing will come.
    Refused {
        /// Only for now.
        busy: bool,
    },
    /// These are held as well; none: the asker waits in a queue.
    Have(Vec<(u32, u32)>),
    /// A wanted piece isn't held.
    Missing(u32),
    /// A piece.
    Piece {
        /// Its place.
        index: u32,
        /// What it is.
        piece: PieceHash,
    },
}

impl Reply {
    /// Octets on the wire besides those of a piece, roughly.
    #[must_use]
    pub fn overhead_bytes(&self, pieces: u32) -> u64 {
        match self {
            Self::Opened { .. } => 200 + u64::from(pieces) * 32 + u64::from(pieces / 8),
            Self::Have(ranges) => 60 + 8 * ranges.len() as u64,
            Self::Refused { .. } | Self::Missing(_) => 60,
            Self::Piece { .. } => 50,
        }
    }
}
