//! `/narswarm/fetch/1`: pieces of several nars on one long-lived stream.
//!
//! The asker gives each nar a *slot*, a number of its choosing, and may ask for pieces before the
//! nar is known to be held. Per slot, the holder answers [`FetchReply::Opened`] or
//! [`FetchReply::Refused`] first, and then each wanted piece with [`FetchReply::Piece`] or
//! [`FetchReply::Missing`], in the order asked for, except those that were cancelled in time. The
//! octets of a piece follow its message outside the CBOR. While the holder is itself still
//! fetching it tells with [`FetchReply::Have`] what it has got since.
//!
//! A holder that is asked for more than [`MAX_WANTED_PIECES`](crate::limits::MAX_WANTED_PIECES)
//! at a time ends the session; so does an asker that is sent what it didn't ask for.

mod body;

use super::{Message, WireError, read_body, write_body};
use crate::hash::{NarHash, PieceHash, Root};
use crate::limits::{
    MAX_FETCH_SMALL_BODY_BYTES, MAX_HAVE_BODY_BYTES, MAX_HAVE_RANGES, MAX_NAR_BYTES,
    MAX_OPENED_BODY_BYTES, MAX_PIECES, MAX_VOUCHERS,
};
use crate::piece::{PieceLayout, PieceList};
use crate::piece_set::PieceSet;
use crate::voucher::Voucher;
use bytes::Bytes;

/// The name under which libp2p negotiates this protocol.
pub const PROTOCOL: &str = "/narswarm/fetch/1";

/// How the octets of a piece travel and are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// As they are in the nar.
    Raw,
    /// As one zstd frame.
    Zstd,
}

/// A piece as it travels and as it is stored: unchecked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// How to read the octets.
    pub encoding: Encoding,
    /// The octets.
    pub bytes: Bytes,
}

impl Encoding {
    /// The longest frame of a piece of `piece_len` octets: for zstd its own compression bound
    /// (`ZSTD_COMPRESSBOUND`), which what doesn't compress stays within.
    #[must_use]
    pub fn max_frame_bytes(self, piece_len: usize) -> usize {
        const SMALL: usize = 128 * 1024;
        match self {
            Self::Raw => piece_len,
            Self::Zstd => piece_len + (piece_len >> 8) + (SMALL.saturating_sub(piece_len) >> 11),
        }
    }

    fn to_wire(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Zstd => 1,
        }
    }
}

/// What an asker says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchRequest {
    /// Opens a nar and asks for its first pieces at once.
    Open {
        /// The number by which both sides will call this nar.
        slot: u32,
        /// The nar.
        nar_hash: NarHash,
        /// Its size as signed, from which the layout of the pieces follows.
        nar_size: u64,
        /// The first piece wanted.
        first: u32,
        /// How many pieces are wanted from there on; may be none.
        count: u32,
    },
    /// Asks for pieces.
    Want {
        /// The nar.
        slot: u32,
        /// The first piece wanted.
        first: u32,
        /// How many pieces are wanted from there on.
        count: u32,
    },
    /// Takes back a wish. What is already on its way still arrives.
    Cancel {
        /// The nar.
        slot: u32,
        /// The first piece that is no longer wanted.
        first: u32,
        /// How many pieces are no longer wanted from there on.
        count: u32,
    },
    /// Forgets a nar and everything wanted of it. The slot may be used again once the holder's
    /// pieces on their way have arrived, so better choose a new one.
    Close {
        /// The nar.
        slot: u32,
    },
}

/// Why a nar is not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RefusedReason {
    /// The nar is not held, or not public.
    NotHeld,
    /// Held, but there is no room for another reader now.
    Busy,
    /// A nar of this hash has another size.
    SizeDiffers,
    /// A reason that a later version has added.
    Other,
}

/// What a holder says in frames; the octets of a piece follow outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FetchReply {
    /// The nar is held, in part at least.
    Opened(Opened),
    /// The nar is not opened; nothing of what was wanted of it will come.
    Refused {
        /// The nar.
        slot: u32,
        /// Why.
        reason: RefusedReason,
    },
    /// The octets of a piece follow.
    Piece(PieceHead),
    /// A wanted piece is not held.
    Missing {
        /// The nar.
        slot: u32,
        /// The piece.
        index: u32,
    },
    /// Pieces that have become available.
    Have {
        /// The nar.
        slot: u32,
        /// `(first, count)` of each run of pieces.
        ranges: Vec<(u32, u32)>,
    },
}

/// A holder's description of a nar. Its list is a hint until the whole nar has been hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// The nar.
    pub slot: u32,
    /// What the holder claims as the root; it has yet to be compared with the list's.
    pub root: Root,
    /// The hash of each piece.
    pub list: PieceList,
    /// Which pieces the holder can give now.
    pub held: PieceSet,
    /// Who vouches for the root: unchecked.
    pub vouchers: Vec<Voucher>,
}

/// What precedes the octets of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PieceHead {
    /// The nar.
    pub slot: u32,
    /// The piece.
    pub index: u32,
    /// How the octets are to be read.
    pub encoding: Encoding,
    /// How many octets follow.
    pub len: u32,
}

/// A reply with the octets of its piece: what a session hands to its user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FetchResponse {
    /// See [`FetchReply::Opened`].
    Opened(Opened),
    /// See [`FetchReply::Refused`].
    Refused {
        /// The nar.
        slot: u32,
        /// Why.
        reason: RefusedReason,
    },
    /// A piece begins to come, for those who want to know.
    Begun {
        /// The nar.
        slot: u32,
        /// The piece.
        index: u32,
    },
    /// A piece, unchecked but for its length.
    Piece {
        /// The nar.
        slot: u32,
        /// The piece.
        index: u32,
        /// Its octets as they travelled.
        frame: Frame,
    },
    /// See [`FetchReply::Missing`].
    Missing {
        /// The nar.
        slot: u32,
        /// The piece.
        index: u32,
    },
    /// See [`FetchReply::Have`].
    Have {
        /// The nar.
        slot: u32,
        /// `(first, count)` of each run of pieces.
        ranges: Vec<(u32, u32)>,
    },
}

impl FetchResponse {
    /// Which nar it concerns.
    #[must_use]
    pub fn slot(&self) -> u32 {
        match self {
            Self::Opened(opened) => opened.slot,
            Self::Refused { slot, .. }
            | Self::Begun { slot, .. }
            | Self::Piece { slot, .. }
            | Self::Missing { slot, .. }
            | Self::Have { slot, .. } => *slot,
        }
    }
}

/// The kinds of the messages; a kind keeps its meaning for ever.
mod kind {
    pub const OPEN: u8 = 1;
    pub const WANT: u8 = 2;
    pub const CANCEL: u8 = 3;
    pub const CLOSE: u8 = 4;
    pub const OPENED: u8 = 17;
    pub const REFUSED: u8 = 18;
    pub const PIECE: u8 = 19;
    pub const MISSING: u8 = 20;
    pub const HAVE: u8 = 21;
}

/// Checks that a field is at most `limit`.
fn at_most<M: Message>(field: &'static str, found: u64, limit: u64) -> Result<(), WireError> {
    if found <= limit {
        return Ok(());
    }
    Err(WireError::Field { message: M::NAME, field, found, limit })
}

/// Checks that a range of pieces lies within the longest piece list.
fn check_range<M: Message>(first: u32, count: u32) -> Result<(), WireError> {
    let end = u64::from(first) + u64::from(count);
    at_most::<M>("the end of the range of pieces", end, MAX_PIECES.into())
}

impl Message for FetchRequest {
    const NAME: &'static str = "fetch request";

    fn limit(kind: u8) -> Option<usize> {
        (kind::OPEN..=kind::CLOSE).contains(&kind).then_some(MAX_FETCH_SMALL_BODY_BYTES)
    }

    fn decode(kind: u8, octets: &[u8]) -> Result<Self, WireError> {
        if kind == kind::OPEN {
            let body::Open { slot, nar_hash, nar_size, first, count } =
                read_body::<Self, _>(kind, octets)?;
            check_range::<Self>(first, count)?;
            at_most::<Self>("the nar's size", nar_size, MAX_NAR_BYTES)?;
            return Ok(Self::Open { slot, nar_hash, nar_size, first, count });
        }
        if kind == kind::CLOSE {
            let body::Close { slot } = read_body::<Self, _>(kind, octets)?;
            return Ok(Self::Close { slot });
        }
        let body::Range { slot, first, count } = read_body::<Self, _>(kind, octets)?;
        check_range::<Self>(first, count)?;
        match kind {
            kind::WANT => Ok(Self::Want { slot, first, count }),
            kind::CANCEL => Ok(Self::Cancel { slot, first, count }),
            kind => Err(WireError::Kind { message: Self::NAME, kind }),
        }
    }

    fn encode_body(&self, out: &mut Vec<u8>) -> u8 {
        match *self {
            Self::Open { slot, nar_hash, nar_size, first, count } => {
                write_body(&body::Open { slot, nar_hash, nar_size, first, count }, out);
                kind::OPEN
            }
            Self::Want { slot, first, count } => {
                write_body(&body::Range { slot, first, count }, out);
                kind::WANT
            }
            Self::Cancel { slot, first, count } => {
                write_body(&body::Range { slot, first, count }, out);
                kind::CANCEL
            }
            Self::Close { slot } => {
                write_body(&body::Close { slot }, out);
                kind::CLOSE
            }
        }
    }
}

impl Message for FetchReply {
    const NAME: &'static str = "fetch reply";

    fn limit(kind: u8) -> Option<usize> {
        match kind {
            kind::OPENED => Some(MAX_OPENED_BODY_BYTES),
            kind::HAVE => Some(MAX_HAVE_BODY_BYTES),
            kind::REFUSED | kind::PIECE | kind::MISSING => Some(MAX_FETCH_SMALL_BODY_BYTES),
            _ => None,
        }
    }

    fn decode(kind: u8, octets: &[u8]) -> Result<Self, WireError> {
        match kind {
            kind::OPENED => decode_opened(read_body::<Self, _>(kind, octets)?),
            kind::REFUSED => {
                let body::Refused { slot, reason } = read_body::<Self, _>(kind, octets)?;
                Ok(Self::Refused { slot, reason: RefusedReason::from_wire(reason) })
            }
            kind::PIECE => {
                let body::Piece { slot, index, encoding, len } =
                    read_body::<Self, _>(kind, octets)?;
                at_most::<Self>("the piece's index", index.into(), u64::from(MAX_PIECES) - 1)?;
                at_most::<Self>("the piece's encoding", encoding.into(), 1)?;
                let encoding = if encoding == 0 { Encoding::Raw } else { Encoding::Zstd };
                Ok(Self::Piece(PieceHead { slot, index, encoding, len }))
            }
            kind::MISSING => {
                let body::Missing { slot, index } = read_body::<Self, _>(kind, octets)?;
                at_most::<Self>("the piece's index", index.into(), u64::from(MAX_PIECES) - 1)?;
                Ok(Self::Missing { slot, index })
            }
            kind::HAVE => decode_have(read_body::<Self, _>(kind, octets)?),
            kind => Err(WireError::Kind { message: Self::NAME, kind }),
        }
    }

    fn encode_body(&self, out: &mut Vec<u8>) -> u8 {
        match self {
            Self::Opened(opened) => encode_opened(opened, out),
            &Self::Refused { slot, reason } => {
                write_body(&body::Refused { slot, reason: reason.to_wire() }, out);
                kind::REFUSED
            }
            &Self::Piece(PieceHead { slot, index, encoding, len }) => {
                write_body(&body::Piece { slot, index, encoding: encoding.to_wire(), len }, out);
                kind::PIECE
            }
            &Self::Missing { slot, index } => {
                write_body(&body::Missing { slot, index }, out);
                kind::MISSING
            }
            Self::Have { slot, ranges } => {
                let octets = |&(first, count): &(u32, u32)| {
                    first.to_be_bytes().into_iter().chain(count.to_be_bytes())
                };
                let ranges = ranges.iter().flat_map(octets).collect();
                write_body(&body::Have { slot: *slot, ranges }, out);
                kind::HAVE
            }
        }
    }
}

fn decode_opened(body: body::Opened) -> Result<FetchReply, WireError> {
    let body::Opened { slot, root, nar_size, list, held, vouchers } = body;
    let layout = PieceLayout::new(nar_size);
    let wrong = |field, found: usize, limit: u64| {
        let found = found as u64;
        Err(WireError::Field { message: FetchReply::NAME, field, found, limit })
    };
    let Some(layout) = layout else {
        return at_most::<FetchReply>("the nar's size", nar_size, MAX_NAR_BYTES).and(wrong(
            "the nar's size",
            0,
            MAX_NAR_BYTES,
        ));
    };
    let (hashes, rest) = list.as_chunks::<32>();
    let count = layout.piece_count();
    let hashes = hashes.iter().copied().map(PieceHash).collect();
    let Some(list_read) = PieceList::new(layout, hashes).ok().filter(|_| rest.is_empty()) else {
        return wrong("the length of the piece list", list.len(), u64::from(count) * 32);
    };
    let held = match held {
        None => Some(PieceSet::all(count)),
        Some(bits) => PieceSet::from_bits(&bits, count),
    };
    let Some(held) = held else {
        return wrong("the bitfield of available pieces", 0, count.into());
    };
    let (vouchers, rest) = vouchers.as_chunks::<{ Voucher::BYTES }>();
    at_most::<FetchReply>("octets after the last voucher", rest.len() as u64, 0)?;
    at_most::<FetchReply>("the number of vouchers", vouchers.len() as u64, MAX_VOUCHERS as u64)?;
    let vouchers = vouchers.iter().map(Voucher::from_bytes).collect();
    Ok(FetchReply::Opened(Opened { slot, root, list: list_read, held, vouchers }))
}

fn encode_opened(opened: &Opened, out: &mut Vec<u8>) -> u8 {
    let Opened { slot, root, list, held, vouchers } = opened;
    let body = body::Opened {
        slot: *slot,
        root: *root,
        nar_size: list.layout().nar_size(),
        list: list.hashes().iter().flat_map(|hash| hash.0).collect(),
        held: (!held.is_all()).then(|| held.as_bits().to_vec()),
        vouchers: vouchers.iter().flat_map(Voucher::to_bytes).collect(),
    };
    write_body(&body, out);
    kind::OPENED
}

fn decode_have(body: body::Have) -> Result<FetchReply, WireError> {
    let (pairs, rest) = body.ranges.as_chunks::<8>();
    at_most::<FetchReply>("octets after the last range", rest.len() as u64, 0)?;
    at_most::<FetchReply>("the number of ranges", pairs.len() as u64, MAX_HAVE_RANGES as u64)?;
    let mut ranges = Vec::with_capacity(pairs.len());
    for &[a, b, c, d, e, f, g, h] in pairs {
        let (first, count) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
        check_range::<FetchReply>(first, count)?;
        ranges.push((first, count));
    }
    Ok(FetchReply::Have { slot: body.slot, ranges })
}

impl RefusedReason {
    fn to_wire(self) -> u8 {
        match self {
            Self::Other => 0,
            Self::NotHeld => 1,
            Self::Busy => 2,
            Self::SizeDiffers => 3,
        }
    }

    fn from_wire(reason: u8) -> Self {
        match reason {
            1 => Self::NotHeld,
            2 => Self::Busy,
            3 => Self::SizeDiffers,
            _ => Self::Other,
        }
    }
}
