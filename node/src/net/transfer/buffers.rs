//! Buffers for pieces, used again once their readers have let go of them.
//!
//! A fresh buffer a piece costs as much as decrypting it: the allocator gives large blocks back to
//! the kernel, which clears them anew, or keeps them in as many heaps as there are threads. So all
//! fetches share these, for frames as they come and for what they decode to.

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use std::sync::Arc;

/// Octets of free buffers that are kept while pieces come: by how much what the readers hold goes
/// up and down.
const FREE_BYTES: usize = 8 << 20;

/// Buffers that are remembered, free or not: more than all pieces of the smallest common size that
/// one fetch holds at a time.
const MAX_BUFFERS: usize = 256;

/// What is smaller is cheap to allocate.
const LEAST_BYTES: usize = 64 << 10;

/// See the module. Clones are the same buffers.
#[derive(Debug, Clone, Default)]
pub struct Buffers(Arc<Mutex<Vec<Buffer>>>);

#[derive(Debug)]
struct Buffer {
    /// Shared with those who read it.
    octets: Bytes,
    capacity: usize,
}

impl Buffer {
    fn is_free(&self) -> bool {
        self.octets.is_unique()
    }

    /// Whether a piece of `len` octets fits and wouldn't hold much more memory than it needs.
    fn fits(&self, len: usize) -> bool {
        (len..=2 * len).contains(&self.capacity)
    }
}

impl Buffers {
    /// A buffer of `len` octets of whatever content.
    pub fn take(&self, len: usize) -> BytesMut {
        let free = {
            let mut buffers = self.0.lock();
            let place = buffers.iter().position(|buffer| buffer.fits(len) && buffer.is_free());
            place.map(|place| buffers.swap_remove(place))
        };
        match free.and_then(|buffer| buffer.octets.try_into_mut().ok()) {
            Some(mut octets) => {
                octets.resize(len, 0);
                octets
            }
            None => BytesMut::zeroed(len),
        }
    }

    /// Gives out a filled buffer, to have it back some day.
    pub fn give(&self, filled: BytesMut) -> Bytes {
        let (capacity, octets) = (filled.capacity(), filled.freeze());
        if capacity < LEAST_BYTES {
            return octets;
        }
        let mut buffers = self.0.lock();
        if buffers.len() >= MAX_BUFFERS {
            buffers.swap_remove(0);
        }
        let mut free_bytes = 0;
        buffers.retain(|buffer| {
            if buffer.is_free() {
                free_bytes += buffer.capacity;
            }
            free_bytes <= FREE_BYTES || !buffer.is_free()
        });
        buffers.push(Buffer { octets: octets.clone(), capacity });
        octets
    }

    /// Lets go of all buffers: what is being read is freed by its readers. For when a fetch ends.
    pub fn release(&self) {
        self.0.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: usize = 256 * 1024;

    fn give(buffers: &Buffers, octet: u8, len: usize) -> Bytes {
        let mut buffer = buffers.take(len);
        buffer.fill(octet);
        buffers.give(buffer)
    }

    fn free_bytes(buffers: &Buffers) -> usize {
        let buffers = buffers.0.lock();
        buffers.iter().filter(|buffer| buffer.is_free()).map(|buffer| buffer.capacity).sum()
    }

    #[test]
    fn what_is_let_go_of_is_used_again_and_what_is_held_is_not() {
        let buffers = Buffers::default();
        let held = give(&buffers, 1, PIECE);
        let free = give(&buffers, 2, PIECE);
        let place = free.as_ptr();
        drop(free);
        let again = give(&buffers, 3, PIECE - 1000);
        assert_eq!(again.as_ptr(), place, "the same memory");
        assert_eq!((again.len(), held.iter().all(|&octet| octet == 1)), (PIECE - 1000, true));
        let slice = again.slice(..1);
        drop(again);
        assert_ne!(give(&buffers, 4, PIECE).as_ptr(), place, "a slice holds it");
        assert_eq!(slice[0], 3);
    }

    #[test]
    fn a_small_piece_does_not_hold_a_large_buffer() {
        let buffers = Buffers::default();
        let place = give(&buffers, 1, 4 * PIECE).as_ptr();
        assert_ne!(give(&buffers, 2, PIECE).as_ptr(), place);
        assert_eq!(give(&buffers, 3, 2 * PIECE).as_ptr(), place, "half of it is used");
    }

    #[test]
    fn no_more_is_kept_than_allowed_and_nothing_in_the_end() {
        let buffers = Buffers::default();
        for len in [1, PIECE, FREE_BYTES / 2 + 1, 2 * FREE_BYTES] {
            let held: Vec<_> = (0..40).map(|_| give(&buffers, 0, len)).collect();
            drop(held);
            drop(give(&buffers, 0, len));
            assert!(free_bytes(&buffers) <= FREE_BYTES + 2 * len, "{len}");
        }
        let held: Vec<_> = (0..2 * MAX_BUFFERS).map(|_| give(&buffers, 0, LEAST_BYTES)).collect();
        assert!(buffers.0.lock().len() <= MAX_BUFFERS);
        drop(held);
        buffers.release();
        assert_eq!(free_bytes(&buffers), 0);
    }
}
