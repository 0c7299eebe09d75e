//! Pieces as zstd frames: one frame a piece, as they lie in cache files and travel between peers.
//!
//! A frame from a peer is hostile input. It must be one frame of exactly the piece's size that
//! any decoder can take: nothing is allocated before its header has been found to say so, and
//! what a stream decoder would need as a window is bounded too, since cached frames are served to
//! HTTP clients as they are.

use crate::buffers;
use bytes::Bytes;
use narswarm_protocol::limits::MAX_FRAME_WINDOW_BYTES;
use parking_lot::Mutex;
use std::io;
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe;

/// The compression level of what this node compresses itself: higher ones save 2–5 % on nars and
/// cost twice the time, lower ones save little time.
pub const LEVEL: i32 = 3;

/// Contexts kept for reuse of each kind. A compressor has 1.3 MB, a decompressor 160 kB, and more
/// than eight at once happen only in bursts.
const MAX_IDLE_CONTEXTS: usize = 8;

const MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();

static COMPRESSORS: Mutex<Vec<Compressor<'static>>> = Mutex::new(Vec::new());
static DECOMPRESSORS: Mutex<Vec<Decompressor<'static>>> = Mutex::new(Vec::new());

/// Why octets are not the frame of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not the beginning of a zstd frame (skippable frames included).
    #[error("not a zstd frame")]
    Magic,
    /// Longer than any frame of so many octets needs to be.
    #[error("a frame of {found_bytes} bytes where {max_bytes} suffice")]
    TooLong {
        /// Octets of the frame.
        found_bytes: usize,
        /// The bound.
        max_bytes: usize,
    },
    /// The header doesn't say how much the frame decodes to.
    #[error("the frame doesn't tell its content size")]
    NoContentSize,
    /// The frame decodes to another size than the piece has.
    #[error("the frame decodes to {found_bytes} bytes, the piece has {expected_bytes}")]
    ContentSize {
        /// Octets of the piece.
        expected_bytes: usize,
        /// What the header says.
        found_bytes: u64,
    },
    /// The frame needs a dictionary.
    #[error("the frame needs a dictionary")]
    Dictionary,
    /// A stream decoder would need more memory than every decoder has.
    #[error("the frame needs a window of {found_bytes} bytes")]
    Window {
        /// Octets of the window.
        found_bytes: u64,
    },
    /// The frame ends early or its blocks are malformed.
    #[error("the frame is truncated or damaged")]
    Damaged,
    /// Octets follow the frame: further frames or garbage.
    #[error("{found_bytes} bytes follow the frame")]
    Trailing {
        /// How many.
        found_bytes: usize,
    },
}

/// Most octets that the frame of a piece of `piece_len` octets may have.
#[must_use]
pub fn max_frame_len(piece_len: usize) -> usize {
    zstd_safe::compress_bound(piece_len)
}

/// Compresses a piece to one frame that tells its content size.
///
/// # Panics
/// Only when zstd cannot allocate its context.
#[must_use]
pub fn encode_piece(piece: &[u8]) -> Vec<u8> {
    let idle = COMPRESSORS.lock().pop();
    let mut compressor = idle.unwrap_or_else(|| {
        Compressor::new(LEVEL).expect("zstd has this level, and memory for a context")
    });
    let frame = compressor
        .compress(piece)
        .expect("compression into a buffer of the bound's size cannot fail");
    let mut idle = COMPRESSORS.lock();
    if idle.len() < MAX_IDLE_CONTEXTS {
        idle.push(compressor);
    }
    frame
}

/// Decodes the frame of a piece of exactly `piece_len` octets.
///
/// # Errors
/// See [`FrameError`]; nothing larger than the piece is ever allocated.
pub fn decode_frame(frame: &[u8], piece_len: usize) -> Result<Bytes, FrameError> {
    // Before there is a buffer of a size that nothing has been found to need.
    check_frame(frame, piece_len)?;
    let mut piece = buffers::take(piece_len);
    decode_frame_into(frame, &mut piece)?;
    Ok(piece.freeze())
}

/// As [`decode_frame`], into the memory of a piece that is there already.
///
/// # Errors
/// See [`FrameError`]; what is in `piece` then means nothing.
pub fn decode_frame_into(frame: &[u8], piece: &mut [u8]) -> Result<(), FrameError> {
    check_frame(frame, piece.len())?;
    match decompress(frame, piece)? {
        len if len == piece.len() => Ok(()),
        _ => Err(FrameError::Damaged),
    }
}

/// How many octets a frame decoded to.
fn decompress(frame: &[u8], into: &mut [u8]) -> Result<usize, FrameError> {
    let idle = DECOMPRESSORS.lock().pop();
    let mut decompressor = match idle {
        Some(decompressor) => decompressor,
        None => Decompressor::new().map_err(|_: io::Error| FrameError::Damaged)?,
    };
    let decoded = decompressor.decompress_to_buffer(frame, into);
    let mut idle = DECOMPRESSORS.lock();
    if idle.len() < MAX_IDLE_CONTEXTS {
        idle.push(decompressor);
    }
    decoded.map_err(|_| FrameError::Damaged)
}

/// Checks what can be checked of a frame without decoding it: that it is one frame, whole, for a
/// piece of `piece_len` octets, and decodable by anyone.
///
/// # Errors
/// See [`FrameError`].
pub fn check_frame(frame: &[u8], piece_len: usize) -> Result<(), FrameError> {
    let max_bytes = max_frame_len(piece_len);
    if frame.len() > max_bytes {
        return Err(FrameError::TooLong { found_bytes: frame.len(), max_bytes });
    }
    if frame.get(..4) != Some(&MAGIC) {
        return Err(FrameError::Magic);
    }
    let content = zstd_safe::get_frame_content_size(frame).map_err(|_| FrameError::Damaged)?;
    let content = content.ok_or(FrameError::NoContentSize)?;
    if content != piece_len as u64 {
        return Err(FrameError::ContentSize { expected_bytes: piece_len, found_bytes: content });
    }
    let (descriptor, window_descriptor) = match frame.get(4..6) {
        Some(&[descriptor, window]) => (descriptor, window),
        _ => return Err(FrameError::Damaged),
    };
    if descriptor & 3 != 0 {
        return Err(FrameError::Dictionary);
    }
    let window = window_bytes(descriptor, window_descriptor, content);
    if window > MAX_FRAME_WINDOW_BYTES {
        return Err(FrameError::Window { found_bytes: window });
    }
    let len = zstd_safe::find_frame_compressed_size(frame).map_err(|_| FrameError::Damaged)?;
    match frame.len().checked_sub(len) {
        Some(0) => Ok(()),
        Some(rest) => Err(FrameError::Trailing { found_bytes: rest }),
        None => Err(FrameError::Damaged),
    }
}

/// RFC 8878, 3.1.1.1.2: the window is the content itself in a single-segment frame, else a
/// floating-point number of five and three bits.
fn window_bytes(descriptor: u8, window_descriptor: u8, content: u64) -> u64 {
    const SINGLE_SEGMENT: u8 = 1 << 5;
    if descriptor & SINGLE_SEGMENT != 0 {
        return content;
    }
    let base = 1u64 << (10 + (window_descriptor >> 3));
    base + base / 8 * u64::from(window_descriptor & 7)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    const PIECE: usize = 256 * 1024;

    fn noise(len: usize) -> Vec<u8> {
        let mut octets = vec![0; len];
        blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut octets);
        octets
    }

    #[test]
    fn pieces_survive() {
        for piece in [vec![], vec![7], vec![0; PIECE], noise(PIECE), noise(5)] {
            let frame = encode_piece(&piece);
            assert!(frame.len() <= max_frame_len(piece.len()));
            assert_eq!(decode_frame(&frame, piece.len()), Ok(Bytes::from(piece)));
        }
    }

    #[test]
    fn refuses_a_bomb_before_decoding_it() {
        let bomb = encode_piece(&vec![0; 64 << 20]);
        assert!(bomb.len() < 10_000);
        assert_eq!(
            decode_frame(&bomb, PIECE),
            Err(FrameError::ContentSize { expected_bytes: PIECE, found_bytes: 64 << 20 })
        );
        let short = encode_piece(&vec![0; PIECE - 1]);
        assert!(matches!(decode_frame(&short, PIECE), Err(FrameError::ContentSize { .. })));
    }

    #[test]
    fn refuses_a_bomb_that_lies_about_its_size() {
        // A single-segment frame says 1 octet in its header, but its one block repeats an octet
        // 100,000 times.
        let block = (100_000u32 << 3) | (1 << 1) | 1;
        let mut frame = MAGIC.to_vec();
        frame.extend([0x20, 1]);
        frame.extend(&block.to_le_bytes()[..3]);
        frame.push(b'x');
        assert_eq!(decode_frame(&frame, 1), Err(FrameError::Damaged));
    }

    #[test]
    fn refuses_what_is_cut_off() {
        let frame = encode_piece(&noise(1000));
        for len in 0..frame.len() {
            let error = decode_frame(&frame[..len], 1000).expect_err("cut off");
            assert!(matches!(error, FrameError::Magic | FrameError::Damaged), "{len}: {error}");
        }
    }

    #[test]
    fn refuses_more_than_one_frame() {
        let zeros = vec![0; 1000];
        let frame = encode_piece(&zeros);
        let with = |tail: &[u8]| [&frame, tail].concat();
        assert_eq!(
            decode_frame(&with(b"garbage"), 1000),
            Err(FrameError::Trailing { found_bytes: 7 })
        );
        assert!(matches!(decode_frame(&with(&frame), 1000), Err(FrameError::Trailing { .. })));
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
        assert!(matches!(decode_frame(&with(&skippable), 1000), Err(FrameError::Trailing { .. })));
        assert_eq!(decode_frame(&skippable, 0), Err(FrameError::Magic));
        assert_eq!(
            decode_frame(&[&skippable, frame.as_slice()].concat(), 1000),
            Err(FrameError::Magic)
        );
        assert!(matches!(
            decode_frame(&with(&vec![0; 5000]), 1000),
            Err(FrameError::TooLong { max_bytes, .. }) if max_bytes == max_frame_len(1000)
        ));
    }

    #[test]
    fn refuses_frames_without_content_size() {
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).expect("encoder");
        encoder.write_all(&[0; 1000]).expect("write");
        let frame = encoder.finish().expect("finish");
        assert_eq!(decode_frame(&frame, 1000), Err(FrameError::NoContentSize));
    }

    #[test]
    fn refuses_windows_that_not_every_decoder_has() {
        // Not a single segment, a content size of four octets, a window of 2 GiB; the block
        // repeats an octet.
        let mut frame = MAGIC.to_vec();
        frame.extend([0x80, 21 << 3]);
        frame.extend(1000u32.to_le_bytes());
        frame.extend(&((1000u32 << 3) | (1 << 1) | 1).to_le_bytes()[..3]);
        frame.push(b'x');
        assert_eq!(decode_frame(&frame, 1000), Err(FrameError::Window { found_bytes: 1 << 31 }));
        frame[5] = 13 << 3;
        assert_eq!(decode_frame(&frame, 1000), Ok(Bytes::from(vec![b'x'; 1000])));
    }

    #[test]
    fn refuses_dictionaries() {
        let mut frame = encode_piece(&[1; 1000]);
        frame[4] |= 1;
        frame.insert(5, 9);
        assert_eq!(decode_frame(&frame, 1000), Err(FrameError::Dictionary));
    }

    proptest! {
        #[test]
        fn hostile_octets_never_panic(
            mut octets in proptest::collection::vec(any::<u8>(), 0..300),
            genuine: bool,
            len in 0usize..2000,
        ) {
            if genuine {
                octets.splice(..0, MAGIC);
            }
            if let Ok(piece) = decode_frame(&octets, len) {
                prop_assert_eq!(piece.len(), len);
            }
        }

        #[test]
        fn flipped_bits_never_give_another_size(at in 0usize..2000, bit in 0u8..8) {
            let mut frame = encode_piece(&noise(1500));
            let at = at % frame.len();
            frame[at] ^= 1 << bit;
            if let Ok(piece) = decode_frame(&frame, 1500) {
                prop_assert_eq!(piece.len(), 1500);
            }
        }
    }
}
