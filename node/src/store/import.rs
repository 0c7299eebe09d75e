//! A nar on its way in as a stream: cut, hashed and compressed as it comes.

use super::Store;
use super::error::StoreError;
use super::frame::encode_piece;
use super::held::HeldNar;
use super::partial::PartialNar;
use narswarm_protocol::hash::{NarHash, PieceHash};
use narswarm_protocol::piece::{PieceLayout, PieceList, hash_piece};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Writes a nar into the cache from its uncompressed octets. Dropped before it is finished, it
/// leaves nothing.
#[derive(Debug)]
pub struct NarWriter {
    partial: PartialNar,
    layout: PieceLayout,
    hasher: Sha256,
    pieces: Vec<PieceHash>,
    /// The piece that is being filled.
    piece: Vec<u8>,
    written_bytes: u64,
}

impl NarWriter {
    /// Begins to write the nar of this hash and size.
    ///
    /// # Errors
    /// Failures of the disk.
    pub fn new(store: &Store, nar: NarHash, layout: PieceLayout) -> Result<Self, StoreError> {
        let partial = PartialNar::create(&store.inner, &nar, layout)?;
        Ok(Self {
            partial,
            layout,
            hasher: Sha256::new(),
            pieces: Vec::new(),
            piece: Vec::new(),
            written_bytes: 0,
        })
    }

    /// Takes the next octets of the nar, as many or few as they come.
    ///
    /// # Errors
    /// [`StoreError::Size`] when there are more than the nar has, [`StoreError::Full`] and other
    /// failures of the disk.
    pub fn write(&mut self, mut octets: &[u8]) -> Result<(), StoreError> {
        let found_bytes = self.written_bytes.saturating_add(octets.len() as u64);
        if found_bytes > self.layout.nar_size() {
            return Err(self.size_error(found_bytes));
        }
        self.written_bytes = found_bytes;
        self.hasher.update(octets);
        while !octets.is_empty() {
            let piece_len = self.layout.piece_len(self.pieces.len() as u32);
            let (now, later) = octets.split_at(octets.len().min(piece_len - self.piece.len()));
            octets = later;
            if now.len() == piece_len {
                // A whole piece needn't be copied together.
                self.write_piece(now)?;
                continue;
            }
            self.piece.extend_from_slice(now);
            if self.piece.len() == piece_len {
                let piece = std::mem::take(&mut self.piece);
                self.write_piece(&piece)?;
                self.piece = piece;
                self.piece.clear();
            }
        }
        Ok(())
    }

    fn write_piece(&mut self, piece: &[u8]) -> Result<(), StoreError> {
        let index = self.pieces.len() as u32;
        self.partial.write_piece(index, &encode_piece(piece))?;
        self.pieces.push(hash_piece(piece));
        Ok(())
    }

    /// Puts the nar into the cache if it is whole and has its hash.
    ///
    /// # Errors
    /// [`StoreError::Size`] and [`StoreError::Mismatch`] when it isn't what it was announced as,
    /// and failures of the disk. Nothing of it stays then.
    pub fn finish(mut self) -> Result<Arc<HeldNar>, StoreError> {
        if self.written_bytes != self.layout.nar_size() {
            return Err(self.size_error(self.written_bytes));
        }
        let expected = self.partial.nar_hash();
        let found = NarHash(std::mem::take(&mut self.hasher).finalize().into());
        if found != expected {
            return Err(StoreError::Mismatch { expected, found });
        }
        let pieces = std::mem::take(&mut self.pieces);
        let list = PieceList::new(self.layout, pieces)
            .expect("as many pieces were cut as the layout has, the size being right");
        self.partial.finish(&list, list.root(&expected))
    }

    fn size_error(&self, found_bytes: u64) -> StoreError {
        StoreError::Size {
            nar: self.partial.nar_hash(),
            expected_bytes: self.layout.nar_size(),
            found_bytes,
        }
    }
}

impl Drop for NarWriter {
    fn drop(&mut self) {
        // A stream can't be gone on with. Does nothing once finished.
        self.partial.abandon();
    }
}
