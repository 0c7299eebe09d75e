//! Buffers for pieces, used again once their readers have let go of them.
//!
//! A fresh buffer a piece costs as much as decrypting it: an allocator gives large blocks back to
//! the kernel, which clears them anew, or keeps them in as many heaps as there are threads, with
//! holes between them. So these are memory of their own, mapped from the kernel, and everybody shares
//! them: frames as they come or are read, and what they decode to.

use bytes::Bytes;
use memmap2::MmapMut;
use narswarm_protocol::limits::LARGE_PIECE_BYTES;
use parking_lot::Mutex;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, LazyLock};

/// Octets of free buffers that are kept while pieces come: by how much what the readers hold goes
/// up and down from one moment to the next.
const FREE_BYTES: usize = 8 << 20;

/// The same of buffers above [`LARGE_PIECE_BYTES`], of which a fetch holds fewer and fills each for longer: what is
/// kept of them counts for more of its memory than it saves in time.
const FREE_LARGE_BYTES: usize = 2 << 20;

/// What is smaller is cheap to allocate.
const LEAST_BYTES: usize = 64 << 10;

/// Those of the whole process, like its heap.
static SHARED: LazyLock<Buffers> = LazyLock::new(Buffers::default);

/// See the module. Clones are the same buffers.
#[derive(Debug, Clone, Default)]
struct Buffers(Arc<Mutex<Free>>);

/// A buffer of `len` octets of whatever content.
#[must_use]
pub fn take(len: usize) -> Buffer {
    SHARED.take(len)
}

/// Lets go of all that nobody uses. For when a fetch ends; others that run begin anew to keep some.
pub fn release() {
    SHARED.release();
}

/// What nobody uses now.
#[derive(Debug, Default)]
struct Free {
    maps: Vec<MmapMut>,
    bytes: usize,
    /// Whether pieces come, so that it is worth while to keep some.
    is_busy: bool,
}

impl Free {
    /// One in which so many octets fit and that wouldn't hold much more memory than they need.
    fn take(&mut self, len: usize) -> Option<MmapMut> {
        self.is_busy = true;
        let place = self.maps.iter().position(|map| (len..=2 * len).contains(&map.len()))?;
        let map = self.maps.swap_remove(place);
        self.bytes -= map.len();
        Some(map)
    }

    fn put(&mut self, map: MmapMut) {
        let most = if map.len() as u64 > LARGE_PIECE_BYTES { FREE_LARGE_BYTES } else { FREE_BYTES };
        if self.is_busy && self.bytes + map.len() <= most {
            self.bytes += map.len();
            self.maps.push(map);
        }
    }
}

#[derive(Debug)]
enum Memory {
    Allocated(Vec<u8>),
    Mapped(MmapMut),
}

/// Memory for one piece, to be filled.
#[derive(Debug)]
pub struct Buffer {
    memory: Memory,
    len: usize,
    home: Buffers,
}

impl Buffers {
    fn take(&self, len: usize) -> Buffer {
        let memory = if len < LEAST_BYTES {
            Memory::Allocated(vec![0; len])
        } else {
            let free = self.0.lock().take(len);
            // The kernel may have no more maps to give, and memory nevertheless.
            let map = free.or_else(|| MmapMut::map_anon(len).ok());
            map.map_or_else(|| Memory::Allocated(vec![0; len]), Memory::Mapped)
        };
        Buffer { memory, len, home: self.clone() }
    }

    fn release(&self) {
        *self.0.lock() = Free::default();
    }
}

impl Buffer {
    /// The buffer as it is now, for readers. It is used again when they have all let go of it.
    #[must_use]
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.memory {
            Memory::Allocated(octets) => octets,
            Memory::Mapped(map) => &map[..self.len],
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Allocated(octets) => octets,
            Memory::Mapped(map) => &mut map[..self.len],
        }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let memory = std::mem::replace(&mut self.memory, Memory::Allocated(Vec::new()));
        if let Memory::Mapped(map) = memory {
            self.home.0.lock().put(map);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: usize = 256 * 1024;

    fn give(buffers: &Buffers, octet: u8, len: usize) -> Bytes {
        let mut buffer = buffers.take(len);
        assert_eq!(buffer.len(), len);
        buffer.fill(octet);
        buffer.freeze()
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
        for len in [1, LEAST_BYTES, PIECE, 4 * PIECE, FREE_BYTES / 2 + 1, 2 * FREE_BYTES] {
            let held: Vec<_> = (0..40).map(|_| give(&buffers, 0, len)).collect();
            drop(held);
            let free = buffers.0.lock();
            assert!(free.bytes <= FREE_BYTES, "{len}");
            assert_eq!(free.bytes, free.maps.iter().map(|map| map.len()).sum::<usize>());
        }
        let held = give(&buffers, 0, PIECE);
        buffers.release();
        drop(held);
        assert_eq!(buffers.0.lock().bytes, 0, "what was still read isn't kept either");
    }
}
