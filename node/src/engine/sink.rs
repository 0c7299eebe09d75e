//! The end of a fetch's pipeline, on a thread of its own: writes pieces to disk as they come and
//! hashes the nar in order.
//!
//! SHA-256 is the receiver's largest cost; it is paid once, here, while receiving.

use super::progress::Progress;
use crate::store::{self, PartialNar, StoreError};
use bytes::Bytes;
use narswarm_protocol::hash::{NarHash, PieceHash};
use narswarm_protocol::limits;
use narswarm_protocol::piece::{PieceLayout, hash_piece};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// A new, checked piece.
#[derive(Debug)]
pub struct Piece {
    /// Its place.
    pub index: u32,
    /// Its octets.
    pub raw: Bytes,
    /// The zstd frame that it came as, if it did.
    pub frame: Option<Bytes>,
    /// Its place in memory on the way here, free again once it is written and hashed.
    pub _room: Option<OwnedSemaphorePermit>,
}

/// What the sink is told.
#[derive(Debug)]
pub enum ToSink {
    /// A piece has come.
    Piece(Piece),
    /// A piece turned out wrong; another will come for it.
    Discard(u32),
}

/// What the sink has to say.
#[derive(Debug)]
pub enum SinkEvent {
    /// The disk can't take more; the fetch goes on in memory.
    DiskLost(StoreError),
    /// All pieces are hashed.
    Hashed {
        /// SHA-256 of the whole.
        nar_hash: NarHash,
        /// BLAKE3 of each piece.
        pieces: Vec<PieceHash>,
    },
    /// A piece could not be read back for hashing.
    Broken(StoreError),
}

/// Pieces that wait in the queue to the sink: enough to ride over a slow write, 2 MiB of the
/// smallest.
pub const QUEUE: usize = 8;

struct Sink {
    layout: PieceLayout,
    disk: Option<Arc<PartialNar>>,
    progress: Arc<Progress>,
    hasher: Sha256,
    hashes: Vec<PieceHash>,
    /// The piece to hash next.
    next: u32,
    /// Pieces that came early.
    early: BTreeMap<u32, Bytes>,
    early_bytes: usize,
    held: Vec<bool>,
}

/// Runs until the fetch ends; blocking. `resumed` are the pieces that are on disk already.
pub fn run(
    layout: PieceLayout,
    disk: Option<Arc<PartialNar>>,
    resumed: &BTreeMap<u32, PieceHash>,
    progress: Arc<Progress>,
    mut pieces: mpsc::Receiver<ToSink>,
    say: &mpsc::Sender<SinkEvent>,
) {
    let mut sink = Sink::new(layout, disk, progress);
    for (&index, &hash) in resumed {
        sink.hashes[index as usize] = hash;
        sink.held[index as usize] = true;
    }
    let mut told = sink.advance();
    loop {
        match told {
            Ok(()) if sink.next == layout.piece_count() => {
                let nar_hash = NarHash(sink.hasher.clone().finalize().into());
                let pieces = sink.hashes.clone();
                let _ = say.blocking_send(SinkEvent::Hashed { nar_hash, pieces });
            }
            Ok(()) => {}
            Err(broken) => {
                let _ = say.blocking_send(SinkEvent::Broken(broken));
                return;
            }
        }
        told = match pieces.blocking_recv() {
            Some(ToSink::Piece(piece)) => {
                if let Some(lost) = sink.keep(&piece) {
                    let _ = say.blocking_send(SinkEvent::DiskLost(lost));
                }
                sink.hash(piece)
            }
            Some(ToSink::Discard(index)) => {
                sink.discard(index);
                Ok(())
            }
            None => return,
        };
    }
}

impl Sink {
    fn new(layout: PieceLayout, disk: Option<Arc<PartialNar>>, progress: Arc<Progress>) -> Self {
        let count = layout.piece_count() as usize;
        Self {
            layout,
            disk,
            progress,
            hasher: Sha256::new(),
            hashes: vec![PieceHash([0; 32]); count],
            next: 0,
            early: BTreeMap::new(),
            early_bytes: 0,
            held: vec![false; count],
        }
    }

    /// Forgets a piece. If it was hashed already, hashing begins anew, from disk.
    fn discard(&mut self, index: u32) {
        self.held[index as usize] = false;
        if let Some(raw) = self.early.remove(&index) {
            self.early_bytes -= raw.len();
        }
        if let Some(disk) = &self.disk {
            disk.discard(index);
        }
        if index < self.next {
            self.hasher = Sha256::new();
            self.next = 0;
        }
    }

    /// Writes a piece to disk; returns the error that made the disk useless, once.
    fn keep(&mut self, piece: &Piece) -> Option<StoreError> {
        let disk = self.disk.as_ref()?;
        let frame = match &piece.frame {
            Some(frame) => frame.clone(),
            None => store::encode_piece(&piece.raw).into(),
        };
        let error = disk.write_piece(piece.index, &frame).err()?;
        self.disk = None;
        self.progress.lose_disk();
        Some(error)
    }

    /// Hashes the piece and all early ones that follow it.
    fn hash(&mut self, piece: Piece) -> Result<(), StoreError> {
        let index = piece.index as usize;
        self.hashes[index] = hash_piece(&piece.raw);
        self.held[index] = true;
        if piece.index != self.next {
            self.early_bytes += piece.raw.len();
            self.early.insert(piece.index, piece.raw);
            self.forget_early();
            return Ok(());
        }
        self.hasher.update(&piece.raw);
        self.next += 1;
        self.advance()
    }

    /// Hashes what is held from the next piece on.
    fn advance(&mut self) -> Result<(), StoreError> {
        while self.held.get(self.next as usize) == Some(&true) {
            match (self.early.remove(&self.next), &self.disk) {
                (Some(raw), _) => {
                    self.early_bytes -= raw.len();
                    self.hasher.update(&raw);
                }
                (None, Some(disk)) => {
                    let len = self.layout.piece_len(self.next);
                    let raw = disk.read_piece(self.next, len).map_err(StoreError::from)?;
                    self.hasher.update(&raw);
                }
                (None, None) => {
                    let gone = std::io::Error::other("an early piece went with the disk");
                    return Err(StoreError::from(gone));
                }
            }
            self.next += 1;
        }
        Ok(())
    }

    /// With a disk, the early pieces that are needed last are read back later. Without, the
    /// fetch's horizon bounds them.
    fn forget_early(&mut self) {
        let most = limits::fetch_memory_bytes(self.layout.piece_size());
        while self.disk.is_some() && self.early_bytes > most {
            let Some((_, raw)) = self.early.pop_last() else { return };
            self.early_bytes -= raw.len();
        }
    }
}
