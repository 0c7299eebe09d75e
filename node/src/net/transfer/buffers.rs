//! Buffers for pieces, used again once their readers have let go of them.
//!
//! A fresh buffer a piece costs as much as decrypting it: the allocator gives large blocks back to
//! the kernel, which clears them anew.

use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;

/// Octets that one session keeps for its next pieces: what a reader usually holds at a time.
const KEPT_BYTES: usize = 4 << 20;

/// How many kept buffers are looked at before a new one is made; the oldest are the likeliest to
/// be free.
const LOOKED_AT: usize = 4;

/// See the module.
#[derive(Default)]
pub struct Buffers {
    /// The pieces given out last, oldest first.
    given: VecDeque<Bytes>,
    kept: usize,
}

impl Buffers {
    /// A buffer of `len` octets of whatever content.
    pub fn take(&mut self, len: usize) -> BytesMut {
        for _ in 0..LOOKED_AT.min(self.given.len()) {
            let Some(oldest) = self.given.pop_front() else { break };
            self.kept -= oldest.len();
            match oldest.try_into_mut() {
                Ok(mut free) => {
                    free.resize(len, 0);
                    return free;
                }
                Err(held) => self.keep(held),
            }
        }
        BytesMut::zeroed(len)
    }

    /// Gives out a filled buffer, to have it back some day.
    pub fn give(&mut self, filled: BytesMut) -> Bytes {
        let filled = filled.freeze();
        self.keep(filled.clone());
        filled
    }

    fn keep(&mut self, buffer: Bytes) {
        if buffer.len() > KEPT_BYTES {
            return;
        }
        self.kept += buffer.len();
        self.given.push_back(buffer);
        while self.kept > KEPT_BYTES {
            let Some(dropped) = self.given.pop_front() else { break };
            self.kept -= dropped.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: usize = 256 * 1024;

    #[test]
    fn what_is_let_go_of_is_used_again_and_what_is_held_is_not() {
        let mut buffers = Buffers::default();
        let mut give = |octet: u8, len| {
            let mut buffer = buffers.take(len);
            buffer.fill(octet);
            buffers.give(buffer)
        };
        let held = give(1, PIECE);
        let (free, at) = (give(2, PIECE), |bytes: &Bytes| bytes.as_ptr());
        let place = at(&free);
        drop(free);
        let again = give(3, PIECE - 1000);
        assert_eq!(at(&again), place, "the same memory");
        assert_eq!((again.len(), held.iter().all(|&octet| octet == 1)), (PIECE - 1000, true));
        let slice = again.slice(..1);
        drop(again);
        assert_ne!(at(&give(4, PIECE)), place, "a slice holds it");
        assert_eq!(slice[0], 3);
    }

    #[test]
    fn no_more_is_kept_than_allowed() {
        let mut buffers = Buffers::default();
        for len in [PIECE, 2 * KEPT_BYTES, KEPT_BYTES, 1] {
            for _ in 0..40 {
                let buffer = buffers.take(len);
                drop(buffers.give(buffer));
                let kept: usize = buffers.given.iter().map(Bytes::len).sum();
                assert!(kept == buffers.kept && kept <= KEPT_BYTES);
            }
        }
    }
}
