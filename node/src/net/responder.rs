//! What the network asks of the node on behalf of other peers.
//!
//! Everything here is called on blocking threads, at most
//! [`MAX_BLOCKING_CALLS`](narswarm_protocol::limits::MAX_BLOCKING_CALLS) at a time.

use bytes::Bytes;
use libp2p::PeerId;
use narswarm_protocol::filter::SignedHead;
use narswarm_protocol::hash::{NarHash, Root};
use narswarm_protocol::piece::PieceList;
use narswarm_protocol::piece_set::PieceSet;
use narswarm_protocol::store_path::StoreHash;
use narswarm_protocol::voucher::Voucher;
use narswarm_protocol::wire::fetch::Frame;
use std::io;
use std::sync::Arc;

/// A held item, as one peer tells another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The signed narinfo; from a peer, unverified.
    pub narinfo: Bytes,
    /// The root, when the holder has hashed the nar.
    pub root: Option<Root>,
    /// How many pieces of the nar the holder can give.
    pub pieces_held: u32,
}

/// What is answered to whoever asks for a filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterAnswer {
    /// Which filter it is; from a peer, unverified.
    pub head: SignedHead,
    /// What makes it.
    pub content: FilterContent,
}

/// What makes a filter for somebody who may have an earlier one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilterContent {
    /// Nothing: it is the one that the asker has, or he wants no more than the head.
    Nothing,
    /// What has changed.
    Changes(Bytes),
    /// All of it.
    Whole(Bytes),
}

/// What this node gives to others.
pub trait Responder: Send + Sync + 'static {
    /// Which of these items are held and public, in the order asked for. The network asks for a
    /// hundred at a time; missing answers count as not held.
    fn query(&self, hashes: &[StoreHash]) -> Vec<Option<Held>>;

    /// The filter of what is held, if this node is a seed, for somebody who has that of a series and
    /// generation.
    fn filter(&self, have: Option<(u64, u32)>) -> Option<FilterAnswer> {
        let _ = have;
        None
    }

    /// The content of a nar that `peer` asks for, if it is held, in part at least, and public.
    fn open(&self, peer: PeerId, nar: &NarHash) -> Option<Arc<dyn ServedNar>>;

    /// A piece as one zstd frame that tells its content size, for a line on which that is worth it.
    /// What is no shorter than the piece isn't used, so that the default compresses nothing.
    fn compress(&self, piece: &[u8]) -> Vec<u8> {
        piece.to_vec()
    }

    /// So many octets of pieces have been written to a peer. Called on asynchronous threads.
    fn gave(&self, bytes: u64) {
        let _ = bytes;
    }
}

/// A nar that is being given to others.
pub trait ServedNar: Send + Sync {
    /// The root of its piece list.
    fn root(&self) -> Root;

    /// Its piece list.
    fn list(&self) -> &PieceList;

    /// Reads a piece in the form in which it is stored; `None` when it is not held.
    ///
    /// # Errors
    /// What reading gives; the piece is then reported as missing.
    fn frame(&self, index: u32) -> io::Result<Option<Frame>>;

    /// Which pieces are held now. All, unless said otherwise. While it grows, askers are told what
    /// has been added. Must be quick: unlike the rest it is also called on asynchronous threads.
    fn held(&self) -> PieceSet {
        PieceSet::all(self.list().layout().piece_count())
    }

    /// Who vouches for the root, as far as others should know.
    fn vouchers(&self) -> Vec<Voucher> {
        Vec::new()
    }
}
